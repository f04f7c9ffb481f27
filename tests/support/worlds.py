"""A tiny CLIP, a tiny set of photos in all three layouts, and `teach` without worker processes, for tests.

It tests nothing. `tests/support/` is on the path of every test (pyproject.toml): `import worlds`.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

IDS = ("n01", "n02", "n03", "n04", "n05", "n06", "n07", "n08")
NAMES = ("red fox", "blue jay", "green snake", "crane", "yellow bus", "Crane", "cup of tea", "piano")
PER_CLASS = 10  # photos of each class but the last, which is in the class list only
PHOTOS = PER_CLASS * (len(IDS) - 1)
CHUNK_ROWS = 15  # 70 photos in 5 chunks, the last one short
CHUNKS = 5
TEMPLATE = "a photo of a {}."
SMALL = {"rows": 30, "chunk_rows": 15, "classes": 12, "top_k": 4}  # of a synthetic store


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        """Keep one line."""
        self.lines.append(text)

    def progress(self, what: str, done: int, total: int, unit: str, **figures: float | int | str) -> None:
        """Check that counts make sense."""
        assert 0 <= done <= total, (what, done, total)


@dataclass(frozen=True)
class World:
    """Photos below `root`, and the manifests that describe them."""

    root: Path
    photos: dict[str, bytes] = field(repr=False)
    """`n01_00` -> the bytes of the JPEG."""

    def manifest(self, layout: str = "wds") -> str:
        """`wds`, `tars` or `folders`: the same photos in another layout."""
        return str(self.root / f"{layout}.toml")


def make_photo(class_number: int, number: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A pattern that depends on class and number."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    rng = np.random.default_rng(1000 * class_number + number)
    angle, waves = 2.4 * class_number, 2 + class_number
    wave = np.sin(6.3 * waves * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 6))
    tint = np.array([np.cos(angle), np.cos(angle + 2.1), np.cos(angle + 4.2)])
    pixels = 128 + 50 * wave[..., None] * (1 + tint) + 45 * tint + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_photos() -> dict[str, bytes]:
    """All photos by name, classes mixed."""
    return {
        f"{IDS[c]}_{i:02d}": encoded(make_photo(c, i), quality=92)
        for i in range(PER_CLASS)
        for c in range(len(IDS) - 1)
    }


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Append one file to a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def make_world(root: Path, photos: dict[str, bytes]) -> World:
    """Write the photos in three layouts, with a manifest for each."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [f"{i}\t{n}\n" for i, n in zip(IDS, NAMES, strict=True)]
    (root / "classes.tsv").write_text("".join(lines))
    names = list(photos)
    for folder in ("wds", "tars", *(f"folders/{i}" for i in IDS)):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for shard, part in enumerate((names[:40], names[40:])):
        with tarfile.open(root / f"wds/part-{shard}.tar", "w") as tar:
            for name in part:
                add_member(tar, f"{name}.jpg", photos[name])
                add_member(tar, f"{name}.cls", str(IDS.index(name[:3])).encode())
    for class_id in IDS:
        with tarfile.open(root / f"tars/{class_id}.tar", "w") as tar:
            for name in (name for name in names if name.startswith(class_id)):
                add_member(tar, f"{name}.jpg", photos[name])
                (root / f"folders/{class_id}/{name}.jpg").write_bytes(photos[name])
    kinds = (
        ("wds", "webdataset", "wds/*.tar"),
        ("tars", "class-tars", "tars/*.tar"),
        ("folders", "image-folder", "folders"),
    )
    for name, kind, path in kinds:
        splits = "".join(f'[splits.{split}]\nformat = "{kind}"\npath = "{path}"\n' for split in ("train", "val"))
        (root / f"{name}.toml").write_text(
            f'schema = 1\nname = "tiny-{name}"\ntitle = "tiny"\nclasses = "classes.tsv"\n{splits}'
        )
    return World(root, photos)


