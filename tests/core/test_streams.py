"""Streams of random numbers: those that decide results draw what they always drew, and no two names draw the same."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import teachonce
from teachonce.core import streams
from teachonce.core.streams import Stream

NAMES = {name: value for name, value in vars(streams).items() if isinstance(value, Stream)}
DRAWN = {  # three numbers below 10^6 with seed 7, drawn before there was a registry
    "TRAINING_ORDER": (3, [524120, 482128, 293938]),
    "CANDIDATES": (3, [893293, 208467, 883507]),
    "SECOND_PASS": (3, [988754, 359220, 59907]),
    "ROW_ORDER": (0, [163726, 872073, 972263]),
    "RECHECK": (0, [163726, 872073, 972263]),
    "BOOTSTRAP": (0, [163726, 872073, 972263]),
    "CALIBRATION": (0, [163726, 872073, 972263]),
    "CLASS_ORDER": (0, [163726, 872073, 972263]),
    "LINEAR_REFERENCE": (0, [163726, 872073, 972263]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_streams_that_decide_results_draw_what_they_always_drew(name: str) -> None:
    part, expected = DRAWN[name]
    assert NAMES[name].at(7, part).integers(0, 10**6, 3).tolist() == expected


def test_no_two_names_draw_from_one_key() -> None:
    """Names that draw from one seed have different lanes, so their numbers differ at every part, the first included."""
    keys = [(stream.seed_of, stream.lane) for stream in NAMES.values()]
    assert len(keys) == len(set(keys)) == len(NAMES)
    of_a_run = [stream for stream in NAMES.values() if stream.seed_of == "run"]
    for one, other in combinations(of_a_run, 2):
        for part in (0, 1):
            assert not np.array_equal(one.at(7, part).integers(0, 10**6, 9), other.at(7, part).integers(0, 10**6, 9))


def test_large_seeds_are_taken_whole() -> None:
    one, other = streams.ROW_ORDER.at(2**64 - 1), streams.ROW_ORDER.at(2**64 - 2)
    assert one.integers(0, 10**6, 3).tolist() != other.integers(0, 10**6, 3).tolist()


def test_nothing_draws_past_the_registry() -> None:
    """But for the made-up world and its models, whose generators are seeded with more than a number."""
    root = Path(next(iter(teachonce.__path__)))
    files = [file for folder in (root, root.parent / "stages") for file in folder.rglob("*.py")]
    draws = {
        file.relative_to(root.parent).as_posix()
        for file in files
        if any(word in file.read_text(encoding="utf-8") for word in ("np.random.Philox", "default_rng", "SeedSequence"))
    }
    assert {name for name in draws if "/demo/" not in name} == {f"{root.name}/core/streams.py"}
