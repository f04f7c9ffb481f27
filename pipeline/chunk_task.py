"""The unit of work of stage one: one chunk of samples, from archive bytes to committed rows.

It runs in a worker process, is idempotent, and writes only its own chunk files; it never touches metadata.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numcodecs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teachonce.clip_models import LoadedClip, embedding_width, load_clip, pick_device, tune_process
from teachonce.embedding_codec import decode_embeddings, encode_embeddings
from teachonce.errors import DataError, FingerprintError
from teachonce.fidelity import embedding_fidelity, measured_rows
from teachonce.image_batches import image_batches
from teachonce.images import ImageFault, ImageReader
from teachonce.label_store import Arrays, LabelStore, key_digest
from teachonce.model_spec import Precision
from teachonce.sample_index import SampleIndex
from teachonce.soft_chunk import SoftChunk
from teachonce.store_format import EMBEDDING, LABELS
from teachonce.store_lock import require_token
from teachonce.teacher import TeacherHead, head_of


@dataclass(frozen=True)
class TeachJob:
    """What every chunk task of a run has in common; small, and the key of a worker's model cache."""

    store: str
    root: str
    token: int
    models: tuple[tuple[str, str, str], ...]
    """(column group, model spec, weights digest) of every model that may be needed."""
    logit_scale: float
    precision: Precision
    batch_size: int
    threads: int


@dataclass(frozen=True)
class ChunkReport:
    """What a task tells the driver."""

    chunk: int
    written: tuple[str, ...]
    """Column groups committed by this task; empty when another had done it."""
    rows_ok: int
    rows_failed: int
    faults: tuple[tuple[str, str], ...] = ()
    """Sample key and reason of each image that failed."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Where the time went: waiting for decoded images, in the models, coding and writing."""


def run_chunk(job: TeachJob, chunk: int, groups: tuple[str, ...]) -> ChunkReport:
    """Compute and commit the given column groups of one chunk.

    Raises:
        IncompleteError: this run no longer owns the store, or a write failed.
        DataError: an archive is gone, or shorter than when it was indexed, or holds other images than were labelled.
    """
    store = LabelStore.open(Path(job.store), writable=True)
    missing = tuple(group for group in groups if store.record(group, chunk) is None)
    if not missing:
        return ChunkReport(chunk, (), 0, 0)
    require_token(store.path, job.token)
    tune_process(job.threads)
    numcodecs.blosc.set_nthreads(1)  # chunks are coded while other threads decode images
    clock = {"decode wait": 0.0, "model": 0.0, "write": 0.0}
    index = store.index_of_chunk(chunk)
    images = _Images(np.zeros(len(index), np.uint8), np.zeros(len(index), np.uint32))
    columns = {group: _column(group, job, store, chunk) for group, _, _ in job.models if group in missing}
    with ImageReader(index, Path(job.root)) as reader:
        faults = _fill(columns, reader, images, job, clock)
    if LABELS not in missing:
        _require_same_images(store, chunk, index, images)
    began = time.perf_counter()
    for group in missing:
        data = columns[group].finish(images.status, index) if group in columns else {}
        if group == LABELS:
            data |= _row_arrays(store, chunk, index, images)
        require_token(store.path, job.token)
        digests = store.write_chunk(group, chunk, data)
        require_token(store.path, job.token)
        store.commit(group, chunk, job.token, len(index) - len(faults), len(faults), digests)
    clock["write"] = time.perf_counter() - began
    reasons = tuple((index.key(row), fault.reason) for row, fault in faults)
    return ChunkReport(chunk, missing, len(index) - len(faults), len(faults), reasons, clock)


def _require_same_images(store: LabelStore, chunk: int, index: SampleIndex, images: _Images) -> None:
    """What is added to a labelled chunk must come from the images that were labelled."""
    labelled = store.read_chunk(LABELS, chunk, ("image_crc", "status"))
    stored = labelled["image_crc"]
    other = np.flatnonzero(stored != images.crc)
    if len(other):
        row = int(other[0])
        raise DataError(
            f"{index.archives[int(index.archive[row])]}: '{index.key(row)}' has CRC-32 {images.crc[row]:08x}, and had "
            f"{stored[row]:08x} when {store.path} was labelled; {len(other)} of {len(images.crc)} images of chunk "
            f"{chunk} differ",
            hint="restore the archives the labels were made from, or label the new ones in another --labels store",
        )
    unlike = np.flatnonzero(labelled["status"] != images.status)
    if len(unlike):
        raise DataError(
            f"'{index.key(int(unlike[0]))}' has status {images.status[unlike[0]]} now and had "
            f"{labelled['status'][unlike[0]]} when {store.path} was labelled: images are decoded in another way here",
            hint="use the versions of pillow and torchvision that `teachonce inspect` shows under fingerprint.about",
        )


@dataclass(frozen=True, eq=False)
class _Images:
    """What the images of a chunk turned out to be, filled in as they are read."""

    status: npt.NDArray[np.uint8]
    crc: npt.NDArray[np.uint32]


