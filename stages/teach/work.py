"""Stage one at work: workers, tasks, and what they bring into the store. Torch, open_clip and Dask come in here."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teachonce.cluster import client as cluster_client
from teachonce.core.documents import readable
from teachonce.core.files import neighbour
from teachonce.core.progress import Reporter
from teachonce.data.manifests import load_manifest
from teachonce.errors import DataError
from teachonce.labels.format import LABELS
from teachonce.labels.ledger import IN_TURN, PHASES
from teachonce.labels.size import bytes_per_row
from teachonce.labels.staging import clear_staging
from teachonce.labels.store import LabelStore
from teachonce.phrases import phrase
from teachonce.stages.teach.loading import load_models, say_what_carries, teach_job
from teachonce.stages.teach.request import TeachRequest, TeachResult
from teachonce.teaching import chunk as chunk_tasks
from teachonce.teaching.chunk import TeachJob
from teachonce.teaching.delivery import ChunkReport, deliver
from teachonce.teaching.store import WantedStore, open_or_create

ADVICE = {
    "read": phrase("the archives are read slowly; local disks, or more {workers} on other machines"),
    "decode": phrase("more {threads=N}, or more workers: decoding runs on CPU cores only"),
    "forward": phrase("the models keep the device busy, as they should; {precision=bf16} on a GPU, or more workers"),
    "top_k": phrase("the vocabulary is large for this device; a larger {set} batch_size, or a smaller {top_k}"),
    "write": phrase("the store's disk is slow, or chunks are small; a larger {chunk_rows}"),
}


def complete(request: TeachRequest, wanted: WantedStore, token: int, began: float, reporter: Reporter) -> TeachResult:
    """Complete the store; the caller holds its lock, and `token` is the lock's.

    Args:
        began: on the monotonic clock.

    Raises:
        UnsupportedModelError: a student can carry prompts in neither tower, and `features_only` was not asked for.
        DataError: too many images failed.
        FingerprintError: the store at this path was made from something else.
        IncompleteError: chunks are missing at the end.
    """
    clear_staging(request.labels)
    with cluster_client.open_cluster(request.cluster, reporter) as client:
        importing = cluster_client.warm_up(client, chunk_tasks.get_ready)  # while this process prepares
        models = load_models(request, reporter)
        say_what_carries(models, reporter, request.features_only)
        store = open_or_create(wanted, models, reporter)
        groups = (LABELS, *(group for group in models if group != LABELS))
        tally = _run(client, teach_job(request, wanted.root, token, models), store, groups, request, reporter)
        del importing
    clear_staging(request.labels)
    return _finish(request, store, groups, tally, time.monotonic() - began, reporter)


@dataclass
class _Tally:
    """Counts of this run, as reports come in."""

    written: int = 0
    skipped: int = 0
    rows: int = 0
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)


def _run(
    client: Any, job: TeachJob, store: LabelStore, groups: tuple[str, ...], request: TeachRequest, reporter: Reporter
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
    failed = {c: record.rows_failed for c in done[LABELS] if (record := store.record(LABELS, c))}
    excused = _known_bad(request, store)
    _require_few_failures(sum(failed.values()) - excused, request, store)
    tally = _Tally(skipped=store.layout.chunks - len(work), phases=dict.fromkeys(PHASES, 0.0))
    total = sum(stop - start for _, c, _ in work for start, stop in [store.layout.bounds(c)])
    began = time.monotonic()
    if work:
        reporter.progress("teach", 0, total, "rows")
    for report in cluster_client.run_tasks(client, chunk_tasks.run_chunk, work, f"teach-{job.token:x}", reporter):
        brought = deliver(store, report, job.token)
        _count(tally, report, brought, store)
        if LABELS in brought:  # other groups bring no new failures, nor does a task that ran twice
            failed[report.chunk] = report.rows_failed
        _require_few_failures(sum(failed.values()) - excused, request, store)
        reporter.progress("teach", tally.rows, total, "rows", failed=sum(failed.values()), **_shares(tally))
    tally.seconds = time.monotonic() - began
    return tally


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
    for phase, seconds in report.phases.items():
        tally.phases[phase] += seconds
    if report.faults and LABELS in brought:
        with open(_failure_log(store), "a", encoding="utf-8") as log:
            for key, reason in report.faults:
                log.write(json.dumps({"chunk": report.chunk, "key": readable(key), "reason": reason}) + "\n")


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


def _finish(
    request: TeachRequest, store: LabelStore, groups: tuple[str, ...], tally: _Tally, seconds: float, reporter: Reporter
) -> TeachResult:
    """Read every chunk back against its record: exit 0 means that all that was asked for is there and sound."""
    ok = failed = 0
    for chunk in range(store.layout.chunks):
        for group in groups:
            store.read_chunk(group, chunk)
        record = store.record(LABELS, chunk)
        assert record is not None  # read_chunk has raised otherwise
        ok, failed = ok + record.rows_ok, failed + record.rows_failed
        reporter.progress("check", chunk + 1, store.layout.chunks, "chunks")
    return TeachResult(
        rows_ok=ok,
        rows_failed=failed,
        rows_per_second=tally.rows / tally.seconds if tally.seconds else 0.0,
        chunks_written=tally.written,
        chunks_skipped=tally.skipped,
        seconds=seconds,
        phases=tally.phases,
        bottleneck=_bottleneck(tally),
        bytes_per_row=bytes_per_row(store),
        labels=str(request.labels),
        store_id=store.store_id(),
    )
