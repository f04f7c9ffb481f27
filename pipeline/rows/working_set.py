"""The rows that a training run needs, decoded once beside the store and mapped into memory by every run after that.

It opens sets and hands out batches. `build` fills a set, `files` proves, shares and evicts the files.
Nothing here touches torch, and nothing keeps a Python object a row.
"""

from __future__ import annotations

import errno
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from teachonce.core.files import write_failed
from teachonce.core.progress import Reporter, Silent
from teachonce.data.vocabulary import Vocabulary
from teachonce.errors import DataError, EnvironmentFault, IncompleteError, IntegrityError
from teachonce.labels.codec import GAP_FILL, decode_embeddings
from teachonce.labels.format import EMBEDDING, LABELS
from teachonce.labels.selection import Selection
from teachonce.labels.store import LabelStore
from teachonce.rows import files as working_files
from teachonce.rows.build import EMBEDDINGS, FEATURES, RECORDS, Plan, code_values, make_plan, write_arrays
from teachonce.rows.files import OpenFiles, set_digest

VERSION = 1  # of the record format: another number never opens these files
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # more than a missing permission: not passed over


@dataclass(frozen=True, eq=False)
class Batch:
    """B rows, decoded. A row with fewer classes than others ends in class -1 with log-probability -inf."""

    features: npt.NDArray[np.float16] | None  # [B, E] unit image features of the student
    label: npt.NDArray[np.int64]  # [B] index into the run's vocabulary, -1 where the class is not in it
    class_ids: npt.NDArray[np.int32]  # [B, k] by falling probability; k = 0 in a store without a teacher
    log_probs: npt.NDArray[np.float32]  # [B, k]
    log_residual: npt.NDArray[np.float32]  # [B, T]
    row: npt.NDArray[np.int64]  # [B] row of the store
    embedding: npt.NDArray[np.float32] | None = None  # [B, D] unit image embeddings of the teacher


class WorkingSet:
    """An open set of N rows that have an image. Cannot be cleared away before `close`, or before it is forgotten.

    Attributes:
        vocabulary: the classes that labels and class ids index.
        temperatures: what the columns of `log_residual` are for.
        digest: the name of the set.
        path: its folder.
        store_id: of the store it was made from, and still belongs to.
        without_class: rows whose label is outside the vocabulary.
        plan: how rows of the store become rows of the set.
        records: [N] one record a row, mapped into memory.
        features: [N, E] float16, mapped into memory; None in a set without a student.
        embeddings: [N, D] the teacher's, coded as in the store, mapped into memory; None in a set without them.
    """

    def __init__(self, plan: Plan, files: OpenFiles) -> None:
        self.plan = plan
        self.path = files.place
        self.digest = files.place.name
        self.vocabulary: Vocabulary = plan.vocabulary
        self.temperatures = plan.store.layout.temperatures
        self.store_id = str(files.description["identity"]["store"])
        self.without_class = int(files.description["without_class"])
        self.records = files.arrays[RECORDS]
        self.features = files.arrays.get(FEATURES)
        self.embeddings = files.arrays.get(EMBEDDINGS)
        self._below = code_values(plan.store.gap_levels) if plan.top_k else np.zeros(0, np.float32)
        self.close = weakref.finalize(self, files.close)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def store(self) -> LabelStore:
        """The label store that the rows come from."""
        return self.plan.store

    @property
    def label_column(self) -> npt.NDArray[np.int32]:
        """The label of every row, [N]; reading it touches every record."""
        column: npt.NDArray[np.int32] = self.records["label"]
        return column

    @property
    def row_column(self) -> npt.NDArray[np.int64]:
        """The row of the store of every row, [N], rising; reading it touches every record."""
        return np.asarray(self.records["row"], np.int64)

    @cached_property
    def class_embeddings(self) -> npt.NDArray[np.float32]:
        """The teacher's unit text features of the run's classes, [V, D]: with `embedding` they give its cosines.

        Raises:
            DataError: the store has no teacher.
            IntegrityError: they are damaged.
        """
        self._require_teacher()
        return self.store.class_embeddings()[self.plan.run_class[:-1] >= 0]

    @property
    def teacher_scale(self) -> float:
        """The teacher's own factor on the cosine.

        Raises:
            DataError: the store has no teacher.
        """
        self._require_teacher()
        return float(self.store.groups[LABELS].fingerprint["logit_scale"])

    def _require_teacher(self) -> None:
        store = self.store
        if "logit_scale" not in store.groups[LABELS].fingerprint:
            raise DataError(f"{store.path} has no teacher of its own with class embeddings", hint=store.embedding_hint)

    @property
    def has_labels(self) -> bool:
        """Whether any row has a label."""
        return self.without_class < len(self)

    def batch(self, indices: npt.NDArray[np.int64]) -> Batch:
        """The rows with these numbers in the set, [B], in this order."""
        features = None if self.features is None else self.features.take(indices, axis=0)
        coded = None if self.embeddings is None else self.embeddings.take(indices, axis=0)
        embedding = None if coded is None else decode_embeddings(coded)
        return decode_records(self.records.take(indices), features, self._below, self.plan.restricted, embedding)


