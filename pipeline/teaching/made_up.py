"""Batches of random pixels in place of images, with which a rehearsal measures what a model alone can do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from teachonce.data.batches import ImageBatch
from teachonce.data.view_policy import ViewPolicy
from teachonce.models.clip import LoadedClip


class MadeUpBatches:
    """Stands in for `batches.ImageBatches` without an image: each batch holds the same random pixels."""

    def __init__(self, samples: int, models: Sequence[LoadedClip], batch_size: int, policy: ViewPolicy) -> None:
        self._rows = samples * policy.views
        self._size = max(1, batch_size // policy.views) * policy.views
        grey = Image.new("RGB", (256, 256), (128, 128, 128))
        random = torch.Generator().manual_seed(0)
        shapes = [model.prepare(grey).shape for model in models]
        self._pixels = [torch.randn(self._size, *shape, generator=random) for shape in shapes]

    def __enter__(self) -> MadeUpBatches:
        return self

    def __exit__(self, *problem: object) -> None:
        """Nothing is open, so nothing is closed."""

    def __iter__(self) -> Iterator[ImageBatch]:
        for start in range(0, self._rows, self._size):
            count = min(self._size, self._rows - start)
            inputs = tuple(pixels[:count] for pixels in self._pixels)
            none = np.zeros(count, np.uint32)
            yield ImageBatch(
                start, inputs, tuple(range(len(inputs))), (), none, np.zeros((count, 5), np.uint16), 0, (0.0, 0.0)
            )
