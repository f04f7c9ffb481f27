"""Several teachers as one: the mean of their probabilities, after each teacher is calibrated by a scale of its own.

This module does not read stores. Averages of probabilities have no joint embedding, so they can only be kept as top k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teachonce.core.streams import CALIBRATION
from teachonce.errors import DataError
from teachonce.phrases import phrase
from teachonce.softening.row_weights import row_weights
from teachonce.softening.rules import RowRule
from teachonce.teaching.teacher import TeacherHead

SCALE_RANGE = 30.0
"""A calibrated scale lies within this factor of the model's own, on either side."""
HALVINGS = 40  # halvings of an interval of ln(900): the scale is right to the last bit of a float32
CALIBRATION_ROWS = 4096
MOST_SIMILARITIES = 2**26  # similarities that are kept while a scale is searched: 256 MB
CALIBRATION_SEED = 0
BATCH_ROWS = 256  # rows of similarities that are computed in float64 at a time


@dataclass(frozen=True)
class Calibration:
    """The scale at which a teacher's labels are most probable."""

    scale: float
    nll_before: float
    """Mean of -ln p(label) at the model's own scale, in nats."""
    nll_after: float
    at_bound: bool
    """Whether the search ended at the edge of its range: the labels do not determine a scale."""


def calibration_rows(usable: npt.NDArray[np.bool_], classes: int) -> npt.NDArray[np.int64]:
    """Draw a seeded sample of rows to calibrate on, rising.

    Args:
        usable: [rows] whether a row has an image and a label in the vocabulary.
        classes: size of the vocabulary, which bounds how many rows fit into memory.

    Raises:
        DataError: no row is usable.
    """
    rows = np.flatnonzero(usable)
    if not len(rows):
        raise DataError(
            "no row has both an image and a label that is in the vocabulary: nothing to calibrate on",
            hint=phrase("add {calibrate=false} to use the scales that the models were trained with"),
        )
    limit = max(1, min(CALIBRATION_ROWS, MOST_SIMILARITIES // classes))
    rng = CALIBRATION.at(CALIBRATION_SEED)
    return np.sort(rng.permutation(rows)[:limit])


@torch.inference_mode()
def calibrate(head: TeacherHead, images_BE: Tensor, labels_B: Tensor) -> Calibration:
    """Find the factor on the cosine similarity that minimises the mean of -ln p(label).

    Classes that share a name count as one: -ln of the sum over the classes that share the label's name. That adds a
    constant only, so the mean is convex in the scale and its slope, mean(E_p[cos] - cos(label)), has one zero, which
    is found by halving an interval on ln s.

    Args:
        head: the teacher's text side; its own scale is the starting point.
        images_BE: [B, E] unit image features, all finite.
        labels_B: [B] class of each image.
    """
    cosines_BU = images_BE.float() @ head.features_UE.T
    sizes_U = torch.bincount(head.inverse_C, minlength=len(head.features_UE)).to(cosines_BU.device)
    own_B = head.inverse_C[labels_B]
    low, high = math.log(head.logit_scale / SCALE_RANGE), math.log(head.logit_scale * SCALE_RANGE)
    edges = low, high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _loss(cosines_BU, sizes_U, own_B, math.exp(middle))[1] > 0:
            high = middle
        else:
            low = middle
    log_scale = (low + high) / 2
    at_bound = min(log_scale - edges[0], edges[1] - log_scale) < 1e-6
    scale = math.exp(log_scale)
    before, after = (_loss(cosines_BU, sizes_U, own_B, s)[0] for s in (head.logit_scale, scale))
    return Calibration(scale, before, after, at_bound)


def _loss(cosines_BU: Tensor, sizes_U: Tensor, own_B: Tensor, scale: float) -> tuple[float, float]:
    """Return the mean of -ln p(name of the label), and its derivative by the scale."""
    loss = slope = 0.0
    for cosines, names in zip(torch.split(cosines_BU, BATCH_ROWS), torch.split(own_B, BATCH_ROWS), strict=True):
        values = cosines.double()
        log_p = (scale * values + sizes_U.double().log()).log_softmax(dim=1)  # these are log-probabilities of names
        of_label = values.gather(1, names[:, None])[:, 0]
        loss -= float(log_p.gather(1, names[:, None]).sum())
        slope += float(((log_p.exp() * values).sum(dim=1) - of_label).sum())
    return loss / len(own_B), slope / len(own_B)


@torch.inference_mode()
def merged_log_probs(heads: Sequence[TeacherHead], images: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Compute ln of the weighted mean of the teachers' probabilities, [B, C] float32.

    Classes whose names tie with every teacher tie exactly.

    Args:
        heads: one head for each teacher, over the same classes.
        images: [B, E] features by each teacher; the widths may differ.
        weights: positive numbers that add up to 1.
    """
    log_probs = _log_probs(heads, images)
    return _sum([part + math.log(weight) for part, weight in zip(log_probs, weights, strict=True)])


@torch.inference_mode()
def weighed_log_probs(heads: Sequence[TeacherHead], images: Sequence[Tensor], rule: RowRule) -> tuple[Tensor, Tensor]:
    """Compute as `merged_log_probs` does, with weights that each row decides by how sure the teachers are of it.

    Args:
        heads: one head for each teacher, over the same classes.
        images: [B, E] features by each teacher.
        rule: what it is to be sure.

    Returns:
        The logs, [B, C] float32, and the weights, [teachers, B].
    """
    log_probs = _log_probs(heads, images)
    weights_TB = row_weights(log_probs, [head.inverse_C for head in heads], rule)
    return _sum([part + w[:, None].log() for part, w in zip(log_probs, weights_TB, strict=True)]), weights_TB


def _log_probs(heads: Sequence[TeacherHead], images: Sequence[Tensor]) -> list[Tensor]:
    return [head.logits(features).log_softmax(dim=1) for head, features in zip(heads, images, strict=True)]


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """The log of the sum of what the parts are logs of."""
    total = parts[0]
    for part in parts[1:]:
        total = torch.logaddexp(total, part)
    return total
