"""Batches of model inputs from a reader, in order: threads read, decode, crop and stack images ahead of the model.

This module does not run models. A failed image keeps its place, so that batch positions never depend on failures.
"""

from __future__ import annotations

import functools
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from teachonce.data.reader import DECODE_ERRORS, UNDECODABLE, ImageFault, ImageReader, decode
from teachonce.data.view_policy import ViewPolicy
from teachonce.data.views import NO_VIEW, View, draw_view, view_params

READ_AHEAD = 2  # batches that are decoded while the model runs one
ONE_VIEW = ViewPolicy()
Item = list[Tensor] | ImageFault


class ViewTaker(Protocol):
    """What a batch has to know of a model: where it runs, and how it takes a view of an image."""

    @property
    def device(self) -> torch.device:
        """The device that the model runs on."""

    @property
    def preparation(self) -> str:
        """Words that are equal for models that make equal pixels of every view: one of them makes those of all."""

    def view_pixels(self, image: Image.Image, view: View) -> Tensor:
        """Turn one view of a decoded image into what the model takes, [3, H, W] uint8 or float32."""


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Consecutive rows; the views of a sample stand side by side. B rows, M models, P different preparations."""

    start: int
    inputs: tuple[Tensor | None, ...]
    """[P] The pixels by each preparation, [B, 3, H, W] uint8 or float32, zeros where the image failed; None where all
    images failed."""
    prepared: tuple[int, ...]
    """[M] The number of each model's preparation."""
    failed: tuple[tuple[int, ImageFault], ...]
    """Row and reason of each image that failed."""
    crcs: npt.NDArray[np.uint32]
    """[B] CRC-32 of each image's bytes as they lie in the archive."""
    params: npt.NDArray[np.uint16]
    """[B, 5] view parameters as `views.view_params` gives them."""
    image_bytes: int
    seconds: tuple[float, float]
    """Seconds spent on reading and on decoding, each summed over threads."""

    def __len__(self) -> int:
        return len(self.crcs)

    def faults(self) -> list[tuple[int, ImageFault]]:
        """List row and reason of each image that failed."""
        return list(self.failed)

    def pixels(self, model: int) -> Tensor | None:
        """Return what one model takes; models of equal preparation get the same tensor."""
        return self.inputs[self.prepared[model]]


