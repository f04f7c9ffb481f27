"""Whether new photos are like those that were taught: distances of vectors, predicted classes, permutation tests.

Two questions are kept apart. Do the photos differ (the energy distance of the vectors, Szekely and Rizzo 2013), also
within each predicted class? Do the predicted classes come in other shares (total variation)? A permutation test
shuffles which photos are new; within classes it shuffles inside each class, so that other shares alone do not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erfc, sqrt

import numpy as np
import numpy.typing as npt

from teachonce.audit.evidence import Evidence, Floats, Ids
from teachonce.core.streams import AUDIT
from teachonce.evaluation.statistics import holm

MOST = 2000
"""Samples of each side that are compared."""
PERMUTATIONS = 999
FEWEST = 3
"""A class with fewer samples on either side is left out of the distance within classes."""
FAR_QUANTILE = 0.001
"""A new photo is far if its nearest taught photo is further than that of all but this share of the taught ones."""

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Test:
    """A statistic and how often shuffled samples reach it."""

    value: float
    expected: float
    """The mean over shuffles: what no difference looks like at these sizes."""
    p: float
    samples: int


@dataclass(frozen=True, kw_only=True)
class ClassShift:
    """A class that is predicted more or less often."""

    predicted: int
    """Place in the vocabulary."""
    share: float
    new_share: float
    p: float
    """Two-sided, corrected by Holm over all classes."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """New photos against taught ones."""

    taught: int
    new: int
    photos: Test
    within_classes: Test | None
    """None where no class has enough photos on both sides."""
    predictions: Test | None
    """Total variation of the shares of predicted classes; None where the classes cannot be predicted."""
    classes: tuple[ClassShift, ...]
    """With a corrected p below 0.05, the largest change first."""
    sureness: tuple[float, float] | None
    """The mean probability of the predicted class, taught and new."""
    far: Ids
    """Places of new photos that lie further from all taught ones than those lie from each other."""


def compare(taught: Evidence, new: Evidence, nearest_taught: Floats, cross: Floats) -> Drift:
    """Compare two stores whose vectors come from one model.

    Args:
        taught: the store that was trained on.
        new: the other one.
        nearest_taught: [n] cosine of each taught photo to its nearest other taught photo.
        cross: [m] cosine of each new photo to its nearest taught photo.
    """
    draw = AUDIT.at(0, 2)
    sides = [np.sort(draw.permutation(len(side))[:MOST]) for side in (taught, new)]
    vectors = np.concatenate(
        [side.vectors[places].astype(np.float32) for side, places in zip((taught, new), sides, strict=True)]
    )
    is_new = np.arange(len(vectors)) >= len(sides[0])
    distance = np.sqrt(np.maximum(2 - 2 * (vectors @ vectors.T), 0))
    shuffles = np.stack([draw.permutation(is_new) for _ in range(PERMUTATIONS)])
    guessed = _predictions(taught, new)
    within, predictions, sureness = None, None, None
    classes: tuple[ClassShift, ...] = ()
    if guessed is not None:
        (before, sure), (after, new_sure) = guessed
        groups = np.concatenate([before[sides[0]], after[sides[1]]])
        within = _within(distance, is_new, groups, draw)
        predictions = _shares(groups, is_new, shuffles)
        classes = _shifts(before, after)
        sureness = float(sure.mean()), float(new_sure.mean())
    limit = float(np.quantile(nearest_taught, FAR_QUANTILE)) if len(nearest_taught) > 1 else -1.0
    return Drift(
        taught=len(taught),
        new=len(new),
        photos=_tested(energy(distance, np.vstack([is_new, shuffles])), len(is_new)),
        within_classes=within,
        predictions=predictions,
        classes=classes,
        sureness=sureness,
        far=np.flatnonzero(cross < limit),
    )


def energy(distance: Floats, is_new: npt.NDArray[np.bool_]) -> Doubles:
    """The energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| for each way to part the samples.

    Args:
        distance: [n, n].
        is_new: [ways, n], with as many on each side in every way.

    Returns:
        [ways]; X' is another sample than X (the unbiased estimate), so the value may fall below 0.
    """
    sides = np.stack([~is_new, is_new]).astype(np.float32)  # [2, ways, n]
    numbers = sides[:, 0].sum(axis=1).astype(np.float64)
    reach = sides @ distance
    sums = np.einsum("awn,bwn->abw", sides, reach, dtype=np.float64)
    between = sums[0, 1] / (numbers[0] * numbers[1])
    inside = sum(sums[i, i] / max(numbers[i] * (numbers[i] - 1), 1) for i in (0, 1))
    result: Doubles = 2 * between - inside
    return result


def _tested(values: Doubles, samples: int) -> Test:
    """The first value is that of the samples as they are; the others are those of shuffles."""
    reached = int((values[1:] >= values[0] - 1e-12).sum())
    return Test(
        value=float(values[0]),
        expected=float(values[1:].mean()),
        p=(reached + 1) / len(values),
        samples=samples,
    )


def _within(distance: Floats, is_new: npt.NDArray[np.bool_], groups: Ids, draw: np.random.Generator) -> Test | None:
    """The energy distance of each class, weighted by its number of new photos; shuffled inside classes."""
    total, weight, samples = np.zeros(PERMUTATIONS + 1), 0, 0
    for group in np.unique(groups).tolist():
        places = np.flatnonzero(groups == group)
        here = is_new[places]
        if min(int(here.sum()), int((~here).sum())) < FEWEST:
            continue
        ways = np.vstack([here, *(draw.permutation(here) for _ in range(PERMUTATIONS))])
        total += here.sum() * energy(distance[np.ix_(places, places)], ways)
        weight, samples = weight + int(here.sum()), samples + len(places)
    return _tested(total / weight, samples) if weight else None


def _shares(groups: Ids, is_new: npt.NDArray[np.bool_], shuffles: npt.NDArray[np.bool_]) -> Test:
    """Half the sum of the differences between the shares of classes."""
    names, places = np.unique(groups, return_inverse=True)
    one_hot = np.zeros((len(groups), len(names)), np.float32)
    one_hot[np.arange(len(groups)), places.ravel()] = 1
    counts = np.vstack([is_new, shuffles]).astype(np.float32) @ one_hot
    new = counts / counts.sum(axis=1, keepdims=True)
    rest = one_hot.sum(axis=0) - counts
    taught = rest / rest.sum(axis=1, keepdims=True)
    return _tested(np.abs(new - taught).sum(axis=1).astype(np.float64) / 2, len(groups))


def _predictions(taught: Evidence, new: Evidence) -> list[tuple[Ids, Floats]] | None:
    """The predicted class of each photo of both sides and its probability, by the taught store's teacher and names."""
    logits = taught.scaled_class_vectors()
    if logits is None:
        return None
    sides = []
    for side in (taught, new):
        best, sure = np.zeros(len(side), np.int64), np.zeros(len(side), np.float32)
        for rows in side.blocks(len(logits)):
            scores = side.vectors[rows].astype(np.float32) @ logits.T
            best[rows] = scores.argmax(axis=1)
            sure[rows] = 1 / np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1)
        sides.append((best, sure))
    return sides


def _shifts(before: Ids, after: Ids) -> tuple[ClassShift, ...]:
    """Classes whose shares differ, by the normal approximation of two shares and Holm's correction."""
    size = int(max(before.max(), after.max())) + 1
    counts = np.stack([np.bincount(side, minlength=size) for side in (before, after)])
    seen = np.flatnonzero(counts.sum(axis=0) > 0)
    shares = counts[:, seen] / counts.sum(axis=1, keepdims=True)
    pooled = counts[:, seen].sum(axis=0) / counts.sum()
    spread = np.sqrt(np.maximum(pooled * (1 - pooled) * (1 / len(before) + 1 / len(after)), 1e-300))
    p = [_two_sided(z) for z in (np.abs(shares[1] - shares[0]) / spread).tolist()]
    shifts = [
        ClassShift(predicted=int(place), share=float(old), new_share=float(share), p=float(corrected))
        for place, old, share, corrected in zip(seen, shares[0], shares[1], holm(p), strict=True)
        if corrected is not None and corrected < 0.05
    ]
    return tuple(sorted(shifts, key=lambda shift: -abs(shift.new_share - shift.share)))


def _two_sided(z: float) -> float:
    return erfc(z / sqrt(2))
