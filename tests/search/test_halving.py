"""halving: the better part goes on, ties in the order of the grid, and nothing but the figures decides."""

from __future__ import annotations

import math

import pytest

from teachonce.search.halving import decide
from teachonce.search.tables import Search

VALUES = {"base": 0.40, "a": 0.50, "b": 0.45, "c": 0.45, "d": 0.30}


@pytest.mark.parametrize("keep", [0.01, 0.2, 0.4, 0.5, 0.6, 0.99])
def test_the_best_share_rounded_up_goes_on_and_the_base_always(keep: float) -> None:
    decision = decide(100, VALUES, keep, ["base"])
    count = math.ceil(keep * len(VALUES))
    best = sorted(VALUES, key=lambda name: (-VALUES[name], list(VALUES).index(name)))[:count]
    assert set(decision.kept) == {*best, "base"}
    assert set(decision.kept) | set(decision.dropped) == set(VALUES) and not set(decision.kept) & set(decision.dropped)
    assert list(decision.values) == ["a", "b", "c", "base", "d"] and decision.step == 100


def test_of_equals_the_first_of_the_grid_goes_on() -> None:
    assert decide(1, {"x": 0.5, "y": 0.5, "z": 0.5}, 0.34, []).kept == ("x", "y")
    assert decide(1, {"z": 0.5, "y": 0.5, "x": 0.5}, 0.3, []).kept == ("z",)


def test_settings_that_failed_take_no_place() -> None:
    decision = decide(1, {"a": 0.1, "b": 0.2}, 0.5, [], ["c", "d"])
    assert decision.kept == ("b",) and decision.dropped == ("a",) and decision.failed == ("c", "d")


@pytest.mark.parametrize("rungs", [(), (0,), (5, 5), (10, 5)])
def test_rungs_rise_from_one(rungs: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rise from 1"):
        Search(rungs=rungs)


@pytest.mark.parametrize("keep", [0.0, 1.0, -1.0, float("nan")])
def test_the_share_is_between_none_and_all(keep: float) -> None:
    with pytest.raises(ValueError):
        Search(rungs=(1,), keep=keep)
