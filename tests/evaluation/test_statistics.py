"""Statistics of a few runs: against plain formulas, brute force and known properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from teachonce.evaluation.statistics import against_constant, bootstrap, holm, paired, smallest_telling, summarise


def test_mean_and_spread_are_those_of_a_sample() -> None:
    summary = summarise([0.4, 0.5, 0.6])
    assert (summary.mean, summary.spread, summary.n) == (pytest.approx(0.5), pytest.approx(0.1), 3)
    assert summarise([0.4]).spread is None


def test_the_paired_test_is_students_over_the_common_seeds() -> None:
    """Seeds that only one side has take no part; t is the mean difference over its standard error."""
    ours, base = {0: 0.41, 1: 0.43, 2: 0.40, 7: 0.99}, {0: 0.40, 1: 0.41, 2: 0.395, 8: 0.01}
    comparison = paired(ours, base)
    assert comparison is not None
    d = np.array([0.01, 0.02, 0.005])
    t = d.mean() / (d.std(ddof=1) / math.sqrt(3))
    assert comparison.n == 3
    assert comparison.difference == pytest.approx(d.mean())
    assert comparison.p == pytest.approx(2 * stats.t.sf(t, 2))
    assert comparison.interval == pytest.approx(stats.t.interval(0.95, 2, d.mean(), d.std(ddof=1) / math.sqrt(3)))


def test_pairing_takes_out_what_seeds_share() -> None:
    """Seeds that lie ten points apart do not hide a point that every one of them gains."""
    comparison = paired({0: 0.309, 1: 0.41, 2: 0.511}, {0: 0.30, 1: 0.40, 2: 0.50})
    assert comparison is not None and comparison.p is not None and comparison.p < 0.01


@pytest.mark.parametrize(
    ("ours", "p"),
    [({0: 0.4}, None), ({0: 0.4, 1: 0.5}, 1.0), ({0: 0.45, 1: 0.55}, None), ({}, None)],
    ids=["one seed", "no difference", "the same difference", "no common seed"],
)
def test_where_no_test_is_possible_there_is_no_p(ours: dict[int, float], p: float | None) -> None:
    comparison = paired(ours, {0: 0.4, 1: 0.5})
    assert (comparison is None) == (not ours)
    assert comparison is None or comparison.p == p


def test_a_figure_without_seeds_is_compared_with_each_seed() -> None:
    comparison = against_constant([0.4, 0.42, 0.41], 0.38)
    assert comparison.difference == pytest.approx(0.03)
    assert comparison.p == pytest.approx(stats.ttest_1samp([0.4, 0.42, 0.41], 0.38).pvalue)


def test_holm_is_the_smallest_level_at_which_each_is_found() -> None:
    """Brute force: step down through the sorted p values at each level."""
    p_values = [0.04, None, 0.001, 0.03, 0.02, 0.5]
    known = sorted(p for p in p_values if p is not None)

    def found_at(level: float) -> set[float]:
        out: set[float] = set()
        for rank, p in enumerate(known):
            if p > level / (len(known) - rank):
                break
            out.add(p)
        return out

    for p, corrected in zip(p_values, holm(p_values), strict=True):
        assert (p is None) == (corrected is None)
        if p is not None and corrected is not None:
            assert p in found_at(min(1.0, corrected + 1e-9)) or corrected == 1.0
            assert p not in found_at(corrected - 1e-9)


def test_the_smallest_telling_difference_is_where_p_is_one_in_twenty() -> None:
    times = smallest_telling(3)
    assert times is not None and smallest_telling(1) is None
    d = np.array([-1.0, 0.0, 1.0]) + times  # spread 1, mean `times`
    comparison = paired(dict(enumerate(d)), {0: 0.0, 1: 0.0, 2: 0.0})
    assert comparison is not None and comparison.p == pytest.approx(0.05)


def test_the_bootstrap_is_that_of_drawing_images_with_return() -> None:
    """The short way (a multinomial over equal differences) against drawing images one by one."""
    random = np.random.default_rng(3)
    ours, theirs = random.integers(0, 2, 300) * 1.0, random.integers(0, 4, 300) / 3
    low, high = bootstrap(ours, theirs)
    d = ours - theirs
    means = np.array([d[random.integers(0, 300, 300)].mean() for _ in range(4000)])
    expected = np.percentile(means, [2.5, 97.5])
    assert [low, high] == pytest.approx(expected, abs=0.006)  # an end's own error is about 0.002
    assert low < d.mean() < high
    assert bootstrap(ours, ours) == (0.0, 0.0)
    assert bootstrap(ours, theirs) == (low, high), "the same draws each time"
