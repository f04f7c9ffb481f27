"""The unit of work of stage one: one chunk of samples, from archive bytes to a chunk that the driver can commit.

It runs in a worker process, is idempotent, and writes only to a staging folder of its own; the driver owns the store.
"""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numcodecs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teachonce.cluster.client import worker_index, worker_threads
from teachonce.cluster.workers import mark_of_this_worker
from teachonce.core.devices import AUTO, pick_device, take_device
from teachonce.core.files import is_remote, write_failed
from teachonce.data.batches import ImageBatch, ImageBatches, image_batches
from teachonce.data.index import SampleIndex
from teachonce.data.reader import ImageFault, ImageReader
from teachonce.data.view_policy import ViewPolicy
from teachonce.errors import DataError, EnvironmentFault, FingerprintError, ImageChangedError
from teachonce.keeping.claims import StagedFile
from teachonce.keeping.owners import require_token
from teachonce.keeping.staging import drop_staging, new_staging
from teachonce.labels.direct import hand_over
from teachonce.labels.format import LABELS
from teachonce.labels.ledger import key_digest
from teachonce.labels.store import Arrays, LabelStore
from teachonce.models.clip import LoadedClip, embedding_width, tune_process
from teachonce.models.spec import LOCAL_DIR, Behaviour, Precision, Resize, unlike
from teachonce.objects.remote import exists, expected, location
from teachonce.phrases import phrase
from teachonce.teaching.columns import Column, column
from teachonce.teaching.delivery import ChunkReport
from teachonce.teaching.made_up import MadeUpBatches
from teachonce.teaching.trial import require_unit
from teachonce.teaching.worker import (
    MODEL_TURN,
    PhaseClock,
    report_outages,
    require_writable,
    worker_models,
    worker_store,
)
from teachonce.watching.stop import stop_request


@dataclass(frozen=True, kw_only=True)
class TeachJob:
    """What all chunk tasks of a run have in common; the object is small."""

    store: str
    root: str
    token: int
    models: tuple[tuple[str, str, str], ...]
    """(column group, model spec, weights digest) of every model that may be needed."""
    logit_scale: float
    precision: Precision
    batch_size: int
    threads: int | None
    """CPU threads of a worker; None: as many as the worker has cores."""
    views: ViewPolicy = ViewPolicy()
    compiled: bool = False
    made_up: bool = False
    """Whether this is a rehearsal with random pixels instead of images, which are neither read nor decoded."""
    behaviours: Mapping[str, Behaviour] = field(default_factory=dict)
    """What else than the weights decides each model's features, by spec."""
    device: str = AUTO
    """What the models run on, as `pick_device` takes it."""
    class_tile: int | None = None
    """Number of classes whose logits are computed at a time; None: all, unless they would not fit."""
    resize: Resize = "pillow"
    """Who resizes images."""


