"""Read decoded columns out of a label store: soft labels of a chunk, and whole columns for a training run.

It does not write; what it returns was checked against the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from teachonce.errors import DataError, IncompleteError
from teachonce.label_codec import CodedTopK, TopK, decode
from teachonce.label_store import Arrays, LabelStore
from teachonce.progress import Reporter
from teachonce.store_format import LABELS, student_group


def decode_labels(data: Arrays) -> TopK:
    """The soft labels in the arrays of one chunk of the column group `labels`."""
    return decode(CodedTopK(data["class_ids"], data["gaps"], data["top_log_prob"], data["log_residual"]))


@dataclass(frozen=True)
class WorkingSet:
    """The rows of a store that a run can train on, decoded: N rows that have an image."""

    features: npt.NDArray[np.float16]  # [N, E] unit image features of the student
    label: npt.NDArray[np.int64]  # [N] index into the vocabulary, -1 where the class is not in it
    class_ids: npt.NDArray[np.int32]  # [N, k] by falling probability; k = 0 in a store without a teacher
    log_probs: npt.NDArray[np.float32]  # [N, k]
    log_residual: npt.NDArray[np.float32]  # [N, T]
    temperatures: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.label)


def load_working_set(store: LabelStore, student_digest: str, reporter: Reporter) -> WorkingSet:
    """Decode all rows that have an image.

    Args:
        store: a complete store.
        student_digest: weights digest of the student whose features are wanted.
        reporter: told about progress and about rows without a class.

    Raises:
        DataError: the store has no features of this student; names the command that adds them.
        IncompleteError: a chunk is not committed.
    """
    group = student_group(student_digest)
    if group not in store.groups:
        known = [str(g.fingerprint["about"].get("student")) for n, g in store.groups.items() if n != LABELS]
        raise DataError(
            f"{store.path} holds no image features of this student (weights {student_digest[:16]}); "
            f"it holds those of: {', '.join(known) or 'none'}",
            hint=f"run the command that made {store.path} again with --student MODEL added: only that tower runs",
        )
    vocabulary, own = store.vocabulary(), store.label_classes()
    to_vocabulary = np.array([vocabulary.index.get(class_id, -1) for class_id in own.ids] + [-1])
    parts: list[tuple[npt.NDArray[Any], ...]] = []
    for chunk in range(store.layout.chunks):
        data = store.read_chunk(LABELS, chunk)
        features = store.read_chunk(group, chunk)[f"{group}/features"]
        good = (data["status"] == 0) & np.isfinite(features[:, 0])
        soft = decode_labels(data) if store.layout.top_k else _no_soft_labels(len(good))
        part = (
            features,
            to_vocabulary[data["label"]],
            soft.class_ids.astype(np.int32),
            soft.log_probs,
            soft.log_residual,
        )
        parts.append(tuple(column[good] for column in part))
        reporter.progress("read", chunk + 1, store.layout.chunks, "chunks")
    features, label, class_ids, log_probs, log_residual = (np.concatenate(c) for c in zip(*parts, strict=True))
    unmapped = int((label < 0).sum())
    if unmapped:
        reporter.note(f"{unmapped} of {len(label)} rows have a class outside the vocabulary: soft labels only")
    if not len(label):
        raise IncompleteError(f"{store.path} holds no row with an image", hint=f"teachonce inspect {store.path}")
    return WorkingSet(features, label, class_ids, log_probs, log_residual, store.layout.temperatures)


def _no_soft_labels(rows: int) -> TopK:
    nothing = np.zeros((rows, 0), np.float32)
    return TopK(np.zeros((rows, 0), np.int64), nothing, nothing)
