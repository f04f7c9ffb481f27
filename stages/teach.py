"""teach: run the frozen teacher once over a split and write its top-k soft labels to a label store.

Running the same command again after any interruption continues it; a finished store is only checked.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachonce.errors import DataError, IncompleteError, IntegrityError, UsageError
from teachonce.fingerprints import (
    ORDER_SEED,
    TEMPERATURES,
    embedding_fingerprint,
    label_fingerprint,
    student_fingerprint,
    with_teacher,
)
from teachonce.images import ImageReader
from teachonce.label_store import LabelStore
from teachonce.ledger import require_fingerprint
from teachonce.manifests import Manifest, load_manifest, require_root
from teachonce.model_spec import EmbeddingKind, Precision, parse_spec, require_template
from teachonce.progress import Reporter
from teachonce.sample_index import build_index, split_classes
from teachonce.sampler import row_order
from teachonce.store_create import add_embedding, add_student, create_store
from teachonce.store_format import EMBEDDING, LABELS, new_layout, student_group
from teachonce.store_lock import hold
from teachonce.store_size import bytes_per_row
from teachonce.vocabulary import Vocabulary, load_vocabulary

if TYPE_CHECKING:
    from teachonce.chunk_task import ChunkReport, TeachJob
    from teachonce.clip_models import LoadedClip

DEFAULT_TOP_K = 100


@dataclass(frozen=True, kw_only=True)
class TeachRequest:
    """What to teach; see `teachonce teach --help`."""

    manifest: str
    labels: Path
    teacher: str | None
    root: Path | None = None
    split: str = "train"
    students: tuple[str, ...] = ()
    vocabulary: str | None = None
    templates: tuple[str, ...] = ("a photo of a {}.",)
    top_k: int | None = None
    embeddings: EmbeddingKind | None = None
    workers: int = 1
    threads: int | None = None
    batch_size: int = 128
    chunk_rows: int | None = None
    precision: Precision = "fp32"
    max_failed_share: float = 0.01
    force_unlock: bool = False


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
    """Seconds that the tasks spent waiting for images, in the models, and writing, summed over workers."""
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
    _check(request)
    manifest = load_manifest(request.manifest)
    root = require_root(manifest, request.root)
    own_classes = split_classes(manifest, request.split, root)
    vocabulary = load_vocabulary(request.vocabulary, root) if request.vocabulary else own_classes
    top_k = _top_k(request, vocabulary)
    if vocabulary.tied():
        reporter.note(f"{vocabulary.tied()} of {len(vocabulary)} classes share their name with another: they tie")
    with hold(request.labels, reporter, request.force_unlock) as token:
        # Torch, open_clip and Dask come in only now, when all that can be checked without them is in order.
        from teachonce.cluster import default_threads, local_cluster, warm_up

        with local_cluster(request.workers) as client:
            from teachonce.chunk_task import TeachJob, get_ready

            importing = warm_up(client, get_ready)  # while this process prepares
            models = _load_models(request, reporter)
            store = _open_or_create(request, manifest, root, own_classes, vocabulary, top_k, models, reporter)
            job = TeachJob(
                store=str(request.labels.resolve()), root=str(root.resolve()), token=token,
                models=tuple((group, clip.spec, clip.digest) for group, clip in models.items()),
                logit_scale=models[LABELS].logit_scale if LABELS in models else 0.0,
                precision=request.precision, batch_size=request.batch_size,
                threads=request.threads or default_threads(request.workers),
            )  # fmt: skip
            groups = (LABELS, *(group for group in models if group != LABELS))
            tally = _run(client, job, store, groups, request, reporter)
            del importing
        return _finish(request, store, groups, tally, time.monotonic() - began, reporter)


@dataclass
class _Tally:
    """Counts of this run, as reports come in."""

    written: int = 0
    skipped: int = 0
    rows: int = 0
    seconds: float = 0.0
    phases: dict[str, float] | None = None


def _check(request: TeachRequest) -> None:
    for name, least in (("workers", 1), ("batch_size", 1), ("top_k", 1), ("chunk_rows", 1), ("threads", 1)):
        value = getattr(request, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, found {value}")
    if not 0 <= request.max_failed_share <= 1:
        raise UsageError(f"max_failed_share must be between 0 and 1, found {request.max_failed_share}")
    if request.teacher is None and not request.students:
        raise UsageError("nothing to compute: give --teacher MODEL, --student MODEL, or both")
    for spec in filter(None, (request.teacher, *request.students)):
        parse_spec(spec)
    for template in request.templates:
        require_template(template)
    if request.embeddings and request.teacher is None:
        raise UsageError("--embeddings are the teacher's: give --teacher MODEL too")
    if not request.labels.name.endswith(".zarr"):
        raise UsageError(f"--labels {request.labels}: the name of a label store ends in .zarr")


def _top_k(request: TeachRequest, vocabulary: Vocabulary) -> int:
    if request.teacher is None:
        return 0
    if request.top_k is None:
        return min(DEFAULT_TOP_K, len(vocabulary))
    if request.top_k > len(vocabulary):
        raise UsageError(f"--top-k {request.top_k} is larger than the vocabulary of {len(vocabulary)} classes")
    return request.top_k


def _load_models(request: TeachRequest, reporter: Reporter) -> dict[str, LoadedClip]:
    """The models by the column group they fill."""
    from teachonce.clip_models import load_clip, pick_device, tune_process
    from teachonce.cluster import default_threads

    tune_process(default_threads(1))
    models = {}
    if request.teacher is not None:
        reporter.note(f"loading the teacher {request.teacher}")
        models[LABELS] = load_clip(request.teacher, pick_device())
        if request.embeddings:
            models[EMBEDDING] = models[LABELS]
    for spec in request.students:
        reporter.note(f"loading the student {spec}")
        student = load_clip(spec, pick_device())
        models[student_group(student.digest)] = student
    return models


def _open_or_create(
    request: TeachRequest, manifest: Manifest, root: Path, own_classes: Vocabulary, vocabulary: Vocabulary,
    top_k: int, models: dict[str, LoadedClip], reporter: Reporter,
) -> LabelStore:  # fmt: skip
    fingerprint = label_fingerprint(manifest, request.split, vocabulary, request.vocabulary, top_k)
    if LABELS in models:
        fingerprint = with_teacher(fingerprint, models[LABELS], request.templates, request.precision)
    if request.labels.exists():
        store = LabelStore.open(request.labels, writable=True)
        _require_sound(store)
        stored = store.groups[LABELS].fingerprint
        if request.teacher is None and store.layout.top_k:
            fingerprint = _only_students(store, stored, fingerprint)
        # The store keeps the index it was made with; archives are not scanned again.
        require_fingerprint(request.labels, LABELS, stored, fingerprint | {"samples": stored.get("samples")})
        if request.chunk_rows not in (None, store.layout.chunk_rows):
            raise UsageError(
                f"{request.labels} has chunks of {store.layout.chunk_rows} rows; --chunk-rows is fixed at creation"
            )
        reporter.note(
            f"continuing {request.labels}: {len(store.committed(LABELS))} of {store.layout.chunks} chunks are there"
        )
    else:
        store = _create(
            request, manifest, root, own_classes, vocabulary, top_k, models.get(LABELS), fingerprint, reporter
        )
    _add_groups(store, request, models)
    return store


def _add_groups(store: LabelStore, request: TeachRequest, models: dict[str, LoadedClip]) -> None:
    from teachonce.clip_models import embedding_width

    samples = store.groups[LABELS].fingerprint["samples"]
    for group, clip in models.items():
        if group == EMBEDDING:
            assert request.embeddings is not None  # the group is asked for with a kind only
            kept = embedding_fingerprint(clip, request.precision, samples)
            add_embedding(store, request.embeddings, embedding_width(clip), kept)
        elif group != LABELS:
            kept = student_fingerprint(clip, request.precision, samples)
            add_student(store, clip.digest, embedding_width(clip), kept)


def _create(
    request: TeachRequest, manifest: Manifest, root: Path, own_classes: Vocabulary, vocabulary: Vocabulary,
    top_k: int, teacher: LoadedClip | None, fingerprint: dict[str, Any], reporter: Reporter,
) -> LabelStore:  # fmt: skip
    index = build_index(manifest, request.split, root, reporter)
    layout = new_layout(len(index), len(vocabulary), top_k, TEMPERATURES, request.chunk_rows)
    _probe(index, root)
    embeddings = None
    if teacher is not None:
        from teachonce.zeroshot import ensemble_features

        reporter.note(f"encoding {len(vocabulary)} class names with the teacher")
        embeddings = ensemble_features(teacher, vocabulary.names, request.templates).cpu().numpy()
    reporter.note(f"creating {request.labels}: {layout.rows} rows in {layout.chunks} chunks of {layout.chunk_rows}")
    fingerprint = fingerprint | {"samples": index.digest}
    order = row_order(len(index), ORDER_SEED)
    return create_store(request.labels, layout, fingerprint, vocabulary, own_classes, index, order, embeddings)


def _only_students(store: LabelStore, stored: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """A student is added to a store with a teacher's labels: what the teacher decided is taken from the store."""
    if len(store.committed(LABELS)) < store.layout.chunks:
        raise IncompleteError(
            f"{store.path} does not hold all labels of its teacher yet",
            hint="give the --teacher it was made with: the same command completes it and adds the student",
        )
    return stored | {field: wanted[field] for field in ("manifest_digest", "split", "vocabulary_digest")}