def run_chunk(job: TeachJob, chunk: int, groups: tuple[str, ...]) -> ChunkReport:
    """Compute the given column groups of one chunk and leave them in a staging folder.

    Raises:
        IncompleteError: this run no longer owns the store, or a write failed.
        DataError: an archive is gone, or shorter than when it was indexed, or holds other images than were labelled.
        EnvironmentFault: this worker does not see the store, the data or a model, or may not write beside the store.
    """
    began = time.perf_counter()
    _require_seen(job)
    store = worker_store(location(job.store), job.token)
    missing = tuple(group for group in groups if store.record(group, chunk) is None)
    if not missing or stop_request(store.path, job.token) is not None:
        return ChunkReport(chunk)
    require_token(store.path, job.token)
    require_writable(store.path, job.token)
    threads = _set_up(job)
    start, stop = store.layout.bounds(chunk)
    index, rows = store.index_of_chunk(chunk), stop - start
    images = _Images(np.zeros(rows, np.uint8), np.zeros(rows, np.uint32), np.zeros((rows, 5), np.uint16))
    columns = {
        group: column(group, store, chunk, job.logit_scale, job.class_tile)
        for group, _, _ in job.models
        if group in missing
    }
    with ImageReader(index, location(job.root)) as reader:
        faults, image_bytes, clock = _fill(columns, reader, images, job, threads, chunk)
    if LABELS not in missing:
        _require_same_images(store, chunk, index, images)
    phases, coding = clock.finish(), time.perf_counter()
    labels = np.repeat(index.label, job.views.views)
    data = {group: columns[group].finish(images.status, labels) if group in columns else {} for group in missing}
    if LABELS in missing:
        data[LABELS] |= _row_arrays(store, chunk, index, images)
    staging, digests, staged = _stage(store, job.token, chunk, data)
    phases["write"] = time.perf_counter() - coding
    return ChunkReport(
        chunk,
        staging,
        digests,
        rows - len(faults),
        len(faults),
        tuple((index.key(row // job.views.views), fault.reason) for row, fault in faults),
        phases,
        len(index),
        image_bytes,
        time.perf_counter() - began,
        mark_of_this_worker(pick_device()),
        staged,
    )


def _set_up(job: TeachJob) -> int:
    """Make this process compute as the job says; returns the number of threads that decode."""
    threads = job.threads or worker_threads()
    tune_process(threads)
    take_device(job.device, worker_index())
    numcodecs.blosc.set_nthreads(1)  # other threads decode images while a chunk is coded
    return threads


def _require_seen(job: TeachJob) -> None:
    """Check that this worker sees the files: a worker on another machine may lack a disk that the driver has.

    It looks once a run: what a chunk then reads says itself what it lacks.
    """
    models = tuple(spec for _, spec, _ in job.models if spec.startswith(LOCAL_DIR))
    _look(job.store, job.root, models, job.token)


@functools.lru_cache(maxsize=4)  # it keeps no look that failed
def _look(store: str, root: str, models: tuple[str, ...], token: int) -> None:
    report_outages()
    needed = {"label store": store, "data": root} | {f"model {spec}": spec[len(LOCAL_DIR) :] for spec in models}
    for what, path in needed.items():
        place = location(path)
        expected(place)
        if not exists(place):
            raise EnvironmentFault(
                f"the worker on {socket.gethostname()} does not see the {what}: {path} does not exist there",
                hint="the store, the data and models must lie under the same paths on every worker: use a shared disk",
            )


def _stage(
    store: LabelStore, token: int, chunk: int, data: dict[str, Arrays]
) -> tuple[str, tuple[tuple[str, tuple[bytes, ...]], ...], tuple[tuple[str, tuple[StagedFile, ...]], ...]]:
    """Write all groups of a chunk where the driver will fetch them.

    Returns:
        The folder, each group's digests, and in a bucket each group's files.
    """
    require_token(store.path, token)
    if is_remote(store.path):
        return hand_over(store, token, chunk, data)
    try:
        staging = new_staging(store.path, token, chunk)
    except OSError as problem:
        raise write_failed(store.path, problem) from problem
    try:
        digests = tuple((group, store.write_chunk(group, chunk, arrays, staging)) for group, arrays in data.items())
        return str(staging), digests, ()
    except BaseException:
        drop_staging(staging)
        raise


def _require_same_images(store: LabelStore, chunk: int, index: SampleIndex, images: _Images) -> None:
    """Check that what is added to a labelled chunk comes from the images that were labelled."""
    views = store.layout.views
    labelled = store.read_chunk(LABELS, chunk, ("image_crc", "status", *(("view_params",) if views > 1 else ())))
    stored = labelled["image_crc"]
    other = np.flatnonzero(stored != images.crc)
    if len(other):
        row, sample = int(other[0]), int(other[0]) // views
        raise ImageChangedError(
            f"{index.archives[int(index.archive[sample])]}: '{index.key(sample)}'",
            str(store.path),
            int(images.crc[row]),
            int(stored[row]),
            f"; {len(other)} of {len(images.crc)} rows of chunk {chunk} differ",
            phrase(", or label the new ones in another {labels} store"),
        )
    unlike = np.flatnonzero(labelled["status"] != images.status)
    if len(unlike):
        raise DataError(
            f"'{index.key(int(unlike[0]) // views)}' has status {images.status[unlike[0]]} now and had "
            f"{labelled['status'][unlike[0]]} when {store.path} was labelled: images are decoded in another way here",
            hint="use the versions of pillow and torchvision that `teachonce inspect` shows under fingerprint.about",
        )
    if views > 1 and (labelled["view_params"] != images.params).any():
        row = int(np.flatnonzero((labelled["view_params"] != images.params).any(axis=1))[0])
        raise DataError(
            f"view {row % views} of '{index.key(row // views)}' is drawn as {images.params[row].tolist()} here, was "
            f"{labelled['view_params'][row].tolist()} when {store.path} was labelled",
            hint=phrase(
                "use the version of teachonce that labelled the store, or label anew in another {labels} store"
            ),
        )


@dataclass(frozen=True, eq=False)
class _Images:
    """What is known of the images of a chunk, filled in as they are read. R rows."""

    status: npt.NDArray[np.uint8]
    crc: npt.NDArray[np.uint32]
    params: npt.NDArray[np.uint16]

    def note(self, batch: ImageBatch) -> None:
        """Take over what a batch knows."""
        part = slice(batch.start, batch.start + len(batch))
        self.crc[part], self.params[part] = batch.crcs, batch.params
        for row, fault in batch.failed:
            self.status[row] = fault.status


def _fill(
    columns: dict[str, Column], reader: ImageReader, images: _Images, job: TeachJob, threads: int, chunk: int
) -> tuple[list[tuple[int, ImageFault]], int, PhaseClock]:
    """Run every view once through each model that a column needs; returns failed rows, bytes read and times.

    Raises:
        DataError: features that are no unit vectors.
    """
    users: dict[tuple[str, str], list[Column]] = {}
    for group, spec, digest in job.models:
        if group in columns:
            users.setdefault((spec, digest), []).append(columns[group])
    models = worker_models(users, job.compiled, job.resize)
    _require_same_behaviour(job, users, models)
    clock = PhaseClock(models[0].device if models else torch.device("cpu"))
    faults: list[tuple[int, ImageFault]] = []
    image_bytes = 0
    samples = len(images.status) // job.views.views
    lengths: list[list[Tensor]] = [[] for _ in models]  # they stay on the device: nothing waits for a batch
    with _batches(reader, samples, models, job, threads) as batches, MODEL_TURN:
        waiting = time.perf_counter()
        for batch in batches:
            clock.add("wait", time.perf_counter() - waiting)
            clock.add("read", batch.seconds[0])
            clock.add("decode", batch.seconds[1])
            faults += batch.failed
            image_bytes += batch.image_bytes
            images.note(batch)
            placed: dict[int, Tensor] = {}
            for number, (model, filled) in enumerate(zip(models, users.values(), strict=True)):
                with clock.on_device("forward"):
                    features = _features(model, batch, number, job.precision, placed)
                    lengths[number].append(features.norm(dim=1))
                with clock.on_device("top_k"):
                    for one in filled:
                        one.add(features)
            waiting = time.perf_counter()
    for model, parts in zip(models, lengths, strict=True):
        length = torch.cat(parts).float().cpu().numpy()
        require_unit(
            model.spec, length, images.status, f"chunk {chunk}", lambda row: reader.name(row // job.views.views)
        )
    return faults, image_bytes, clock


def _require_same_behaviour(job: TeachJob, users: Iterable[tuple[str, str]], models: Iterable[LoadedClip]) -> None:
    """Check that this worker's libraries make the same model of the same weights as those of the driver."""
    for (spec, _), model in zip(users, models, strict=True):
        parts = unlike(job.behaviours.get(spec, {}), model.behaviour)
        if parts:
            raise FingerprintError(
                f"'{spec}' has another {parts} on {socket.gethostname()} than where teach was started",
                hint="install the same versions of open_clip_torch and transformers on all workers",
            )


def _batches(
    reader: ImageReader, samples: int, models: list[LoadedClip], job: TeachJob, threads: int
) -> ImageBatches | MadeUpBatches:
    if job.made_up:
        return MadeUpBatches(samples, models, job.batch_size, job.views)
    return image_batches(reader, samples, models, job.batch_size, threads, job.views)


def _features(
    model: LoadedClip, batch: ImageBatch, number: int, precision: Precision, placed: dict[int, Tensor]
) -> Tensor:
    """Compute unit features of one batch; failed images have zeros, which the columns blank later.

    Args:
        placed: inputs of this batch that are on the device, by preparation; this function adds what it places there.
    """
    pixels, preparation = batch.pixels(number), batch.prepared[number]
    if pixels is None:
        return torch.zeros(len(batch), embedding_width(model), device=model.device)
    if preparation not in placed:
        placed[preparation] = model.placed(pixels)
    features = model.encode_images(placed[preparation], precision)
    if batch.failed:
        features = features.clone()  # these features were made in inference mode
        # The tower makes something of a blank image, which must not be kept.
        features[[row - batch.start for row, _ in batch.failed]] = 0
    return features


def _row_arrays(store: LabelStore, chunk: int, index: SampleIndex, images: _Images) -> Arrays:
    start, stop = store.layout.bounds(chunk)
    views = store.layout.views
    arrays: Arrays = {
        "label": np.repeat(index.label, views),
        "sample": store.samples(start, stop),
        "view": np.tile(np.arange(views, dtype=np.uint8), len(index)),
        "status": images.status,
        "image_crc": images.crc,
        "key_digest": key_digest(index),
    }
    return arrays | ({"view_params": images.params} if views > 1 else {})


def get_ready() -> None:
    """Do nothing. A worker that runs this has imported what tasks need; open_clip alone takes ten seconds."""
