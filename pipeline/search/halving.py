"""Successive halving: which settings go on after a rung, as a function of the figures measured there alone.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization" (arXiv 1502.07943): all
settings get few steps, the better part of them goes on, until one budget's worth of settings is trained to the end.
Nothing else decides, so that a search that was stopped, resumed or continued with more settings ends as one that ran
from the beginning to the end.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What became of the settings at one rung."""

    step: int
    values: dict[str, float] = field(default_factory=dict)
    """The measure of each setting that was compared, best first."""
    kept: tuple[str, ...] = ()
    """Settings that go on, in the order of the grid."""
    dropped: tuple[str, ...] = ()
    """Settings that end here, in the order of the grid."""
    failed: tuple[str, ...] = ()
    """Settings that have a failed or damaged cell: they neither go on nor take a place."""


def decide(
    step: int, values: Mapping[str, float], keep: float, always: Collection[str], failed: Collection[str] = ()
) -> Decision:
    """Let the best settings go on; of equals the first in the order of the grid.

    Args:
        step: of the rung.
        values: setting -> its measure, in the order of the grid.
        keep: share that goes on, rounded up.
        always: settings that go on whatever they reach; they take a place where they are among the best.
        failed: settings without a measure.
    """
    ranked = sorted(values, key=lambda setting: -values[setting])  # stable: equals keep the order of the grid
    best = ranked[: math.ceil(keep * len(ranked) - 1e-9)]
    kept = tuple(setting for setting in values if setting in best or setting in always)
    return Decision(
        step=step,
        values={setting: values[setting] for setting in ranked},
        kept=kept,
        dropped=tuple(setting for setting in values if setting not in kept),
        failed=tuple(failed),
    )
