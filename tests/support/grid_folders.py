"""Folders as `ablate` and `train` leave them, made up in milliseconds: no model, no store, figures that a test knows.

It tests nothing.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from teachonce.recipe.config import TrainConfig

START = 1_790_000_000.0  # seconds since 1970: every folder is the same to the byte, whenever it is made
PHOTOS = 240
NAMES = ("red fox", "blue jay", "green snake", "crane", "yellow bus", "Crane", "cup of tea", "piano")
ODD_NAMES = (
    "<script>alert(1)</script>",
    "a \"quoted\" & 'odd' name",
    "Ōkami 狼",
    "emoji 🦊🎹",
    "x" * 180,
    "$\\frac{1}{2}$ _under",
    "=1+1",
    "<img src=x onerror=alert(2)>",
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a made-up grid: how much better than the base it is, by measure."""

    group: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    gain: Mapping[str, float] = field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2)
    seconds: float = 40.0
    parameters: int = 12288


BASE = Setting(group="base")
BETTER = Setting(
    group="structure=kv",
    changes={"structure": "kv"},
    parameters=9216,
    gain={"held_out": 0.05, "dev-unseen": 0.06, "val": 0.05},
    seconds=33.0,
)
WORSE = Setting(
    group="supervision=hard",
    changes={"supervision": "hard"},
    seconds=25.0,
    gain={"held_out": -0.06, "dev-unseen": -0.08, "val": -0.07},
)
SAME = Setting(group="soft_weight=2.0", changes={"soft_weight": 2.0}, gain={"held_out": 0.0004})
SETTINGS = (BASE, BETTER, WORSE, SAME)


def write_run(
    folder: Path,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    top1: float = 0.4,
    seconds: float = 40.0,
    parameters: int = 12288,
    steps: int = 120,
    log_every: int = 5,
    student: str = "local-dir:student",
    labels: str = "labels.zarr",
    rows: int = 900,
) -> Path:
    """A finished run whose held-out accuracy ends at `top1`."""
    changed = {key: value for key, value in (changes or {}).items() if not key.startswith("data.") and key != "init"}
    config = TrainConfig.of(**{"held_out": 0.1, "steps": steps, **changed, "seed": seed})
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(tomli_w.dumps(config.to_dict()))
    start = {
        "event": "start",
        "time": START,
        "step": 0,
        "teachonce": "0.1.0",
        "versions": {"torch": "2.10"},
        "labels": labels,
        "student": student,
        "config_digest": config.digest(),
        "store_digest": "5" * 32,
        "student_digest": "7" * 64,
        "selection_digest": "all rows",
        "steps": steps,
        "trainable_parameters": parameters,
    }
    random = np.random.default_rng(seed)
    events: list[dict[str, Any]] = [start, {"event": "pairing", "time": START, "step": 0}]
    for step in range(log_every, steps + 1, log_every):
        time, share = START + seconds * step / steps, step / steps
        loss = 2.2 + 2.4 * np.exp(-4 * share) - top1 + float(random.normal(0, 0.05))
        events.append({"event": "step", "time": time, "step": step, "loss": round(loss, 5)})
        if step % (4 * log_every) == 0:
            reached = top1 - 0.12 * np.exp(-5 * share) * (1 - share)
            events.append({"event": "held_out", "time": time, "step": step, "top1": round(reached, 5), "rows": rows})
    (folder / "events.jsonl").write_text("".join(json.dumps({"schema": 1} | event) + "\n" for event in events))
    (folder / "prompts.safetensors").write_bytes(f"prompts of {folder.name}".encode())
    results = {
        "schema": 1,
        "steps": steps,
        "trainable_parameters": parameters,
        "seconds": seconds,
        "final_loss": 2.5 - top1,
        "held_out_top1": round(top1, 5),
        "out": str(folder.name),
        "store_id": "5" * 32,
        "student_digest": "7" * 64,
        "prompts_digest": hashlib.sha256((folder / "prompts.safetensors").read_bytes()).hexdigest(),
        "selection_digest": "all rows",
        "vocabulary_digest": "9" * 64,
        "start": "of the config",
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def write_evaluation(
    file: Path,
    top1: float,
    template: float = 0.38,
    linear: float | None = 0.44,
    names: Sequence[str] = NAMES,
    n: int = PHOTOS,
    seed: int = 0,
    credits: bool = True,
) -> None:
    """An evaluation as `evaluate` writes it: JSON, CSV by class, and the credit of each image."""
    file.parent.mkdir(parents=True, exist_ok=True)
    luck = np.random.default_rng(11).random(n)  # of the images: the same in every run
    image_credits = np.clip(luck + np.random.default_rng(seed).normal(0, 0.02, n), 0, 1)
    fitted = None if linear is None else (luck < linear).astype(np.float32)
    ours, plain = (image_credits < top1).astype(np.float32), (luck < template).astype(np.float32)
    labels = np.arange(n) % len(names)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "name", "n", "top1", "top5", "most_confused_with", "confused_share", "template_top1"])
    for i, name in enumerate(names):
        mine = labels == i
        first, second = float(ours[mine].mean()), float(plain[mine].mean())
        writer.writerow(
            [f"n{i:08d}", name, int(mine.sum()), f"{first:.4f}", "1.0", names[i - 1], "0.1", f"{second:.4f}"]
        )
    file.with_suffix(".csv").write_text(text.getvalue(), encoding="utf-8")
    if credits:
        np.save(file.with_suffix(".top1.npy"), ours)
        np.save(file.with_suffix(".template.top1.npy"), plain)
    if credits and fitted is not None:
        np.save(file.with_suffix(".linear.top1.npy"), fitted)
    document = {
        "schema": 1,
        "top1": float(ours.mean(dtype=float)),
        "top5": 0.8,
        "macro": float(ours.mean(dtype=float)),
        "ece": 0.05,
        "nll": 2.1,
        "n": n,
        "classes": len(names),
        "protocol": "in-vocabulary",
        "manifest": "local-tars",
        "split": "val",
        "templates": ["a photo of a {}."],
        "digests": {"samples": "ab" * 16},
        "names_digest": "cd" * 16,
        "baseline": {"top1": float(plain.mean(dtype=float)), "top5": 0.7, "ece": 0.06, "nll": 2.3},
        "linear": None if fitted is None else {"top1": float(fitted.mean(dtype=float)), "top5": 0.75, "nll": 2.2},
    }
    file.write_text(json.dumps(document))