def image_batches(
    reader: ImageReader,
    samples: int,
    models: Sequence[ViewTaker],
    batch_size: int,
    threads: int,
    policy: ViewPolicy = ONE_VIEW,
) -> ImageBatches:
    """Yield the first `samples` samples of the reader's index as batches.

    Each image is decoded once for all models, and cropped and stacked once for all that prepare images alike.

    Work on the first batches starts with the call, not with the first `next`. Use `with` or `close`: no thread may
    still read when the reader is closed.

    Args:
        batch_size: rows of a batch. All views of a sample are in one batch, so a batch has at least `views` rows.
        threads: number of decoding threads; all callers of this process that ask for as many threads share them.
    """
    return ImageBatches(reader, samples, models, max(1, batch_size // policy.views), threads, policy)


class ImageBatches:
    """An iterator of batches that keeps READ_AHEAD of them in the making."""

    def __init__(
        self,
        reader: ImageReader,
        samples: int,
        models: Sequence[ViewTaker],
        per_batch: int,
        threads: int,
        policy: ViewPolicy,
    ) -> None:
        self._reader, self._policy = reader, policy
        takers = {model.preparation: model for model in reversed(models)}
        self._takers, names = tuple(takers.values()), tuple(takers)
        self._prepared = tuple(names.index(model.preparation) for model in models)
        self._pool, self._collector = _decoders(max(1, threads)), _collector()
        self._todo = deque(range(start, min(start + per_batch, samples)) for start in range(0, samples, per_batch))
        self._queue: deque[tuple[list[Future[_Loaded]], Future[ImageBatch]]] = deque()
        self._pinned = any(model.device.type == "cuda" for model in models)
        self._run_ahead()

    def _run_ahead(self) -> None:
        while self._todo and len(self._queue) <= READ_AHEAD:
            samples = self._todo.popleft()
            work = [self._pool.submit(_load, self._reader, sample, self._takers, self._policy) for sample in samples]
            start = samples.start * self._policy.views
            self._queue.append((work, self._collector.submit(_collect, start, work, self._prepared, self._pinned)))

    def __iter__(self) -> Iterator[ImageBatch]:
        return self

    def __next__(self) -> ImageBatch:
        if not self._queue:
            raise StopIteration
        batch = self._queue[0][1].result()
        self._queue.popleft()
        self._run_ahead()
        return batch

    def close(self) -> None:
        """Drop the batches that nobody took; returns when no thread reads any more."""
        unfinished: list[Future[Any]] = []
        for work, collected in self._queue:
            unfinished += [*work, collected]
        self._queue.clear()
        self._todo.clear()
        wait([future for future in unfinished if not future.cancel()])

    def __enter__(self) -> ImageBatches:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()


@functools.lru_cache(maxsize=4)
def _decoders(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="decode")


@functools.lru_cache(maxsize=1)
def _collector() -> ThreadPoolExecutor:
    """Return the threads that stack batches: two, so that a task that waits for images does not hold up another."""
    return ThreadPoolExecutor(2, thread_name_prefix="stack")


@dataclass(frozen=True, eq=False)
class _Loaded:
    """One sample, with one item for each view."""

    items: tuple[Item, ...]
    crc: int
    views: tuple[View, ...]
    """Empty where the image failed."""
    size: int
    seconds: tuple[float, float]


def _load(reader: ImageReader, sample: int, takers: Sequence[ViewTaker], policy: ViewPolicy) -> _Loaded:
    began = time.perf_counter()
    data = reader.read(sample)
    read = time.perf_counter()
    crc = zlib.crc32(data)
    image = decode(data)
    if isinstance(image, ImageFault):
        seconds = (read - began, time.perf_counter() - read)
        return _Loaded((image,) * policy.views, crc, (), len(data), seconds)
    views = tuple(draw_view(policy, reader.name(sample), v, image.width, image.height) for v in range(policy.views))
    try:
        items: tuple[Item, ...] = tuple([taker.view_pixels(image, view) for taker in takers] for view in views)
    except DECODE_ERRORS as problem:
        fault = ImageFault(UNDECODABLE, f"preprocessing failed: {type(problem).__name__}: {problem}")
        items, views = (fault,) * policy.views, ()
    return _Loaded(items, crc, views, len(data), (read - began, time.perf_counter() - read))


def _collect(start: int, work: Sequence[Future[_Loaded]], prepared: tuple[int, ...], pinned: bool) -> ImageBatch:
    loaded = [future.result() for future in work]
    items = [item for sample in loaded for item in sample.items]
    views = len(loaded[0].items)
    return ImageBatch(
        start,
        tuple(_stack(items, number, pinned) for number in range(max(prepared, default=-1) + 1)),
        prepared,
        tuple((start + row, item) for row, item in enumerate(items) if isinstance(item, ImageFault)),
        np.repeat(np.array([sample.crc for sample in loaded], np.uint32), views),
        np.concatenate([_params(sample.views, views) for sample in loaded]),
        sum(sample.size for sample in loaded),
        (sum(sample.seconds[0] for sample in loaded), sum(sample.seconds[1] for sample in loaded)),
    )


def _params(views: Sequence[View], count: int) -> npt.NDArray[np.uint16]:
    if not views:
        return np.full((count, 5), NO_VIEW, np.uint16)
    return np.stack([view_params(view) for view in views])


def _stack(items: Sequence[Item], preparation: int, pinned: bool) -> Tensor | None:
    good = next((item[preparation] for item in items if not isinstance(item, ImageFault)), None)
    if good is None:
        return None
    # The thread stacks in the memory layout that image towers need, so the model's thread spends no time on it.
    shape = (len(items), *good.shape)
    stacked = torch.empty(shape, dtype=good.dtype, pin_memory=pinned, memory_format=torch.channels_last)
    for row, item in enumerate(items):
        if isinstance(item, ImageFault):
            stacked[row] = 0
        else:
            stacked[row] = item[preparation]
    return stacked
