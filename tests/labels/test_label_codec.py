"""Coded soft labels come back with the same classes, and values within the stated error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teachonce.errors import IntegrityError, UsageError
from teachonce.labels.codec import (
    GAP_FILL,
    CodecTables,
    CodedTopK,
    TopK,
    class_dtype,
    decode,
    default_gap_levels,
    encode,
    first_version_tables,
    max_error,
)

LEVELS = default_gap_levels()


def tables(classes: int) -> CodecTables:
    """The levels of new stores, and classes in an order that is not their own."""
    return CodecTables(np.random.default_rng(classes).permutation(classes), LEVELS)


def topk_of(logits: np.ndarray, k: int) -> TopK:
    """Brute force in float64: sorted by falling probability, ties by class index."""
    wide = logits.astype(np.float64)
    log_p = wide - np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1, keepdims=True)) - wide.max(1, keepdims=True)
    ids = np.argsort(-log_p, axis=1, kind="stable")
    rest = np.take_along_axis(np.exp(log_p), ids[:, k:], axis=1).sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        residual = np.log(rest)
    values = np.take_along_axis(log_p, ids[:, :k], axis=1)
    return TopK(ids[:, :k].astype(np.int64), values.astype(np.float32), residual.astype(np.float32))


def check_row_by_row(labels: TopK, classes: int) -> TopK:
    """Encode, decode and compare; returns what was decoded."""
    kept = tables(classes)
    decoded = decode(encode(labels, kept), kept)
    assert np.array_equal(np.sort(decoded.class_ids, axis=1), np.sort(labels.class_ids, axis=1))
    assert np.array_equal(decoded.class_ids[:, 0], labels.class_ids[:, 0]), "the best class is exact"
    assert (np.diff(decoded.log_probs, axis=1) <= 0).all(), "by falling probability"
    tied = decoded.log_probs[:, 1:] == decoded.log_probs[:, :-1]
    assert (decoded.class_ids[:, 1:] > decoded.class_ids[:, :-1])[tied].all(), "ties by class index"
    for row in range(len(decoded.class_ids)):
        place = {int(c): i for i, c in enumerate(decoded.class_ids[row])}
        kept_values = decoded.log_probs[row, [place[int(c)] for c in labels.class_ids[row]]]
        limit = max_error(labels.log_probs[row : row + 1], kept)[0]
        reachable = labels.log_probs[row, 0] - labels.log_probs[row] < LEVELS[-1]
        assert np.isfinite(limit[reachable]).all()
        assert (np.abs(kept_values - labels.log_probs[row]) <= limit)[reachable].all()
        floor = labels.log_probs[row, 0] - LEVELS[-1]
        assert np.allclose(kept_values[~reachable], floor, rtol=1e-3), "beyond the range: the floor"
    return decoded


@st.composite
def logit_rows(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Rows of logits: flat, peaked beyond the codec's range, or drawn from few values so that ties abound."""
    classes = draw(st.integers(1, 40))
    k = draw(st.integers(1, classes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 0.01, 1.0, 8.0, 60.0]))
    logits = scale * rng.normal(size=(draw(st.integers(1, 6)), classes))
    if draw(st.booleans()):
        logits = np.round(logits)
    return logits.astype(np.float32), k


@settings(max_examples=300, deadline=None)
@given(logit_rows())
def test_values_come_back_within_the_stated_error_and_classes_exactly(drawn: tuple[np.ndarray, int]) -> None:
    """Any logits, any k: the set of classes is identical, values are within `max_error`, the best class is exact."""
    logits, k = drawn
    check_row_by_row(topk_of(logits, k), logits.shape[1])


def test_k_of_one_and_k_of_all() -> None:
    """The smallest and the largest k; with all classes kept the residual is minus infinity and stays so."""
    logits = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    check_row_by_row(topk_of(logits, 1), 7)
    decoded = check_row_by_row(topk_of(logits, 7), 7)
    assert np.isneginf(decoded.log_residual).all()


