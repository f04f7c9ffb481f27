"""The work of `show`. The docstring of the package says what the stage promises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from teachonce.core.documents import SEAL, fault_of, read_json, read_object
from teachonce.core.progress import Reporter
from teachonce.errors import DataError, IntegrityError
from teachonce.phrases import option
from teachonce.recipe.config import TrainConfig
from teachonce.reports.curves import band
from teachonce.reports.folder import EMPTY_HINT, SEED, Folder, Group, read_folder
from teachonce.reports.tables import Line, Measure, best_group, measures
from teachonce.reports.words import headline
from teachonce.runs.folder import RunFolder
from teachonce.runs.grid_folder import GridFolder
from teachonce.stages.show.request import ShowRequest, ShowResult

POINTS = 16  # a loss curve in a line of text has at most so many


def show(request: ShowRequest, reporter: Reporter) -> ShowResult:
    """Look at a run folder, a grid folder, a folder of runs, a label store or a results.json.

    The stage's `show` says what is raised.
    """
    path = request.path
    if path.is_file():
        return _document(path)
    if (path / "zarr.json").is_file():
        return _empty("store", path, title="a label store", next=f"teachonce inspect {path}")
    return _folder(path)


def _folder(path: Path) -> ShowResult:
    folder = read_folder(path)
    tables = measures(folder)
    best, rule = best_group(folder, tables)
    kind = "grid" if folder.grid else "run" if len(folder.runs) == 1 and folder.runs[0].folder == path else "runs"
    return ShowResult(
        kind=kind,
        path=str(path),
        title=folder.title,
        question=folder.question,
        runs=len(folder.runs),
        best=best,
        measures=tuple(table.key for table in tables),
        settings=tuple(_setting(folder, group, i, tables) for i, group in enumerate(folder.groups, 1)),
        beside=tuple(_beside(tables)),
        headline=tuple(headline(folder, tables, best, rule).sentences()),
        not_counted=tuple(asdict(entry) for entry in folder.unusable),
        config=_config(folder.base),
        figures={},
        next=f"teachonce report {path} " + option("out") + " report.html",
    )


def _config(base: Group) -> dict[str, Any]:
    default = TrainConfig.as_written()
    return {key: value for key, value in base.config.items() if key != SEED and value != default.get(key)}


def _setting(folder: Folder, group: Group, number: int, tables: tuple[Measure, ...]) -> dict[str, Any]:
    runs = group.runs
    losses = [run.results.final_loss for run in runs if run.results.final_loss is not None]
    lines = {table.key: line for table in tables if (line := table.line(group.name))}
    return {
        "number": number,
        "setting": group.name,
        "is_base": group is folder.base,
        "seeds": sorted({run.seed for run in runs}),
        "changes": dict(group.changes),
        "seconds": sum(run.seconds for run in runs) / len(runs),
        "trainable_parameters": runs[0].results.trainable_parameters,
        "final_loss": sum(losses) / len(losses) if losses else None,
        "loss": _loss(group),
        "measures": {key: _figures(line) for key, line in lines.items()},
    }


def _figures(line: Line) -> dict[str, Any]:
    pair = line.paired
    return {
        "top1": line.summary.mean,
        "spread": line.summary.spread,
        "difference": pair and pair.difference,
        "difference_spread": pair and pair.spread,
        "p": line.corrected,
        "images": line.images,
        "over_template": line.template and line.template.difference,
        "over_linear": line.linear and line.linear.difference,
        "verdict": line.verdict,
    }


def _beside(tables: tuple[Measure, ...]) -> Iterator[dict[str, Any]]:
    """The template, and one linear reference for each selection of rows, where some run has them."""
    plain = {table.key: {"top1": table.template["top1"], "spread": None} for table in tables if table.template}
    if plain:
        yield {"name": "the template alone", "settings": (), "seeds": 0, "measures": plain}
    together: dict[tuple[str, ...], dict[str, Any]] = {}
    for table in tables:
        for reference in table.references:
            line = together.setdefault(reference.settings, {"seeds": reference.summary.n, "measures": {}})
            line["measures"][table.key] = {"top1": reference.summary.mean, "spread": reference.summary.spread}
    for settings, line in together.items():
        yield {"name": "the linear reference", "settings": settings, **line}


def _loss(group: Group) -> list[float]:
    curve = band(group, "loss", "steps")
    if curve is None:
        return []
    places = (
        range(len(curve.mean))
        if len(curve.mean) <= POINTS
        else [round(i * (len(curve.mean) - 1) / (POINTS - 1)) for i in range(POINTS)]
    )
    return [round(float(curve.mean[place]), 5) for place in places]


def _document(path: Path) -> ShowResult:
    """A results.json: of the folder that it lies in, or of an evaluation."""
    folder = path.parent
    run, grid = RunFolder(folder), GridFolder(folder)
    if path.name == run.results.name and (grid.grid.is_file() or run.config.is_file()):
        return _folder(folder)
    document, fault = read_object(path), fault_of(path)
    if document is None and isinstance(read_json(path), dict):
        raise IntegrityError(f"{path} {fault}", hint="restore it, or write it again")
    if document is None or "schema" not in document:
        raise DataError(f"{path} is not a document of teachonce: expected JSON with a schema", hint=EMPTY_HINT)
    figures = {
        key: value
        for key, value in document.items()
        if key != SEAL and not isinstance(value, (list, dict)) and value is not None
    }
    return _empty("results", path, title=path.name, figures=figures)


def _empty(kind: str, path: Path, title: str, next: str = "", figures: Mapping[str, Any] | None = None) -> ShowResult:
    return ShowResult(
        kind=kind,
        path=str(path),
        title=title,
        question="",
        runs=0,
        best=None,
        measures=(),
        settings=(),
        beside=(),
        headline=(),
        not_counted=(),
        config={},
        figures=dict(figures or {}),
        next=next,
    )
