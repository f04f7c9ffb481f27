"""Accuracy on the samples of a run that are never trained on, with the prompts that would be the result.

This module never sees a test split: held-out samples are training samples that the run keeps apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from teachonce.models.classifier import equal_rows, score

if TYPE_CHECKING:
    from teachonce.training.trainer import Trainer

AT_ONCE = 1024  # rows, where the config sets no limit


@dataclass(frozen=True)
class HeldOutScore:
    """Over all views of the held-out samples that have a class."""

    top1: float
    """A fraction; classes that share a name share the credit."""
    rows: int


@torch.no_grad()
def measure(trainer: Trainer) -> HeldOutScore:
    """Classify the held-out rows among all classes of the run.

    Raises:
        DataError: an image cannot be read, for prompts in the image tower.
    """
    places = trainer.order.held_out
    labels = trainer.rows.label_column[places]
    places, labels = places[labels >= 0], labels[labels >= 0]
    with trainer.result() as student:
        classes = student.class_features()
        inverse = equal_rows(classes)
        right = 0.0
        size = trainer.config.loop.micro_batch or AT_ONCE
        for start in range(0, len(places), size):
            part = slice(start, start + size)
            images = student.compared(trainer.image_features(trainer.source.take(places[part])))
            part_labels = torch.from_numpy(labels[part].astype(np.int64))
            right += float(score(images, classes, part_labels, inverse).top1.sum())
    return HeldOutScore(right / len(places), len(places))
