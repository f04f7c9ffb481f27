"""The row order of a store is a permutation that depends on its seed only."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from teachonce.labels.create import BLOCK, row_order


@given(st.integers(1, 1000), st.integers(0, 2**63 - 1))
def test_row_order_is_a_permutation_in_blocks(samples: int, seed: int) -> None:
    """Every sample once; neighbours within a block stay neighbours, so that archives are read in pieces."""
    order = row_order(samples, seed)
    assert np.array_equal(np.sort(order), np.arange(samples))
    assert np.array_equal(order, row_order(samples, seed))
    steps = np.diff(order)
    inside = order[:-1] % BLOCK != BLOCK - 1
    assert (steps[inside & (order[:-1] != samples - 1)] == 1).all()


def test_row_order_mixes_blocks() -> None:
    """Archives sorted by class do not become chunks of one class."""
    starts = row_order(64 * BLOCK, 0)[::BLOCK] // BLOCK
    assert not np.array_equal(starts, np.arange(64))
    assert not np.array_equal(starts, row_order(64 * BLOCK, 1)[::BLOCK] // BLOCK)