def test_a_peaked_teacher_keeps_the_order_and_the_floor() -> None:
    """Gaps beyond the range are held at the floor, 37 nats below the best; nothing wraps around."""
    logits = np.array([[0.0, 500.0, -500.0, 490.0, 485.5, 485.0]], np.float32)
    labels = topk_of(logits, 6)
    decoded = check_row_by_row(labels, 6)
    assert list(decoded.class_ids[0, :2]) == [1, 3]
    assert decoded.log_probs.min() >= labels.log_probs[0, 0] - LEVELS[-1] - 1e-3


def test_only_true_ties_of_the_best_look_like_it() -> None:
    """A class a hair below the best is kept apart from it, even where its class index is lower."""
    labels = TopK(
        np.array([[5, 2, 9]]), np.array([[-0.7, -0.7 - 1e-6, -3.0]], np.float32), np.zeros((1, 1), np.float32)
    )
    decoded = decode(encode(labels, tables(10)), tables(10))
    assert list(decoded.class_ids[0]) == [5, 2, 9]
    assert decoded.log_probs[0, 1] < decoded.log_probs[0, 0]
    tie = TopK(np.array([[2, 5]]), np.full((1, 2), -0.7, np.float32), np.zeros((1, 1), np.float32))
    again = decode(encode(tie, tables(10)), tables(10))
    assert list(again.class_ids[0]) == [2, 5] and again.log_probs[0, 0] == again.log_probs[0, 1]


def test_failed_rows_are_fill_values_and_come_back_as_nothing() -> None:
    """A row without an image: an impossible class, 255, NaN; decoded as -1 and NaN; its neighbours are untouched."""
    logits = np.random.default_rng(1).normal(size=(3, 9)).astype(np.float32)
    labels = topk_of(logits, 4)
    alone = encode(labels, tables(9))
    labels.class_ids[1], labels.log_probs[1], labels.log_residual[1] = -1, np.nan, np.nan
    coded = encode(labels, tables(9))
    assert (coded.class_ids[1] == 65535).all() and (coded.gaps[1] == GAP_FILL).all()
    assert np.isnan(coded.top_log_prob[1]) and np.isnan(coded.log_residual[1]).all()
    for name in ("class_ids", "gaps", "top_log_prob", "log_residual"):
        assert np.array_equal(getattr(coded, name)[[0, 2]], getattr(alone, name)[[0, 2]])
    decoded = decode(coded, tables(9))
    assert (decoded.class_ids[1] == -1).all() and np.isnan(decoded.log_probs[1]).all()
    assert np.isnan(decoded.log_residual[1]).all()


def test_no_gap_of_data_equals_the_fill_value() -> None:
    """255 means no data, also for classes of probability zero."""
    labels = TopK(np.array([[0, 1]]), np.array([[0.0, -np.inf]], np.float32), np.array([[-np.inf]], np.float32))
    assert encode(labels, tables(2)).gaps.max() == len(LEVELS) - 1 < GAP_FILL


@pytest.mark.parametrize(("classes", "dtype"), [(2, np.uint16), (65535, np.uint16), (65536, np.uint32)])
def test_class_ids_widen_before_they_meet_the_fill_value(classes: int, dtype: type) -> None:
    """The highest class index is never the filler: uint16 up to 65,535 classes, uint32 above."""
    assert class_dtype(classes) == dtype
    assert classes - 1 < np.iinfo(class_dtype(classes)).max
    ids = np.array([[classes - 1, 0]])
    labels = TopK(ids, np.array([[-0.5, -1.5]], np.float32), np.array([[-2.0]], np.float32))
    coded = encode(labels, tables(classes))
    assert coded.class_ids.dtype == dtype
    assert np.array_equal(decode(coded, tables(classes)).class_ids, ids)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_teacher_that_gave_nan_is_refused(bad: float) -> None:
    """NaN or infinity in a row that has classes never reaches the store."""
    labels = TopK(np.array([[0, 1]]), np.array([[bad, -1.0]], np.float32), np.zeros((1, 1), np.float32))
    with pytest.raises(UsageError, match="1 rows have no finite best log-probability"):
        encode(labels, tables(3))


