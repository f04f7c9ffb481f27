"""What the benchmarks of stage one share: made-up models, empty stores, the bare work, and a watch on memory.

This module measures nothing by itself. Workers import it, because the folder of a script is on the path of the
processes that the script starts.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
import tarfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import psutil
import torch
from PIL import Image
from safetensors.torch import save_file

from teachonce.core.locks import owned
from teachonce.core.progress import Silent
from teachonce.data.batches import image_batches
from teachonce.data.index import SampleIndex
from teachonce.data.reader import ImageFault, ImageReader, decode
from teachonce.data.vocabulary import Vocabulary
from teachonce.labels.create import create_store, row_order
from teachonce.labels.format import LABELS, new_layout
from teachonce.labels.store import Arrays, LabelStore
from teachonce.models.clip import load_clip, tune_process
from teachonce.stages import teach
from teachonce.stages.teach import work as teach_run
from teachonce.teaching.chunk import TeachJob, _Images, _row_arrays, _stage
from teachonce.teaching.delivery import ChunkReport
from teachonce.teaching.worker import worker_head, worker_models
from teachonce.watching.stop import heeded

K, TEMPERATURES = 100, (1.0, 2.0, 4.0)


def made_up_clip(folder: Path, embed_dim: int, **vision: int) -> str:
    """Write a CLIP with random weights and a small text tower as an open_clip folder; returns its spec."""
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    torch.manual_seed(0)
    model = open_clip.CLIP(embed_dim, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text))
    folder.mkdir(parents=True)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {
        "model_cfg": {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": preprocess,
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def enlarged(root: Path, index: SampleIndex, target: Path, short_side: int) -> None:
    """Write the photos of an index, enlarged, into a tar that the manifest `local-tars` finds.

    Grain makes up for the detail that enlarged photos lack: some 110 kB each, the mean of ImageNet's, and as slow to
    decode.
    """
    grain = np.random.default_rng(0).normal(0, 9, (short_side, short_side * 4 // 3, 3))
    (target / "train").mkdir(parents=True)
    (target / "val").mkdir()
    shutil.copyfile(root / "classes.tsv", target / "classes.tsv")
    with ImageReader(index, root) as reader, tarfile.open(target / "train/0.tar", "w") as tar:
        for sample in range(len(index)):
            image = decode(reader.read(sample))
            assert not isinstance(image, ImageFault)
            large = image.convert("RGB").resize((short_side * 4 // 3, short_side), Image.Resampling.BICUBIC)
            grained = np.clip(np.asarray(large) + np.roll(grain, 7 * sample, axis=1), 0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(grained).save(buffer, "JPEG", quality=92)
            for name, data in (("jpg", buffer.getvalue()), ("cls", str(index.label[sample]).encode())):
                member = tarfile.TarInfo(f"{sample:06d}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def empty_store(
    path: Path, index: SampleIndex, classes: Vocabulary, names: int, width: int, chunk_rows: int | None
) -> LabelStore:
    """Make a store for these samples with made-up class embeddings of `names` classes."""
    ids = tuple(f"n{i:08d}" for i in range(names))
    embeddings = np.random.default_rng(2).normal(size=(names, width)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    layout = new_layout(len(index), names, min(K, names), TEMPERATURES, chunk_rows)
    fingerprint = {"samples": index.digest, "logit_scale": 100.0, "about": {}}
    return create_store(
        path, layout, fingerprint, Vocabulary(ids, ids), classes, index, row_order(len(index), 0), embeddings
    )


@dataclass(frozen=True)
class Run:
    """One run of the driver's loop over a store."""

    seconds: float
    phases: dict[str, float]
    rows: int


@dataclass(frozen=True)
class Bench:
    """A model, an empty store to start from, and the settings of the tasks."""

    template: Path
    root: Path
    spec: str
    digest: str
    batch_size: int = 128
    threads: int = 1

    def job(self, token: int, store: Path | None = None) -> TeachJob:
        """The job that tasks get."""
        models, where = ((LABELS, self.spec, self.digest),), str(store or self.store)
        return TeachJob(
            store=where,
            root=str(self.root),
            token=token,
            models=models,
            logit_scale=100.0,
            precision="fp32",
            batch_size=self.batch_size,
            threads=self.threads,
        )

    @property
    def store(self) -> Path:
        """The path where runs write; it is always the same, so that workers keep what they loaded for it."""
        return self.template.with_name(self.template.stem + "-run.zarr")

    def teach(self, client: Any) -> Run:
        """Run `teach` from its first task to its last commit, in workers that have loaded the models already."""
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.copytree(self.template, self.store)
        request = teach.TeachRequest(data=teach.TaughtData(manifest="local-tars"), labels=self.store, teacher=self.spec)
        with owned(self.store, Silent()) as token, heeded(self.store, token, Silent()) as stop:
            store = LabelStore.open(self.store, writable=True)
            tally = teach_run._run(client, self.job(token), store, (LABELS,), request, stop, Silent())
        assert tally.rows == store.layout.rows and not sum(r.rows_failed for r in store.records(LABELS) if r)
        return Run(tally.seconds, tally.phases, tally.rows)


def warm(bench: Bench) -> None:
    """Load in a worker what a run loads once."""
    tune_process(bench.threads)
    worker_models([(bench.spec, bench.digest)], False)
    shutil.copytree(bench.template, bench.store, dirs_exist_ok=True)
    store = LabelStore.open(bench.store)
    worker_head(store.path, store.groups[LABELS].digest, 100.0)


