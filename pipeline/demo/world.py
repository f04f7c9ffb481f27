"""Draw the made-up labelled image world of `teachonce demo`: colour x texture x shape, in JPEG tars.

This module does not train, does not know models, and needs nothing but Pillow and NumPy.

Every image is a pure function of (seed, split, class, index). The classes are the same for every seed: 320
combinations, of which 64 are held out from prompt training such that each colour, texture and shape is still seen.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from teachonce.core.digests import canonical_digest
from teachonce.core.documents import json_in
from teachonce.core.files import whole_folder, write_failed
from teachonce.core.progress import Reporter, Silent
from teachonce.core.sums import digest_of
from teachonce.errors import DataError, UsageError

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

RENDERER = 1
"""This number rises whenever the same seed would draw other pixels, so that an old world is not taken for a new one."""

IMAGE_SIZE = 40
COLOURS: dict[str, float] = {
    "red": 0.0,
    "orange": 0.075,
    "yellow": 0.15,
    "green": 0.33,
    "teal": 0.48,
    "blue": 0.62,
    "purple": 0.75,
    "pink": 0.89,
}
"""Colour words, each with its hue in [0, 1)."""
TEXTURES = ("solid", "striped", "checkered", "dotted", "ringed")
SHAPES = ("circle", "triangle", "square", "heart", "hexagon", "star", "cross", "crescent")
HELD_OUT = (
    ("red", "orange", "purple", "pink"),
    ("striped", "checkered", "dotted", "ringed"),
    ("circle", "square", "heart", "hexagon"),
)
"""A class is held out if all three words are in here: a whole block, so that its classes resemble each other too."""
SPLITS = ("train", "val", "unseen", "recipe")
"""`recipe` is what the shipped models were trained on; it is never written to disk."""


@dataclass(frozen=True)
class WorldClass:
    """One combination. `index` counts all combinations; `seen` is False for those held out from prompt training."""

    index: int
    colour: str
    texture: str
    shape: str
    seen: bool

    @property
    def id(self) -> str:
        """The id of the class, such as `d0001`."""
        return f"d{self.index + 1:04d}"

    @property
    def name(self) -> str:
        """The name of the class, such as `red striped circle`."""
        return f"{self.colour} {self.texture} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class WorldSizes:
    """How many images are written. Train images are dealt out evenly over the seen classes."""

    train: int = 6144
    train_archives: int = 6
    val_per_class: int = 10
    unseen_per_class: int = 10

    def __post_init__(self) -> None:
        """Raises UsageError for a count below 1, or more archives than images."""
        for field, count in dataclasses.asdict(self).items():
            if count < 1:
                raise UsageError(f"world: {field} must be at least 1, found {count}")
        if self.train_archives > self.train:
            raise UsageError(f"world: {self.train_archives} archives cannot be filled with {self.train} images")


@dataclass(frozen=True)
class WorldSummary:
    """What lies under `root`. `digest` is over all files; `reused` says that nothing had to be drawn."""

    root: Path
    seed: int
    sizes: WorldSizes
    seen_classes: int
    unseen_classes: int
    images: int
    digest: str
    reused: bool


@cache
def world_classes() -> tuple[WorldClass, ...]:
    """Return all 320 combinations, in a fixed order."""
    classes: list[WorldClass] = []
    for words in itertools.product(COLOURS, TEXTURES, SHAPES):
        held_out = all(word in block for word, block in zip(words, HELD_OUT, strict=True))
        classes.append(WorldClass(len(classes), *words, seen=not held_out))
    return tuple(classes)


def seen_classes() -> tuple[WorldClass, ...]:
    """Return the 256 classes of `classes.tsv`, in its order: a class's position is its label."""
    return tuple(item for item in world_classes() if item.seen)


def unseen_classes() -> tuple[WorldClass, ...]:
    """Return the 64 held-out classes of `unseen.tsv`, in its order."""
    return tuple(item for item in world_classes() if not item.seen)


