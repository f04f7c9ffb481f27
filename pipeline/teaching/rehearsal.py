"""A short real run of stage one on a few images, in a temporary store: what it takes before anything is written.

The chunks are computed by the very tasks that `teach` runs. Where naming all classes would take too long, the class
matrix is filled up with rows like those of the first names: its size decides the time, not its content.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import torch
from PIL import Image

from teachonce.core.locks import owned
from teachonce.core.machine import default_threads
from teachonce.core.progress import Reporter, Silent
from teachonce.core.streams import REHEARSAL
from teachonce.data.batches import image_batches
from teachonce.data.index import SampleIndex
from teachonce.data.reader import ImageReader
from teachonce.labels.create import create_store, row_order
from teachonce.labels.format import LABELS, new_layout
from teachonce.labels.ledger import PHASES
from teachonce.labels.size import bytes_per_row
from teachonce.labels.store import LabelStore
from teachonce.models.classifier import ensemble_features
from teachonce.models.clip import LoadedClip, tune_process
from teachonce.objects.remote import absolute
from teachonce.teaching.chunk import TeachJob, run_chunk
from teachonce.teaching.delivery import deliver
from teachonce.teaching.fingerprints import ORDER_SEED, TEMPERATURES
from teachonce.teaching.store import WantedStore, add_groups, fingerprint_of
from teachonce.teaching.worker import lend

NAMES_TRIED = 32
FEWEST_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a worker of this process's kind did."""

    rows: int
    failed: int
    seconds: float
    """Of the chunks after the first, start to end, one after the other."""
    phases: Mapping[str, float]
    """Seconds of `ledger.PHASES` of the same chunks; reading and decoding are summed over threads."""
    threads: int
    image_bytes: float
    """Of a mean image as it lies in its archive."""
    bytes_per_row: Mapping[str, float]
    """As `labels.size.bytes_per_row`, without what does not grow with rows."""
    fixed_bytes: int
    """Of the store, however many rows it has."""
    names_seconds: float
    """That naming all classes takes, once."""
    named: bool
    """All classes had their own embedding; else the matrix was filled up."""
    device: str
    worker_bytes: int
    """Memory of this process at the end."""
    device_bytes: int
    """Most memory in use on the GPU; 0 on a CPU."""


def rehearse(
    wanted: WantedStore,
    models: Mapping[str, LoadedClip],
    index: SampleIndex,
    job: TeachJob,
    budget: float,
    reporter: Reporter,
) -> Rehearsal:
    """Teach some of the samples into a temporary store, for about `budget` seconds.

    Args:
        wanted: the store that is planned; nothing at its path is touched.
        models: the loaded model by the column group it fills.
        index: some samples of the data.
        job: as `teach` would run it.
        budget: seconds; the first chunk, which is not counted, and the class names come out of it too.
    """
    began = time.perf_counter()
    threads = job.threads or default_threads(1)
    tune_process(threads)
    lend(models.values())
    teacher = models.get(LABELS)
    matrix, names = (None, (0.0, True)) if teacher is None else _class_matrix(teacher, wanted, budget / 3)
    rows = _chunk_rows(models, wanted, job.batch_size, budget / 8)
    with tempfile.TemporaryDirectory(prefix="teachonce-") as folder:
        path = Path(folder) / "rehearsal.zarr"
        layout = new_layout(
            len(index) * wanted.views.views,
            len(wanted.vocabulary),
            wanted.top_k,
            TEMPERATURES,
            rows,
            wanted.views.views,
        )
        fingerprint = fingerprint_of(wanted, models) | {"samples": index.digest}
        store = create_store(
            path,
            layout,
            fingerprint,
            wanted.vocabulary,
            wanted.own_classes,
            index,
            row_order(len(index), ORDER_SEED),
            matrix,
        )
        add_groups(store, wanted, models)
        with owned(path, Silent()) as token:
            rehearsed_job = replace(job, store=str(path), root=absolute(wanted.root), token=token, threads=threads)
            return _timed(store, rehearsed_job, tuple(models), models, began + budget, names, reporter)


