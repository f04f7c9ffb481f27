"""The fidelity report in a terminal: every figure that the result holds is there, and bars follow the figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from store_stubs import FIDELITY

from teachonce.cli.views import fidelity as charts


def drawn(report: dict[str, Any]) -> list[str]:
    """The lines as printed."""
    console = Console(width=120, highlight=False)
    with console.capture() as captured:
        for part in charts.fidelity(report):
            console.print(part)
    return captured.get().splitlines()


def test_inspect_draws_the_report(teachonce_here: Callable[..., Any]) -> None:
    """A person sees tables and bars; the raw keys do not show; a program gets the figures."""
    ended = teachonce_here("inspect", "x.zarr")
    assert "mass kept against k" in ended.out and "█" in ended.out and "fidelity.by_k" not in ended.out
    assert teachonce_here("inspect", "x.zarr", "--json").document["fidelity"]["mass"]["mean"] == 0.625


def test_every_figure_is_there() -> None:
    """Quantiles by name, each k, each rule; what is not known is a dash."""
    text = "\n".join(drawn(FIDELITY))
    for word in (
        "0.0002",
        "0.001",
        "0.625",
        "0.43",
        "9e-05",
        "value KL",
        "embedding KL, own scale",
        "48 rows",
        "k = 10",
    ):
        assert word in text, word
    assert any("to-label 10" in line and " - " in f"{line} " for line in drawn(FIDELITY))


def test_bars_follow_the_figures() -> None:
    """Half the mass is half a bar; a divergence ten times as large is a longer bar; nothing is no bar."""
    lines = {tuple(line.split()[:2]): line.count("█") for line in drawn(FIDELITY) if line.split()}
    assert lines[("1", "0.25")] == round(30 * 0.25) and lines[("10", "0.625")] == round(30 * 0.625)
    assert 0 < lines[("ghost", "10")] < lines[("renormalise", "10")] < lines[("residual-uniform", "10")] <= 30
    assert lines[("to-label", "10")] == 0
