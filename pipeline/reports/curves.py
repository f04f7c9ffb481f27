"""Curves of a report: the mean of a setting over its seeds and a band around it, over steps and over seconds of work.

This module draws nothing; `plots` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from teachonce.reports.folder import Folder, Group
from teachonce.runs.reader import Curve

MOST_POINTS = 90  # most points of a curve in a plot: more cannot be seen at its size
MOST_LINES = 6  # most lines in one plot, besides the base: as many as there are colours and dashes to tell apart
What = Literal["loss", "held_out"]
Over = Literal["steps", "seconds"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Band:
    """The curve of one setting in one plot."""

    group: str
    x: Floats
    mean: Floats
    spread: Floats | None
    """Standard deviation over seeds; None where there is one seed."""


@dataclass(frozen=True)
class Panel:
    """Settings that are drawn together: the base, and some that change the same keys."""

    keys: tuple[str, ...]
    groups: tuple[str, ...]


def panels(folder: Folder) -> list[Panel]:
    """Put settings into as few panels as hold them; settings that change the same keys stay together where they fit."""
    by_keys: dict[tuple[str, ...], list[str]] = {}
    for group in folder.groups[1:]:
        by_keys.setdefault(tuple(group.changes), []).append(group.name)
    blocks = [
        (keys, names[start : start + MOST_LINES])
        for keys, names in by_keys.items()
        for start in range(0, len(names), MOST_LINES)
    ]
    panel_parts: list[tuple[list[str], list[str]]] = []
    for keys, names in blocks:
        if not panel_parts or len(panel_parts[-1][1]) + len(names) > MOST_LINES:
            panel_parts.append(([], []))
        panel_parts[-1][0].extend(key for key in keys if key not in panel_parts[-1][0])
        panel_parts[-1][1].extend(names)
    return [Panel(tuple(keys), (folder.base.name, *names)) for keys, names in panel_parts] or [
        Panel((), (folder.base.name,))
    ]


def band(group: Group, what: What, over: Over) -> Band | None:
    """Return the curve of a setting; None where no run of the setting has one.

    Points are the steps that all seeds have. Over seconds, a point stands at the mean time at which seeds reach its
    step. Losses are means over stretches of steps, so that the noise of single steps does not hide the curve.
    """
    curves = [run.loss if what == "loss" else run.held_out for run in group.runs]
    curves = [_thinned(curve) for curve in curves if len(curve.steps)]
    if not curves:
        return None
    steps = set(curves[0].steps.tolist()).intersection(*(curve.steps.tolist() for curve in curves))
    if not steps:
        return None
    masks = [np.isin(curve.steps, sorted(steps)) for curve in curves]
    values = np.stack([curve.values[mask] for curve, mask in zip(curves, masks, strict=True)])
    seconds = np.mean([curve.seconds[mask] for curve, mask in zip(curves, masks, strict=True)], axis=0)
    x = np.array(sorted(steps), dtype=np.float64) if over == "steps" else np.asarray(seconds)
    return Band(group.name, x, values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else None)


def _thinned(curve: Curve) -> Curve:
    if len(curve.steps) <= MOST_POINTS:
        return curve
    parts = np.array_split(np.arange(len(curve.steps)), MOST_POINTS)
    means = np.array([curve.values[part].mean() for part in parts])
    middle = [part[len(part) // 2] for part in parts]
    return Curve(curve.steps[middle], curve.seconds[middle], means)
