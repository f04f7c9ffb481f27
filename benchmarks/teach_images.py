"""The CPU time of an image on its way to one model and to two of equal preprocessing: read, decode, crop, stack, scale.

    python benchmarks/teach_images.py [--images 200 --repeats 3 --photos FOLDER]

No model runs. Times are CPU seconds of the process, one decoding thread, medians over the repeats; all ways alternate.
With an earlier version of the package on the path the same script measures that one. `--photos` is a folder that the
manifest `local-tars` reads; without it, photos of 500 by 375 pixels are made up, of 110 kB each.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from teach_parts import made_up_clip

from teachonce.core.progress import Silent
from teachonce.data.batches import image_batches
from teachonce.data.index import SampleIndex, build_index
from teachonce.data.manifests import load_manifest
from teachonce.data.reader import ImageReader
from teachonce.models.clip import LoadedClip, load_clip, tune_process

BATCH = 64


def made_up_photo(number: int, width: int = 500, height: int = 375) -> bytes:
    """Make a JPEG of smooth colours with grain, which is as large and as slow to decode as a mean photo of ImageNet."""
    random = np.random.default_rng(number)
    smooth = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height))
    grained = np.asarray(smooth).astype(np.float32) + random.normal(0, 11, (height, width, 1))
    buffer = io.BytesIO()
    Image.fromarray(grained.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def write_photos(folder: Path, distinct: int, copies: int = 1, width: int = 500, height: int = 375) -> None:
    """Write a folder that the manifest `local-tars` reads: made-up photos of two classes, each `copies` times."""
    photos = [made_up_photo(number, width, height) for number in range(distinct)]
    (folder / "train").mkdir(parents=True)
    (folder / "val").mkdir()
    (folder / "classes.tsv").write_text("n0\tfox\nn1\towl\n")
    with tarfile.open(folder / "train/0.tar", "w") as tar:
        for number in range(distinct * copies):
            label = str(number % 2).encode()
            for name, data in (("jpg", photos[number % distinct]), ("cls", label)):
                member = tarfile.TarInfo(f"{number:06d}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def cpu_seconds(index: SampleIndex, root: Path, models: Sequence[LoadedClip]) -> float:
    """Measure the CPU seconds until every image is each model's input, on the models' device."""
    began = time.process_time()
    with (
        ImageReader(index, root) as reader,
        image_batches(reader, len(index), models, BATCH, 1) as batches,
    ):
        for batch in batches:
            _place(models, batch)
    return time.process_time() - began


def _place(models: Sequence[LoadedClip], batch: Any) -> None:
    """Place a batch as the task of a chunk does, in this version of the package or an earlier one."""
    placed: dict[int, torch.Tensor] = {}
    for number, model in enumerate(models):
        pixels = batch.pixels(number)
        which = batch.prepared[number] if hasattr(batch, "prepared") else number
        if which not in placed:
            place = getattr(model, "placed", lambda x: x.to("cpu", memory_format=torch.channels_last))
            placed[which] = place(pixels)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--photos", type=Path, help="a folder for the manifest local-tars; default: made up")
    args = parser.parse_args()
    tune_process(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        vision = {"layers": 1, "width": 32, "head_width": 32, "patch_size": 32, "image_size": 224}
        models = [load_clip(made_up_clip(folder / name, 64, **vision)) for name in ("teacher", "student")]
        root = args.photos or folder / "photos"
        if args.photos is None:
            write_photos(root, args.images)
        index = build_index(load_manifest("local-tars"), "train", root, Silent())
        index = index.take(np.sort(np.random.default_rng(0).permutation(len(index))[: args.images]))
        ways = {"one model": models[:1], "two models, equal preprocessing": models}
        if hasattr(models[0], "resized_by"):  # earlier versions have Pillow's resize alone
            ways["one model, resize = tensor"] = [models[0].resized_by("tensor")]
            ways["two models, resize = tensor"] = [model.resized_by("tensor") for model in models]
        spent: dict[str, list[float]] = {way: [] for way in ways}
        cpu_seconds(index, root, models)  # the first time is longer
        for _ in range(args.repeats):
            for way, chosen in ways.items():
                spent[way].append(1000 * cpu_seconds(index, root, chosen) / len(index))
    lines = ["| way | CPU ms an image | images a second and core |", "|---|---|---|"]
    for way, values in spent.items():
        each = statistics.median(values)
        lines.append(f"| {way} | {each:.2f} | {1000 / each:.0f} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
