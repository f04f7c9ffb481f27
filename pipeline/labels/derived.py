"""Stores made from other stores: check the parents, continue or refuse the child, fill it chunk by chunk.

This module computes no labels: its caller hands in a function that makes a chunk of a column group. A child is
committed like a taught store, so its run may be killed at any time, and the same command completes the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from teachonce.core.digests import MIDDLE, canonical_digest
from teachonce.core.files import refuse_writes
from teachonce.core.locks import require_token
from teachonce.core.progress import Reporter
from teachonce.errors import DataError, IncompleteError, IntegrityError, UsageError
from teachonce.keeping.staging import clear_partials
from teachonce.labels.create import add_group_like
from teachonce.labels.format import EMBEDDING, LABELS
from teachonce.labels.ledger import require_fingerprint
from teachonce.labels.store import Arrays, LabelStore
from teachonce.phrases import option
from teachonce.watching.stop import StopWatch, heeded

STUDENTS = "students/"


@dataclass(frozen=True)
class Filled:
    """What `fill` found and did."""

    written: int
    """Chunks of which at least one column group was written."""
    skipped: int
    rows_ok: int
    rows_failed: int


class Rows:
    """Reads any range of a parent's rows, for a child with other chunks; keeps the last chunk read of each group.

    Arrays that describe a whole chunk are left out, since such an array does not fit other chunks.
    """

    def __init__(self, store: LabelStore) -> None:
        self.store = store
        self._columns: dict[tuple[str, tuple[str, ...]], tuple[int, Arrays]] = {}
        self._embeddings: tuple[int, npt.NDArray[np.float32]] | None = None

    def columns(self, group: str, start: int, stop: int, only: tuple[str, ...] = ()) -> Arrays:
        """Rows start..stop of a column group's arrays, or only of some, keyed by path, checked against the ledger."""
        paths = only or tuple(spec.path for spec in self.store.groups[group].arrays if not spec.per_chunk)
        parts = []
        for chunk, rows in _chunks(self.store, start, stop):
            kept = self._columns.get((group, paths))
            if kept is None or kept[0] != chunk:
                kept = self._columns[group, paths] = chunk, self.store.read_chunk(group, chunk, paths)
            parts.append({path: data[rows] for path, data in kept[1].items()})
        return {path: np.concatenate([part[path] for part in parts]) for path in parts[0]}

    def embeddings(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Unit image features of the teacher, [stop - start, D]; NaN where there is no image."""
        parts = []
        for chunk, rows in _chunks(self.store, start, stop):
            if self._embeddings is None or self._embeddings[0] != chunk:
                self._embeddings = chunk, self.store.embeddings(chunk)
            parts.append(self._embeddings[1][rows])
        return np.concatenate(parts)


def _chunks(store: LabelStore, start: int, stop: int) -> list[tuple[int, slice]]:
    """The chunks that hold rows start..stop, and the places of these rows in each chunk."""
    parts = []
    for chunk in range(start // store.layout.chunk_rows, -(-stop // store.layout.chunk_rows)):
        first, last = store.layout.bounds(chunk)
        parts.append((chunk, slice(max(start, first) - first, min(stop, last) - first)))
    return parts


def open_parent(path: Path, child: Path) -> LabelStore:
    """A store to derive another from: whole, sound, with the teacher's image features.

    Raises:
        UsageError: parent and child are the same, the child is a URL, or its name does not end in .zarr.
        DataError: no label store, or one without embeddings.
        IncompleteError: chunks are missing.
        IntegrityError: its index or class lists are damaged.
    """
    if not child.name.endswith(".zarr"):
        raise UsageError(option("labels") + f" {child}: the name of a label store ends in .zarr")
    refuse_writes(child)
    if path.resolve() == child.resolve():
        raise UsageError(option("labels") + f" {child} is the store to read; a derived store needs a path of its own")
    store = LabelStore.open(path)
    if EMBEDDING not in store.groups:
        raise DataError(
            f"{path} holds no image features of its teacher (column group '{EMBEDDING}'), which new labels come from",
            hint=store.embedding_hint,
        )
    require_sound(store)
    for group in store.groups:
        missing = store.layout.chunks - len(store.committed(group))
        if missing:
            raise IncompleteError(
                f"{path}: {missing} of {store.layout.chunks} chunks of {group} are not committed",
                hint=f"run the command that made {path} again: it completes the store",
            )
    return store


def require_sound(store: LabelStore) -> None:
    """Refuse a store whose index or class list is damaged: a lost array reads as zeros, and a child would copy them.

    Raises:
        IntegrityError: names the array.
    """
    faults = store.static_faults()
    if faults:
        where, expected, actual = faults[0]
        raise IntegrityError(
            f"{where}: expected digest {expected}, found {actual}",
            hint="restore the file from a backup, or delete the store and run the command that made it again",
        )


def content_id(store: LabelStore) -> str:
    """Digest of the labels and the embeddings: what a child depends on. A student added later does not change it."""
    groups = [name for name in (LABELS, EMBEDDING) if name in store.groups]
    records = [
        [store.groups[name].digest, [_digests(store, name, c) for c in range(store.layout.chunks)]] for name in groups
    ]
    return canonical_digest({"content": records}, MIDDLE)


def _digests(store: LabelStore, group: str, chunk: int) -> list[str]:
    record = store.record(group, chunk)
    return [digest.hex() for digest in record.digests] if record else []


def open_child(path: Path, wanted: Mapping[str, Any], reporter: Reporter) -> LabelStore | None:
    """The store that an earlier run began, for writing; None where there is none yet.

    Raises:
        FingerprintError: it was made from something else; names each differing field.
        IntegrityError: its index or class lists are damaged.
    """
    if not path.exists():
        return None
    store = LabelStore.open(path, writable=True)
    require_sound(store)
    require_fingerprint(path, LABELS, store.groups[LABELS].fingerprint, wanted)
    clear_partials(path, reporter)
    return store


def copy_groups(child: LabelStore, parents: Sequence[LabelStore], names: Callable[[str], bool]) -> dict[str, int]:
    """Add the empty column groups that the child takes over from its parents.

    Args:
        child: open for writing.
        parents: where several hold a group, the first one counts.
        names: which groups are taken.

    Returns:
        Column group -> number of the parent that holds it.
    """
    sources: dict[str, int] = {}
    for number, parent in enumerate(parents):
        for name in parent.groups:
            if name != LABELS and names(name) and name not in sources:
                sources[name] = number
                add_group_like(child, parent, name)
    return sources


def fill(
    child: LabelStore, groups: Sequence[str], token: int, make: Callable[[str, int], Arrays], reporter: Reporter
) -> Filled:
    """Write and commit every chunk that the child lacks, labels first, then read everything back.

    Args:
        child: open for writing, owned by this run.
        groups: column groups besides the labels.
        token: of the lock.
        make: (group, chunk) -> every array of the group, keyed by path; its `status` counts what failed.
        reporter: told about progress.

    Raises:
        IncompleteError: this run lost the store, a write failed, or somebody asked it to stop.
        IntegrityError: what is read back is not what the ledger says.
    """
    with heeded(child.path, token, reporter) as stop:
        written = 0
        for chunk in range(child.layout.chunks):
            stop.heed(f"{chunk} of {child.layout.chunks} chunks are committed")
            written += _fill_chunk(child, groups, chunk, token, make)
            reporter.progress("label", child.layout.bounds(chunk)[1], child.layout.rows, "rows")
        return _checked(child, written, stop, reporter)


def _fill_chunk(
    child: LabelStore, groups: Sequence[str], chunk: int, token: int, make: Callable[[str, int], Arrays]
) -> bool:
    """Write and commit what a chunk lacks; returns whether that was anything."""
    missing = [group for group in (LABELS, *groups) if child.record(group, chunk) is None]
    for group in missing:
        data = make(group, chunk)
        status = data["status"] if group == LABELS else child.read_chunk(LABELS, chunk)["status"]
        failed = int((status != 0).sum())
        require_token(child.path, token)
        digests = child.write_chunk(group, chunk, data)
        require_token(child.path, token)
        child.commit(group, chunk, token, len(status) - failed, failed, digests)
    return bool(missing)


def _checked(child: LabelStore, written: int, stop: StopWatch, reporter: Reporter) -> Filled:
    """Read every chunk of a child back, of which so many were written just now."""
    chunks, failed = child.layout.chunks, 0
    for chunk in range(chunks):
        stop.heed("all chunks are committed, and some of them not read back")
        for group in child.groups:
            data = child.read_chunk(group, chunk)
            failed += int((data["status"] != 0).sum()) if group == LABELS else 0
        reporter.progress("check", chunk + 1, chunks, "chunks")
    return Filled(written, chunks - written, child.layout.rows - failed, failed)
