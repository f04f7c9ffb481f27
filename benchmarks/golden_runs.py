"""Golden runs: one digest for each result of seeded work on the demo's world, to prove that a change changed nothing.

Run it on two revisions on the same machine and compare the lines:

    python benchmarks/golden_runs.py --out runs-old > old.txt      # on the old revision
    python benchmarks/golden_runs.py --out runs-new > new.txt      # on the new one
    diff old.txt new.txt

The digests cover decoded arrays, prompts, logged losses and scores; they leave out times, run tokens and
paths, but a store says its size, so the names of the two folders have to be of the same length. Digests
of two machines, or of two versions of PyTorch, need not agree.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")  # bit-equality is promised for the same number of threads
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import zarr

from teachonce.cli.app import run as teachonce
from teachonce.demo.models import unpack_models
from teachonce.demo.world import WorldSizes, write_world

SIZES = WorldSizes(train=512, train_archives=2, val_per_class=1, unseen_per_class=1)
NO_RESULT = {"seconds", "time", "started", "when", "rows_per_second", "out", "path", "pid", "host", "memory", "labels"}
"""Keys of logs and documents that say when, where and how fast, and not what came out."""
NO_RESULT |= {"document_sha256"}  # over such keys too
TRAINING = {
    "unshared": (),
    "shared": ("structure=shared",),
    "replace": ("structure=unshared-replace", "supervision=hard"),
    "letters": ("structure=kvr", "length=6", "init=words", "depth=2", "optimizer=sgd"),
    "noise": ("init=normal", "position=around", "layer_scale=false", "length=4"),
    "after": ("position=after", "supervision=soft", "tail=residual-uniform", "temperature=2.0"),
    "to-label": ("tail=to-label", "soft_schedule=rise", "teacher_temperature=4.0", "weight_decay=0.01"),
    "renormalise": ("tail=renormalise", "soft_schedule=fall", "consistency_weight=0.5", "micro_batch=8"),
    "embedding": ("targets=embedding", "temperature=1.7", "averaging=gaussian", "class_chunk=50"),
    "sampled": ("candidates=sampled", "sampled_fill=40", "averaging=ema", "held_out=0.2", "evaluate_every=4"),
    "pomp": ("candidates=sampled", "sampled_fill=40", "sampled_top=0", "correction=log10", "supervision=hard"),
    "drawn": ("candidates=all-sampled", "sampled_backward=64", "views_per_step=2"),
    "prograd": ("prograd=true", "hard_over=seen", "clip_gradient=0.5"),
    "ranking": ("soft_loss=ranking", "mask_dimensions=0.3", "hard_loss=gce"),
    "added": ("structure=accumulate", "init=words", "soft_loss=symmetric"),
    "smooth": ("label_smoothing=0.1", "supervision=hard", "warmup=constant", "schedule=constant"),
}
IMAGE_TRAINING = {
    "image": ("tower=image", "image_length=2"),
    "both": ("tower=both", "image_depth=1", "structure=unshared-replace"),
}
SHORT = ("steps=8", "batch_size=32", "log_every=1", "checkpoint_every=4", "warmup_steps=2", "seed=3")


def main() -> None:
    """Do the work below `--out`, which must not exist, and write the digests to standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a new folder for all that is made")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True)
    os.environ["TEACHONCE_CACHE"] = str((out / "cache").resolve())
    for name, digest in results(out):
        sys.stdout.write(f"{digest}  {name}\n")
        sys.stdout.flush()


def results(out: Path) -> Iterator[tuple[str, str]]:
    """Yield every result with its digest."""
    root = out / "world"
    write_world(root, sizes=SIZES)
    models = unpack_models(out / "models")
    yield from stores(out, root, models.teacher, models.student)
    yield from runs(out, root, models.student)
    yield from image_runs(out, root, models.teacher)


def stores(out: Path, root: Path, teacher: str, student: str) -> Iterator[tuple[str, str]]:
    """Run `teach` in three ways, and derive stores from it."""
    common = ("--root", root, "--teacher", teacher)
    labels = out / "labels.zarr"
    command("teach", "demo", *common, "--student", student, "--labels", labels, "--embeddings", "int8", "--views", 2)
    yield from store_digests(labels)
    second = out / "second.zarr"
    command(
        "teach",
        "demo",
        "--root",
        root,
        "--teacher",
        student,
        "--labels",
        second,
        "--embeddings",
        "float16",
        "--views",
        2,
        "--top-k",
        7,
    )
    yield from store_digests(second)
    few = out / "few.zarr"
    command("teach", "demo", *common, "--labels", few, "--shots", 1, "--template", "a {}.", "--template", "one {}.")
    yield from store_digests(few)
    command("relabel", labels, "--labels", out / "new.zarr", "--template", "a drawing of a {}.", "--top-k", 12)
    yield from store_digests(out / "new.zarr")
    command("merge", labels, second, "--labels", out / "both.zarr", "--weights", "0.3,0.7")
    yield from store_digests(out / "both.zarr")
    command("subset", labels, "--out", out / "one.json", "--shots", 1, "--seed", 5)
    yield "one.json", document_digest(json.loads((out / "one.json").read_text()))
    for name in ("inspect", "verify"):
        yield f"{name} labels.zarr", document_digest(command(name, labels))
    rechecked = command("verify", labels, "--teacher", teacher, "--root", root, "--sample", 16)
    yield "verify --teacher", document_digest(rechecked)


