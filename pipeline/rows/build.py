"""Fill a working set: the rows of a store that a run needs, decoded chunk by chunk into one record a row.

This module reads only what the ledger vouches for and keeps no Python object for a row. `files` holds the files.

A record keeps a row's classes by falling probability and its value codes in the same order; a table of 256 values
turns codes into log-probabilities batch by batch, which is cheaper than reading four times the bytes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from teachonce.core.progress import Reporter
from teachonce.data.vocabulary import Vocabulary
from teachonce.errors import DataError, IncompleteError
from teachonce.labels.codec import GAP_FILL, INT8_FILL, FloatArray, IdArray, class_dtype
from teachonce.labels.format import EMBEDDING, LABELS
from teachonce.labels.metadata import features_group
from teachonce.labels.selection import Selection
from teachonce.labels.store import Arrays, LabelStore
from teachonce.phrases import option, phrase
from teachonce.rows.files import ArrayWriter

RECORDS, FEATURES, EMBEDDINGS = "records.npy", "features.npy", "embeddings.npy"
ALIGN = 8  # the bytes of a record are a multiple of it
MOST_THREADS = 4
WANTED = ("label", "sample", "status", "class_ids", "gaps", "top_log_prob", "log_residual")


@dataclass(frozen=True, eq=False)
class Plan:
    """What a working set takes from a store. V classes of the run."""

    store: LabelStore
    group: str | None
    """Column group of the student's features; None without student features."""
    embeddings: bool
    """Whether the teacher's image embeddings are taken, as they are stored."""
    vocabulary: Vocabulary
    """The run's classes: the store's, or those of the selection in the same order."""
    run_class: IdArray
    """[classes + 1] the run's index of each class of the store, -1 where it has none; the last is for label -1."""
    top_k: int
    """Number of classes that are read of each soft label."""
    selection: Selection | None
    dtype: np.dtype[Any]
    """The type of a record."""

    @property
    def restricted(self) -> bool:
        """Whether the run has only some of the store's classes, so that a row may have fewer classes than others."""
        return len(self.vocabulary) < self.store.layout.classes

    @property
    def columns(self) -> dict[str, str]:
        """For each file of values beside the records, the column group whose first array holds the row vectors."""
        groups = {FEATURES: self.group, EMBEDDINGS: EMBEDDING if self.embeddings else None}
        return {file: group for file, group in groups.items() if group is not None}


def make_plan(store: LabelStore, student_digest: str | None, selection: Selection | None, embeddings: bool) -> Plan:
    """Decide what to take, and refuse what the store does not have.

    Raises:
        DataError: the store has no features of this student, or no embeddings; the hint names the command that adds
            them.
    """
    if embeddings and (EMBEDDING not in store.groups or not store.layout.top_k):
        raise DataError(f"{store.path} holds no image embeddings of its teacher", hint=store.embedding_hint)
    group = None if student_digest is None else features_group(store.groups, student_digest)
    if student_digest is not None and group is None:
        students = [g.fingerprint["about"].get("student") for n, g in store.groups.items() if n.startswith("students/")]
        raise DataError(
            f"{store.path} holds no image features of this student (weights {str(student_digest)[:16]}); "
            f"it holds those of: {', '.join(map(str, students)) or 'none'}",
            hint=f"run the command that made {store.path} again with "
            + option("student")
            + " MODEL added: only that tower runs",
        )
    whole = store.vocabulary()
    classes = np.arange(len(whole))
    if selection is not None and selection.classes is not None:
        chosen = set(selection.classes)
        classes = np.array([i for i, class_id in enumerate(whole.ids) if class_id in chosen], np.int64)
    run_class = np.full(len(whole) + 1, -1)
    run_class[classes] = np.arange(len(classes))
    vocabulary = Vocabulary(tuple(whole.ids[i] for i in classes), tuple(whole.names[i] for i in classes))
    top_k = store.layout.top_k
    if selection is not None and selection.top_k is not None:
        top_k = min(top_k, selection.top_k)
    dtype = record_dtype(min(top_k, len(classes)), len(store.layout.temperatures), len(classes))
    return Plan(store, group, embeddings, vocabulary, run_class, top_k, selection, dtype)