def test_residuals_survive_in_half_precision() -> None:
    """ln of the mass outside is kept to float16's relative 5e-4, and minus infinity exactly."""
    residual = np.array([[-1e-3, -3.3, -42.0], [-np.inf, -0.5, 2.2]], np.float32)
    labels = TopK(np.zeros((2, 1), np.int64), np.full((2, 1), -0.1, np.float32), residual)
    log_residual = decode(encode(labels, tables(5)), tables(5)).log_residual
    assert np.array_equal(np.isneginf(log_residual), np.isneginf(residual))
    finite = np.isfinite(residual)
    assert np.allclose(log_residual[finite], residual[finite], rtol=5e-4)


def test_ten_lines_of_numpy_read_the_code() -> None:
    """The format in words: running sum of places, the class at each place; best minus the level of each code."""
    labels = topk_of(np.random.default_rng(3).normal(size=(6, 20)).astype(np.float32), 5)
    kept = tables(20)
    coded: CodedTopK = encode(labels, kept)
    ids = kept.class_order[np.cumsum(coded.class_ids, axis=1)]
    values = coded.top_log_prob.astype(np.float32)[:, None] - kept.gap_levels[coded.gaps]
    decoded = decode(coded, kept)
    for row in range(6):
        ours = dict(zip(decoded.class_ids[row].tolist(), decoded.log_probs[row].tolist(), strict=True))
        assert ours == pytest.approx(dict(zip(ids[row].tolist(), values[row].tolist(), strict=True)), abs=1e-6)


def test_value_levels_rise_from_zero_with_growing_steps() -> None:
    """0 is the best; steps never shrink; the code 255 stays free; the range passes 30 nats."""
    steps = np.diff(LEVELS)
    assert LEVELS[0] == 0 and (steps > 0).all() and (np.diff(steps) > 0).all()
    assert len(LEVELS) <= GAP_FILL and LEVELS[-1] > 30
    assert steps[0] == pytest.approx(1 / 28, rel=0.01)


@pytest.mark.parametrize("scale", [0.3, 1.5, 6.0])
def test_the_value_error_costs_less_than_a_ten_thousandth_nat_of_kl(scale: float) -> None:
    """Flat, middling and peaked rows: the mean KL of the renormalised top k after coding is below 1e-4 nats."""
    labels = topk_of(scale * np.random.default_rng(0).normal(size=(200, 2000)), 100)
    kept = tables(2000)
    decoded = decode(encode(labels, kept), kept)
    divergence = []
    for row in range(200):
        place = {int(c): i for i, c in enumerate(decoded.class_ids[row])}
        p = np.exp(labels.log_probs[row].astype(np.float64))
        q = np.exp(decoded.log_probs[row, [place[int(c)] for c in labels.class_ids[row]]].astype(np.float64))
        p, q = p / p.sum(), q / q.sum()
        divergence.append((p * np.log(p / q)).sum())
    assert 0 < np.mean(divergence) < 1e-4


def test_a_coded_class_beyond_the_vocabulary_is_refused() -> None:
    """A writer's bug that digests cannot see."""
    labels = topk_of(np.random.default_rng(3).normal(size=(2, 20)).astype(np.float32), 5)
    coded = encode(labels, tables(20))
    with pytest.raises(IntegrityError, match="beyond the 10 of the vocabulary"):
        decode(coded, tables(10))


def test_the_tables_of_version_1() -> None:
    """Classes as they are, steps of 1/17 nat."""
    old = first_version_tables(4)
    assert old.class_order.tolist() == [0, 1, 2, 3]
    assert old.gap_levels[17] == pytest.approx(1.0) and len(old.gap_levels) == 255
