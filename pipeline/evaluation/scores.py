"""What an evaluation says of a classifier: figures, confused pairs and the table of classes, all from outcomes.

This module runs no model. An outcome is what one classifier made of one image; all else is counted from outcomes.

Shapes: n images, C classes, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from teachonce.core.documents import csv_bytes
from teachonce.data.vocabulary import Vocabulary
from teachonce.evaluation.choice import COLUMNS
from teachonce.evaluation.statistics import expected_calibration_error, likelihoods, mcnemar
from teachonce.models.classifier import equal_rows, score
from teachonce.models.clip import exact_products

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
        """Return all columns by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def outcomes(
    features: npt.NDArray[np.float32],
    classes: npt.NDArray[np.float32],
    labels: Labels,
    scale: float,
    device: torch.device | None = None,
) -> Outcomes:
    """Classify unit image features [n, E] among unit class features [C, E] at the model's own logit scale.

    Products are taken on the device, or on the CPU where none is given.

    Raises:
        DataError: some features are not numbers.
    """
    text, class_of_image = torch.from_numpy(classes), torch.from_numpy(labels)
    images, inverse = torch.from_numpy(features).to(device or "cpu"), equal_rows(text)
    scores = score(images, text, class_of_image, inverse)
    with exact_products():
        nll, confidence = likelihoods(images, text, class_of_image, inverse, scale)
    return Outcomes(scores.top1, scores.top5, scores.predicted, nll, confidence)


def figures(scored: Outcomes, labels: Labels) -> dict[str, float]:
    """Compute top1, top5, macro (mean over classes of their top-1), ece and nll; fractions, and nats for nll."""
    return {
        "top1": float(scored.top1.mean()),
        "top5": float(scored.top5.mean()),
        "macro": macro_accuracy(scored.top1, labels),
        "ece": expected_calibration_error(scored.confidence, scored.top1),
        "nll": float(scored.nll.mean()),
    }


def macro_accuracy(credit: Floats, labels: Labels) -> float:
    """Average the credit over each class that has images, then over these classes."""
    _, class_number = np.unique(labels, return_inverse=True)
    return float((np.bincount(class_number, weights=credit) / np.bincount(class_number)).mean())


def paired(
    first: Outcomes, second: Outcomes, names: tuple[str, str] = ("prompts", "template")
) -> dict[str, float | int]:
    """Test one classifier against another by McNemar's exact test, on images where neither shares its credit.

    Args:
        names: of the two, as the keys `only_NAME` bear them.
    """
    whole = np.isin(first.top1, (0, 1)) & np.isin(second.top1, (0, 1))
    first_right, second_right = first.top1[whole] == 1, second.top1[whole] == 1
    only_first, only_second = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    return {
        f"only_{names[0]}": only_first,
        f"only_{names[1]}": only_second,
        "n": int(whole.sum()),
        "p": mcnemar(only_first, only_second),
    }


def confused_pairs(
    scored: Outcomes, labels: Labels, classes: Vocabulary, most: int = MOST_CONFUSED
) -> list[dict[str, Any]]:
    """List the classes most often taken for one other class, largest share of a class's images first."""
    sizes = np.bincount(labels, minlength=len(classes))
    wrong = scored.top1 == 0
    pairs, counts = np.unique(np.stack([labels[wrong], scored.predicted[wrong]], axis=1), axis=0, return_counts=True)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -counts, -counts / np.maximum(1, sizes[pairs[:, 0]])))[:most]
    return [
        {
            "class": classes.names[true_class],
            "as": classes.names[taken_for],
            "share": float(counts[i] / sizes[true_class]),
            "images": int(counts[i]),
            "class_id": classes.ids[true_class],
            "as_id": classes.ids[taken_for],
        }
        for i in order
        for true_class, taken_for in [pairs[i]]
    ]


def class_table(scored: Outcomes, template: Outcomes | None, labels: Labels, classes: Vocabulary) -> bytes:
    """Write CSV with one line for each class that has images.

    The template's columns are empty where the template is what was evaluated.
    """
    lines: list[Sequence[Any]] = [COLUMNS]
    worst = _worst(scored, labels)
    for index in np.unique(labels):
        of_class = labels == index
        other, count = worst.get(int(index), (None, 0))
        top1 = float(scored.top1[of_class].mean())
        line: dict[str, Any] = {
            "id": classes.ids[index],
            "name": classes.names[index],
            "n": int(of_class.sum()),
            "top1": f"{top1:.4f}",
            "top5": f"{scored.top5[of_class].mean():.4f}",
            "confused_share": f"{count / of_class.sum():.4f}",
            "most_confused_with": "" if other is None else classes.names[other],
            "confused_id": "" if other is None else classes.ids[other],
            "nll": f"{scored.nll[of_class].mean():.4f}",
        }
        if template is not None:
            plain = float(template.top1[of_class].mean())
            line |= {"template_top1": f"{plain:.4f}", "gain": f"{top1 - plain:.4f}"}
        lines.append([line.get(column) for column in COLUMNS])
    return csv_bytes(lines)


def _worst(scored: Outcomes, labels: Labels) -> Mapping[int, tuple[int, int]]:
    """Return for each class the class that it is most often taken for, and how often; the lowest index among equals."""
    wrong = scored.top1 == 0
    worst: dict[int, tuple[int, int]] = {}
    pairs, counts = np.unique(np.stack([labels[wrong], scored.predicted[wrong]], axis=1), axis=0, return_counts=True)
    for (true_class, taken_for), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        if count > worst.get(true_class, (0, 0))[1]:
            worst[true_class] = (taken_for, count)
    return worst
