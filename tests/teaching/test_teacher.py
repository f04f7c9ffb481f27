"""The teacher's top k and tail masses equal a brute-force computation in float64, ties included."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from teachonce.errors import DataError, UsageError
from teachonce.teaching.teacher import TeacherHead, begin_soft_labels, exact_topk, soft_labels

torch.set_num_threads(1)


def brute_topk(logits: np.ndarray, k: int) -> np.ndarray:
    """Class ids by falling logit, ties by rising class: one Python sort a row."""
    return np.array([sorted(range(len(row)), key=lambda c: (-row[c], c))[:k] for row in logits.tolist()])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 4), st.data())
def test_exact_topk_is_a_sort_with_ties_by_class(seed: int, classes: int, levels: int, data: st.DataObject) -> None:
    """Few distinct values, so that ties cross the boundary in nearly every row."""
    k = data.draw(st.integers(1, classes))
    logits = np.random.default_rng(seed).integers(0, levels, (5, classes)).astype(np.float32)
    ids, values = exact_topk(torch.from_numpy(logits), k)
    assert np.array_equal(ids.numpy(), brute_topk(logits, k))
    assert np.array_equal(values.numpy(), np.take_along_axis(logits, ids.numpy(), axis=1))


def test_exact_topk_of_many_ties_in_a_large_vocabulary() -> None:
    """Hundreds of classes tie at the boundary, as they do where names are shared."""
    logits = np.round(np.random.default_rng(0).normal(size=(4, 21841)) * 3).astype(np.float32)
    assert np.array_equal(exact_topk(torch.from_numpy(logits), 100)[0].numpy(), brute_topk(logits, 100))


# Both zeros, the smallest and the largest subnormal, neighbours of one, and the ends of float32.
EDGES = (0.0, -0.0, 1e-45, -1e-45, 1.1754942e-38, -1.1754942e-38, 1.0, 0.99999994, -1.0, -0.99999994, 3.4e38, -3.4e38)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(EDGES) | st.floats(-100, 100, width=32), min_size=1, max_size=40), st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_exact_topk_orders_every_float(dtype: torch.dtype, row: list[float], data: st.DataObject) -> None:
    """Zeros of both signs tie, subnormals do not; halves tie where rounding made them equal. Values keep their bits."""
    k = data.draw(st.integers(1, len(row)))
    logits = torch.tensor([row, row[::-1]], dtype=torch.float32).to(dtype)
    ids, values = exact_topk(logits, k)
    assert np.array_equal(ids.numpy(), brute_topk(logits.float().numpy(), k))
    assert values.dtype == dtype and torch.equal(values, logits.gather(1, ids))


def test_ties_cost_no_wait() -> None:
    """Where all classes tie, no value is looked at by the host until the end, whatever the number of rows."""

    class Waits(TorchDispatchMode):
        seen: Counter[str] = Counter()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen[func.overloadpacket.__name__] += 1
            return func(*args, **(kwargs or {}))

    with Waits() as waits:
        begin_soft_labels(torch.zeros(16, 50), 10, (1.0, 2.0))
        assert not waits.seen.keys() & {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"}, waits.seen
        assert waits.seen["topk"] == 1


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
@pytest.mark.parametrize("k", [1, 5, 29, 30])
def test_probabilities_and_tail_masses_equal_float64(scale: float, k: int) -> None:
    """log p of the best k, and ln of sum p^(1/tau) over the others for tau 1, 2, 4, where p is at temperature 1."""
    logits = (scale * np.random.default_rng(7).normal(size=(8, 30))).astype(np.float32)
    taus = (1.0, 2.0, 4.0)
    labels = soft_labels(torch.from_numpy(logits), k, taus)
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    ids = brute_topk(logits, k)
    assert np.array_equal(labels.class_ids, ids)
    np.testing.assert_allclose(labels.log_probs, np.take_along_axis(log_p, ids, 1), atol=2e-5, rtol=1e-5)
    outside = np.ones_like(log_p, bool)
    np.put_along_axis(outside, ids, False, axis=1)
    assert labels.log_residual.shape == (8, 3)
    for column, tau in enumerate(taus):
        with np.errstate(divide="ignore"):
            wanted = np.log((np.exp(log_p / tau) * outside).sum(1))
        if k == 30:
            assert np.isneginf(labels.log_residual[:, column]).all()
        else:
            np.testing.assert_allclose(labels.log_residual[:, column], wanted, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_logit_that_is_no_number_is_refused(bad: float) -> None:
    """One NaN or infinity in a batch stops it, with the option that may help."""
    logits = torch.zeros(3, 4)
    logits[1, 2] = bad
    with pytest.raises(DataError, match="NaN or infinite") as caught:
        soft_labels(logits, 2, (1.0,))
    assert "precision" in caught.value.hint and "fp32" in caught.value.hint


def test_k_above_the_vocabulary_is_refused() -> None:
    """Both numbers are in the message."""
    with pytest.raises(UsageError, match="top-k 5 is larger than the vocabulary of 4 classes"):
        soft_labels(torch.zeros(1, 4), 5, (1.0,))


def test_classes_that_share_a_name_have_equal_logits() -> None:
    """Logits are computed once a distinct name: equal to the last bit, whatever the matrix product does."""
    features = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    images = torch.nn.functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    inverse = torch.tensor([0, 1, 0, 2, 1])
    logits = TeacherHead(features, inverse, 50.0).logits(images)
    assert torch.equal(logits[:, 0], logits[:, 2]) and torch.equal(logits[:, 1], logits[:, 4])
    torch.testing.assert_close(logits, 50.0 * images @ features[inverse].T)