def render_image(item: WorldClass, index: int, *, split: str, seed: int = 0) -> Bytes:
    """Draw one image.

    Returns:
        uint8 [40, 40, 3], RGB.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), item.index, index])
    canvas = _background(rng)
    _distractors(canvas, rng)
    alpha, paint = _object(item, rng)
    canvas += alpha[..., None] * (paint - canvas)
    _occlude(canvas, rng)
    _light(canvas, rng)
    pixels = (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
    if rng.random() < 0.4:
        blurred = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
        pixels = np.asarray(blurred)
    return pixels


@cache
def _grid() -> tuple[Floats, Floats]:
    """Return the pixel centres in [-1, 1], x and y, each [40, 40]."""
    line = (np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5) * (2 / IMAGE_SIZE) - 1
    x, y = np.meshgrid(line, line)
    return x, y


def _colour(hue: float, saturation: float, value: float) -> Floats:
    """Convert HSV in [0, 1] to RGB, float32 [3]."""
    steps = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    return (value - value * saturation * np.clip(np.minimum(steps, 4 - steps), 0, 1)).astype(np.float32)


def _background(rng: np.random.Generator) -> Floats:
    """Draw a plain, gradient or noise background, float32 [40, 40, 3]."""
    first = _colour(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.1, 0.95))
    second = _colour(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.1, 0.95))
    kind = rng.random()
    if kind < 0.3:
        blend: Floats = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    elif kind < 0.6:
        x, y = _grid()
        angle = rng.uniform(0, 2 * math.pi)
        blend = np.float32(0.5) + np.float32(0.35 * math.cos(angle)) * x + np.float32(0.35 * math.sin(angle)) * y
    else:
        cells = int(rng.integers(3, 14))
        noise = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
        blend = np.asarray(noise.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)).astype(np.float32)
        blend /= 255
    canvas: Floats = first + blend[..., None] * (second - first)
    return canvas


def _distractors(canvas: Floats, rng: np.random.Generator) -> None:
    """Draw up to two small discs and boxes of any colour, behind the object."""
    x, y = _grid()
    for _ in range(int(rng.integers(0, 3))):
        cx, cy = rng.uniform(-1, 1, 2).astype(np.float32)
        radius = rng.uniform(0.08, 0.24)
        dx, dy = np.abs(x - cx), np.abs(y - cy)
        inside = dx * dx + dy * dy < radius * radius if rng.random() < 0.5 else np.maximum(dx, dy) < radius
        canvas[inside] = _colour(rng.random(), rng.uniform(0.2, 1), rng.uniform(0.2, 1))


def _object(item: WorldClass, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return coverage [40, 40] and colour [40, 40, 3] of the object."""
    x, y = _grid()
    radius = rng.uniform(0.62, 0.9)
    reach = 1 - radius
    angle, stretch = rng.uniform(-0.45, 0.45), rng.uniform(0.88, 1.14)
    dx, dy = x - np.float32(rng.uniform(-reach, reach)), y - np.float32(rng.uniform(-reach, reach))
    cos, sin = np.float32(math.cos(angle) / radius), np.float32(math.sin(angle) / radius)
    u, v = (cos * dx + sin * dy) * np.float32(stretch), (cos * dy - sin * dx) * np.float32(1 / stretch)
    edge = _shape(item.shape, u, v)
    alpha = np.clip((1 - edge) * np.float32(radius * IMAGE_SIZE / 2) + np.float32(0.5), 0, 1)
    pattern = _texture(item.texture, u, v, rng, period=rng.uniform(6.5, 11.0) / (radius * IMAGE_SIZE / 2))
    hue = COLOURS[item.colour] + rng.uniform(-0.035, 0.035)
    base = _colour(hue, rng.uniform(0.5, 1), rng.uniform(0.5, 1))
    # The second tone has the same hue and is darker or paler, at times hardly so.
    strength = rng.uniform(0.45, 0.85)
    other = base * np.float32(1 - strength) if rng.random() < 0.5 else base + (1 - base) * np.float32(strength)
    return alpha, base + pattern[..., None] * (other - base)


@cache
def _normals(sides: int) -> Floats:
    """Return the edge normals of a regular polygon of circumradius 1, scaled so that its edge is at 1: [sides, 2]."""
    angles = (np.arange(sides) + 0.5) * (2 * math.pi / sides)
    return (np.stack([np.cos(angles), np.sin(angles)], axis=1) / math.cos(math.pi / sides)).astype(np.float32)


