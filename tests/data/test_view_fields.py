"""Views in a store: five numbers give a view back exactly, and fields that no view or policy has are refused."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teachonce.data.views import NO_VIEW, UNIT, View, ViewPolicy, draw_view, view_from_params, view_params
from teachonce.errors import IntegrityError, UsageError

PLAIN = ViewPolicy(views=4)
STRONG = ViewPolicy(views=4, seed=7, scale=(0.5, 1.0), randaugment=(2, 9))
LAST = ViewPolicy(views=255, seed=2**64 - 1)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_every_box_of_pixels_survives_the_store(data: st.DataObject) -> None:
    """Any crop of any image up to 65,535 pixels a side: to units and back, by fractions instead of our integers."""
    from fractions import Fraction

    from teachonce.data.views import _quantised

    width, height = (data.draw(st.integers(1, UNIT), label="size") for _ in range(2))
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    (a, c), (b, d) = _quantised(left, right, width), _quantised(top, bottom, height)
    for unit, at, side in ((a, left, width), (c, right, width), (b, top, height), (d, bottom, height)):
        assert abs(Fraction(unit, UNIT) - Fraction(at, side)) <= Fraction(1, 2 * UNIT)
    assert View((a, b, c, d), False).pixels(width, height) == (left, top, right, bottom)


@pytest.mark.parametrize("policy", [PLAIN, STRONG, LAST])
@pytest.mark.parametrize("size", [(500, 375), (1, 1), (1, 9), (65535, 3), (200_000, 2)], ids=str)
def test_stored_parameters_give_the_view_back(policy: ViewPolicy, size: tuple[int, int]) -> None:
    """Box, flip and RandAugment, from five 16-bit numbers, the policy as JSON and the key."""
    again = ViewPolicy.from_dict(json.loads(json.dumps(policy.to_dict())), "here")
    assert again == policy
    for view in (0, 1, 2, 3, 254):
        drawn = draw_view(policy, "n01/n01_7.JPEG", view, *size)
        stored = view_params(drawn)
        assert stored.dtype == np.uint16 and stored.shape == (5,)
        assert stored.tolist() == [*drawn.box, drawn.flip], "nothing wraps"
        assert view_from_params(stored, again, "n01_7", view) == drawn
        assert view_from_params(stored, again, "n01/n01_7.jpg", view) == drawn, "from the key of any layout"


@pytest.mark.parametrize(
    ("params", "view"),
    [
        ([NO_VIEW] * 5, 1),
        ([NO_VIEW] * 5, 0),
        ([0, 0, 9, 9, 2], 1),
        ([9, 0, 9, 9, 0], 1),
        ([0, 9, 9, 3, 0], 1),
        ([0, 0, UNIT, UNIT, 1], 0),
        ([1, 0, UNIT, UNIT, 0], 0),
    ],
)
def test_fields_of_no_view_are_refused(params: list[int], view: int) -> None:
    """A hole, an empty box, a flip that is none, and a view 0 that is not the whole image."""
    with pytest.raises(IntegrityError, match="view"):
        view_from_params(np.array(params, np.uint16), PLAIN, "n", view)


@pytest.mark.parametrize(
    "given",
    [
        {"views": 0},
        {"views": 256},
        {"seed": -1},
        {"seed": 2**64},
        {"scale": (0.5, 0.4)},
        {"scale": (0.0, 1.0)},
        {"scale": (0.1, 1.1)},
        {"scale": (math.nan, 1.0)},
        {"ratio": (2.0, 1.0)},
        {"ratio": (1.0, math.inf)},
        {"flip": -0.1},
        {"flip": math.nan},
        {"randaugment": (0, 9)},
        {"randaugment": (2, 31)},
        {"randaugment": (15, 0)},
        {"randaugment": (2, -1)},
    ],
    ids=str,
)
def test_a_policy_that_cannot_be_drawn_is_refused(given: dict[str, Any]) -> None:
    """With a word that names the field."""
    with pytest.raises(UsageError, match="views"):
        ViewPolicy(**given)


def test_views_of_another_function_are_refused() -> None:
    """A store of a later version is not read as if its RandAugment were ours; nor is a damaged policy."""
    fields = STRONG.to_dict()
    assert ViewPolicy.from_dict({"views": 1}, "here") == ViewPolicy()
    for change in ({"function": 2}, {"scale": [2.0, 3.0]}, {"unknown": 1}):
        with pytest.raises(IntegrityError, match="here"):
            ViewPolicy.from_dict(fields | change, "here")
    fields.pop("function")
    with pytest.raises(IntegrityError, match="another version"):
        ViewPolicy.from_dict(fields, "here")