def _require_sound(store: LabelStore) -> None:
    """A lost index or class list reads as zeros: what is taught from it would be wrong."""
    faults = store.static_faults()
    if faults:
        where, expected, found = faults[0]
        raise IntegrityError(
            f"{where}: expected digest {expected}, found {found}",
            hint="restore the file from a backup; nothing can be added to the store without it",
        )


def _probe(index: Any, root: Path) -> None:
    """Read one sample now: a wrong root should fail here and not in a worker."""
    with ImageReader(index, root) as reader:
        reader.read(0)


def _run(
    client: Any, job: TeachJob, store: LabelStore, groups: tuple[str, ...], request: TeachRequest, reporter: Reporter
) -> _Tally:
    from teachonce.chunk_task import run_chunk
    from teachonce.cluster import run_tasks

    done = {group: set(store.committed(group)) for group in groups}
    _drop_orphans(store, done)
    work = [(job, c, missing) for c in range(store.layout.chunks)
            if (missing := tuple(g for g in groups if c not in done[g]))]  # fmt: skip
    # Of earlier runs too: the limit holds for the store, and asking again must not wash failures away.
    failed = {c: record.rows_failed for c in done[LABELS] if (record := store.record(LABELS, c))}
    _require_few_failures(sum(failed.values()), request, store)
    tally = _Tally(skipped=store.layout.chunks - len(work), phases={})
    total = sum(stop - start for _, c, _ in work for start, stop in [store.layout.bounds(c)])
    began = time.monotonic()
    if work:
        reporter.progress("teach", 0, total, "images")
    for report in run_tasks(client, run_chunk, work, f"teach-{job.token:x}"):
        _count(tally, report, store)
        if LABELS in report.written:  # a report about other groups, or of a task that ran twice, says nothing new
            failed[report.chunk] = report.rows_failed
        _require_few_failures(sum(failed.values()), request, store)
        reporter.progress("teach", tally.rows, total, "images", failed=sum(failed.values()), **_shares(tally))
    tally.seconds = time.monotonic() - began
    return tally


