"""The unit of work of stage one: one chunk of samples, from archive bytes to committed rows.

It runs in a worker process, is idempotent, and writes only its own chunk files; it never touches metadata.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teachonce.clip_models import LoadedClip, embedding_width, load_clip, pick_device, tune_process
from teachonce.errors import FingerprintError
from teachonce.image_batches import image_batches
from teachonce.images import ImageFault, ImageReader
from teachonce.label_codec import TopK, encode
from teachonce.label_store import Arrays, LabelStore
from teachonce.model_spec import Precision
from teachonce.store_format import LABELS, Layout
from teachonce.store_lock import require_token
from teachonce.teacher import TeacherHead, soft_labels
from teachonce.zeroshot import equal_rows


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
        DataError: an archive is gone, or shorter than when it was indexed.
    """
    store = LabelStore.open(Path(job.store), writable=True)
    missing = tuple(group for group in groups if store.record(group, chunk) is None)
    if not missing:
        return ChunkReport(chunk, (), 0, 0)
    require_token(store.path, job.token)
    tune_process(job.threads)
    numcodecs.blosc.set_nthreads(1)  # chunks are coded while other threads decode images
    models = {group: _model(spec, digest) for group, spec, digest in job.models if group in missing}
    clock = {"decode wait": 0.0, "model": 0.0, "write": 0.0}
    index = store.index_of_chunk(chunk)
    status = np.zeros(len(index), np.uint8)
    columns = {group: _Column(group, job, store) for group in models}
    with ImageReader(index, Path(job.root)) as reader:
        faults = _fill(columns, models, reader, status, job, clock)
    began = time.perf_counter()
    for group in missing:
        data = columns[group].finish(status) if group in columns else {}
        if group == LABELS:
            data |= _row_arrays(store, chunk, index.label, status)
        require_token(store.path, job.token)
        digests = store.write_chunk(group, chunk, data)
        require_token(store.path, job.token)
        store.commit(group, chunk, job.token, len(index) - len(faults), len(faults), digests)
    clock["write"] = time.perf_counter() - began
    reasons = tuple((index.key(row), fault.reason) for row, fault in faults)
    return ChunkReport(chunk, missing, len(index) - len(faults), len(faults), reasons, clock)


def _fill(
    columns: dict[str, _Column],
    models: dict[str, LoadedClip],
    reader: ImageReader,
    status: npt.NDArray[np.uint8],
    job: TeachJob,
    clock: dict[str, float],
) -> list[tuple[int, ImageFault]]:
    """Run every image through every model; returns the rows that failed and sets their status."""
    faults: list[tuple[int, ImageFault]] = []
    began = time.perf_counter()
    for batch in image_batches(reader, len(status), list(models.values()), job.batch_size, job.threads):
        clock["decode wait"] += time.perf_counter() - began
        began = time.perf_counter()
        faults += batch.faults()
        for number, (group, model) in enumerate(models.items()):
            columns[group].add(model, batch.pixels(number), len(batch.items))
        clock["model"] += time.perf_counter() - began
        began = time.perf_counter()
    for row, fault in faults:
        status[row] = fault.status
    return faults


class _Column:
    """Collects one model's outputs of a chunk, batch by batch."""

    def __init__(self, group: str, job: TeachJob, store: LabelStore) -> None:
        self.group, self.job, self.layout = group, job, store.layout
        self.head = _head(job, store.path) if group == LABELS else None
        self.parts: list[Any] = []

    def add(self, model: LoadedClip, pixels: Tensor | None, rows: int) -> None:
        """One batch; where no image could be decoded at all, the place is held by zeros that `finish` blanks."""
        if pixels is None:
            features = torch.zeros(rows, embedding_width(model), device=model.device)
        else:
            features = model.encode_images(pixels, self.job.precision)
        if self.head is None:
            self.parts.append(features.cpu().numpy())
        else:
            logits = self.head.logits(features)
            self.parts.append(soft_labels(logits, self.layout.top_k, self.layout.temperatures))

    def finish(self, status: npt.NDArray[np.uint8]) -> Arrays:
        bad = status != 0
        if self.head is None:
            features = np.concatenate(self.parts).astype(np.float16)
            features[bad] = np.nan
            return {f"{self.group}/features": features}
        return _label_arrays(self.parts, bad, self.layout)


def _label_arrays(parts: list[TopK], bad: npt.NDArray[np.bool_], layout: Layout) -> Arrays:
    ids, log_probs, log_residual = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("class_ids", "log_probs", "log_residual")
    )
    ids[bad], log_probs[bad], log_residual[bad] = -1, np.nan, np.nan
    coded = encode(TopK(ids, log_probs, log_residual), layout.classes)
    return {
        "class_ids": coded.class_ids,
        "gaps": coded.gaps,
        "top_log_prob": coded.top_log_prob,
        "log_residual": coded.log_residual,
    }


def _row_arrays(store: LabelStore, chunk: int, label: Any, status: Any) -> Arrays:
    start, stop = store.layout.bounds(chunk)
    return {
        "label": label,
        "sample": store.samples(start, stop),
        "view": np.zeros(stop - start, np.uint8),
        "status": status,
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
    opened = LabelStore.open(store)
    embeddings = torch.from_numpy(opened.class_embeddings())
    inverse = equal_rows(embeddings)
    first = torch.full((int(inverse.max()) + 1,), len(inverse))
    first = first.scatter_reduce(0, inverse, torch.arange(len(inverse)), "amin")
    device = pick_device(_worker_number())
    return TeacherHead(embeddings[first].to(device), inverse.to(device), job.logit_scale)


def get_ready() -> None:
    """Does nothing, but a worker that runs it has imported what tasks need, which takes open_clip ten seconds."""