def make_clip(folder: Path, seed: int, embed_dim: int = 16, layers: int = 2) -> str:
    """Write a small random CLIP whose features differ clearly, as an open_clip folder; returns its spec."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    vision = {"layers": layers, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
    text = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": layers}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(
            embed_dim, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text), init_logit_scale=np.log(8.0)
        )
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name == "logit_scale":
                    continue
                if "embedding" in name or name.endswith("proj") or name == "text_projection":
                    weight.normal_(0, 0.5)
                elif weight.ndim >= 2:
                    weight.normal_(0, 1.5 / weight[0].numel() ** 0.5)
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {
        "model_cfg": {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": preprocess,
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """A folder shared by all test folders of a session, built on first use."""
    folder = factory.getbasetemp() / name
    if not folder.exists():
        build(folder)
    return folder


def session_world(factory: pytest.TempPathFactory) -> World:
    """The photos, written once."""
    photos = make_photos()
    return World(built_once(factory, "world", lambda folder: make_world(folder, photos)), photos)


def session_clip(factory: pytest.TempPathFactory, name: str) -> str:
    """A tiny CLIP, written once; `teacher` and `student` differ in weights and width."""
    seed, width = {"teacher": (1, 16), "student": (2, 12), "other": (3, 16)}[name]
    return f"local-dir:{built_once(factory, f'clip-{name}', lambda folder: make_clip(folder, seed, width))}"


class _InlineClient:
    """Stands where a Dask client would, for tasks that run in this process."""

    def submit(self, task: Callable[..., object], *args: object, **options: object) -> None:
        """Nothing: only `warm_up` comes here."""

    def nthreads(self) -> dict[str, int]:
        """No worker has to be asked about itself."""
        return {}

    def subscribe_topic(self, topic: str, handler: Callable[..., None]) -> None:
        """Nothing: no worker says anything."""


@functools.lru_cache(maxsize=8)
def loaded_once(spec: str, device: str = "cpu") -> Any:
    """`load_clip` that reads each model once; import `teachonce.teaching.worker` before the name is replaced."""
    import teachonce.teaching.worker as worker_models  # holds the real function under its own name

    return worker_models.load_clip(spec, device)


@contextmanager
def inline_tasks(
    order: Callable[[list[tuple[Any, ...]]], Iterable[tuple[Any, ...]]] = lambda tasks: tasks,
) -> Iterator[None]:
    """Chunk tasks run one after the other in this process, in the given order: `teach` in a second.

    One real cluster run (stages/test_teach.py) and the kill tests (faults/) prove what this leaves out.
    """
    import torch

    import teachonce.cluster.client as cluster
    import teachonce.models.clip as clip_models
    import teachonce.teaching.chunk  # noqa: F401 - worker_models must take the real load_clip before it is replaced

    @contextmanager
    def no_cluster(spec: Any, reporter: Any, threads: int = 2) -> Iterator[_InlineClient]:
        yield _InlineClient()

    def run_here(
        client: Any,
        task: Callable[..., Any],
        arguments: Iterable[tuple[Any, ...]],
        name: str,
        reporter: Any = None,
        each_look: Callable[[], None] = lambda: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> Iterator[Any]:
        for args in order(list(arguments)):
            each_look()
            yield task(*args)

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "open_cluster", no_cluster)
        patch.setattr(cluster, "run_tasks", run_here)
        patch.setattr("teachonce.stages.train.steps.load_clip", loaded_once)  # first: it imports the real one
        patch.setattr(clip_models, "load_clip", loaded_once)
        patch.setattr(cluster, "warm_up", lambda client, task: [])
        patch.setattr("os.fsync", lambda handle: None)  # no power fails here; faults/ watches the syncs
        yield


def request_for(world: World, labels: Path, teacher: str | None, **options: Any) -> Any:
    """A TeachRequest for the tiny world: one thread, CHUNKS chunks."""
    from requests_of import teach_request

    given: dict[str, Any] = {"manifest": world.manifest(), "root": world.root, "chunk_rows": CHUNK_ROWS, "threads": 1}
    return teach_request(labels=labels, teacher=teacher, **(given | {"batch_size": 4} | options))


def teach_inline(world: World, labels: Path, teacher: str | None, **options: Any) -> Any:
    """Run `teach` in this process; returns its result."""
    from teachonce.core.progress import Silent
    from teachonce.stages.teach import teach

    with inline_tasks():
        return teach(request_for(world, labels, teacher, **options), Silent())


def session_store(factory: pytest.TempPathFactory) -> Path:
    """A finished store with teacher labels and one student's features, written once; copy it before you change it."""
    world, teacher, student = session_world(factory), session_clip(factory, "teacher"), session_clip(factory, "student")
    folder = factory.getbasetemp() / "stores"
    path = folder / "done.zarr"
    if not path.exists():
        teach_inline(world, path, teacher, students=(student,), top_k=5)
    return path