def _shape(shape: str, u: Floats, v: Floats) -> Floats:
    """Return a function that is below 1 inside the shape and grows about linearly across its edge."""
    distance: Floats = np.hypot(u, v)  # a circle needs no more than this distance
    if sides := {"triangle": 3, "square": 4, "hexagon": 6}.get(shape):
        distance = (_normals(sides) @ np.stack([u.ravel(), v.ravel()])).max(axis=0).reshape(u.shape)
    elif shape == "cross":
        a, b, arm = np.abs(u), np.abs(v), np.float32(1 / 0.36)
        distance = np.minimum(np.maximum(a, b * arm), np.maximum(a * arm, b))
    elif shape == "star":
        fold = 2 * math.pi / 5
        phi = np.abs((np.arctan2(v, u) + math.pi) % fold - fold / 2)
        inner = 0.42  # radius of the notches between the points
        nx, ny = inner * math.sin(fold / 2), 1 - inner * math.cos(fold / 2)
        distance = (distance * (np.cos(phi) * nx + np.sin(phi) * ny) / nx).astype(np.float32)
    elif shape == "heart":  # a disc pulled up at both sides of the middle
        lifted = v * np.float32(-1.15) - np.float32(0.75) * np.sqrt(np.abs(u)) + np.float32(0.25)
        distance = np.hypot(u * np.float32(1.05), lifted)
    elif shape == "crescent":
        distance = np.maximum(distance, np.float32(1.75) - np.hypot(u - np.float32(0.5), v))
    return distance


def _texture(texture: str, u: Floats, v: Floats, rng: np.random.Generator, period: float) -> Floats:
    """Return 0 where the base tone shows and 1 where the second tone does: [40, 40]. `period` is in radii."""
    angle, phase = rng.uniform(0, math.pi), rng.uniform(0, 2 * math.pi)
    wave = np.float32(2 * math.pi / period)
    a = (np.float32(math.cos(angle)) * u + np.float32(math.sin(angle)) * v) * wave + np.float32(phase)
    b = (np.float32(math.cos(angle)) * v - np.float32(math.sin(angle)) * u) * wave
    if texture == "solid":
        return np.zeros_like(u)
    if texture == "striped":
        value = np.sin(a)
    elif texture == "checkered":
        value = np.sin(a * np.float32(0.75)) * np.sin(b * np.float32(0.75)) * 2
    elif texture == "dotted":
        value = np.cos(a) + np.cos(b) - np.float32(0.7)
    else:
        value = np.sin(np.hypot(u, v) * wave + np.float32(phase))
    tones: Floats = np.clip(value * 3 + np.float32(0.5), 0, 1)
    return tones


def _occlude(canvas: Floats, rng: np.random.Generator) -> None:
    """Draw a bar across the picture in a quarter of the images."""
    if rng.random() >= 0.25:
        return
    x, y = _grid()
    angle = rng.uniform(0, math.pi)
    across = np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y - np.float32(rng.uniform(-0.6, 0.6))
    canvas[np.abs(across) < rng.uniform(0.05, 0.16)] = _colour(rng.random(), rng.uniform(0, 0.6), rng.uniform(0.1, 0.9))


def _light(canvas: Floats, rng: np.random.Generator) -> None:
    """Add a light from one side, a colour cast and sensor noise."""
    x, y = _grid()
    angle, depth = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.3)
    light = rng.uniform(0.75, 1.15) + np.float32(depth * math.cos(angle)) * x + np.float32(depth * math.sin(angle)) * y
    canvas *= light.astype(np.float32)[..., None] * rng.uniform(0.88, 1.12, 3).astype(np.float32)
    canvas += rng.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(0, 0.04))


