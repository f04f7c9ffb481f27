"""The rows of every step against plain loops over samples: what an epoch shows, which views, and what is held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teachonce.errors import DataError, TeachOnceError
from teachonce.rows.order import TrainingOrder

SEEDS = st.integers(0, 2**63 - 1)


def order_of(rows: Any, views: int = 1, **options: Any) -> TrainingOrder:
    """An order with what a test does not care about filled in."""
    given_: dict[str, Any] = {"batch_size": 8, "views_per_step": 1, "seed": 0, "held_out": 0.0}
    return TrainingOrder(np.asarray(rows), views, **(given_ | options))


@st.composite
def sets(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], int]:
    """Rows of a working set, some missing, and the views of a sample."""
    views, samples = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    rows = np.arange(views * samples)
    kept = draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)).filter(any))
    return rows[np.array(kept)], views


@given(sets(), st.integers(1, 50), SEEDS, st.data())
def test_an_epoch_shows_every_sample_once(
    made: tuple[np.ndarray[Any, Any], int], batch_size: int, seed: int, data: st.DataObject
) -> None:
    """Each step has `batch_size` samples but the last; each sample as many distinct views as it may and has."""
    rows, views = made
    per_step = data.draw(st.integers(1, views))
    order = order_of(rows, views, batch_size=batch_size, views_per_step=per_step, seed=seed)
    have = {sample: int((rows // views == sample).sum()) for sample in (rows // views).tolist()}
    assert order.samples == len(have) and order.held_out.tolist() == []
    for epoch in (0, 1):
        seen: list[int] = []
        for step in range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch):
            of_step, places = order.at(step)
            samples = (rows[places] // views).tolist()
            assert of_step == epoch and places.dtype == np.int64 and len(set(places.tolist())) == len(places)
            names = list(dict.fromkeys(samples))
            assert [samples.count(name) for name in names] == [min(per_step, have[name]) for name in names]
            assert len(names) == min(batch_size, len(have) - len(seen))
            seen += names
        assert sorted(seen) == sorted(have)


@given(sets(), SEEDS, st.integers(0, 10**6))
def test_a_step_needs_nothing_but_its_number(made: tuple[np.ndarray[Any, Any], int], seed: int, step: int) -> None:
    """A new object asked for one step gives what one that went through others gives: no state to save."""
    rows, views = made
    whole, fresh = (order_of(rows, views, batch_size=3, seed=seed) for _ in range(2))
    for other in (0, 7, 3):
        whole.at(other)
    (epoch, places), (again, others) = whole.at(step), fresh.at(step)
    assert epoch == again and np.array_equal(places, others)


def test_with_one_view_an_epoch_is_a_plain_permutation() -> None:
    """Runs of stores with one view keep the order that they always had."""
    order = order_of(np.arange(100), batch_size=30, seed=5)
    plain = np.random.Generator(np.random.Philox(key=[5, 2])).permutation(100)
    assert np.array_equal(np.concatenate([order.at(step)[1] for step in range(8, 12)]), plain)
    gaps = order_of(np.arange(100) * 3, batch_size=30, seed=5)
    assert np.array_equal(gaps.at(9)[1], plain[30:60])


def test_other_seeds_and_epochs_have_other_orders() -> None:
    first = order_of(np.arange(100), batch_size=100)
    orders = [first.at(0), first.at(1), order_of(np.arange(100), batch_size=100, seed=1).at(0)]
    assert len({places.tobytes() for _, places in orders}) == 3


@pytest.mark.parametrize(("views", "per_step"), [(2, 1), (4, 1), (4, 3), (5, 2)])
def test_views_are_drawn_evenly_and_on_their_own(views: int, per_step: int) -> None:
    """Each view of each sample comes as often as the others; epochs, samples and pairs of views are independent."""
    samples, epochs = 50, 400
    order = order_of(np.arange(samples * views), views, batch_size=samples, views_per_step=per_step, seed=3)
    shown = np.zeros((epochs, samples, views))
    for epoch in range(epochs):
        places = order.at(epoch)[1]
        shown[epoch, places // views, places % views] = 1
    rate = per_step / views
    spread = (rate * (1 - rate) / epochs) ** 0.5
    assert (shown.sum(2) == per_step).all()
    assert np.abs(shown.mean(0) - rate).max() < 5 * spread
    assert np.abs(shown.mean((0, 1)) - rate).max() < 5 * spread / samples**0.5
    first = shown[:, :, 0] - rate
    unit = rate * (1 - rate)
    for one, other, count in ((first[1:], first[:-1], epochs - 1), (first[:, 1:], first[:, :-1], epochs)):
        assert abs((one * other).mean()) < 5 * unit / (count * samples) ** 0.5


def test_the_views_of_a_sample_do_not_depend_on_other_samples() -> None:
    """A selection, other batches or held-out samples change who stands beside a sample, not which view it shows."""
    views, rows = 4, np.arange(4 * 60)
    kept = rows[np.isin(rows // views, np.arange(0, 60, 7))]
    whole = order_of(rows, views, views_per_step=2, seed=11, batch_size=60)
    some = order_of(kept, views, views_per_step=2, seed=11, batch_size=2)
    for epoch in range(6):
        steps = range(epoch * some.steps_per_epoch, (epoch + 1) * some.steps_per_epoch)
        ours = {int(row) for step in steps for row in kept[some.at(step)[1]]}
        assert ours == {row for row in whole.at(epoch)[1].tolist() if row in kept}


@given(sets(), SEEDS, st.floats(0.05, 0.95))
def test_held_out_samples_are_never_trained_on(made: tuple[np.ndarray[Any, Any], int], seed: int, share: float) -> None:
    """All rows of a sample are on one side, and every sample is on one of them."""
    rows, views = made
    try:
        order = order_of(rows, views, views_per_step=views, seed=seed, held_out=share)
    except DataError as problem:
        assert "none is" in problem.message
        return
    trained = np.concatenate([order.at(step)[1] for step in range(order.steps_per_epoch)])
    assert sorted([*trained.tolist(), *order.held_out.tolist()]) == list(range(len(rows)))
    assert not set((rows[trained] // views).tolist()) & set((rows[order.held_out] // views).tolist())
    assert order.held_out.tolist() == sorted(order.held_out.tolist())


def test_who_is_held_out_depends_on_seed_and_sample_alone() -> None:
    """In a selection the same samples are held out as in the whole store, and a larger share holds out more."""
    rows, views = np.arange(3 * 2000), 3

    def held(rows: Any, **options: Any) -> set[int]:
        order = order_of(rows, views, **options)
        return set((rows[order.held_out] // views).tolist())

    whole = held(rows, held_out=0.1, seed=4)
    assert abs(len(whole) - 200) < 5 * (2000 * 0.1 * 0.9) ** 0.5
    assert held(rows[rows // views % 5 == 0], held_out=0.1, seed=4) == {sample for sample in whole if sample % 5 == 0}
    assert held(rows, held_out=0.1, seed=4, batch_size=77, views_per_step=2) == whole
    assert whole < held(rows, held_out=0.2, seed=4)
    assert len(whole & held(rows, held_out=0.1, seed=5)) < 60, "another seed holds out others"


@pytest.mark.parametrize(("share", "lacking"), [(1e-9, "held out"), (1 - 1e-9, "left to train on")])
def test_a_share_that_leaves_one_side_empty_is_refused(share: float, lacking: str) -> None:
    with pytest.raises(DataError, match=f"of 10 samples: none is {lacking}"):
        order_of(np.arange(20), 2, held_out=share)


@pytest.mark.parametrize("rows", [[3, 1, 2], []])
def test_no_rows_or_rows_in_another_order_are_a_bug(rows: list[int]) -> None:
    with pytest.raises(TeachOnceError, match="missing or do not rise"):
        order_of(rows)
