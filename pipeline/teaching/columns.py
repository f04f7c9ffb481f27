"""The columns that a column group keeps of a chunk, collected batch by batch while the models run.

Results stay on the device until the chunk is finished; nothing here waits for the batch that the device has just got.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teachonce.labels.codec import decode_embeddings, encode_embeddings
from teachonce.labels.fidelity import embedding_fidelity, measured_rows
from teachonce.labels.format import EMBEDDING, LABELS
from teachonce.labels.store import Arrays, LabelStore
from teachonce.teaching.soft_chunk import SoftChunk
from teachonce.teaching.worker import worker_class_embeddings, worker_head


class Column(Protocol):
    """Collects what a column group keeps of a chunk. R rows of the chunk."""

    def add(self, features: Tensor) -> None:
        """Add the unit features of the next rows, [B, E]."""

    def finish(self, status: npt.NDArray[np.uint8], label: npt.NDArray[np.int32]) -> Arrays:
        """Return the arrays of the group; rows with a status other than 0 hold fill values. Both arguments are [R]."""


def column(group: str, store: LabelStore, chunk: int, logit_scale: float, tile: int | None) -> Column:
    """Make the column that fills this group for one chunk."""
    if group == LABELS:
        return _LabelColumn(store, chunk, logit_scale, tile)
    if group == EMBEDDING:
        return _EmbeddingColumn(store, logit_scale)
    return _FeatureColumn(group)


class _LabelColumn:
    def __init__(self, store: LabelStore, chunk: int, logit_scale: float, tile: int | None) -> None:
        self._head = worker_head(store.path, store.groups[LABELS].digest, logit_scale)
        self._labels, self._tile = SoftChunk(store, chunk), tile

    def add(self, features: Tensor) -> None:
        self._labels.add_features(self._head, features, self._tile)

    def finish(self, status: npt.NDArray[np.uint8], label: npt.NDArray[np.int32]) -> Arrays:
        return self._labels.finish(status, label)


class _FeatureColumn:
    def __init__(self, group: str) -> None:
        self._group = group
        self._parts: list[Tensor] = []

    def add(self, features: Tensor) -> None:
        self._parts.append(features)

    def blanked(self, status: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return all features, NaN in rows without an image."""
        features = torch.cat(self._parts).float().cpu().numpy().copy()  # these features were made in inference mode
        self._parts.clear()
        features[status != 0] = np.nan
        return features

    def finish(self, status: npt.NDArray[np.uint8], label: npt.NDArray[np.int32]) -> Arrays:
        return {f"{self._group}/features": self.blanked(status).astype(np.float16)}


class _EmbeddingColumn(_FeatureColumn):
    def __init__(self, store: LabelStore, logit_scale: float) -> None:
        super().__init__(EMBEDDING)
        self._store, self._logit_scale = store, logit_scale

    def finish(self, status: npt.NDArray[np.uint8], label: npt.NDArray[np.int32]) -> Arrays:
        exact = self.blanked(status)
        values = encode_embeddings(exact, self._store.groups[EMBEDDING].fingerprint["kind"])
        spec = self._store.groups[EMBEDDING].arrays[1]
        report = np.full((spec.per_chunk, *spec.tail), np.nan, np.float16)
        rows = measured_rows(len(exact), spec.per_chunk)
        rows = rows[status[rows] == 0]
        if len(rows):
            classes = worker_class_embeddings(self._store.path, self._store.groups[LABELS].digest)
            decoded = decode_embeddings(values[rows])
            report[: len(rows)] = embedding_fidelity(exact[rows], decoded, classes, self._logit_scale)
        return {f"{EMBEDDING}/values": values, f"{EMBEDDING}/fidelity": report}
