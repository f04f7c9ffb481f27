"""The work of `verify`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from teachonce.core.devices import pick_device
from teachonce.core.machine import default_threads
from teachonce.core.progress import Reporter
from teachonce.errors import DataError, IncompleteError, IntegrityError, UsageError
from teachonce.keeping.owners import owned
from teachonce.labels.codec import GAP_FILL, decode_embeddings
from teachonce.labels.format import EMBEDDING, LABELS, STATUS_FILL
from teachonce.labels.ledger import key_digest
from teachonce.labels.metadata import RESTORE, take_out_additions
from teachonce.labels.store import Arrays, LabelStore
from teachonce.models.spec import require_model
from teachonce.phrases import Phrase, option, phrase
from teachonce.stages.verify.request import Fault, VerifyRequest, VerifyResult

DEFAULT_SAMPLE = 256
THREADS = min(4, os.cpu_count() or 1)


def verify(request: VerifyRequest, reporter: Reporter) -> VerifyResult:
    """Check metadata, static arrays and every chunk. The stage's `verify` says what is raised."""
    result, next_step = examine(request, reporter)
    if next_step:
        reporter.note(f"next: {next_step}")
    return result


def examine(request: VerifyRequest, reporter: Reporter) -> tuple[VerifyResult, str]:
    """Verify as `verify` does, and return what to do next in words instead of a note; empty: nothing is to be done."""
    _check(request)
    if request.repair:
        LabelStore.open(request.labels)  # fails where there is no store, before a lock file is made beside it
        with owned(request.labels, reporter):  # a store that is being written must not lose records
            return _verify(request, reporter)
    return _verify(request, reporter)


def _check(request: VerifyRequest) -> None:
    if request.teacher is None and (request.sample is not None or request.root is not None):
        raise UsageError(phrase("{sample} and {root} say how to run the teacher again: give {teacher} MODEL too"))
    if request.teacher is not None:
        require_model(request.teacher)
        if request.root is None:
            raise UsageError(phrase("{teacher} needs the images: give {root} DIR, the folder that teach was given"))
        if request.sample is not None and request.sample < 1:
            raise UsageError(option("sample") + f" must be at least 1, found {request.sample}")


def _verify(request: VerifyRequest, reporter: Reporter) -> tuple[VerifyResult, str]:
    store = LabelStore.open(request.labels, writable=request.repair)
    _look_at_additions(store, request, reporter)
    faults = [Fault(*fault) for fault in store.static_faults()]
    # Chunks are judged by the index only where it is sound: `repair` must not drop sound chunks.
    fixed, index_is_sound = len(faults), not faults
    checked = missing = dropped = 0
    for group in store.groups:
        before = len(faults)
        for chunk, (problems, absent) in enumerate(_check_group(store, group, index_is_sound)):
            missing += absent
            checked += not absent
            if problems and not absent and request.repair:
                store.drop(group, chunk)
                dropped += 1
                problems = problems[:1]  # one fault for each dropped chunk: the exit code compares the two counts
            faults += problems
            reporter.progress(f"verify {group}", chunk + 1, store.layout.chunks, "chunks", faults=len(faults) - before)
    again: dict[str, float] = {}
    if request.teacher is not None and not faults:  # a damaged store is mended first: running the teacher takes long
        again, wrong = _run_teacher(store, request, reporter)
        faults += wrong
    if dropped:
        reporter.note(f"took {dropped} chunks out of the ledger")
    result = VerifyResult(
        ok=not faults,
        chunks_checked=checked,
        chunks_missing=missing,
        chunks_dropped=dropped,
        faults=tuple(faults),
        labels=str(request.labels),
        teacher=again,
    )
    return result, "" if again else _next_step(store, result, fixed)


def _look_at_additions(store: LabelStore, request: VerifyRequest, reporter: Reporter) -> None:
    """Say what other programs have put into the store's metadata, which is passed over, and take it out on request."""
    for name, keys in store.metadata.added.items():
        added = f"{store.path / name}: other programs have added {', '.join(map(repr, keys))}"
        mended = phrase("; it does no harm, and {repair} takes it out")
        reporter.note(added + ("; it was taken out" if request.repair else mended))
    if request.repair:
        take_out_additions(store.path, store.metadata)


def _next_step(store: LabelStore, result: VerifyResult, fixed: int) -> str:
    """Say which command mends the store; `fixed` counts the faults in files that are written only once."""
    steps = [RESTORE] if fixed else []
    if len(result.faults) > fixed + result.chunks_missing + result.chunks_dropped:
        steps.append(f"teachonce verify {result.labels} " + option("repair"))
    if len(result.faults) > fixed:
        steps.append(f"run the same `{store.maker}` again: it writes what is lost")
    return Phrase(", then ").join(steps)


def _run_teacher(store: LabelStore, request: VerifyRequest, reporter: Reporter) -> tuple[dict[str, float], list[Fault]]:
    """Figures over the rows that were run again, and a fault for each that is not what the teacher says."""
    if not store.layout.top_k:
        raise DataError(f"{store.path} was made without a teacher", hint=phrase("teachonce verify without {teacher}"))
    from teachonce.models.clip import tune_process
    from teachonce.teaching.recheck import recheck_rows

    assert request.teacher is not None and request.root is not None  # _check has refused a request without them
    sample, device = request.sample or DEFAULT_SAMPLE, pick_device(request.device)
    tune_process(default_threads(1))
    checks = list(recheck_rows(store, request.teacher, request.root, sample, request.seed, reporter, device))
    if not checks:
        raise DataError(
            f"{store.path}: none of {sample} random rows has an image", hint=phrase("give a larger {sample}")
        )
    figures = {
        "rows": float(len(checks)),
        "rows_wrong": float(sum(bool(check.problem) for check in checks)),
        "least_overlap": min(check.overlap for check in checks),
        "worst_value": max(check.worst_value for check in checks),
        "mean_kl": float(np.mean([check.kl for check in checks])),
        "worst_kl": max(check.kl for check in checks),
    }
    return figures, [
        Fault(f"{store.path}: row {check.row}, '{check.key}'", "what the teacher says", check.problem)
        for check in checks
        if check.problem
    ]


