"""What an evaluation says of a classifier: figures, confused pairs and the table of classes, from outcomes an image.

It runs no model. An outcome is what one classifier made of one image; everything else is counted from outcomes.

Shapes: n images, C classes, E embedding.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from teachonce.data.vocabulary import Vocabulary
from teachonce.evaluation.choice import COLUMNS
from teachonce.evaluation.statistics import expected_calibration_error, likelihoods, mcnemar
from teachonce.models.classifier import equal_rows, score

MOST_CONFUSED = 10
Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What a classifier made of n images."""

    top1: Floats
    """[n] credit: 1 right, 0 wrong, 1/m where m classes of one name tie."""
    top5: Floats
    predicted: Labels
    """[n] the lowest class index among the best."""
    nll: Floats
    """[n] -ln p of the image's class, in nats."""
    confidence: Floats
    """[n] probability of the best class."""

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All columns by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def outcomes(
    features: npt.NDArray[np.float32], classes: npt.NDArray[np.float32], labels: Labels, scale: float
) -> Outcomes:
    """Classify unit image features [n, E] among unit class features [C, E] at the model's own logit scale.

    Raises:
        DataError: features that are not numbers.
    """
    images, text, own = torch.from_numpy(features), torch.from_numpy(classes), torch.from_numpy(labels)
    inverse = equal_rows(text)
    scores = score(images, text, own, inverse)
    nll, confidence = likelihoods(images, text, own, inverse, scale)
    return Outcomes(scores.top1, scores.top5, scores.predicted, nll, confidence)


def figures(found: Outcomes, labels: Labels) -> dict[str, float]:
    """top1, top5, macro (mean over classes of their top-1), ece and nll; fractions, and nats for nll."""
    return {
        "top1": float(found.top1.mean()),
        "top5": float(found.top5.mean()),
        "macro": macro_accuracy(found.top1, labels),
        "ece": expected_calibration_error(found.confidence, found.top1),
        "nll": float(found.nll.mean()),
    }


def macro_accuracy(credit: Floats, labels: Labels) -> float:
    """Mean over the classes that have images of the mean credit of their images."""
    _, own = np.unique(labels, return_inverse=True)
    return float((np.bincount(own, weights=credit) / np.bincount(own)).mean())


def paired(prompts: Outcomes, template: Outcomes) -> dict[str, float | int]:
    """McNemar's exact test of the prompts against the template, on the images where neither shares its credit."""
    whole = np.isin(prompts.top1, (0, 1)) & np.isin(template.top1, (0, 1))
    ours, theirs = prompts.top1[whole] == 1, template.top1[whole] == 1
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return {
        "only_prompts": only_ours,
        "only_template": only_theirs,
        "n": int(whole.sum()),
        "p": mcnemar(only_ours, only_theirs),
    }


def confused_pairs(
    found: Outcomes, labels: Labels, classes: Vocabulary, most: int = MOST_CONFUSED
) -> list[dict[str, Any]]:
    """The classes most often taken for one other class: largest share of a class's images first."""
    sizes = np.bincount(labels, minlength=len(classes))
    wrong = found.top1 == 0
    pairs, counts = np.unique(np.stack([labels[wrong], found.predicted[wrong]], axis=1), axis=0, return_counts=True)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -counts, -counts / np.maximum(1, sizes[pairs[:, 0]])))[:most]
    return [
        {
            "class": classes.names[own],
            "as": classes.names[other],
            "share": float(counts[i] / sizes[own]),
            "images": int(counts[i]),
            "class_id": classes.ids[own],
            "as_id": classes.ids[other],
        }
        for i in order
        for own, other in [pairs[i]]
    ]


def class_table(found: Outcomes, template: Outcomes | None, labels: Labels, classes: Vocabulary) -> bytes:
    """CSV with one line a class that has images; the template's columns are empty where it is what was evaluated."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    worst = _worst(found, labels)
    for index in np.unique(labels):
        mine = labels == index
        other, count = worst.get(int(index), (None, 0))
        top1 = float(found.top1[mine].mean())
        line: dict[str, Any] = {
            "id": classes.ids[index],
            "name": classes.names[index],
            "n": int(mine.sum()),
            "top1": f"{top1:.4f}",
            "top5": f"{found.top5[mine].mean():.4f}",
            "confused_share": f"{count / mine.sum():.4f}",
            "most_confused_with": "" if other is None else classes.names[other],
            "confused_id": "" if other is None else classes.ids[other],
            "nll": f"{found.nll[mine].mean():.4f}",
        }
        if template is not None:
            plain = float(template.top1[mine].mean())
            line |= {"template_top1": f"{plain:.4f}", "gain": f"{top1 - plain:.4f}"}
        writer.writerow(line)
    return text.getvalue().encode()


def _worst(found: Outcomes, labels: Labels) -> Mapping[int, tuple[int, int]]:
    """Class -> the class it is most often taken for, and how often; the lowest index among equals."""
    wrong = found.top1 == 0
    worst: dict[int, tuple[int, int]] = {}
    pairs, counts = np.unique(np.stack([labels[wrong], found.predicted[wrong]], axis=1), axis=0, return_counts=True)
    for (own, other), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        if count > worst.get(own, (0, 0))[1]:
            worst[own] = (other, count)
    return worst
