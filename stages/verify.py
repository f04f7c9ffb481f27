"""verify: read every chunk of a label store and compare it with the ledger; CPU only, no model is loaded.

With `repair`, chunks that fail are taken out of the ledger, so that the next `teach` rebuilds exactly those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from teachonce.errors import IncompleteError, IntegrityError
from teachonce.label_store import Arrays, LabelStore
from teachonce.progress import Reporter
from teachonce.store_format import LABELS, STATUS_FILL
from teachonce.store_lock import hold
from teachonce.working_set import decode_labels


@dataclass(frozen=True, kw_only=True)
class VerifyRequest:
    """Which store to check, and whether to take bad chunks out of its ledger."""

    labels: Path
    repair: bool = False


@dataclass(frozen=True)
class Fault:
    """Something that is not what the ledger says."""

    where: str
    expected: str
    found: str


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """`ok` only when every chunk of every column group is there and sound."""

    ok: bool
    chunks_checked: int
    chunks_missing: int
    """Not committed: the store is incomplete rather than damaged."""
    chunks_dropped: int
    """Taken out of the ledger by `repair`."""
    faults: tuple[Fault, ...]
    labels: str

    @property
    def exit_code(self) -> int:
        """0 sound, 4 damaged, 5 when chunks are missing or were dropped and nothing else is wrong."""
        if self.ok:
            return 0
        resumable = self.chunks_missing + self.chunks_dropped >= len(self.faults)
        return IncompleteError.exit_code if resumable else IntegrityError.exit_code


def verify(request: VerifyRequest, reporter: Reporter) -> VerifyResult:
    """Check metadata, static arrays and every chunk.

    Raises:
        DataError: not a label store.
        IntegrityError: a metadata file is damaged, so that nothing else can be trusted.
    """
    if request.repair:
        with hold(request.labels, reporter):  # a store that is being written must not lose records
            return _verify(request, reporter)
    return _verify(request, reporter)


def _verify(request: VerifyRequest, reporter: Reporter) -> VerifyResult:
    store = LabelStore.open(request.labels, writable=request.repair)
    faults = [Fault(*fault) for fault in store.static_faults()]
    index_is_sound = not faults  # else chunks are not compared with it: `repair` must not drop what is sound
    checked = missing = dropped = 0
    for group in store.groups:
        for chunk in range(store.layout.chunks):
            problems, absent = _check_chunk(store, group, chunk, index_is_sound)
            missing += absent
            checked += not absent
            if problems and not absent and request.repair:
                store.drop(group, chunk)
                dropped += 1
                problems = problems[:1]  # one fault a dropped chunk: the exit code counts them against each other
            faults += problems
            reporter.progress(f"verify {group}", chunk + 1, store.layout.chunks, "chunks", faults=len(faults))
    if faults and not request.repair:
        reporter.note(f"next: teachonce verify {request.labels} --repair, then the same `teachonce teach` again")
    if dropped:
        reporter.note(f"took {dropped} chunks out of the ledger; run the same `teachonce teach` again to rebuild them")
    return VerifyResult(
        ok=not faults, chunks_checked=checked, chunks_missing=missing, chunks_dropped=dropped,
        faults=tuple(faults), labels=str(request.labels),
    )  # fmt: skip


def _check_chunk(store: LabelStore, group: str, chunk: int, index_is_sound: bool) -> tuple[list[Fault], int]:
    """Faults of one chunk, and 1 when it is not committed at all."""
    where = f"{store.path}: {group}, chunk {chunk}"
    try:
        if store.record(group, chunk) is None:
            return [Fault(where, "a committed chunk", "nothing in the ledger")], 1
        data = store.read_chunk(group, chunk)
    except IntegrityError as problem:
        return [Fault(where, "what the ledger says", problem.message)], 0
    checks = list(_label_checks(store, data) if group == LABELS else _feature_checks(data))
    if group == LABELS and index_is_sound:
        checks += _index_checks(store, chunk, data)
    return [Fault(where, expected, "something else") for holds, expected in checks if not holds], 0


def _index_checks(store: LabelStore, chunk: int, data: Arrays) -> Iterator[tuple[bool, str]]:
    """What ties a chunk to the sample index."""
    index = store.index_of_chunk(chunk)
    yield bool((data["label"] == np.repeat(index.label, store.layout.views)).all()), "the labels of the sample index"
    yield bool((data["sample"] == store.samples(*store.layout.bounds(chunk))).all()), "the samples of the row order"


def _label_checks(store: LabelStore, data: Arrays) -> Iterator[tuple[bool, str]]:
    """Statements that hold for every sound chunk, whatever its digest says: a writer's bug shows here."""
    good = data["status"] == 0
    yield bool((data["status"] != STATUS_FILL).all()), "a status in every row"
    if not store.layout.top_k:
        return
    labels = decode_labels(data)
    ids, log_probs = labels.class_ids[good], labels.log_probs[good]
    yield bool((labels.class_ids[~good] == -1).all()), "no classes in rows without an image"
    yield bool(((ids >= 0) & (ids < store.layout.classes)).all()), f"classes below {store.layout.classes}"
    ordered = np.sort(ids, axis=1)
    yield bool((ordered[:, 1:] > ordered[:, :-1]).all()), "each class once in a row"
    yield bool(np.isfinite(log_probs).all() and (log_probs <= 1e-3).all()), "log-probabilities of at most 0"
    residual = labels.log_residual[good]
    yield bool((~np.isnan(residual)).all() and (residual[:, 0] <= 1e-3).all()), "a residual mass of at most 1"
    total = np.exp(log_probs.astype(np.float64)).sum(1) + np.exp(residual[:, 0].astype(np.float64))
    yield bool((np.abs(total - 1) < 0.05).all()), "masses that add up to 1 within the codec's error"


def _feature_checks(data: Arrays) -> Iterator[tuple[bool, str]]:
    for features in data.values():
        norms = np.linalg.norm(features.astype(np.float32), axis=1)
        finite = np.isfinite(norms)
        yield bool((np.abs(norms[finite] - 1) < 1e-2).all()), "unit features"
        yield bool(np.isnan(features[~finite]).all()), "no features in rows without an image"