def encode_jpeg(pixels: Bytes) -> bytes:
    """Encode a uint8 [h, w, 3] image as JPEG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=88)
    return stream.getvalue()


def write_world(
    root: Path, seed: int = 0, sizes: WorldSizes | None = None, reporter: Reporter | None = None
) -> WorldSummary:
    """Write the world under `root`, unless the world is there already.

    The layout is that of data_manifests/demo.toml: `classes.tsv`, `unseen.tsv`, `train/train-0000.tar` and on (KEY.jpg,
    KEY.cls), `val/<id>.tar`, `unseen/<id>.tar`; `world.json` holds the parameters and a SHA-256 of each file. The same
    arguments give the same bytes. An interrupted call leaves nothing at `root`.

    Raises:
        DataError: `root` holds something else, a world of other parameters, or a damaged world.
        IncompleteError, EnvironmentFault: the disk is full or may not be written to.
    """
    sizes = sizes or WorldSizes()
    parameters = {"renderer": RENDERER, "seed": seed, "image_size": IMAGE_SIZE, **dataclasses.asdict(sizes)}
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        return _summary(root, seed, sizes, _check_existing(root, parameters), reused=True)
    try:
        with whole_folder(root) as partial:
            _write_all(partial, seed, sizes, reporter or Silent())
            paths = sorted(path for path in partial.rglob("*") if path.is_file())
            files = {path.relative_to(partial).as_posix(): digest_of(path) for path in paths}
            record = {"schema": 1, "parameters": parameters, "files": files}
            (partial / "world.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except OSError as problem:
        raise write_failed(root, problem) from problem
    return _summary(root, seed, sizes, files, reused=False)


def _check_existing(root: Path, parameters: dict[str, int]) -> dict[str, str]:
    """Return the recorded files of an existing world, after a comparison with the files on disk."""
    hint = f"remove {root} or choose another folder"
    try:
        record = json_in((root / "world.json").read_bytes())
        recorded, files = dict(record["parameters"]), dict(record["files"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DataError(f"{root} exists but holds no demo world: no readable world.json", hint) from problem
    if recorded != parameters:
        differing = sorted(key for key in {*recorded, *parameters} if recorded.get(key) != parameters.get(key))
        raise DataError(f"{root} holds a demo world with other parameters: {', '.join(differing)}", hint)
    for name, digest in files.items():
        path = root / name
        if not path.is_file() or digest_of(path) != digest:
            raise DataError(f"{path} is missing or is not what was written", hint)
    return files


def _summary(root: Path, seed: int, sizes: WorldSizes, files: dict[str, str], *, reused: bool) -> WorldSummary:
    seen, unseen = len(seen_classes()), len(unseen_classes())
    images = sizes.train + seen * sizes.val_per_class + unseen * sizes.unseen_per_class
    digest = canonical_digest(files, spaced=True)
    return WorldSummary(root, seed, sizes, seen, unseen, images, digest, reused)


def _write_all(folder: Path, seed: int, sizes: WorldSizes, reporter: Reporter) -> None:
    seen, unseen = seen_classes(), unseen_classes()
    for name, classes in (("classes.tsv", seen), ("unseen.tsv", unseen)):
        lines = "".join(f"{item.id}\t{item.name}\n" for item in classes)
        (folder / name).write_text(lines, encoding="utf-8")
    total = sizes.train + len(seen) * sizes.val_per_class + len(unseen) * sizes.unseen_per_class
    done = 0
    for split in ("train", "val", "unseen"):
        (folder / split).mkdir()
    # Train images are dealt out class by class, then shuffled over the archives as WebDataset shards are.
    order = np.random.default_rng([seed, len(SPLITS)]).permutation(sizes.train).tolist()
    for shard in range(sizes.train_archives):
        chosen = order[shard :: sizes.train_archives]
        _write_tar(folder / "train" / f"train-{shard:04d}.tar", _train_members(chosen, seed))
        done += len(chosen)
        reporter.progress("drawing the world", done, total, "images")
    for split, classes, count in (("val", seen, sizes.val_per_class), ("unseen", unseen, sizes.unseen_per_class)):
        for item in classes:
            _write_tar(folder / split / f"{item.id}.tar", _class_members(item, count, split, seed))
            done += count
            reporter.progress("drawing the world", done, total, "images")


def _train_members(numbers: Iterable[int], seed: int) -> Iterator[tuple[str, bytes]]:
    seen = seen_classes()
    for number in numbers:
        index, label = divmod(number, len(seen))
        key = f"{seen[label].id}_{index:05d}"
        yield f"{key}.jpg", encode_jpeg(render_image(seen[label], index, split="train", seed=seed))
        yield f"{key}.cls", str(label).encode()


def _class_members(item: WorldClass, count: int, split: str, seed: int) -> Iterator[tuple[str, bytes]]:
    for index in range(count):
        yield f"{item.id}_{index:05d}.jpg", encode_jpeg(render_image(item, index, split=split, seed=seed))


def _write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar whose bytes depend on its members only: TarInfo's own owner, time and mode are constants."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
