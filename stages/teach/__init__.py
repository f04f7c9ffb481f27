"""teach: run the frozen teacher once over a split and write its top-k soft labels to a label store.

Running the same command again after any interruption continues it; a finished store is only checked.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachonce.core.locks import owned
from teachonce.core.progress import Reporter
from teachonce.core.remote import absolute
from teachonce.data.index import split_classes
from teachonce.data.manifests import load_manifest, require_root
from teachonce.data.vocabulary import load_vocabulary
from teachonce.errors import DataError
from teachonce.labels.format import LABELS
from teachonce.labels.ledger import IN_TURN, PHASES
from teachonce.labels.size import bytes_per_row
from teachonce.labels.staging import clear_staging
from teachonce.labels.store import LabelStore
from teachonce.models.spec import absolute_spec
from teachonce.phrases import phrase
from teachonce.stages.teach.request import TeachRequest, check_request, cluster_of, load_models, wanted_store
from teachonce.teaching.delivery import ChunkReport, deliver
from teachonce.teaching.store import open_or_create

if TYPE_CHECKING:
    from teachonce.models.clip import LoadedClip
    from teachonce.teaching.chunk import TeachJob

__all__ = ["TeachRequest", "TeachResult", "teach"]  # the request comes from its own file

ADVICE = {
    "read": phrase("the archives are read slowly; local disks, or more {workers} on other machines"),
    "decode": phrase("more {threads=N}, or more workers: decoding runs on CPU cores only"),
    "forward": phrase("the models keep the device busy, as they should; {precision=bf16} on a GPU, or more workers"),
    "top_k": phrase("the vocabulary is large for this device; a larger {set} batch_size, or a smaller {top_k}"),
    "write": phrase("the store's disk is slow, or chunks are small; a larger {chunk_rows}"),
}


@dataclass(frozen=True, kw_only=True)
class TeachResult:
    """What the run did; `rows_ok + rows_failed` is every row of the store."""

    rows_ok: int
    rows_failed: int
    rows_per_second: float
    chunks_written: int
    chunks_skipped: int
    seconds: float
    phases: dict[str, float]
    """Seconds of `ledger.PHASES`, summed over workers; reading and decoding over their threads too."""
    bottleneck: str
    """What most of the time went to, and what would change that."""
    bytes_per_row: dict[str, float]
    labels: str
    store_id: str


def teach(request: TeachRequest, reporter: Reporter) -> TeachResult:
    """Complete the store that the request describes.

    Raises:
        UsageError: an option is out of range, or asks for nothing.
        DataError: the data is not what the manifest says, or too many images failed.
        FingerprintError: the store at this path was made from something else.
        IncompleteError: another process writes the store, or chunks are missing at the end.
    """
    began = time.monotonic()
    check_request(request)
    manifest = load_manifest(request.manifest)
    root = require_root(manifest, request.root)
    own_classes = split_classes(manifest, request.split, root)
    vocabulary = load_vocabulary(request.vocabulary, root) if request.vocabulary else own_classes
    if vocabulary.tied():
        reporter.note(f"{vocabulary.tied()} of {len(vocabulary)} classes share their name with another: they tie")
    wanted = wanted_store(request, manifest, root, own_classes, vocabulary)
    with owned(request.labels, reporter, request.force_unlock) as token:
        # Torch, open_clip and Dask come in only now, when all that can be checked without them is in order.
        from teachonce.cluster.client import open_cluster, warm_up

        clear_staging(request.labels)
        with open_cluster(cluster_of(request), reporter) as client:
            from teachonce.teaching.chunk import get_ready

            importing = warm_up(client, get_ready)  # while this process prepares
            models = load_models(request, reporter)
            store = open_or_create(wanted, models, reporter)
            groups = (LABELS, *(group for group in models if group != LABELS))
            tally = _run(client, _job(request, root, token, models), store, groups, request, reporter)
            del importing
        clear_staging(request.labels)
        return _finish(request, store, groups, tally, time.monotonic() - began, reporter)


def _job(request: TeachRequest, root: Path, token: int, models: dict[str, LoadedClip]) -> TeachJob:
    from teachonce.cluster.client import threads_of
    from teachonce.teaching.chunk import TeachJob

    return TeachJob(
        store=str(request.labels.resolve()),
        root=absolute(root),
        token=token,
        models=tuple((group, absolute_spec(clip.spec), clip.digest) for group, clip in models.items()),
        logit_scale=models[LABELS].logit_scale if LABELS in models else 0.0,
        precision=request.precision,
        batch_size=request.batch_size,
        views=request.views,
        compiled=request.compiled,
        class_tile=request.class_tile,
        threads=request.threads or threads_of(cluster_of(request)),
    )


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
    from teachonce.cluster.client import run_tasks
    from teachonce.teaching.chunk import run_chunk

    done = {group: set(store.committed(group)) for group in groups}
    if request.retry_failed:
        _drop_failed(store, done, reporter)
    _drop_orphans(store, done)
    work = [
        (job, c, missing)
        for c in range(store.layout.chunks)
        if (missing := tuple(g for g in groups if c not in done[g]))
    ]
    # Of earlier runs too: the limit holds for the store, and asking again must not wash failures away.
    failed = {c: record.rows_failed for c in done[LABELS] if (record := store.record(LABELS, c))}
    excused = _known_bad(request, store)
    _require_few_failures(sum(failed.values()) - excused, request, store)
    tally = _Tally(skipped=store.layout.chunks - len(work), phases=dict.fromkeys(PHASES, 0.0))
    total = sum(stop - start for _, c, _ in work for start, stop in [store.layout.bounds(c)])
    began = time.monotonic()
    if work:
        reporter.progress("teach", 0, total, "rows")
    for report in run_tasks(client, run_chunk, work, f"teach-{job.token:x}", reporter):
        brought = deliver(store, report, job.token)
        _count(tally, report, brought, store)
        if LABELS in brought:  # a report about other groups, or of a task that ran twice, says nothing new
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
    """Where labels were lost, what was computed beside them goes too: it may come from images that changed since."""
    for group in store.groups:
        for chunk in set(store.committed(group)) - done[LABELS]:
            store.drop(group, chunk)
            done.get(group, set()).discard(chunk)


def _known_bad(request: TeachRequest, store: LabelStore) -> int:
    """Rows whose images the manifest knows to be none: that they fail is no news."""
    return len(load_manifest(request.manifest).split(request.split).known_bad) * store.layout.views


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
                log.write(json.dumps({"chunk": report.chunk, "key": key, "reason": reason}) + "\n")


def _failure_log(store: LabelStore) -> Path:
    return store.path.with_name(store.path.name + ".failures.jsonl")


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