def files_of(store: Path) -> list[Path]:
    """Every file of a store."""
    return sorted(file for file in store.rglob("*") if file.is_file())


def copy_store(store: Path, to: Path) -> Path:
    """A copy that a test may damage."""
    target = to / "copy.zarr"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(store, target)
    return target


def all_arrays(store: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every decoded row array of a store that its ledger vouches for, whole."""
    from teachonce.labels.store import LabelStore

    opened = LabelStore.open(store)
    chunks: dict[str, list[np.ndarray[Any, Any]]] = {}
    for group in opened.groups:
        for chunk in range(opened.layout.chunks):
            for name, data in opened.read_chunk(group, chunk).items():
                chunks.setdefault(name, []).append(data)
    return {name: np.concatenate(parts) for name, parts in chunks.items()}


def keys_of(store: Path) -> list[str]:
    """The key of every row."""
    from teachonce.labels.store import LabelStore

    opened = LabelStore.open(store)
    parts = [opened.index_of_chunk(chunk) for chunk in range(opened.layout.chunks)]
    return [part.key(i) for part in parts for i in range(len(part))]


def synthetic_index(rows: int, classes: int, seed: int = 0) -> Any:
    """A sample index of photos that do not exist, in two archives, with keys of different lengths."""
    from teachonce.data.index import SampleIndex

    rng = np.random.default_rng(seed)
    keys = [f"s{i}" for i in range(rows)]
    return SampleIndex(
        ("a.tar", "b.tar"),
        (np.arange(rows) % 2).astype(np.uint32),
        (np.arange(rows) * 512).astype(np.uint64),
        rng.integers(1, 400, rows).astype(np.uint64),
        rng.integers(0, classes, rows).astype(np.int32),
        np.frombuffer("".join(keys).encode(), np.uint8),
        np.cumsum([len(key) for key in keys]).astype(np.uint64),
    )


def synthetic_store(
    path: Path, rows: int = 40, chunk_rows: int = 10, classes: int = 12, top_k: int = 4, seed: int = 0
) -> tuple[Any, np.ndarray[Any, Any]]:
    """A committed store of labels from random logits; returns it and the logits [rows, classes] in row order."""
    import torch

    from teachonce.data.vocabulary import Vocabulary
    from teachonce.labels.create import create_store, row_order
    from teachonce.labels.format import LABELS, new_layout
    from teachonce.labels.ledger import key_digest
    from teachonce.teaching.soft_chunk import SoftChunk

    rng = np.random.default_rng(seed)
    logits = (3 * rng.normal(size=(rows, classes))).astype(np.float32)
    vocabulary = Vocabulary(tuple(f"c{i:05d}" for i in range(classes)), tuple(f"class {i}" for i in range(classes)))
    layout = new_layout(rows, classes, top_k, (1.0, 2.0), chunk_rows)
    index, order = synthetic_index(rows, classes, seed), row_order(rows, seed)
    embeddings = rng.normal(size=(classes, 6)).astype(np.float32)
    fingerprint = {"samples": index.digest, "seed": seed, "about": {}}
    store = create_store(path, layout, fingerprint, vocabulary, vocabulary, index, order, embeddings)
    for chunk in range(layout.chunks):
        start, stop = layout.bounds(chunk)
        soft = SoftChunk(store, chunk)
        soft.add(torch.from_numpy(logits[start:stop]))
        part, status = store.index_of_chunk(chunk), np.zeros(stop - start, np.uint8)
        data = {
            **soft.finish(status, part.label),
            "label": part.label,
            "sample": store.samples(start, stop),
            "view": np.zeros(stop - start, np.uint8),
            "status": status,
            "image_crc": np.arange(start, stop, dtype=np.uint32),
            "key_digest": key_digest(part),
        }
        store.commit(LABELS, chunk, 7, stop - start, 0, store.write_chunk(LABELS, chunk, data))
    return store, logits
