"""Batches of model inputs from a reader, in order, decoded ahead of the model in threads.

It does not run models. A failed image keeps its place, so that batch positions never depend on failures.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from teachonce.clip_models import LoadedClip
from teachonce.images import DECODE_ERRORS, UNDECODABLE, ImageFault, ImageReader, decode

READ_AHEAD = 2  # batches that are decoded while one is in the model
Item = list[Tensor] | ImageFault


@dataclass(frozen=True)
class ImageBatch:
    """Consecutive rows; an item is the inputs for each model, or why there is no image."""

    start: int
    items: tuple[Item, ...]
    crcs: tuple[int, ...]
    """CRC-32 of each image's bytes as they lie in the archive."""

    def faults(self) -> list[tuple[int, ImageFault]]:
        """Row and reason of each image that failed."""
        return [(self.start + i, item) for i, item in enumerate(self.items) if isinstance(item, ImageFault)]

    def pixels(self, model: int) -> Tensor | None:
        """One model's inputs [B, 3, H, W], zeros where the image failed; None when all failed."""
        good = next((item[model] for item in self.items if not isinstance(item, ImageFault)), None)
        if good is None:
            return None
        blank = torch.zeros_like(good)
        return torch.stack([blank if isinstance(item, ImageFault) else item[model] for item in self.items])


def image_batches(
    reader: ImageReader, rows: int, models: Sequence[LoadedClip], batch_size: int, threads: int
) -> Iterator[ImageBatch]:
    """All `rows` of the reader's index as batches, for every model from one decode."""
    starts = range(0, rows, batch_size)
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="decode") as pool:
        queue: list[tuple[int, list[Future[tuple[Item, int]]]]] = []
        for number in range(len(starts) + READ_AHEAD):
            if number < len(starts):
                stop = min(starts[number] + batch_size, rows)
                work = [pool.submit(_load, reader, row, models) for row in range(starts[number], stop)]
                queue.append((starts[number], work))
            if number >= READ_AHEAD and queue:
                start, work = queue.pop(0)
                items, crcs = zip(*(future.result() for future in work), strict=True)
                yield ImageBatch(start, items, crcs)


def _load(reader: ImageReader, row: int, models: Sequence[LoadedClip]) -> tuple[Item, int]:
    data = reader.read(row)
    crc = zlib.crc32(data)
    image = decode(data)
    if isinstance(image, ImageFault):
        return image, crc
    try:
        return [model.prepare(image) for model in models], crc
    except DECODE_ERRORS as problem:
        return ImageFault(UNDECODABLE, f"preprocessing failed: {type(problem).__name__}: {problem}"), crc
