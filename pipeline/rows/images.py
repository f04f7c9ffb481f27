"""The images of a training step: any rows of a store as pixels, replayed from the views that the store recorded.

This module draws no view and runs no model, and it refuses an image whose bytes have another checksum than when taught.

Shapes: B rows of a step, S their distinct samples, H and W the student's input.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from teachonce.data.index import SampleIndex
from teachonce.data.places import name_bytes
from teachonce.data.reader import DECODE_ERRORS, ImageFault, ImageReader, decode
from teachonce.data.view_policy import ViewPolicy
from teachonce.data.views import EVALUATION, View, view_from_params
from teachonce.errors import DataError, ImageChangedError, IntegrityError, TeachOnceError
from teachonce.labels.format import LABELS
from teachonce.labels.ledger import key_digest, resize_of
from teachonce.labels.store import Arrays, LabelStore
from teachonce.models.clip import LoadedClip

Rows = npt.NDArray[np.int64]
READ_AHEAD = 2  # steps that may be in the making or ready; a further request drops the oldest
FACTS_BYTES = 1 << 30  # bytes of the facts about rows in memory: some 68 bytes a row, so all of ImageNet-21K fits
_WANTED = ("status", "view", "image_crc", "key_digest", "view_params")


@dataclass(frozen=True, eq=False)
class _Chunk:
    """What a store says of the images of one chunk."""

    index: SampleIndex
    data: Arrays

    @property
    def size(self) -> int:
        """Bytes of all columns together."""
        index = self.index
        columns: list[npt.NDArray[Any]] = [index.archive, index.offset, index.size, index.label]
        columns += [index.key_bytes, index.key_ends, *self.data.values()]
        return sum(column.nbytes for column in columns)


@dataclass(frozen=True)
class _Sample:
    """One photo of a step, and the views that the step needs of it."""

    crc: int | None
    """CRC-32 of the bytes that were taught; None where the store keeps no checksums."""
    row: int
    """The first row of the photo, for messages."""
    views: tuple[tuple[int, View], ...]
    """Place in the step of each view, and the view."""


@dataclass(eq=False)
class _Ahead:
    """Rows whose images are being prepared before `pixels` asks for them."""

    rows: Rows
    pixels: Future[Tensor]


class ViewImages:
    """Pixels of rows of a store for one model, decoded ahead in threads. Close the object, or use it in `with`.

    All steps go through one thread that reads what the store says, and one pool that reads and decodes images; so the
    files of at most one step are open at a time. Rows may come in any order and any number of times.

    Args:
        store: a store in which the chunks of the rows are committed.
        root: the folder of the images, as for `teach`.
        clip: the model whose preprocessing is used, with the resize that the store was made with.
        threads: number of threads that read and decode.
    """

    def __init__(self, store: LabelStore, root: Path, clip: LoadedClip, threads: int) -> None:
        self._store, self._root = store, root
        self._clip = clip.resized_by(resize_of(store.groups[LABELS].fingerprint))
        self._shape = tuple(clip.prepare(Image.new("RGB", (64, 64))).shape)  # shape of one input
        self._decoders = ThreadPoolExecutor(max(1, threads), thread_name_prefix="view")
        self._steps = ThreadPoolExecutor(1, thread_name_prefix="step")
        self._ahead: deque[_Ahead] = deque()
        self._chunks: OrderedDict[int, _Chunk] = OrderedDict()  # only the one thread of `_steps` uses this

    def pixels(self, rows: Rows) -> Tensor:
        """Return what `teach` showed the student for these rows.

        Args:
            rows: [B] row numbers of the store, each with an image.

        Returns:
            [B, 3, H, W] float32 on the CPU, channels last; pinned when the model is on a GPU.

        Raises:
            ImageChangedError: an image is not the one that was taught.
            IntegrityError: the store is damaged.
            IncompleteError: a row's chunk is not committed.
            DataError: an archive is gone or was changed, an image cannot be decoded, or a row has no image.
            OSError: the disk or the network failed on every try.
        """
        rows = np.asarray(rows, np.int64)
        for begun in self._ahead:
            if np.array_equal(begun.rows, rows):
                self._ahead.remove(begun)
                return begun.pixels.result()
        return self._steps.submit(self._step, rows).result()

    def prefetch(self, rows: Rows) -> None:
        """Begin with rows that `pixels` will ask for, in the same order; problems show in `pixels`."""
        rows = np.array(rows, np.int64)  # a copy, because the caller may reuse its buffer
        self._ahead.append(_Ahead(rows, self._steps.submit(self._step, rows)))
        while len(self._ahead) > READ_AHEAD:
            self._ahead.popleft().pixels.cancel()

    def close(self) -> None:
        """Drop the steps that nobody took; returns when no thread reads and no file is open."""
        self._ahead.clear()
        self._steps.shutdown(cancel_futures=True)
        self._decoders.shutdown()
        self._chunks.clear()

    def __enter__(self) -> ViewImages:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def _step(self, rows: Rows) -> Tensor:
        index, samples = self._plan(rows)
        # Images are read along the disk, and a parquet group only once.
        order = np.lexsort((index.offset, index.archive)).tolist()
        pinned = self._clip.device.type == "cuda"
        # The pixels have the memory layout that image towers need; every thread writes its own images.
        stacked = torch.empty((len(rows), *self._shape), pin_memory=pinned, memory_format=torch.channels_last)
        with ImageReader(index, self._root) as reader:
            work = [self._decoders.submit(self._load, reader, index, i, samples[i], stacked) for i in order]
            try:
                for future in work:
                    future.result()
            finally:  # nothing may still read when the reader is closed
                wait([future for future in work if not future.cancel()])
        return stacked

    def _plan(self, rows: Rows) -> tuple[SampleIndex, list[_Sample]]:
        """Return the distinct samples of a step: where they lie, and which views the step needs of each."""
        layout = self._store.layout
        if rows.ndim != 1 or not len(rows) or rows.min() < 0 or rows.max() >= layout.rows:
            raise TeachOnceError(f"rows {rows} were asked for; {self._store.path} has rows 0 to {layout.rows - 1}")
        numbers, which = np.unique(rows // layout.views, return_inverse=True)
        places = np.split(np.argsort(which, kind="stable"), np.bincount(which).cumsum()[:-1])
        samples_at, samples = [], []
        for number, rows_of_sample in zip(numbers.tolist(), places, strict=True):
            chunk, local = divmod(number, layout.chunk_rows // layout.views)
            facts = self._chunk(chunk)
            samples_at.append((facts.index, local))
            samples.append(self._sample(facts, local, layout.bounds(chunk)[0], rows, rows_of_sample.tolist()))
        return _picked(samples_at), samples

    def _sample(self, facts: _Chunk, local: int, first: int, rows: Rows, rows_of_sample: list[int]) -> _Sample:
        """Return one photo with all its rows in a step, which are `rows[rows_of_sample]`."""
        data, views, name = facts.data, [], facts.index.key(local)
        for place in rows_of_sample:
            row = int(rows[place])
            if (status := int(data["status"][row - first])) != 0:
                raise DataError(
                    f"{self._store.path}: row {row} ('{name}') has no image that could be shown: status {status}",
                    hint="its image failed in `teach`; take rows of status 0 only",
                )
            views.append((place, self._view(data, row - first, name)))
        row = int(rows[rows_of_sample[0]])
        crc = int(data["image_crc"][row - first]) if "image_crc" in data else None
        return _Sample(crc, row, tuple(views))

    def _view(self, data: Arrays, local: int, name: str) -> View:
        if self._policy is None:
            return EVALUATION
        return view_from_params(data["view_params"][local], self._policy, name, int(data["view"][local]))

    @cached_property
    def _policy(self) -> ViewPolicy | None:
        """The policy that the stored views were drawn from; None if each model's own transform is the only view."""
        store = self._store
        if store.layout.views == 1:
            return None
        return ViewPolicy.from_dict(store.groups[LABELS].fingerprint["views"], str(store.path))

    def _chunk(self, chunk: int) -> _Chunk:
        """Return what the store says of a chunk, read and checked once; chunks that are long unused are forgotten."""
        if chunk not in self._chunks:
            data = self._store.read_chunk(LABELS, chunk, _WANTED)
            index = self._store.index_of_chunk(chunk)
            if "key_digest" in data and (data.pop("key_digest") != key_digest(index)).any():
                raise IntegrityError(
                    f"{self._store.path}: the sample index of chunk {chunk} is not the one that was taught",
                    hint="restore the folder `index` of the store from a backup",
                )
            self._chunks[chunk] = _Chunk(index, data)
            while (
                len(self._chunks) > 1 and sum(chunk_facts.size for chunk_facts in self._chunks.values()) > FACTS_BYTES
            ):
                self._chunks.popitem(last=False)
        self._chunks.move_to_end(chunk)
        return self._chunks[chunk]

    def _load(self, reader: ImageReader, index: SampleIndex, place: int, sample: _Sample, stacked: Tensor) -> None:
        """Put the needed views of one photo into their places in the step."""
        content = reader.read(place)
        where = f"{self._root / index.archives[int(index.archive[place])]}: the image '{index.key(place)}'"
        if sample.crc is not None and zlib.crc32(content) != sample.crc:
            image_of_row = f"{where} of row {sample.row}"
            raise ImageChangedError(image_of_row, str(self._store.path), zlib.crc32(content), sample.crc)
        image = decode(content)
        if isinstance(image, ImageFault):
            raise _undecodable(where, sample.row, image.reason)
        try:
            for at, view in sample.views:
                stacked[at] = self._clip.prepare_view(image, view)
        except DECODE_ERRORS as problem:
            raise _undecodable(where, sample.row, f"{type(problem).__name__}: {problem}") from problem


def _undecodable(where: str, row: int, reason: str) -> DataError:
    return DataError(
        f"{where} of row {row} cannot be decoded: {reason}",
        hint="it could when the store was made: use the version of pillow that `teachonce inspect` shows",
    )


def _picked(samples_at: Sequence[tuple[SampleIndex, int]]) -> SampleIndex:
    """Make an index of single samples from other indexes of one store."""
    keys = [name_bytes(index.key(local)) for index, local in samples_at]
    return SampleIndex(
        samples_at[0][0].archives,
        np.array([index.archive[local] for index, local in samples_at], np.uint32),
        np.array([index.offset[local] for index, local in samples_at], np.uint64),
        np.array([index.size[local] for index, local in samples_at], np.uint64),
        np.array([index.label[local] for index, local in samples_at], np.int32),
        np.frombuffer(b"".join(keys), np.uint8),
        np.cumsum([len(key) for key in keys]).astype(np.uint64),
    )
