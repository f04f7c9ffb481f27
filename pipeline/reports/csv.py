"""The tables of a report as CSV files, so that anybody can draw and count them again.

Accuracies are fractions, not percent; a missing figure is an empty field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from teachonce.core.documents import csv_bytes
from teachonce.evaluation.result import FIGURES
from teachonce.reports.curves import Over, What, band
from teachonce.reports.folder import HELD_OUT, Folder
from teachonce.reports.tables import Line, Measure, class_gains


def tables(folder: Folder, measures: Sequence[Measure], fidelity: Mapping[str, Any] | None) -> dict[str, bytes]:
    """Return all CSV files of a report by name."""
    rows_by_name = {
        "settings.csv": _settings(measures),
        "references.csv": _references(measures),
        "runs.csv": _runs(folder),
        "curves.csv": _curves(folder),
        "classes.csv": _classes(folder),
    }
    if fidelity is not None:
        rows_by_name["fidelity.csv"] = list(fidelity["by_k"])
    return {name: _table(rows) for name, rows in rows_by_name.items() if rows} | {
        "configs.csv": _written(_configs(folder))
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Write rows as CSV; the names of their columns make the first line."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return _written([columns, *([row.get(column) for column in columns] for row in rows)])


def _written(lines: Iterable[Sequence[Any]]) -> bytes:
    return csv_bytes([_figure(value) for value in line] for line in lines)


def _figure(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _settings(measures: Sequence[Measure]) -> list[dict[str, Any]]:
    return [
        {"measure": measure.key, "images": measure.n, "images_most": measure.most, **_line(line)}
        for measure in measures
        for line in measure.lines
    ]


def _line(line: Line) -> dict[str, Any]:
    pair, template = line.paired, line.template
    return {
        "number": line.number,
        "setting": line.group,
        "seeds": line.summary.n,
        "top1": line.summary.mean,
        "spread": line.summary.spread,
        "difference": pair and pair.difference,
        "pairs": pair and pair.n,
        "difference_spread": pair and pair.spread,
        **_ends("difference_t95", None if pair is None else pair.interval),
        "p": pair and pair.p,
        "p_holm": line.corrected,
        "verdict": line.verdict,
        **_ends("difference_images95", line.images),
        "over_template": template and template.difference,
        **_ends("over_template_images95", line.template_images),
        "over_linear": line.linear and line.linear.difference,
        **_ends("over_linear_images95", line.linear_images),
        **{key: line.further.get(key) for key in FIGURES[1:]},
    }


def _references(measures: Sequence[Measure]) -> list[dict[str, Any]]:
    """The linear references, a line for each selection of rows."""
    return [
        {
            "measure": measure.key,
            "settings": " | ".join(reference.settings),
            "seeds": reference.summary.n,
            "top1": reference.summary.mean,
            "spread": reference.summary.spread,
            "over_template": reference.template and reference.template.difference,
            **_ends("over_template_images95", reference.template_images),
            **{key: reference.further.get(key) for key in FIGURES[1:]},
        }
        for measure in measures
        for reference in measure.references
    ]


def _ends(name: str, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _runs(folder: Folder) -> list[dict[str, Any]]:
    rows = []
    for group in folder.groups:
        for run in group.runs:
            head = {
                "run": run.name,
                "setting": group.name,
                "split": run.split or None,
                "seed": run.seed,
                "steps": run.results.steps,
                "seconds": run.seconds,
                "trainable_parameters": run.results.trainable_parameters,
                "final_loss": run.results.final_loss,
            }
            held_out = {"images": run.held_out_rows, "top1": run.results.held_out_top1}
            rows.append({**head, "measure": HELD_OUT, **held_out})
            rows += [{**head, "measure": name, "images": e.n, **e.figures} for name, e in run.evaluations.items()]
    return rows


def _curves(folder: Folder) -> list[dict[str, Any]]:
    whats: Iterable[What] = get_args(What)
    overs: Iterable[Over] = get_args(Over)
    rows = []
    for group in folder.groups:
        for what, over in ((what, over) for what in whats for over in overs):
            curve = band(group, what, over)
            for place, x in enumerate(curve.x if curve else ()):
                mean = float(curve.mean[place]) if curve else None
                spread = float(curve.spread[place]) if curve and curve.spread is not None else None
                rows.append(
                    {
                        "setting": group.name,
                        "figure": what,
                        "over": over,
                        "x": float(x),
                        "mean": mean,
                        "spread": spread,
                        "seeds": len(group.runs),
                    }
                )
    return rows


def _configs(folder: Folder) -> list[list[Any]]:
    """List a line for each key and a column for each setting; a setting named like another column gets its number."""
    columns = ["key"]
    for number, group in enumerate(folder.groups, 1):
        columns.append(f"{group.name} ({number})" if group.name in columns else group.name)
    keys = list(dict.fromkeys(key for group in folder.groups for key in (*group.config, *group.changes)))
    return [
        columns,
        *(
            [key, *(group.changes.get(key, group.config.get(key)) for group in folder.groups)]
            for key in keys
            if key != "seed"
        ),
    ]


def _classes(folder: Folder) -> list[dict[str, Any]]:
    return [
        {
            "measure": measure,
            "setting": group.name,
            "class_id": gain.id,
            "name": gain.name,
            "images": gain.n,
            "template_top1": gain.template,
            "top1": gain.top1,
            "gain": gain.gain,
        }
        for measure in folder.measures
        for group in folder.groups
        for gain in class_gains(group, measure)
    ]