def bare_forward(bench: Bench) -> tuple[float, float]:
    """Measure seconds and CPU seconds of the image tower for all images of the store, which are decoded before."""
    tune_process(bench.threads)
    models, store = worker_models([(bench.spec, bench.digest)], False), LabelStore.open(bench.template)
    pixels = []
    for chunk in range(store.layout.chunks):
        index = store.index_of_chunk(chunk)
        with (
            ImageReader(index, bench.root) as reader,
            image_batches(reader, len(index), models, bench.batch_size, bench.threads) as batches,
        ):
            pixels += [batch.pixels(0) for batch in batches]
    began, cpu = time.perf_counter(), time.process_time()
    for batch in pixels:
        assert batch is not None
        models[0].encode_images(batch)
    return time.perf_counter() - began, time.process_time() - cpu


def bare_decode(bench: Bench) -> tuple[float, float]:
    """Measure seconds and CPU seconds for reading, decoding and preprocessing all images in as many threads."""
    tune_process(bench.threads)
    model, store = worker_models([(bench.spec, bench.digest)], False)[0], LabelStore.open(bench.template)
    began, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(bench.threads) as pool:
        for chunk in range(store.layout.chunks):
            index = store.index_of_chunk(chunk)
            with ImageReader(index, bench.root) as reader:
                for _ in pool.map(functools.partial(_prepare, reader, model), range(len(index))):
                    pass
    return time.perf_counter() - began, time.process_time() - cpu


def _prepare(reader: ImageReader, model: Any, sample: int) -> None:
    image = decode(reader.read(sample))
    assert not isinstance(image, ImageFault)
    model.prepare(image)


def digest_of(spec: str) -> tuple[str, int]:
    """Return the weights digest of a model and the width of its embedding."""
    clip = load_clip(spec)
    return clip.digest, int(clip.encode_images(torch.zeros(1, 3, *_size(clip))).shape[1])


def _size(clip: Any) -> tuple[int, int]:
    size = clip.model.visual.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


@functools.lru_cache(maxsize=1)
def _pool(path: Path) -> Arrays:
    with np.load(path) as file:
        return dict(file)


def pool_file(store: Path) -> Path:
    """Return where the made-up coded rows of a store lie."""
    return store.with_name("pool.npz")


def fake_chunk(job: TeachJob, chunk: int, groups: tuple[str, ...]) -> ChunkReport:
    """Do as `run_chunk`, but draw rows from a pool of coded ones: no image is read and no model runs."""
    began = time.perf_counter()
    store = LabelStore.open(Path(job.store))
    index = store.index_of_chunk(chunk)
    rows, rng, coded = len(index), np.random.default_rng(chunk), _pool(pool_file(store.path))
    pick = rng.integers(0, len(coded["gaps"]), rows)
    spec = next(spec for spec in store.groups[LABELS].arrays if spec.path == "fidelity")
    images = _Images(
        np.zeros(rows, np.uint8), rng.integers(0, 2**32, rows, dtype=np.uint32), np.zeros((rows, 5), np.uint16)
    )
    data = {name: array[pick] for name, array in coded.items()} | _row_arrays(store, chunk, index, images)
    data["fidelity"] = np.full((spec.per_chunk, *spec.tail), 0.1, np.float16)
    staging, digests, _ = _stage(store, job.token, chunk, {LABELS: data})
    seconds = time.perf_counter() - began
    return ChunkReport(chunk, staging, digests, rows, 0, (), {"write": seconds}, rows, 0, seconds)


def paced_chunk(seconds: float, job: TeachJob, chunk: int, groups: tuple[str, ...]) -> ChunkReport:
    """Do as `fake_chunk` after a wait, so that a run lasts as long as with a teacher and keeps no core busy."""
    time.sleep(seconds)
    return fake_chunk(job, chunk, groups)


def nothing(number: int) -> int:
    """Do nothing, as a task."""
    return number


@dataclass
class MemoryWatch:
    """Resident memory of processes over time, looked at twice a second in a thread."""

    pids: Sequence[int]
    times: list[float] = field(default_factory=list)
    seen: list[list[float]] = field(default_factory=list)

    def __enter__(self) -> MemoryWatch:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        processes = [psutil.Process(pid) for pid in self.pids]
        while not self._stop.wait(0.5):
            self.times.append(time.perf_counter())
            self.seen.append([process.memory_info().rss / 1e6 for process in processes])

    def __exit__(self, *problem: object) -> None:
        self._stop.set()
        self._thread.join()

    def points(self, count: int) -> npt.NDArray[np.float64]:
        """Return the mean memory in MB in each of `count` equal parts of the time, [count, processes]."""
        parts = np.array_split(np.array(self.seen), count)
        return np.array([part.mean(axis=0) for part in parts])

    def table(self, count: int, names: Sequence[str]) -> list[str]:
        """Write as Markdown the memory in each part of the run, and how much the last half grew."""
        points = self.points(count)
        lines = [f"| part of the run | {' | '.join(f'{name}, MB' for name in names)} |", f"|---|{'---|' * len(names)}"]
        lines += [
            f"| {(i + 1) / count:.0%} | {' | '.join(f'{value:.1f}' for value in point)} |"
            for i, point in enumerate(points)
        ]
        growth = points[-1] - points[count // 2]
        return [*lines, f"| growth over the last half | {' | '.join(f'{value:+.1f}' for value in growth)} |"]