def record_dtype(width: int, temperatures: int, classes: int) -> np.dtype[Any]:
    """Return the type of one row, without gaps between its fields; `width` classes a row, 0 without a teacher."""
    fields: list[Any] = [("label", "<i4"), ("row", "<u4")]
    if width:
        fields += [
            ("top_log_prob", "<f4"),
            ("log_residual", "<f4", (temperatures,)),
            ("class_ids", class_dtype(classes).newbyteorder("<"), (width,)),
            ("codes", "u1", (width,)),
        ]
        if missing := -np.dtype(fields).itemsize % ALIGN:
            fields.append(("unused", "u1", (missing,)))
    return np.dtype(fields)


def code_values(gap_levels: FloatArray) -> FloatArray:
    """Return the nats below the row's best for each of the 256 codes; infinite for the code of no class."""
    return np.append(gap_levels, np.full(256 - len(gap_levels), np.inf, np.float32))


def write_arrays(plan: Plan, place: Path, reporter: Reporter) -> dict[str, Any]:
    """Write the arrays of a set into a folder.

    Returns:
        What about.json should say of the rows.

    Raises:
        IncompleteError: a chunk is not committed, or no row is left.
        IntegrityError: a chunk is damaged.
        OSError: a write failed.
    """
    chunks = plan.store.layout.chunks
    writers = {RECORDS: ArrayWriter(place / RECORDS, plan.dtype)}
    without_class = 0
    try:
        for file, group in plan.columns.items():
            spec = plan.store.groups[group].vectors
            writers[file] = ArrayWriter(place / file, spec.dtype.newbyteorder("<"), spec.tail)
        for chunk, parts in enumerate(_in_order(plan, chunks)):
            for file, writer in writers.items():
                writer.append(parts[file])
            without_class += int((parts[RECORDS]["label"] < 0).sum())
            reporter.progress("decode", chunk + 1, chunks, "chunks")
        for writer in writers.values():
            writer.finish()
    finally:
        for writer in writers.values():
            writer.close()
    rows = writers[RECORDS].rows
    if not rows:
        which = "" if plan.selection is None else " that is in the selection"
        raise IncompleteError(
            f"{plan.store.path} holds no row with an image{which}", hint=f"teachonce inspect {plan.store.path}"
        )
    return {"rows": rows, "without_class": without_class}