def runs(out: Path, root: Path, student: str) -> Iterator[tuple[str, str]]:
    """Train every kind of configuration, then evaluate prompts and share them."""
    labels = out / "labels.zarr"
    for name, settings in TRAINING.items():
        run = out / "runs" / name
        train(labels, run, student, settings)
        yield from run_digests(run)
    run = out / "runs" / "from-shared"
    train(
        labels, run, student, ("structure=unshared",), "--init", out / "runs" / "shared", "--select", out / "one.json"
    )
    yield from run_digests(run)
    for name, extra in {"plain": (), "wise": ("--wise", 0.5), "unseen": ("--split", "unseen")}.items():
        scores = command(
            "evaluate", out / "runs" / "unshared", "--student", student, "--manifest", "demo", "--root", root, *extra
        )
        yield f"evaluate {name}", document_digest(scores)
    classes = root / "unseen.tsv"
    command("export", out / "runs" / "replace", "--out", out / "shared", "--classes", classes)
    for file in sorted((out / "shared").iterdir()):
        if file.suffix in {".npy", ".safetensors"}:
            yield f"shared/{file.name}", hashlib.sha256(file.read_bytes()).hexdigest()


def image_runs(out: Path, root: Path, teacher: str) -> Iterator[tuple[str, str]]:
    """Train prompts in the image tower of a small random ViT."""
    vit = write_vit(out / "vit")
    labels = out / "vit.zarr"
    command("teach", "demo", "--root", root, "--teacher", teacher, "--student", vit, "--labels", labels, "--views", 2)
    yield from store_digests(labels)
    for name, settings in IMAGE_TRAINING.items():
        run = out / "runs" / name
        train(labels, run, vit, settings, "--root", root)
        yield from run_digests(run)
        scores = command("evaluate", run, "--student", vit, "--manifest", "demo", "--root", root)
        yield f"evaluate {name}", document_digest(scores)


def train(labels: Path, run: Path, student: str, settings: Sequence[str], *more: Any) -> None:
    """Train one short run."""
    flags = [part for setting in (*SHORT, *settings) for part in ("--set", setting)]
    command("train", labels, "--student", student, "--out", run, *flags, *more)


def command(*words: Any) -> Any:
    """Run one command of `teachonce` with `--json`, and return its document.

    Raises:
        SystemExit: the command failed.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = teachonce([*map(str, words), "--json", "--quiet"])
    if code:
        raise SystemExit(f"teachonce {' '.join(map(str, words))} ended with {code}: {printed.getvalue()}")
    return json.loads(printed.getvalue())


def store_digests(path: Path) -> Iterator[tuple[str, str]]:
    """Make one digest for each array of a store but its ledger, and one for all attributes of the top group."""
    root = zarr.open_group(str(path), mode="r")
    for name, array in sorted(root.members(max_depth=None)):
        if isinstance(array, zarr.Array) and not name.startswith("ledger"):
            values = np.asarray(array[...])
            text = values.tobytes() if values.dtype.kind != "O" else str(values.tolist()).encode()
            yield f"{path.name}/{name}", hashlib.sha256(str(values.shape).encode() + text).hexdigest()


def run_digests(run: Path) -> Iterator[tuple[str, str]]:
    """Make digests of the prompts byte by byte, and of the log without times."""
    prompts = (run / "prompts.safetensors").read_bytes()
    yield f"{run.name}/prompts.safetensors", hashlib.sha256(prompts).hexdigest()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    yield f"{run.name}/events.jsonl", document_digest(events)


def document_digest(document: Any) -> str:
    """Make the digest of a JSON document without what depends on the clock or on the place."""
    return hashlib.sha256(json.dumps(stripped(document), sort_keys=True).encode()).hexdigest()


def stripped(value: Any) -> Any:
    """Return the document without the keys of NO_RESULT, and without strings that name a path."""
    if isinstance(value, dict):
        return {key: stripped(item) for key, item in value.items() if key not in NO_RESULT and "second" not in key}
    if isinstance(value, list):
        return [stripped(item) for item in value]
    return "(path)" if isinstance(value, str) and os.sep in value else value


def write_vit(folder: Path) -> str:
    """Write a random CLIP with a plain ViT of two blocks; returns open_clip's `local-dir:` name."""
    import open_clip
    import torch

    model = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
    }
    folder.mkdir()
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    torch.manual_seed(0)
    clip = open_clip.CLIP(**model)
    torch.save(clip.state_dict(), folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}"


if __name__ == "__main__":
    main()