def _fill(
    columns: dict[str, _Column], reader: ImageReader, images: _Images, job: TeachJob, clock: dict[str, float]
) -> list[tuple[int, ImageFault]]:
    """Run every image once through each model that a column needs; returns the rows that failed."""
    users: dict[tuple[str, str], list[_Column]] = {}
    for group, spec, digest in job.models:
        if group in columns:
            users.setdefault((spec, digest), []).append(columns[group])
    models = [_model(spec, digest) for spec, digest in users]
    faults: list[tuple[int, ImageFault]] = []
    began = time.perf_counter()
    for batch in image_batches(reader, len(images.status), models, job.batch_size, job.threads):
        clock["decode wait"] += time.perf_counter() - began
        began = time.perf_counter()
        faults += batch.faults()
        images.crc[batch.start : batch.start + len(batch.crcs)] = batch.crcs
        for number, (model, filled) in enumerate(zip(models, users.values(), strict=True)):
            features = _features(model, batch.pixels(number), len(batch.items), job.precision)
            if bad := [row - batch.start for row, _ in batch.faults()]:
                features = features.clone()  # made in inference mode
                features[bad] = 0  # whatever the tower makes of a blank image
            for column in filled:
                column.add(features)
        clock["model"] += time.perf_counter() - began
        began = time.perf_counter()
    for row, fault in faults:
        images.status[row] = fault.status
    return faults


def _features(model: LoadedClip, pixels: Tensor | None, rows: int, precision: Precision) -> Tensor:
    """Unit features of one batch; where no image could be decoded at all, zeros that the columns blank later."""
    if pixels is None:
        return torch.zeros(rows, embedding_width(model), device=model.device)
    return model.encode_images(pixels, precision)


class _Column(Protocol):
    """Collects what a column group keeps of a chunk, batch by batch."""

    def add(self, features: Tensor) -> None:
        """The unit features of the next rows, [B, E]."""

    def finish(self, status: npt.NDArray[np.uint8], index: SampleIndex) -> Arrays:
        """The arrays of the group; rows with a status other than 0 hold fill values."""


class _LabelColumn:
    def __init__(self, job: TeachJob, store: LabelStore, chunk: int) -> None:
        self._head = _head(job, store.path)
        self._labels = SoftChunk(store, chunk)

    def add(self, features: Tensor) -> None:
        self._labels.add(self._head.logits(features))

    def finish(self, status: npt.NDArray[np.uint8], index: SampleIndex) -> Arrays:
        return self._labels.finish(status, index.label)


class _FeatureColumn:
    def __init__(self, group: str) -> None:
        self._group = group
        self._parts: list[npt.NDArray[np.float32]] = []

    def add(self, features: Tensor) -> None:
        self._parts.append(features.cpu().numpy())

    def blanked(self, status: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """All features, NaN in rows without an image."""
        features = np.concatenate(self._parts).astype(np.float32, copy=False)
        features[status != 0] = np.nan
        return features

    def finish(self, status: npt.NDArray[np.uint8], index: SampleIndex) -> Arrays:
        return {f"{self._group}/features": self.blanked(status).astype(np.float16)}


class _EmbeddingColumn(_FeatureColumn):
    def __init__(self, job: TeachJob, store: LabelStore) -> None:
        super().__init__(EMBEDDING)
        self._job, self._store = job, store

    def finish(self, status: npt.NDArray[np.uint8], index: SampleIndex) -> Arrays:
        exact = self.blanked(status)
        values = encode_embeddings(exact, self._store.groups[EMBEDDING].fingerprint["kind"])
        spec = self._store.groups[EMBEDDING].arrays[1]
        report = np.full((spec.per_chunk, *spec.tail), np.nan, np.float16)
        rows = measured_rows(len(exact), spec.per_chunk)
        rows = rows[status[rows] == 0]
        if len(rows):
            classes = _class_embeddings(self._store.path)
            decoded = decode_embeddings(values[rows])
            report[: len(rows)] = embedding_fidelity(exact[rows], decoded, classes, self._job.logit_scale)
        return {f"{EMBEDDING}/values": values, f"{EMBEDDING}/fidelity": report}


def _column(group: str, job: TeachJob, store: LabelStore, chunk: int) -> _Column:
    if group == LABELS:
        return _LabelColumn(job, store, chunk)
    if group == EMBEDDING:
        return _EmbeddingColumn(job, store)
    return _FeatureColumn(group)


def _row_arrays(store: LabelStore, chunk: int, index: SampleIndex, images: _Images) -> Arrays:
    start, stop = store.layout.bounds(chunk)
    return {
        "label": index.label,
        "sample": store.samples(start, stop),
        "view": np.zeros(stop - start, np.uint8),
        "status": images.status,
        "image_crc": images.crc,
        "key_digest": key_digest(index),
    }


@functools.lru_cache(maxsize=8)
def _model(spec: str, digest: str) -> LoadedClip:
    """The model of this process, loaded on first use.

    Raises:
        FingerprintError: these are not the weights the driver saw.
    """
    loaded = load_clip(spec, pick_device(_worker_number()))
    if loaded.digest != digest:
        raise FingerprintError(
            f"'{spec}' has weights {loaded.digest[:16]} here and {digest[:16]} where teach was started"
        )
    return loaded


def _worker_number() -> int:
    """Which worker of this machine this is, for choosing a GPU."""
    from distributed import get_worker

    try:
        name = get_worker().name
    except ValueError:  # called outside Dask, as tests do
        return 0
    return name if isinstance(name, int) else 0


@functools.lru_cache(maxsize=2)
def _head(job: TeachJob, store: Path) -> TeacherHead:
    return head_of(_class_embeddings(store), job.logit_scale, pick_device(_worker_number()))


@functools.lru_cache(maxsize=2)
def _class_embeddings(store: Path) -> npt.NDArray[np.float32]:
    return LabelStore.open(store).class_embeddings()


def get_ready() -> None:
    """Does nothing, but a worker that runs it has imported what tasks need, which takes open_clip ten seconds."""
