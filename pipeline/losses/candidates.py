"""Which classes enter the softmax of a step, with what weight inside it, and how many classes each stands for.

This module does not know losses, prompts or names' features; `two_pass` computes the features.

Shapes: V classes of the vocabulary, K candidates, B rows, m best classes a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teachonce.core.streams import CANDIDATES
from teachonce.errors import TeachOnceError, UsageError

Correction = Literal["ln", "log10", "none"]


@dataclass(frozen=True, eq=False)
class Candidates:
    """The classes of one step, shared by all its rows. On the CPU."""

    classes: Tensor  # [K] int64, rising
    log_weight: Tensor  # [K] or [B, K] float32: ln w, added inside the softmax; -inf: no candidate of that row
    stands_for: Tensor  # [K] float32: ln(1 / rate of inclusion), for means over the vocabulary, whatever ln w is
    forced: int  # how many classes are candidates for certain: labels and best classes, or all
    vocabulary: int  # V

    def columns(self) -> Tensor:
        """Where each class of the vocabulary is among the candidates, -1 if it is not, [V] int64."""
        columns = torch.full((self.vocabulary,), -1)
        columns[self.classes] = torch.arange(len(self.classes))
        return columns


def all_candidates(vocabulary: int) -> Candidates:
    """Every class, each standing for itself."""
    nothing = torch.zeros(vocabulary)
    return Candidates(torch.arange(vocabulary), nothing, nothing, vocabulary, vocabulary)


def sampled_candidates(
    labels: npt.ArrayLike,
    top_classes: npt.ArrayLike,
    fill: int,
    vocabulary: int,
    seed: int,
    step: int,
    correction: Correction = "ln",
    names: npt.ArrayLike | None = None,
) -> Candidates:
    """The rows' labels and best classes D, and a uniform draw of n others. A pure function of its arguments.

    ln, none: n classes are drawn from outside D without replacement. Inclusion is certain on D and n / (V - |D|)
    elsewhere, so with `ln` ln w is 0 on D and ln((V - |D|) / n) on the fill (the importance weight of sampled softmax,
    Jean et al. 2015, arXiv 1412.2007); with `none` 0 everywhere. When no more than n others exist, all are taken.

    log10: n classes are drawn from all V. Each row sees its own label and best classes (ln w = 0) and what was drawn,
    + log10((V - o) / (n - r)) with o its own classes and r those of them that were drawn (POMP, arXiv 2304.04704).

    Args:
        labels: [B]; -1 (unmapped) is ignored.
        top_classes: [B, m], the teacher's best classes of each row; -1 is ignored.
        fill: n. The number of candidates is about |D| + n, so it varies with D.
        vocabulary: V.
        seed, step: of the run.
        names: [V], equal for classes with the same name: with ln and none, classes that share a name with one of D are
            in D as well. They need no further text features, and the sum over the label's name is then exact.

    Returns:
        `log_weight` is [K], or [B, K] with log10.

    Raises:
        TeachOnceError: a class beyond the vocabulary; UsageError where there is no candidate at all.
    """
    targets = _own_classes(labels, top_classes, vocabulary, step, fill)
    random = CANDIDATES.at(seed, step)
    forced = np.zeros(vocabulary, bool)
    forced[targets[targets >= 0]] = True
    if correction == "log10":
        return _pomp(targets, forced, random.choice(vocabulary, min(fill, vocabulary), replace=False, shuffle=False))
    if names is not None:
        name = np.asarray(names, np.int64)
        forced = np.isin(name, name[forced])
    others = np.flatnonzero(~forced)
    drawn = random.choice(others, fill, replace=False, shuffle=False) if fill < len(others) else others
    classes = np.sort(np.concatenate([np.flatnonzero(forced), drawn]))
    rarity = math.log(len(others) / len(drawn)) if len(drawn) else 0.0
    stands_for = torch.from_numpy(np.where(forced[classes], 0.0, rarity).astype(np.float32))
    log_weight = stands_for if correction == "ln" else torch.zeros(len(classes))
    return Candidates(torch.from_numpy(classes), log_weight, stands_for, int(forced.sum()), vocabulary)


def teacher_candidates(
    labels: npt.ArrayLike,
    classes: npt.ArrayLike,
    log_probs: npt.ArrayLike,
    most: int,
    vocabulary: int,
    names: npt.ArrayLike | None = None,
) -> Candidates:
    """The classes that the teacher gives most to in the mean over a step's rows (KDPL, arXiv 2407.03056, section 3.3).

    The mean is over what is stored of the rows; classes that no row stores are no candidates, so there may be fewer.
    Of classes with equal means those of lower number are taken. Each candidate stands for itself (ln w = 0): losses are
    over the candidates alone, as KDPL's are. A pure function of its arguments.

    Args:
        labels: [B]; these classes, and those that share a name with one, are candidates besides; -1 for none.
        classes: [B, k] stored classes of each row; -1 is ignored.
        log_probs: [B, k] ln p of them, at the teacher's own temperature.
        most: how many classes, the labels not counted.
        vocabulary: V.
        names: [V], equal for classes with the same name.

    Raises:
        UsageError: there is no candidate at all.
    """
    stored = np.asarray(classes, np.int64)
    share = np.exp(np.asarray(log_probs, np.float64))
    mass = np.bincount(stored[stored >= 0], share[stored >= 0], minlength=vocabulary)
    chosen = np.zeros(vocabulary, bool)
    chosen[np.argsort(-mass, kind="stable")[:most]] = True
    chosen &= mass > 0
    label = np.asarray(labels, np.int64)
    if names is None:
        chosen[label[label >= 0]] = True
    else:
        name = np.asarray(names, np.int64)
        chosen |= np.isin(name, name[label[label >= 0]])
    if not chosen.any():
        raise UsageError("there is no candidate: no row of a step has a stored class", hint="set candidates = 'all'")
    ids = torch.from_numpy(np.flatnonzero(chosen))
    nothing = torch.zeros(len(ids))
    return Candidates(ids, nothing, nothing, len(ids), vocabulary)


def _own_classes(
    labels: npt.ArrayLike, top_classes: npt.ArrayLike, vocabulary: int, step: int, fill: int
) -> npt.NDArray[np.int64]:
    """The label and the best classes of each row, [B, 1 + m]; -1 where there is none."""
    label = np.asarray(labels, np.int64).reshape(-1, 1)
    targets = np.concatenate([label, np.asarray(top_classes, np.int64).reshape(len(label), -1)], axis=1)
    if targets.size and targets.max() >= vocabulary:
        raise TeachOnceError(f"class {targets.max()} among the targets of a vocabulary of {vocabulary} classes")
    if not fill and (targets < 0).all():
        raise UsageError(
            f"step {step}: there is no candidate: no row has a label that is in the vocabulary, and "
            f"sampled_top = {targets.shape[1] - 1} and sampled_fill = 0 add none",
            hint="raise sampled_fill or sampled_top",
        )
    return targets


def _pomp(targets: npt.NDArray[np.int64], forced: npt.NDArray[np.bool_], drawn: npt.NDArray[np.int64]) -> Candidates:
    """Candidates of all rows together, with each row's own weights, [B, K].

    The rule of `trainers/pomp.py` in POMP's code, where a row's only own class is its label. Other rows' own classes
    are no candidates of a row unless drawn. The rule has no natural logarithm and corrects less than half of the bias.
    """
    vocabulary = len(forced)
    present = forced.copy()
    present[drawn] = True
    classes = np.flatnonzero(present)
    is_drawn = np.isin(classes, drawn)
    is_own = np.zeros((len(targets), len(classes) + 1), bool)  # the last column takes the entries that are -1
    np.put_along_axis(is_own, np.where(targets >= 0, np.searchsorted(classes, targets), len(classes)), True, axis=1)
    is_own = is_own[:, :-1]
    negatives = is_drawn.sum() - (is_own & is_drawn).sum(axis=1)
    margin = np.log10((vocabulary - is_own.sum(axis=1)) / np.maximum(negatives, 1))  # without negatives it is unused
    weight = np.where(is_drawn, margin[:, None], -np.inf)
    weight[is_own] = 0.0
    rarity = math.log(vocabulary / len(drawn)) if len(drawn) else 0.0
    stands_for = np.where(forced[classes], 0.0, rarity)
    return Candidates(
        torch.from_numpy(classes),
        torch.from_numpy(weight.astype(np.float32)),
        torch.from_numpy(stands_for.astype(np.float32)),
        int(forced.sum()),
        vocabulary,
    )
