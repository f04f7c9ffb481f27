"""The fidelity report of a store as tables and bars for a terminal.

It computes nothing: every figure comes from the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

BAR = 30  # characters of the longest bar
DECADES = (1e-6, 10.0)  # nats at the two ends of a logarithmic bar
QUANTILES = ("mean", "p50", "p90", "p99", "max")


def fidelity(report: Mapping[str, Any]) -> list[RenderableType]:
    """A table of quantiles, then mass and divergence against k as bars."""
    return [_quantiles(report), _mass(report["by_k"]), _divergences(report["by_k"])]


def _quantiles(report: Mapping[str, Any]) -> Table:
    title = f"fidelity at k = {report['k']}, on {report['rows']} rows measured while they were written"
    table = Table(title=title, title_justify="left")
    table.add_column("nats, but for mass")
    for name in QUANTILES:
        table.add_column(name, justify="right", overflow="fold")
    lines = {"value KL": report["value_kl"], "mass kept": report["mass"]}
    lines |= {f"top-k KL, {rule}": figures for rule, figures in report["topk_kl"].items()}
    lines |= {f"embedding KL, {scale}": figures for scale, figures in report["embedding_kl"].items()}
    for name, figures in lines.items():
        table.add_row(name, *(_number(figures.get(quantile)) for quantile in QUANTILES))
    return table


def _mass(by_k: Sequence[Mapping[str, Any]]) -> Table:
    table = _bars("mass kept against k")
    for line in by_k:
        table.add_row(str(line["k"]), _number(line["mass"]), _bar(line["mass"] or 0.0))
    return table


def _divergences(by_k: Sequence[Mapping[str, Any]]) -> Table:
    """One bar a rule and k; the length is the logarithm, since they span decades."""
    low, high = (math.log10(x) for x in DECADES)
    table = _bars(f"KL in nats against k, bars on a log scale from {DECADES[0]:g} to {DECADES[1]:g}")
    for rule in [name for name in by_k[0] if name not in ("k", "mass")]:
        table.add_section()
        for line in by_k:
            value = line[rule]
            share = (math.log10(value) - low) / (high - low) if value and value > 0 else 0.0
            table.add_row(f"{rule} {line['k']}", _number(value), _bar(share))
    return table


def _bars(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    return table


def _bar(share: float) -> Text:
    return Text("█" * round(BAR * min(1.0, max(0.0, share))), style="cyan")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
