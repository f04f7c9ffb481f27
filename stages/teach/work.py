"""Stage one at work: workers, tasks, and what they bring into the store. Torch, open_clip and Dask come in here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from teachonce.cluster import client as cluster_client
from teachonce.cluster.workers import present_workers
from teachonce.core.devices import DeviceFacts, device_explained, device_facts
from teachonce.core.documents import readable
from teachonce.core.files import is_remote, neighbour
from teachonce.core.progress import Reporter
from teachonce.data.manifests import load_manifest
from teachonce.errors import DataError
from teachonce.keeping.beside import append_beside
from teachonce.keeping.bucket import is_made
from teachonce.keeping.staging import clear_staging
from teachonce.labels.direct import settle
from teachonce.labels.format import LABELS
from teachonce.labels.ledger import IN_TURN, PHASES
from teachonce.labels.size import bytes_per_row
from teachonce.labels.store import LabelStore
from teachonce.models.clip import LoadedClip
from teachonce.models.spec import absolute_spec
from teachonce.phrases import phrase
from teachonce.stages.teach.final_check import check
from teachonce.stages.teach.loading import load_models, say_what_carries, say_where, teach_job
from teachonce.stages.teach.outages import Outages
from teachonce.stages.teach.request import TeachRequest, TeachResult
from teachonce.teaching import chunk as chunk_tasks
from teachonce.teaching.chunk import TeachJob
from teachonce.teaching.delivery import ChunkReport, Deliveries
from teachonce.teaching.store import Encode, WantedStore, open_or_create
from teachonce.teaching.worker import encode_names
from teachonce.watching.board import Board
from teachonce.watching.stop import StopWatch
from teachonce.watching.watch import forget_workers, watched

ADVICE = {
    "read": phrase("the archives are read slowly; local disks, or more {workers} on other machines"),
    "decode": phrase("more {threads=N}, or more workers: decoding runs on CPU cores only"),
    "forward": phrase("the models keep the device busy, as they should; {precision=bf16} on a GPU, or more workers"),
    "top_k": phrase("the vocabulary is large for this device; a larger {set} batch_size, or a smaller {top_k}"),
    "write": phrase("the store's disk is slow, or chunks are small; a larger {chunk_rows}"),
}

SMALLER = phrase("a smaller {batch_size=32}, or {class_tile=4096}; `nvidia-smi` shows who else uses the GPU")


def complete(
    request: TeachRequest, wanted: WantedStore, token: int, stop: StopWatch, began: float, reporter: Reporter
) -> TeachResult:
    """Complete the store; the caller holds its lock, and `token` is the lock's.

    Args:
        stop: knows of requests to stop.
        began: on the monotonic clock.

    Raises:
        UnsupportedModelError: a student can carry prompts in neither tower, and `features_only` was not asked for.
        DataError: too many images failed.
        FingerprintError: the store at this path was made from something else.
        IncompleteError: chunks are missing at the end, or somebody asked this run to stop.
    """
    if not is_remote(request.labels):  # in a bucket, claims are settled first, when the store is opened
        clear_staging(request.labels)

    def heed() -> None:
        stop.heed("no chunk has been begun")

    def heed_in_check() -> None:
        stop.heed("all chunks are committed, and some of them not read back")

    with cluster_client.open_cluster(request.cluster, reporter) as client:
        importing = cluster_client.warm_up(client, chunk_tasks.get_ready)  # while this process prepares
        facts = _device_of_workers(client, request, heed, reporter)
        wanted = wanted.settled(facts.bf16)
        models = load_models(request, reporter, "cpu")  # a GPU belongs to the workers
        cluster_client.expect_memory(client, psutil.Process().memory_info().rss, reporter)  # workers load the same
        say_what_carries(models, reporter, request.features_only)
        say_where(facts, wanted, request.computing.threads or cluster_client.threads_of(request.cluster), reporter)
        with device_explained(SMALLER):
            encode = _encoding(client, request, heed, reporter) if facts.is_gpu else None
            store = open_or_create(wanted, models, reporter, encode)
            groups = (LABELS, *(group for group in models if group != LABELS))
            tally = _run(client, teach_job(request, wanted, token, models), store, groups, request, stop, reporter)
            check(client, store, groups, token, reporter, with_workers=tally.written > 0, heed=heed_in_check)
        del importing
    if is_remote(request.labels):
        settle(store)
    else:
        clear_staging(request.labels)
    forget_workers(store.path)
    return _result(request, store, tally, time.monotonic() - began)


def _device_of_workers(client: Any, request: TeachRequest, heed: Callable[[], None], reporter: Reporter) -> DeviceFacts:
    """What the workers compute on; a worker is asked where this process cannot know, or where it is a GPU."""
    asked = request.computing.device
    if cluster_client.runs_here(request.cluster):
        facts = device_facts(asked)
        return cluster_client.facts_of_a_worker(client, asked, reporter, heed) if facts.is_gpu else facts
    if asked == "cpu" or is_made(request.labels):
        return DeviceFacts(device=asked, bf16=False)  # nothing depends on more: the store has a number format
    return cluster_client.facts_of_a_worker(client, asked, reporter, heed)


def _encoding(client: Any, request: TeachRequest, heed: Callable[[], None], reporter: Reporter) -> Encode:
    """Class embeddings by a worker with a GPU, where the CPU of this process would take minutes."""
    computing = request.computing

    def encode(teacher: LoadedClip, wanted: WantedStore) -> npt.NDArray[np.float32]:
        model = (absolute_spec(teacher.spec), teacher.digest)
        names = wanted.vocabulary.names
        arguments = (model, computing.compiled, computing.device, names, wanted.templates)
        (features,) = cluster_client.run_tasks(
            client, encode_names, [arguments], "class-names", reporter, each_look=heed
        )
        return features

    return encode


Work = tuple[TeachJob, int, tuple[str, ...]]
"""A chunk that is missing: what all chunks have in common, its number, the column groups that it lacks."""


@dataclass
class _Tally:
    """Counts of this run, as reports come in."""

    written: int = 0
    skipped: int = 0
    rows: int = 0
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    board: Board = field(default_factory=lambda: Board(IN_TURN))


def _run(
    client: Any,
    job: TeachJob,
    store: LabelStore,
    groups: tuple[str, ...],
    request: TeachRequest,
    stop: StopWatch,
    reporter: Reporter,
) -> _Tally:
    done = {group: set(store.committed(group)) for group in groups}
    if request.retry_failed:
        _drop_failed(store, done, reporter)
    _drop_orphans(store, done)
    work = [
        (job, c, missing)
        for c in range(store.layout.chunks)
        if (missing := tuple(g for g in groups if c not in done[g]))
    ]
    # Failures of earlier runs count too: the limit holds for the store, and a second call must not forget them.
    failed = {c: record.rows_failed for c, record in enumerate(store.records(LABELS)) if record}
    excused = _known_bad(request, store)
    _require_few_failures(sum(failed.values()) - excused, request, store)
    tally = _Tally(skipped=store.layout.chunks - len(work), phases=dict.fromkeys(PHASES, 0.0))
    _compute(client, job, store, work, tally, failed, excused, request, stop, reporter)
    stop.look()  # a worker may have seen a request before this process did, and computed nothing
    stop.heed(f"{store.layout.chunks - len(work) + tally.written} of {store.layout.chunks} chunks are committed")
    return tally


def _compute(
    client: Any,
    job: TeachJob,
    store: LabelStore,
    work: list[Work],
    tally: _Tally,
    failed: dict[int, int],
    excused: int,
    request: TeachRequest,
    stop: StopWatch,
    reporter: Reporter,
) -> None:
    """Have workers compute chunks, and commit them, until all are there or somebody asks to stop.

    Args:
        tally: counts what comes.
        failed: rows that failed, by chunk; those of the chunks that come are put in.
        excused: number of rows that may fail beyond the share that the request allows.
    """
    total = sum(end - start for _, c, _ in work for start, end in [store.layout.bounds(c)])
    began = time.monotonic()
    if work:
        reporter.progress("teach", 0, total, "rows")
    with (
        _watched(client, job, store, tally, len(work), reporter),
        Deliveries(store, job.token) as deliveries,
    ):
        outages = Outages(client, reporter)

        def take(all_of_them: bool = False) -> None:
            outages.pass_on()
            for report, brought in deliveries.ended(all_of_them=all_of_them):
                _count(tally, report, brought, store)
                if LABELS in brought:  # other groups bring no new failures, nor does a task that ran twice
                    failed[report.chunk] = report.rows_failed
                _require_few_failures(sum(failed.values()) - excused, request, store)
                reporter.progress("teach", tally.rows, total, "rows", failed=sum(failed.values()), **_shares(tally))

        for report in cluster_client.run_tasks(
            client,
            chunk_tasks.run_chunk,
            stop.until_asked(work),
            f"teach-{job.token:x}",
            reporter,
            each_look=take,
            stopping=stop.asked,
        ):
            deliveries.add(report)
        take(all_of_them=True)
    tally.seconds = time.monotonic() - began


def _watched(
    client: Any, job: TeachJob, store: LabelStore, tally: _Tally, chunks: int, reporter: Reporter
) -> AbstractContextManager[None]:
    """Keep the board of this run beside the store while its chunks are computed."""
    return watched(
        store.path,
        job.token,
        tally.board,
        look=lambda: present_workers(client),
        chunks_left=lambda: chunks - tally.written,
        reporter=reporter,
    )


def _drop_failed(store: LabelStore, done: dict[str, set[int]], reporter: Reporter) -> None:
    """Forget the chunks in which images failed, with all that was computed beside them, so that they run again."""
    again = [c for c in done[LABELS] if (record := store.record(LABELS, c)) and record.rows_failed]
    for chunk in again:
        store.drop(LABELS, chunk)
        done[LABELS].discard(chunk)
    reporter.note(f"{len(again)} chunks hold images that failed; they are computed again")


def _drop_orphans(store: LabelStore, done: dict[str, set[int]]) -> None:
    """Drop the other column groups of chunks whose labels were lost: their images may have changed since."""
    for group in store.groups:
        for chunk in set(store.committed(group)) - done[LABELS]:
            store.drop(group, chunk)
            done.get(group, set()).discard(chunk)


def _known_bad(request: TeachRequest, store: LabelStore) -> int:
    """The number of rows whose images the manifest knows to be unreadable: they are expected to fail."""
    return len(load_manifest(request.data.manifest).split(request.data.split).known_bad) * store.layout.views


def _require_few_failures(failed: int, request: TeachRequest, store: LabelStore) -> None:
    if failed > request.max_failed_share * store.layout.rows:
        raise DataError(
            f"{failed} of {store.layout.rows} images failed, over max_failed_share = {request.max_failed_share}; "
            f"reasons are in {_failure_log(store)}",
            hint=phrase("look at the archives; add {max_failed_share=...} if these images are known to be bad"),
        )


def _count(tally: _Tally, report: ChunkReport, brought: tuple[str, ...], store: LabelStore) -> None:
    if not brought:
        tally.skipped += 1
        return
    tally.written += 1
    tally.rows += report.rows_ok + report.rows_failed
    tally.board.take(report.worker, report.rows_ok + report.rows_failed, report.seconds, report.phases)
    for phase, seconds in report.phases.items():
        tally.phases[phase] += seconds
    if report.faults and LABELS in brought:
        lines = (
            json.dumps({"chunk": report.chunk, "key": readable(key), "reason": reason}) for key, reason in report.faults
        )
        append_beside(_failure_log(store), "".join(f"{line}\n" for line in lines))


def _failure_log(store: LabelStore) -> Path:
    return neighbour(store.path, ".failures.jsonl")


def _shares(tally: _Tally) -> dict[str, str]:
    """Where a worker's time goes, for the progress line; reading and decoding happen meanwhile, in threads."""
    spent = {phase: tally.phases[phase] for phase in IN_TURN}
    total = sum(spent.values()) or 1.0
    return {phase: f"{seconds / total:.0%}" for phase, seconds in spent.items()}


def _bottleneck(tally: _Tally) -> str:
    if not tally.rows:
        return "nothing was computed"
    slowest = max(IN_TURN, key=lambda phase: tally.phases[phase])
    if slowest == "wait":
        slowest = "read" if tally.phases["read"] > tally.phases["decode"] else "decode"
    return f"{slowest}: " + ADVICE[slowest]


def _result(request: TeachRequest, store: LabelStore, tally: _Tally, seconds: float) -> TeachResult:
    records = [record for record in store.records(LABELS) if record]
    return TeachResult(
        rows_ok=sum(record.rows_ok for record in records),
        rows_failed=sum(record.rows_failed for record in records),
        rows_per_second=tally.rows / tally.seconds if tally.seconds else 0.0,
        chunks_written=tally.written,
        chunks_skipped=tally.skipped,
        seconds=seconds,
        phases=tally.phases,
        bottleneck=_bottleneck(tally),
        workers=tally.board.paces(),
        bytes_per_row=bytes_per_row(store),
        labels=str(request.labels),
        store_id=store.store_id(),
    )