def _drop_orphans(store: LabelStore, done: dict[str, set[int]]) -> None:
    """Where labels were lost, what was computed beside them goes too: it may come from images that changed since."""
    for group in store.groups:
        for chunk in set(store.committed(group)) - done[LABELS]:
            store.drop(group, chunk)
            done.get(group, set()).discard(chunk)


def _require_few_failures(failed: int, request: TeachRequest, store: LabelStore) -> None:
    if failed > request.max_failed_share * store.layout.rows:
        raise DataError(
            f"{failed} of {store.layout.rows} images failed, over max_failed_share = {request.max_failed_share}; "
            f"reasons are in {_failure_log(store)}",
            hint="look at the archives; add --set max_failed_share=... if these images are known to be bad",
        )


def _count(tally: _Tally, report: ChunkReport, store: LabelStore) -> None:
    if not report.written:
        tally.skipped += 1
        return
    tally.written += 1
    tally.rows += report.rows_ok + report.rows_failed
    assert tally.phases is not None
    for phase, seconds in report.seconds.items():
        tally.phases[phase] = tally.phases.get(phase, 0.0) + seconds
    if report.faults and LABELS in report.written:
        with open(_failure_log(store), "a", encoding="utf-8") as log:
            for key, reason in report.faults:
                log.write(json.dumps({"chunk": report.chunk, "key": key, "reason": reason}) + "\n")


def _failure_log(store: LabelStore) -> Path:
    return store.path.with_name(store.path.name + ".failures.jsonl")


def _shares(tally: _Tally) -> dict[str, str]:
    """Where the time goes, for the progress line."""
    phases = tally.phases or {}
    total = sum(phases.values()) or 1.0
    return {phase.replace(" ", "_"): f"{seconds / total:.0%}" for phase, seconds in phases.items()}


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
        rows_ok=ok, rows_failed=failed, rows_per_second=tally.rows / tally.seconds if tally.seconds else 0.0,
        chunks_written=tally.written, chunks_skipped=tally.skipped, seconds=seconds, phases=tally.phases or {},
        bytes_per_row=bytes_per_row(store), labels=str(request.labels), store_id=store.store_id(),
    )  # fmt: skip