def decode_records(
    records: npt.NDArray[Any],
    features: npt.NDArray[np.float16] | None,
    below: npt.NDArray[np.float32],
    padded: bool,
    embedding: npt.NDArray[np.float32] | None = None,
) -> Batch:
    """Records as a batch.

    Args:
        records: [B].
        features: [B, E], or None.
        below: nats below the row's best for each code, [256].
        padded: whether a row may have fewer classes than others.
        embedding: [B, D], or None.
    """
    label, row = records["label"].astype(np.int64), records["row"].astype(np.int64)
    if "codes" not in (records.dtype.names or ()):
        nothing = np.zeros((len(records), 0), np.float32)
        return Batch(features, label, nothing.astype(np.int32), nothing, nothing, row, embedding)
    codes, ids = records["codes"], records["class_ids"].astype(np.int32)
    if padded:
        ids[codes == GAP_FILL] = -1
    log_probs = records["top_log_prob"][:, None] - below.take(codes)
    return Batch(features, label, ids, log_probs, records["log_residual"].copy(), row, embedding)


def open_working_set(
    store: LabelStore,
    student_digest: str | None,
    reporter: Reporter,
    selection: Selection | None = None,
    embeddings: bool = False,
) -> WorkingSet:
    """Open the set of these rows and columns; it is made first if no run before has made it.

    Args:
        store: a complete store.
        student_digest: weights digest of the student whose features are wanted; None for labels alone.
        reporter: told about progress, about a set that had to be made again, and about rows without a class.
        selection: the rows, and how many and which of their classes; everything by default.
        embeddings: whether the teacher's image embeddings are wanted besides.

    Raises:
        DataError: the store has no features of this student or no embeddings, and the command that adds them is named;
            or they are not finite in a row that has an image.
        IncompleteError: a chunk is not committed.
        IntegrityError: a chunk is damaged.
        IncompleteError: the disk is full.
        EnvironmentFault: neither the folder beside the store nor the cache folder can be written.
    """
    plan = make_plan(store, student_digest, selection, embeddings)
    identity = {
        "version": VERSION,
        "store": store.store_id(),
        "groups": [LABELS, *(_column(file, group) for file, group in plan.columns.items())],
        "selection": None if selection is None else selection.digest,
    }
    beside = working_files.folder_beside(store.path)
    cache = working_files.folder_in_cache(beside)
    files = _usable(plan, beside, identity, reporter) or _usable(plan, cache, identity, reporter)
    if files is None:
        try:
            files = _make(plan, beside, identity, reporter)
        except PermissionError as problem:
            reporter.note(f"{beside} cannot be written ({problem.strerror}): the working set goes to {cache}")
            try:
                files = _make(plan, cache, identity, reporter)
            except PermissionError as second:
                raise EnvironmentFault(
                    f"neither {beside} nor {cache} can be written: {second.strerror}",
                    hint="set TEACHONCE_CACHE to a folder on a large disk",
                ) from second
    rows = WorkingSet(plan, files)
    if rows.without_class:
        reporter.note(f"{rows.without_class} of {len(rows)} rows have a class outside the vocabulary: soft labels only")
    return rows


def _usable(plan: Plan, folder: Path, identity: Mapping[str, Any], reporter: Reporter) -> OpenFiles | None:
    """The set if it is there and sound; a damaged one is never used."""
    try:
        return working_files.open_files(folder, set_digest(identity))
    except IntegrityError as problem:
        reporter.note(problem.message + f"; this working set is thrown away and made again from {plan.store.path}")
        return None


def _make(plan: Plan, folder: Path, identity: Mapping[str, Any], reporter: Reporter) -> OpenFiles:
    """The set, made by this process or by one that was quicker.

    Raises:
        PermissionError: the folder cannot be made or written.
    """
    digest, store = set_digest(identity), plan.store
    try:
        with working_files.building(folder, digest, reporter):
            files = _usable(plan, folder, identity, Silent())  # what is wrong with it was told before
            if files is None:
                with working_files.draft(folder, digest) as place:
                    facts = write_arrays(plan, place, reporter)
                    if store.store_id() != identity["store"]:
                        raise IncompleteError(
                            f"{store.path} changed while its working set was made",
                            hint="run the same command again once the store is complete",
                        )
                    working_files.describe(place, identity, {"store": store.path.name, **facts})
                files = working_files.open_files(folder, digest)
    except OSError as problem:
        if problem.errno in NO_SPACE:
            raise write_failed(folder / digest, problem) from problem
        raise PermissionError(problem.errno, problem.strerror or str(problem), str(folder)) from problem
    if files is None:
        raise IncompleteError(
            f"{folder / digest} was cleared away as soon as it was made", hint="run the same command again"
        )
    return files


def _column(file: str, group: str) -> str:
    """A column for the name of a set: embeddings that serve as the student's features are another column."""
    return f"{group} as features" if file == FEATURES and group == EMBEDDING else group
