"""Collect one chunk's logits, batch by batch, and turn them into the coded columns and their fidelity report.

This module does not know where logits come from: teach computes them from images, relabel from embeddings, merge from
teachers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teachonce.labels.codec import CodedTopK, TopK, decode, encode
from teachonce.labels.fidelity import label_fidelity, measured_rows
from teachonce.labels.store import Arrays, LabelStore
from teachonce.teaching.teacher import Pending, TeacherHead, begin_soft_labels, begin_tiled_soft_labels


class SoftChunk:
    """The soft labels of one chunk as they are collected. R rows of the chunk, C classes."""

    def __init__(self, store: LabelStore, chunk: int) -> None:
        start, stop = store.layout.bounds(chunk)
        self.store, self.rows = store, stop - start
        self._parts: list[TopK] = []
        self._measured = measured_rows(self.rows, store.layout.fidelity_rows)
        self._pending: Pending | None = None
        self._full: list[Tensor] = []
        self._seen = 0

    def add(self, logits: Tensor) -> None:
        """Add the next rows' logits at the teacher's own temperature, [B, C] float32; logs of probabilities serve too.

        Raises:
            DataError: a logit is NaN or infinite.
        """
        layout = self.store.layout
        self._add(begin_soft_labels(logits, layout.top_k, layout.temperatures))
        self._measure(len(logits), lambda rows: logits[rows.to(logits.device)])

    def add_features(self, head: TeacherHead, features: Tensor, tile: int | None = None) -> None:
        """Add the next rows' unit image features, [B, E]; logits of `tile` classes exist at a time, None: of all."""
        tile = tile or head.tile_that_fits(len(features))
        if tile is None:
            self.add(head.logits(features))
            return
        self._add(
            begin_tiled_soft_labels(head, features, self.store.layout.top_k, self.store.layout.temperatures, tile)
        )
        self._measure(len(features), lambda rows: head.logits(features[rows.to(features.device)]))

    def _add(self, began: Pending) -> None:
        """Fetch the batch before this one, while the device computes this one."""
        last, self._pending = self._pending, began
        if last is not None:
            self._parts.append(last.fetch())

    def _measure(self, count: int, logits_of: Callable[[Tensor], Tensor]) -> None:
        """Keep the full distribution of those among the next `count` rows that the fidelity report looks at."""
        inside = (self._measured >= self._seen) & (self._measured < self._seen + count)
        if inside.any():
            logits = logits_of(torch.from_numpy(self._measured[inside] - self._seen))
            self._full.append(logits.double().log_softmax(dim=1))
        self._seen += count

    def finish(self, status: npt.NDArray[np.uint8], label: npt.NDArray[np.int32]) -> Arrays:
        """Return the coded columns of all rows.

        Args:
            status: [R]; a status other than 0 blanks the row.
            label: [R] index into the manifest's class list, -1 if unknown.
        """
        if self._pending is not None:
            self._parts.append(self._pending.fetch())
            self._pending = None
        bad = status != 0
        ids, log_probs, log_residual = (
            np.concatenate([getattr(part, name) for part in self._parts])
            for name in ("class_ids", "log_probs", "log_residual")
        )
        ids[bad], log_probs[bad], log_residual[bad] = -1, np.nan, np.nan
        coded = encode(TopK(ids, log_probs, log_residual), self.store.tables)
        return {**vars(coded), "fidelity": self._fidelity(coded, bad, label)}

    def _fidelity(
        self, coded: CodedTopK, bad: npt.NDArray[np.bool_], label: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.float16]:
        layout = self.store.layout
        spec = next(spec for spec in self.store.groups["labels"].arrays if spec.path == "fidelity")
        report = np.full((layout.fidelity_rows, *spec.tail), np.nan, np.float16)
        good = ~bad[self._measured]
        rows = self._measured[good]
        if len(rows):
            chosen = CodedTopK(*(getattr(coded, name)[rows] for name in vars(coded)))
            truth = self.store.in_vocabulary(label[rows])
            measured = label_fidelity(
                torch.cat(self._full).cpu().numpy()[good], decode(chosen, self.store.tables), truth, layout.fidelity_k
            )
            report[: len(rows)] = measured
        return report
