"""The most GPU memory that a worker of stage one needs, counted on fake tensors.

Two batches run through the models and through the teacher's top k, because a worker begins a batch before it fetches
what it computed of the last one. Of logits that come in tiles, one and two rows are computed and the rest is
extrapolated, which is exact up to rounding: every tensor there has a row for each image.

Shapes: B images of a batch, H and W a model's input, U distinct names, C classes, E embedding.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from teachonce.data.views import EVALUATION
from teachonce.memory.tally import LiveBytes, as_on_a_gpu
from teachonce.models.clip import LoadedClip
from teachonce.models.spec import Precision
from teachonce.teaching.teacher import PendingTopK, TeacherHead, begin_soft_labels, begin_tiled_soft_labels

HELPS = 0.9
"""A key helps if with it at most this share is needed."""
TILE = 4096
FEWEST_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a worker computes at a time."""

    images: int
    precision: Precision
    classes: int
    """Of the vocabulary; 0 without a teacher."""
    top_k: int
    temperatures: tuple[float, ...]
    tile: int | None
    """Classes whose logits are there at once, where that was asked for."""
    kept_rows: int
    """Rows of a chunk, whose features stay on the device until it is finished."""
    fidelity_rows: int
    """Rows of a chunk whose whole distribution stays there."""


def batch_need(teacher: LoadedClip | None, keeping: tuple[LoadedClip, ...], batch: Batch, gpu: bool = True) -> int:
    """Run two batches on fake tensors.

    Args:
        teacher: makes soft labels; None: no soft labels are made.
        keeping: the models whose features are kept, the teacher among them where its embeddings are.
        batch: what is computed.
        gpu: whether autocast keeps types as on a GPU; else as on a CPU.

    Returns:
        Bytes that are alive at once, at most.
    """
    worker = _Worker(batch)
    models = list({id(clip): clip for clip in (*(() if teacher is None else (teacher,)), *keeping)}.values())
    with as_on_a_gpu() if gpu else contextlib.nullcontext():
        fakes = [worker.tally.fake_model(clip) for clip in models]
        with worker.tally:
            for _ in range(2):
                placed: dict[str, Tensor] = {}
                for clip, fake in zip(models, fakes, strict=True):
                    if clip.preparation not in placed:
                        placed[clip.preparation] = fake.placed(worker.pixels(clip))
                    features = fake.encode_images(placed[clip.preparation], batch.precision)
                    if clip in keeping:
                        worker.kept[clip.digest] = 4 * batch.kept_rows * features.shape[1]
                    if clip is teacher:
                        worker.label(features)
    return worker.tally.peak + sum(worker.kept.values())


def smaller_batches(
    teacher: LoadedClip | None, keeping: tuple[LoadedClip, ...], batch: Batch, need: int
) -> dict[tuple[str, int], int]:
    """Keys with which a worker needs at least a tenth less, with their values: what it needs then."""
    ways: dict[tuple[str, int], Batch] = {}
    fewer = max(FEWEST_IMAGES, batch.images // 4)
    if fewer < batch.images:
        ways["batch_size", fewer] = replace(batch, images=fewer)
    if teacher is not None and (batch.tile or batch.classes) > TILE:
        ways["class_tile", TILE] = replace(batch, tile=TILE)
    needs = {way: batch_need(teacher, keeping, changed) for way, changed in ways.items()}
    return {way: less for way, less in sorted(needs.items(), key=lambda pair: pair[1]) if less <= HELPS * need}


class _Worker:
    """What a worker has on its device beside the models."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.tally = batch, LiveBytes()
        self.kept: dict[str, int] = {}  # bytes of the features that stay there
        self._head: TeacherHead | None = None
        self._pending: PendingTopK | None = None
        self._distributions: Tensor | None = None

    def pixels(self, clip: LoadedClip) -> Tensor:
        """[B, 3, H, W], bytes where the model takes them."""
        one = clip.view_pixels(Image.new("RGB", (64, 64)), EVALUATION)
        return self.tally.empty(self.batch.images, *one.shape, dtype=one.dtype, like_images=True)

    def label(self, features: Tensor) -> None:
        """Compute the top k of a batch, beside the results of the one before it."""
        batch = self.batch
        if self._head is None:
            names = self.tally.empty(batch.classes, features.shape[1])
            self._head = TeacherHead(names, torch.arange(batch.classes), 1.0)
            self._distributions = self.tally.empty(batch.fidelity_rows, batch.classes, dtype=torch.float64)
        tile = batch.tile or self._head.tile_that_fits(len(features))
        if tile is None:
            self._pending = begin_soft_labels(self._head.logits(features), batch.top_k, batch.temperatures)
            return
        before, after = self._tiled(1, features, tile), self._tiled(2, features, tile)
        more = before + (len(features) - 1) * (after - before)
        self.tally.peak = max(self.tally.peak, self.tally.live + more)

    def _tiled(self, rows: int, features: Tensor, tile: int) -> int:
        """Bytes beside what is there, of some rows of a batch."""
        assert self._head is not None  # `label` has made it
        names = min(2 * tile, self.batch.classes)  # the second tile meets the top k of the first
        head = replace(self._head, features_UE=self._head.features_UE[:names], inverse_C=torch.arange(names))
        peak, self.tally.peak = self.tally.peak, self.tally.live
        before = self.tally.live
        with contextlib.suppress(RuntimeError):  # the last line makes NumPy arrays, which needs numbers
            begin_tiled_soft_labels(head, features[:rows], self.batch.top_k, self.batch.temperatures, tile)
        beside, self.tally.peak = self.tally.peak - before, max(peak, self.tally.peak)
        return beside
