"""The work of `demo`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from teachonce.cluster.description import ClusterSpec
from teachonce.core.documents import csv_bytes
from teachonce.core.files import atomic_write_bytes
from teachonce.core.progress import Reporter
from teachonce.demo import world as demo_world
from teachonce.demo.models import DemoModels, unpack_models
from teachonce.errors import IntegrityError, UsageError
from teachonce.evaluation.choice import Entrant, SetChoice
from teachonce.phrases import another, option, phrase
from teachonce.recipe.config_file import load_train_config
from teachonce.runs.folder import RESULTS, RunFolder
from teachonce.runs.results import RunResults
from teachonce.stages.demo.request import DemoRequest, DemoResult
from teachonce.stages.evaluate import EvaluateRequest, EvaluateResult, evaluate
from teachonce.stages.report import ReportRequest, report
from teachonce.stages.teach import TaughtData, TeachRequest, teach
from teachonce.stages.train import TrainRequest, train
from teachonce.stages.verify import VerifyRequest, verify

STEPS, BATCH = 300, 256  # enough for the curves to flatten on this small world
STRUCTURES, SUPERVISIONS = ("shared", "unshared"), ("hard", "hard+soft")
MANIFEST = "demo"


def demo(request: DemoRequest, reporter: Reporter) -> DemoResult:
    """Make the world and the models, then teach, verify, train four cells, evaluate them and report.

    The stage's `demo` says what is raised.
    """
    began = time.monotonic()
    if request.train_models is not None:
        return _train_models(request.train_models, reporter, began)
    out = request.out
    _require_place(out)
    out.mkdir(parents=True, exist_ok=True)
    reporter.note("1/6 drawing a small labelled image world")
    world = demo_world.write_world(out / "world", reporter=reporter)
    reporter.note(
        f"    {world.images} images of {world.seen_classes} classes; {world.unseen_classes} more are held out"
    )
    models = unpack_models(out / "models")
    _teach_and_verify(request, models, reporter)
    reporter.note("4/6 training: shared or unshared prompts, with hard or hard and soft labels")
    runs = [_train(out, models, *cell, reporter) for cell in _cells(request.seeds)]
    reporter.note("5/6 evaluating on seen and on held-out classes")
    table = _table(out, models, runs, reporter)
    paths = {
        "images": str(out / "world"),
        "models": str(out / "models"),
        "label store": str(out / "labels.zarr"),
        "runs": str(out / "runs"),
        "table": str(out / "table.csv"),
        "results": str(out / RESULTS),
        "report": _report(out, models, reporter),
    }
    result = DemoResult(table=tuple(table), paths=paths, seconds=time.monotonic() - began)
    _write(out, result)
    return result


def _require_place(out: Path) -> None:
    """Refuse a folder that is neither new, nor empty, nor that of an earlier demo, which this one continues."""
    if out.exists() and not out.is_dir():
        raise UsageError(option("out") + f" {out} is not a folder", hint=another("out"))
    held = [item.name for item in out.iterdir()] if out.exists() else []
    begun = "world" in held or all(name.startswith(".world.") for name in held)
    if not begun:
        raise UsageError(
            option("out") + f" {out} is not empty, and no demo was run there; nothing was changed",
            hint=phrase("give a new folder as {out}"),
        )


def _train_models(folder: Path, reporter: Reporter, began: float) -> DemoResult:
    """Run the recipe that made the shipped models."""
    from teachonce.demo.training import TrainSizes, train_demo_models

    made = train_demo_models(folder, TrainSizes(), reporter)
    table = tuple(
        {"cell": model.file.stem, "top1_seen": model.seen_top1, "top1_unseen": model.unseen_top1} for model in made
    )
    return DemoResult(table=table, paths={"models": str(folder)}, seconds=time.monotonic() - began)


def _teach_and_verify(request: DemoRequest, models: DemoModels, reporter: Reporter) -> None:
    labels = request.out / "labels.zarr"
    reporter.note("2/6 teach: the teacher runs once, the store keeps its top 100 classes of every image")
    taught = teach(
        TeachRequest(
            labels=labels,
            data=TaughtData(manifest=MANIFEST, root=request.out / "world"),
            teacher=models.teacher,
            students=(models.student,),
            cluster=ClusterSpec(workers=request.workers),
        ),
        reporter,
    )
    reporter.note(f"    {taught.rows_ok} rows, {taught.bytes_per_row['labels']:.0f} bytes a row for the labels")
    reporter.note("3/6 verify: every chunk against the ledger")
    checked = verify(VerifyRequest(labels=labels), reporter)
    if not checked.ok:
        first = checked.faults[0]
        raise IntegrityError(
            f"{first.where}: expected {first.expected}, found {first.found}", hint=f"remove {request.out} and run again"
        )


def _cells(seeds: int) -> Iterator[tuple[str, str, int]]:
    for structure in STRUCTURES:
        for supervision in SUPERVISIONS:
            for seed in range(seeds):
                yield structure, supervision, seed


def _train(
    out: Path, models: DemoModels, structure: str, supervision: str, seed: int, reporter: Reporter
) -> tuple[str, Path, RunResults]:
    """Train one cell, or take it up where an earlier demo left it; returns its name, folder and results."""
    name = f"{structure}, {supervision} labels"
    run = out / "runs" / f"{structure}-{supervision.replace('+', '-')}-{seed}"
    overrides = {"structure": structure, "supervision": supervision, "seed": seed, "steps": STEPS, "batch_size": BATCH}
    config = load_train_config(None, [f"{key}={value}" for key, value in overrides.items()])
    files = RunFolder(run)
    if not files.results.is_file():
        started = files.config.is_file()
        reporter.note(f"    {name}, seed {seed}")
        train(
            TrainRequest(
                labels=out / "labels.zarr", student=models.student, out=run, config=config, resume=started, threads=1
            ),
            reporter,
        )
    results = files.read_results()
    if results is None:
        raise IntegrityError(f"{files.results} is damaged", hint=f"remove {run} and run again")
    return name, run, results


def _table(
    out: Path, models: DemoModels, runs: list[tuple[str, Path, RunResults]], reporter: Reporter
) -> list[dict[str, Any]]:
    rows = [
        _row("teacher, hand-written template", out, models.teacher, [None], 0, reporter),
        _row("student, hand-written template", out, models.student, [None], 0, reporter),
    ]
    for name in dict.fromkeys(name for name, _, _ in runs):
        mine = [(run, results) for other, run, results in runs if other == name]
        parameters = mine[0][1].trainable_parameters
        rows.append(_row(f"student, {name}", out, models.student, [run for run, _ in mine], parameters, reporter))
    return rows


def _report(out: Path, models: DemoModels, reporter: Reporter) -> str:
    """The page about all runs; returns its path."""
    reporter.note("6/6 report")
    request = ReportRequest(
        folder=out / "runs",
        out=out / "report.html",
        labels=out / "labels.zarr",
        root=out / "world",
        student=models.student,
    )
    return report(request, reporter).out


def _row(
    name: str, out: Path, model: str, runs: list[Path] | list[None], parameters: int, reporter: Reporter
) -> dict[str, Any]:
    seen = [_evaluate(out, model, run, "val", reporter) for run in runs]
    unseen = [_evaluate(out, model, run, "unseen", reporter) for run in runs]
    return {
        "who": name,
        "trained_parameters": parameters,
        "top1_seen": mean(result.top1 for result in seen),
        "top1_unseen": mean(result.top1 for result in unseen),
        "images": f"{seen[0].n} + {unseen[0].n}",
    }


def _evaluate(out: Path, model: str, run: Path | None, split: str, reporter: Reporter) -> EvaluateResult:
    """One evaluation; what it says of a run is kept in the run's folder, where `report` and `export` look for it."""
    request = EvaluateRequest(
        entrant=Entrant(student=model, run=run), data=SetChoice(manifest=MANIFEST, root=out / "world", split=split)
    )
    result = evaluate(request, reporter)
    if run is not None:
        file = RunFolder(run).evaluation(split)
        file.parent.mkdir(exist_ok=True)
        atomic_write_bytes(file, (json.dumps({"schema": 1, **asdict(result)}, indent=1) + "\n").encode())
    return result


def _write(out: Path, result: DemoResult) -> None:
    atomic_write_bytes(out / RESULTS, (json.dumps({"schema": 1, **asdict(result)}, indent=1) + "\n").encode())
    columns = list(result.table[0])
    lines = [columns, *([row[column] for column in columns] for row in result.table)]
    atomic_write_bytes(out / "table.csv", csv_bytes(lines))