def _check_group(store: LabelStore, group: str, index_is_sound: bool) -> Iterator[tuple[list[Fault], int]]:
    """The result of `_check_chunk` for each chunk, in order; decompression and digests leave Python's lock."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(lambda chunk: _check_chunk(store, group, chunk, index_is_sound), range(store.layout.chunks))


def _check_chunk(store: LabelStore, group: str, chunk: int, index_is_sound: bool) -> tuple[list[Fault], int]:
    """Faults of one chunk, and 1 when it is not committed at all."""
    where = f"{store.path}: {group}, chunk {chunk}"
    try:
        if store.record(group, chunk) is None:
            return [Fault(where, "a committed chunk", "nothing in the ledger")], 1
        data = store.read_chunk(group, chunk)
    except IntegrityError as problem:
        return [Fault(where, "what the ledger says", problem.message)], 0
    if not index_is_sound:
        return [], 0
    if group == LABELS:
        checks = [*_label_checks(store, data), *_index_checks(store, chunk, data)]
    else:
        checks = list(_feature_checks(group, data, _failed_rows(store, chunk)))
    return [Fault(where, expected, "something else") for holds, expected in checks if not holds], 0


def _index_checks(store: LabelStore, chunk: int, data: Arrays) -> Iterator[tuple[bool, str]]:
    """Faults of a chunk whose rows or keys are not those of the sample index."""
    index = store.index_of_chunk(chunk)
    yield bool((data["label"] == np.repeat(index.label, store.layout.views)).all()), "the labels of the sample index"
    yield bool((data["sample"] == store.samples(*store.layout.bounds(chunk))).all()), "the samples of the row order"
    if "key_digest" in data:
        yield bool((data["key_digest"] == key_digest(index)).all()), "the keys of the sample index"


def _label_checks(store: LabelStore, data: Arrays) -> Iterator[tuple[bool, str]]:
    """Statements that hold for every sound chunk, whatever its digest says: a writer's bug shows here."""
    good = data["status"] == 0
    yield bool((data["status"] != STATUS_FILL).all()), "a status in every row"
    if not store.layout.top_k:
        return
    yield from _soft_label_checks(store, data, good)


def _soft_label_checks(store: LabelStore, data: Arrays, good: Any) -> Iterator[tuple[bool, str]]:
    """Statements that hold for every sound chunk of soft labels, judged by coded values: a sort takes too long."""
    coded, codes, fill = data["class_ids"], data["gaps"], np.iinfo(data["class_ids"].dtype).max
    yield bool((coded[~good] == fill).all() and (codes[~good] == GAP_FILL).all()), "no classes in rows without an image"
    coded, codes, residual = coded[good], codes[good], data["log_residual"][good].astype(np.float32)
    places = coded.sum(axis=1, dtype=np.int64)  # the place of the last class, which is the highest
    yield bool((places < store.layout.classes).all()), f"classes below {store.layout.classes}"
    yield bool((coded[:, 1:] > 0).all()), "each class once in a row"
    yield bool((codes < len(store.gap_levels)).all()), f"value codes below {len(store.gap_levels)}"
    yield bool((codes.min(axis=1, initial=255) == 0).all()), "a best class in every row"
    best = data["top_log_prob"][good].astype(np.float32)
    yield bool(np.isfinite(best).all() and (best <= 1e-3).all()), "log-probabilities of at most 0"
    yield bool((~np.isnan(residual)).all() and (residual[:, 0] <= 1e-3).all()), "a residual mass of at most 1"
    share = np.zeros(256, np.float32)
    share[: len(store.gap_levels)] = np.exp(-store.gap_levels)
    total = np.exp(best) * share.take(codes).sum(axis=1) + np.exp(residual[:, 0])
    yield bool((np.abs(total - 1) < 0.05).all()), "masses that add up to 1 within the codec's error"


def _failed_rows(store: LabelStore, chunk: int) -> Any:
    """Which rows have no image; None where the labels cannot tell, which is a fault of theirs."""
    try:
        return store.read_chunk(LABELS, chunk, ("status",))["status"] != 0
    except (IntegrityError, IncompleteError):
        return None


def _feature_checks(group: str, data: Arrays, failed: Any) -> Iterator[tuple[bool, str]]:
    if group == EMBEDDING:
        features = decode_embeddings(data[f"{EMBEDDING}/values"])
    else:
        features = data[f"{group}/features"].astype(np.float32)
    holes = np.isnan(features)
    yield bool((holes.all(axis=1) == holes.any(axis=1)).all()), "whole rows of features, or none"
    norms = np.linalg.norm(features[~holes.any(axis=1)], axis=1)
    yield bool((np.abs(norms - 1) < 1e-2).all()), "unit features"
    if failed is not None:
        yield bool((holes.any(axis=1) == failed).all()), "features in every row with an image, and in no other"
