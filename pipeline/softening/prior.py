"""Another prior under a teacher's probabilities: logit adjustment (arXiv 2007.07314).

A teacher names some classes more often than they occur and others less often. How often it names each is its predicted
prior: the mean of its probabilities over the rows. Subtracting the log of that prior from the logits, and adding the
log of the wanted one, takes the preference back.

Shapes: C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from teachonce.data.vocabulary import Vocabulary, list_text, require_classes, shown
from teachonce.errors import DataError

Doubles = npt.NDArray[np.float64]
BALANCED = "balanced"
"""The wanted prior in which all classes with photos are equally frequent."""
FLOOR = 1e-12  # a class that is never named still has a log
_FORM = "give balanced, or a file with one line a class: its id, a tab, its share, such as n01443537<TAB>0.02"


@dataclass(frozen=True)
class PriorShift:
    """What is added to the logits, and what it came from."""

    log_shift_C: Doubles
    """Nats; 0 for names that the wanted prior does not speak of."""
    predicted_C: Doubles
    wanted_C: Doubles
    """The wanted mean of the probabilities; NaN for names that it does not speak of."""


def prior_shift(predicted_C: Doubles, wanted: Mapping[int, float], names_C: npt.NDArray[np.int64]) -> PriorShift:
    """Compute the shift from the predicted prior to the wanted one.

    The classes that the wanted prior speaks of keep their mass together and share it anew; the other names are left
    alone. Classes that share a name cannot be told apart by text: what is wanted of them is spread evenly over them,
    so that they tie as before.

    Args:
        predicted_C: mean of the teacher's probabilities over rows; adds up to 1.
        wanted: class -> its share, positive; only ratios count.
        names_C: a number for each class, the same for classes that share a name.
    """
    classes = np.array(sorted(wanted), dtype=np.int64)
    shares = np.array([wanted[int(c)] for c in classes])
    names, place = np.unique(names_C[classes], return_inverse=True)
    of_name = np.bincount(place, weights=shares) / np.bincount(place)
    shares = of_name[place]
    mass = float(predicted_C[classes].sum())
    goal = shares / shares.sum() * mass
    shift, goal_C = np.zeros(len(predicted_C)), np.full(len(predicted_C), np.nan)
    shift[classes] = np.log(np.maximum(goal, FLOOR)) - np.log(np.maximum(predicted_C[classes], FLOOR))
    goal_C[classes] = goal
    return PriorShift(shift, predicted_C, goal_C)


def balanced(labels: Sequence[int] | npt.NDArray[np.int64], classes: int) -> dict[int, float]:
    """Equal shares of the classes that have labelled rows; of all classes where no row has a label."""
    seen = np.unique(np.asarray(labels, dtype=np.int64))
    seen = seen[seen >= 0]
    return dict.fromkeys(seen.tolist() if len(seen) else range(classes), 1.0)


def read_prior(path: Path, vocabulary: Vocabulary) -> dict[int, float]:
    """Read the wanted shares of classes from a file: a class id, a tab and a positive number a line.

    Returns:
        Class -> share.

    Raises:
        DataError: the file cannot be read, a line has another form, a class comes twice or is none of the vocabulary.
    """
    try:
        lines = [line.removesuffix("\r") for line in list_text(path).split("\n")]
    except OSError as problem:
        raise DataError(f"cannot read the prior {path}: {problem}", hint=_FORM) from problem
    given = [(number, *line.partition("\t")[::2]) for number, line in enumerate(lines, 1) if line.strip()]
    if not given:
        raise DataError(f"{path} names no class", hint=_FORM)
    require_classes([class_id.strip() for _, class_id, _ in given], vocabulary, str(path))
    shares: dict[int, float] = {}
    for number, class_id, text in given:
        place = vocabulary.index[class_id.strip()]
        if place in shares:
            raise DataError(f"{path}, line {number}: the class '{vocabulary.ids[place]}' comes twice; once is meant")
        shares[place] = _share(text, f"{path}, line {number}")
    return shares


def _share(text: str, where: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < math.inf:
        raise DataError(f"{where}: {shown(text.strip())} is no positive share", hint=_FORM)
    return share
