"""Logit adjustment gives classes the wanted prior, leaves other names alone, and reads priors from files strictly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from teachonce.data.vocabulary import Vocabulary
from teachonce.errors import DataError
from teachonce.softening.prior import balanced, prior_shift, read_prior

NAMES = Vocabulary(("a", "b", "c", "d"), ("ant", "bee", "cat", "dog"))
APART = np.arange(4)


def test_the_shift_is_the_log_of_wanted_over_predicted() -> None:
    """The formula of the paper, over all classes."""
    predicted = np.array([0.4, 0.3, 0.2, 0.1])
    shift = prior_shift(predicted, {0: 1.0, 1: 1.0, 2: 2.0, 3: 4.0}, APART)
    np.testing.assert_allclose(shift.wanted_C, [0.125, 0.125, 0.25, 0.5])
    np.testing.assert_allclose(shift.log_shift_C, np.log(shift.wanted_C) - np.log(predicted))


def test_what_the_prior_does_not_speak_of_is_left_alone() -> None:
    """The classes that it speaks of share the mass that they have together."""
    shift = prior_shift(np.array([0.4, 0.3, 0.2, 0.1]), {0: 1.0, 2: 1.0}, APART)
    assert shift.log_shift_C[1] == shift.log_shift_C[3] == 0
    np.testing.assert_allclose(shift.wanted_C[[0, 2]], [0.3, 0.3])
    assert np.isnan(shift.wanted_C[[1, 3]]).all()


def test_rows_of_one_kind_get_exactly_the_wanted_prior() -> None:
    """Where every row has the same probabilities, the adjusted mean is the wanted prior, in float64."""
    predicted = np.array([0.7, 0.1, 0.15, 0.05])
    shift = prior_shift(predicted, balanced([0, 1, 2, 3], 4), APART)
    adjusted = np.exp(np.log(predicted) + shift.log_shift_C)
    np.testing.assert_allclose(adjusted / adjusted.sum(), 0.25)


def test_classes_of_one_name_keep_their_tie() -> None:
    """Text cannot tell them apart: what is wanted of both is spread evenly."""
    shift = prior_shift(np.array([0.2, 0.2, 0.5, 0.1]), {0: 3.0, 1: 1.0, 2: 4.0, 3: 2.0}, np.array([0, 0, 1, 2]))
    assert shift.log_shift_C[0] == shift.log_shift_C[1]
    assert shift.wanted_C[0] + shift.wanted_C[1] == pytest.approx(0.4)


def test_a_class_that_is_never_named_gets_a_number() -> None:
    """Its mean probability is 0 in float64."""
    assert np.isfinite(prior_shift(np.array([1.0, 0.0, 0.0, 0.0]), balanced([0, 1], 4), APART).log_shift_C).all()


def test_balanced_means_the_classes_with_photos() -> None:
    """All classes where no row has a label."""
    assert balanced([2, 0, 2, -1], 4) == {0: 1.0, 2: 1.0}
    assert balanced([-1], 4) == dict.fromkeys(range(4), 1.0)


def test_a_file_says_shares(tmp_path: Path) -> None:
    """An id, a tab, a number."""
    file = tmp_path / "prior.tsv"
    file.write_text("b\t2\r\n\na\t0.5\n")
    assert read_prior(file, NAMES) == {1: 2.0, 0: 0.5}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no class"),
        ("a\t1\nx\t1\n", "not in the vocabulary"),
        ("a\t1\na\t2\n", "comes twice"),
        ("a\t0\n", "no positive share"),
        ("a\tmany\n", "no positive share"),
        ("a\n", "no positive share"),
        ("a\tinf\n", "no positive share"),
    ],
)
def test_a_file_that_is_no_prior_is_refused(text: str, said: str, tmp_path: Path) -> None:
    """The message names the line."""
    file = tmp_path / "prior.tsv"
    file.write_text(text)
    with pytest.raises(DataError, match=said):
        read_prior(file, NAMES)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The hint says what such a file holds."""
    with pytest.raises(DataError, match="cannot read the prior") as problem:
        read_prior(tmp_path / "none.tsv", NAMES)
    assert "a tab, its share" in problem.value.hint