def _timed(
    store: LabelStore,
    job: TeachJob,
    groups: tuple[str, ...],
    models: Mapping[str, LoadedClip],
    until: float,
    names: tuple[float, bool],
    reporter: Reporter,
) -> Rehearsal:
    groups = groups if LABELS in groups else (LABELS, *groups)
    phases, rows, failed, images, image_bytes, seconds = dict.fromkeys(PHASES, 0.0), 0, 0, 0, 0, 0.0
    for chunk in range(store.layout.chunks):
        began = time.perf_counter()
        report = run_chunk(job, chunk, groups)
        deliver(store, report, job.token)
        images, image_bytes = images + report.images, image_bytes + report.image_bytes
        if chunk or store.layout.chunks == 1:  # the first one warms everything up
            seconds += time.perf_counter() - began
            rows, failed = rows + report.rows_ok + report.rows_failed, failed + report.rows_failed
            for phase in PHASES:
                phases[phase] += report.phases[phase]
        reporter.progress("probe", chunk + 1, store.layout.chunks, "chunks")
        if rows and time.perf_counter() > until:
            break
    per_row = bytes_per_row(store)
    done = sum(stop - start for start, stop in map(store.layout.bounds, store.committed(LABELS)))
    # The index and the fixed part are of all samples of the probe, not only of the rows that it came to.
    growing = {
        "labels": per_row["labels"],
        "embeddings": per_row["embeddings"],
        "features": per_row["features"],
        "index": per_row["index"] * done / store.layout.rows,
    }
    device = next(iter(models.values())).device
    return Rehearsal(
        rows=rows,
        failed=failed,
        seconds=seconds,
        phases=phases,
        threads=job.threads or 1,
        image_bytes=image_bytes / max(1, images),
        bytes_per_row=growing,
        fixed_bytes=round(per_row["fixed"] * done),
        names_seconds=names[0],
        named=names[1],
        device=str(device),
        worker_bytes=psutil.Process().memory_info().rss,
        device_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
    )


def _class_matrix(
    teacher: LoadedClip, wanted: WantedStore, budget: float
) -> tuple[npt.NDArray[np.float32], tuple[float, bool]]:
    """The class embeddings, or rows like them where naming all classes takes longer than `budget` seconds."""
    names = wanted.vocabulary.names
    tried = names[:NAMES_TRIED]
    ensemble_features(teacher, tried[:2], wanted.templates)  # what is done once only
    began = time.perf_counter()
    embeddings = ensemble_features(teacher, tried, wanted.templates).cpu().numpy()
    each = (time.perf_counter() - began) / len(tried)
    if each * len(names) <= budget:
        began = time.perf_counter()
        embeddings = ensemble_features(teacher, names, wanted.templates).cpu().numpy()
        return embeddings, (time.perf_counter() - began, True)
    random = REHEARSAL.at(0)
    rows = embeddings[random.integers(0, len(embeddings), len(names))]
    rows = rows + random.normal(0, 0.02, rows.shape).astype(np.float32)
    filled: npt.NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return filled, (each * len(names), False)


def _chunk_rows(models: Mapping[str, LoadedClip], wanted: WantedStore, batch_size: int, budget: float) -> int:
    """Rows that the models do in `budget` seconds, at most two batches: a probe on a slow device must end too."""
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    shapes = {name: model.prepare(grey).shape for name, model in models.items()}
    for name, model in models.items():  # the first time is longer
        model.encode_images(torch.zeros(4, *shapes[name]), wanted.precision)
    began = time.perf_counter()
    tried = 0
    while tried == 0 or time.perf_counter() - began < budget / 4:
        for name, model in models.items():
            model.encode_images(torch.zeros(4, *shapes[name]), wanted.precision)
        tried += 4
    each = (time.perf_counter() - began) / tried
    return max(FEWEST_ROWS, wanted.views.views, min(2 * batch_size, int(budget / each)))


@dataclass(frozen=True, kw_only=True)
class InputRates:
    """Images a second of reading alone, and of reading, decoding and preprocessing."""

    images: int
    read: float
    decode: float
    threads: int
    failed: int


def input_rates(
    index: SampleIndex,
    root: Path,
    models: Sequence[LoadedClip],
    wanted: WantedStore,
    threads: int,
    batch_size: int,
    seconds: float,
) -> InputRates:
    """Read and decode as a worker does, with no model run, for about `seconds`; the images are gone over again."""
    with ImageReader(index, root) as reader:
        began, images = time.perf_counter(), 0
        while time.perf_counter() - began < seconds / 4:
            reader.read(images % len(index))
            images += 1
        read = images / (time.perf_counter() - began)
        began, images, failed = time.perf_counter(), 0, 0
        while time.perf_counter() - began < 3 * seconds / 4:
            with image_batches(reader, len(index), models, batch_size, threads, wanted.views) as batches:
                for batch in batches:
                    images, failed = images + len(batch) // wanted.views.views, failed + len(batch.failed)
                    if time.perf_counter() - began > seconds:
                        break
        return InputRates(
            images=images, read=read, decode=images / (time.perf_counter() - began), threads=threads, failed=failed
        )
