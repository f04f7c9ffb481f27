"""What `show` prints where a grid has many measures: every setting keeps its name, every figure its place."""

from __future__ import annotations

import dataclasses
from typing import Any

import prompt_stubs
import pytest
from rich.console import Console

from teachonce.cli.views.show import view

MEASURES = ["held_out", *(f"evaluation-{number}" for number in range(6))]


def setting(number: int, name: str, measured: list[str]) -> dict[str, Any]:
    """A line of the answer with a figure of its own for each measure."""
    figures = {
        measure: {"top1": number / 10 + place / 100, "spread": 0.003, "difference": 0.01, "verdict": "better"}
        for place, measure in enumerate(measured)
    }
    return prompt_stubs.SHOWN | {"number": number, "setting": name, "measures": figures}


@pytest.mark.parametrize("width", [100, 160])
def test_settings_keep_their_names_beside_many_measures(width: int) -> None:
    """Seven measures of two settings, the last four of one: tables side by side would leave no room for a name."""
    settings = (setting(1, "base", MEASURES), setting(2, "structure=shared", MEASURES[:3]))
    result = prompt_stubs.ShowResult(measures=tuple(MEASURES), settings=settings)
    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        console.print(view(dataclasses.asdict(result)))
    text = captured.get()
    assert all(measure.replace("_", " ") in text for measure in MEASURES)
    assert all(f"{10 * number + place:.1f} ±0.3" in text for number, last in ((1, 7), (2, 3)) for place in range(last))
    assert text.count("base") >= 3 and text.count("structure=shared") == 2, "its figures, and its cost at the end"
    assert text.count("trained") == 1