def _in_order(plan: Plan, chunks: int) -> Iterator[Arrays]:
    """Yield the rows of every chunk; few chunks are decoded at a time, so that memory does not grow with the store."""
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
    pending: deque[Future[Arrays]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for chunk in range(chunks):
                pending.append(pool.submit(rows_of_chunk, plan, chunk))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for unfinished in pending:
                unfinished.cancel()


def rows_of_chunk(
    plan: Plan, chunk: int, only: npt.NDArray[np.int64] | None = None, data: Arrays | None = None
) -> Arrays:
    """Return what a set holds of a chunk's rows, by file name: records, and rows of values as stored.

    Args:
        chunk: number of a chunk of the store; it is checked against the store's ledger.
        only: places within the chunk; None: all its rows that belong to the set.
        data: the chunk's label arrays, if they were read before.

    Raises:
        DataError: an image of the chunk has values that are not finite.
    """
    data = plan.store.read_chunk(LABELS, chunk, WANTED) if data is None else data
    first, _ = plan.store.layout.bounds(chunk)
    with_image = data["status"] == 0
    values = {file: _values(plan, group, chunk, with_image) for file, group in plan.columns.items()}
    keep = with_image.copy()
    if plan.selection is not None:
        keep &= np.isin(data["sample"], plan.selection.samples)
    if plan.selection is not None and plan.selection.classes is not None:
        keep &= _labels(plan, data) >= 0
    places = np.flatnonzero(keep)
    if only is not None:
        places = np.intersect1d(places, only)
    records = _records(plan, {name: data[name][places] for name in WANTED if name in data}, first + places)
    return {RECORDS: records, **{file: rows[places] for file, rows in values.items()}}


def _values(plan: Plan, group: str, chunk: int, with_image: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Return the vectors of a chunk's rows; rows with an image must be finite, the others are fill values.

    Raises:
        DataError: a row with an image is not finite; the message names the first.
    """
    array = plan.store.groups[group].vectors.path
    values = plan.store.read_chunk(group, chunk, (array,))[array]
    sound = values[:, 0] != INT8_FILL if values.dtype == np.int8 else np.isfinite(values).all(axis=1)
    broken = np.flatnonzero(with_image & ~sound)
    if len(broken):
        row, vector = int(broken[0]) + plan.store.layout.bounds(chunk)[0], values[broken[0]]
        bad = vector[~np.isfinite(vector)] if values.dtype != np.int8 else vector[:1]
        raise DataError(
            f"{plan.store.path}: row {row} in chunk {chunk} of {group} holds {bad[0]} in {len(bad)} of {len(vector)} "
            f"places, though its image was read; {len(broken)} of {len(values)} rows of the chunk are so",
            hint=phrase(
                "the model that made them overflows: teach a new store with another {precision=...}, or another model"
            ),
        )
    return values


def _labels(plan: Plan, data: Arrays) -> IdArray:
    """Return the run's class of each row's label, -1 where it has none."""
    labels: IdArray = plan.run_class[plan.store.in_vocabulary(data["label"])]
    return labels


def _records(plan: Plan, data: Arrays, rows: IdArray) -> npt.NDArray[Any]:
    records = np.zeros(len(rows), plan.dtype)
    records["label"] = _labels(plan, data)
    records["row"] = rows
    if not plan.top_k:
        return records
    ids, codes = plan.store.decode_codes(data)
    top = data["top_log_prob"].astype(np.float32)
    residual = data["log_residual"].astype(np.float32)
    if plan.top_k < ids.shape[1]:
        below = code_values(plan.store.gap_levels)[codes[:, plan.top_k :]]
        residual = _with_dropped(residual, top[:, None] - below, plan.store.layout.temperatures)
        ids, codes = ids[:, : plan.top_k], codes[:, : plan.top_k]
    if plan.restricted:
        ids, codes = _inside(plan.run_class[ids], codes, plan.dtype["class_ids"].shape[0])
        residual = np.full_like(residual, -np.inf)  # the store does not keep what the tail holds of these classes
    records["top_log_prob"], records["log_residual"] = top, residual
    records["class_ids"], records["codes"] = ids, codes
    return records


def _with_dropped(residual: FloatArray, dropped: FloatArray, temperatures: tuple[float, ...]) -> FloatArray:
    """Add classes that are no longer kept to the tail sums: ln(exp(residual) + sum of exp(dropped / tau))."""
    columns = [
        np.logaddexp(residual[:, t].astype(np.float64), np.logaddexp.reduce(dropped.astype(np.float64) / tau, axis=1))
        for t, tau in enumerate(temperatures)
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _inside(ids: IdArray, codes: npt.NDArray[np.uint8], width: int) -> tuple[IdArray, npt.NDArray[np.uint8]]:
    """Drop the classes that are -1 and move the others up; freed places are -1 with the code of no class."""
    order = np.argsort(ids < 0, axis=1, kind="stable")[:, :width]
    ids = np.take_along_axis(ids, order, axis=1)
    codes = np.where(ids < 0, np.uint8(GAP_FILL), np.take_along_axis(codes, order, axis=1))
    return ids, codes