def write_grid(
    out: Path,
    settings: Sequence[Setting] = SETTINGS,
    evaluations: Sequence[str] = ("dev-unseen",),
    once: Sequence[str] = (),
    names: Sequence[str] = NAMES,
    title: str = "A made-up study",
    n: int = PHOTOS,
    question: str = "Which prompts help?",
    chosen: str | None = None,
    steps: int = 120,
    log_every: int = 5,
) -> Path:
    """A finished grid; seeds differ by about half a point, and paired seeds share most of it."""
    cells = []
    for setting in settings:
        for seed in setting.seeds:
            digest = hashlib.sha256(f"{setting.group} {seed}".encode()).hexdigest()[:16]
            config = TrainConfig.of(seed=seed).to_dict()
            cell = {
                "digest": digest,
                "name": f"{setting.group} seed={seed}",
                "group": setting.group,
                "seed": seed,
                "changes": dict(setting.changes),
                "is_base": not setting.changes,
                "config": config,
                "data": {},
                "no_effect": [],
            }
            cells.append(cell)
            folder = out / "cells" / digest
            own_luck = np.random.default_rng([seed, len(setting.group)]).normal(0, 0.0015)
            shared_luck = 0.006 * (seed - 1)
            luck = float(shared_luck + own_luck)
            write_run(
                folder,
                seed,
                setting.changes,
                0.4 + luck + setting.gain.get("held_out", 0.0),
                setting.seconds + seed,
                setting.parameters,
                steps,
                log_every,
            )
            (folder / "cell.json").write_text(json.dumps(cell))
            for name in evaluations:
                top1 = 0.42 + luck + setting.gain.get(name, 0.0)
                write_evaluation(folder / "evaluations" / f"{name}.json", top1, names=names, n=n, seed=seed)
            for name in once if setting.group in ("base", chosen) else ():
                top1 = 0.42 + luck + setting.gain.get(name, 0.0)
                write_evaluation(out / "final" / f"{name}-{digest}.json", top1, names=names, n=n, seed=seed)
    declared = [{"name": name, "manifest": "m", "protocol": "in-vocabulary", "only": ""} for name in evaluations]
    declared += [{"name": name, "manifest": "m", "protocol": "cross-dataset", "only": "chosen"} for name in once]
    grid = {
        "schema": 1,
        "title": title,
        "question": question,
        "grid_digest": "d" * 32,
        "labels": "labels.zarr",
        "store_id": "5" * 32,
        "student": "local-dir:student",
        "cells": cells,
        "evaluations": declared,
        "choose": {"weights": {"held_out": 1, **{name: 1 for name in evaluations}}, "metric": "top1"},
        "base": {},
    }
    (out / "grid.json").write_text(json.dumps(grid))
    results = {
        "schema": 1,
        "cells": {"finished": len(cells), "failed": 0, "skipped": 0},
        "chosen": chosen and _choice(chosen, cells, ["held_out", *evaluations]),
        "seconds": 9,
    }
    (out / "results.json").write_text(json.dumps(results))
    return out


def _choice(group: str, cells: Sequence[Mapping[str, Any]], by: Sequence[str]) -> dict[str, Any]:
    """A choice of the grid, as `ablate` writes it, but for its figures."""
    return {
        "group": group,
        "value": 0.5,
        "by": {name: 1 / len(by) for name in by},
        "metric": "top1",
        "figures": {},
        "cells": [cell["digest"] for cell in cells if cell["group"] == group],
        "ranking": {str(cell["group"]): 0.5 for cell in cells},
    }
