"""The linear reference: the fit equals plain float64, and is the same for runs on the same rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_reference_plain import plain_fit

from teachonce.heads.heads import head_of
from teachonce.heads.kinds import HeadMeta
from teachonce.training.linear_reference import ROWS, STEPS, drawn_places, fit_linear

WIDTH, NAMES, KNOWN = 8, 9, (1, 4, 6, 7)


@pytest.mark.parametrize("known", [KNOWN, tuple(range(NAMES))], ids=["some names", "every name"])
def test_the_fit_equals_plain_float64_over_all_names(known: tuple[int, ...]) -> None:
    """Names without photos compete in every softmax and do not move, although they are computed once."""
    random = np.random.default_rng(3)
    vectors, features = (random.normal(size=(count, WIDTH)) for count in (NAMES, 50))
    vectors, features = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, features))
    features = features.astype(np.float16).astype(float)
    place = random.integers(0, len(known), 50)
    place[: len(known)] = np.arange(len(known))
    steps = drawn_places(50)[:60]
    expected = plain_fit(features, np.array(known)[place], vectors, 20.0, steps)
    head = head_of(HeadMeta(kind="linear", width=WIDTH, names=tuple(map(str, known)), ids=tuple(map(str, known))))
    start, rest = (
        torch.from_numpy(vectors[keep]).float() for keep in (list(known), sorted({*range(NAMES)} - {*known}))
    )
    fit_linear(head, torch.from_numpy(features).half(), torch.from_numpy(place), start, rest, 20.0, steps)
    fitted = head.classes(start, torch.arange(len(known))).detach().double().numpy()
    assert fitted == pytest.approx(expected[list(known)], abs=2e-5)
    assert np.abs(fitted - vectors[list(known)]).max() > 0.01
    assert (
        expected[[i for i in range(NAMES) if i not in known]] == vectors[[i for i in range(NAMES) if i not in known]]
    ).all()


@pytest.mark.parametrize("rows", [1, 70, ROWS, 1000, 10**6])
def test_steps_show_every_row_as_often_as_any_other(rows: int) -> None:
    steps = drawn_places(rows)
    assert steps.shape == (STEPS, min(rows, ROWS))
    counts = np.bincount(steps.ravel(), minlength=rows)
    assert counts.max() - counts.min() <= 1
    assert (drawn_places(rows) == steps).all()
