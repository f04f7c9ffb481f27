"""Accuracy on a validation split against steps and seconds: one factor at a time around a base, several seeds.

    python benchmarks/train_study.py --labels labels.zarr --student MODEL --root DATA --out study [--seeds 0,1,2]
        [--steps 600 --every 100 --cells base,hard,... --processes 2]
    python benchmarks/train_study.py --labels wide.zarr ... --cells sampled --seeds 0

Every cell is the base with one thing changed. A cell that is done lies in --out as JSON and is not run again. The
validation split is looked at only to draw the curve: the result of a run is its last step, and nothing is chosen here.
Seconds are those of the training steps alone, without reading, evaluation and checkpoints; `--processes` run side by
side, one thread each. `--pace N` trains nothing: it times N steps of every cell by turns, in one process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teachonce.core.progress import Silent
from teachonce.data.index import build_index, split_classes
from teachonce.data.manifests import load_manifest
from teachonce.evaluation.choice import Work
from teachonce.evaluation.features import image_features
from teachonce.labels.store import LabelStore
from teachonce.models.classifier import equal_rows, score
from teachonce.models.clip import LoadedClip, load_clip, tune_process
from teachonce.recipe.config_file import load_train_config
from teachonce.recipe.requirements import requirements
from teachonce.rows.working_set import open_working_set
from teachonce.training.trainer import Trainer

BASE = ("anchor_weight=0",)  # docs/training.md's tables were made so
CELLS: dict[str, tuple[str, ...]] = {
    "base": (),
    "hard": ("supervision=hard",),
    "soft": ("supervision=soft",),
    "shared": ("structure=shared",),
    "unshared-replace": ("structure=unshared-replace",),
    "kv": ("structure=kv",),
    "residual-uniform": ("tail=residual-uniform",),
    "to-label": ("tail=to-label",),
    "renormalise": ("tail=renormalise",),
    "embedding": ("targets=embedding",),
    "sampled": ("candidates=sampled", "sampled_fill=1000", "sampled_top=8"),
}
CURVE = (0, 25, 50, 100, 200, 300, 400, 500, 600)


def validation(args: argparse.Namespace, clip: LoadedClip) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Return image features of the split, the names of its classes, and the class of each image."""
    manifest, root = load_manifest(args.manifest), Path(args.root)
    index = build_index(manifest, args.split, root, Silent())
    features = torch.from_numpy(image_features(clip, index, root, Work(threads=1), Silent()))
    return features, list(split_classes(manifest, args.split, root).ids), torch.from_numpy(index.label.astype(np.int64))


def accuracy(trainer: Trainer, images: torch.Tensor, ids: list[str], labels: torch.Tensor) -> dict[str, float]:
    """Return top-1 among the split's own classes, and among all classes of the run if it has more."""
    vocabulary = trainer.rows.vocabulary
    class_numbers = torch.tensor([vocabulary.index[class_id] for class_id in ids])
    with trainer.result() as student:
        classes = student.class_features()
    among = {"val": (classes[class_numbers], labels)}
    if len(vocabulary) > len(class_numbers):
        among["val among all names"] = (classes, class_numbers[labels])
    return {name: float(score(images, c, of, equal_rows(c)).top1.mean()) for name, (c, of) in among.items()}


def run_cell(args: argparse.Namespace, cell: str, seed: int) -> None:
    """Train one cell with one seed and write its curve."""
    file = Path(args.out) / f"{cell}-{seed}.json"
    if file.exists():
        return
    tune_process(1)
    clip = load_clip(args.student)
    images, ids, labels = validation(args, clip)
    overrides = [*BASE, *CELLS[cell], f"steps={args.steps}", f"seed={seed}"]
    config = load_train_config(None, overrides)
    rows = open_working_set(
        LabelStore.open(Path(args.labels)), clip.digest, Silent(), embeddings=requirements(config).embeddings
    )
    trainer, curve, seconds = Trainer(config, clip, rows), [], 0.0
    points = sorted({p for p in (*CURVE, args.steps) if p <= args.steps and (p % args.every == 0 or p < args.every)})
    for step in range(args.steps + 1):
        if step in points:
            curve.append({"step": step, "seconds": seconds, **accuracy(trainer, images, ids, labels)})
        if step < args.steps:
            began = time.perf_counter()
            trainer.step(step)
            seconds += time.perf_counter() - began
    description: dict[str, Any] = {
        "cell": cell,
        "seed": seed,
        "set": overrides,
        "rows": len(rows),
        "classes": len(rows.vocabulary),
        "curve": curve,
        "parameters": trainer.student.trainable_parameters(),
    }
    rows.close()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def pace(args: argparse.Namespace) -> str:
    """Return the median seconds of a step of every cell, measured by turns, as Markdown."""
    tune_process(1)
    clip, store = load_clip(args.student), LabelStore.open(Path(args.labels))
    trainers, seconds = {}, dict[str, list[float]]()
    for cell in args.cells.split(","):
        config = load_train_config(None, [*BASE, *CELLS[cell]])
        rows = open_working_set(store, clip.digest, Silent(), embeddings=requirements(config).embeddings)
        trainers[cell] = Trainer(config, clip, rows)
    for step in range(args.pace + 1):  # the first step is not counted, because it makes what is made once
        for cell, trainer in trainers.items():
            began = time.perf_counter()
            trainer.step(step)
            seconds.setdefault(cell, []).append(time.perf_counter() - began)
    medians = {cell: statistics.median(times[1:]) for cell, times in seconds.items()}
    return (
        "| cell | "
        + " | ".join(medians)
        + f" |\n|{'---|' * (len(medians) + 1)}\n| ms a step | "
        + " | ".join(f"{1000 * value:.0f}" for value in medians.values())
        + " |"
    )


def table(out: Path, measure: str) -> str:
    """Return mean and spread over seeds at each step, in percent, as Markdown."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(out.glob("*.json")):
        description = json.loads(file.read_text(encoding="utf-8"))
        runs.setdefault(description["cell"], []).append(description)
    order = [cell for cell in CELLS if cell in runs and measure in runs[cell][0]["curve"][0]]
    if not order:
        return ""
    steps = [point["step"] for point in runs[order[0]][0]["curve"]]
    lines = [
        "| cell | numbers | seeds | " + " | ".join(f"step {s}" for s in steps) + " | s a step |",
        "|---" * (len(steps) + 4) + "|",
    ]
    for cell in order:
        cells = []
        for place in range(len(steps)):
            values = [100 * run["curve"][place][measure] for run in runs[cell]]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 and steps[place] else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}")
        pace = statistics.median(run["curve"][-1]["seconds"] / steps[-1] for run in runs[cell])
        lines.append(
            f"| {cell} | {runs[cell][0]['parameters']:,} | {len(runs[cell])} | "
            + " | ".join(cells)
            + f" | {pace:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the missing cells and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("labels", "student", "root", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--manifest", default="local-tars")
    parser.add_argument("--split", default="val")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--cells", default=",".join(cell for cell in CELLS if cell != "sampled"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--pace", type=int, default=0)
    args = parser.parse_args()
    if args.pace:
        sys.stdout.write(pace(args) + "\n")
        return
    work = [(cell, int(seed)) for seed in args.seeds.split(",") for cell in args.cells.split(",")]
    with ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn")) as pool:
        for future in [pool.submit(run_cell, args, cell, seed) for cell, seed in work]:
            future.result()
    for measure in ("val", "val among all names"):
        text = table(Path(args.out), measure)
        if text:
            sys.stdout.write(f"\nTop-1 in percent, {measure}\n\n{text}\n")


if __name__ == "__main__":
    main()
