"""The linear reference of a run: what a linear head on the run's own rows comes to, in seconds.

The head is the one that `head = "linear"` trains alone: a residual for each name that has photos, on the hand-written
template's class vectors, which all other names keep. The fit's setting is fixed and stated here, so that the figure
beside prompts means the same everywhere. It was chosen on samples that were kept apart from training: by rate (0.001,
0.003, 0.01), ridge penalty (0, 0.1 to 3) and whether the sum is normalised, at 4, 32 and 120 photos a class.

Shapes: n rows, E embedding, V classes, K names with photos, U names without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from teachonce.core.streams import LINEAR_REFERENCE
from teachonce.errors import TeachOnceError
from teachonce.heads.verbs import Head
from teachonce.models.classifier import distinct_rows, equal_rows, score
from teachonce.models.clip import exact_products
from teachonce.models.prompts import PromptMeta
from teachonce.recipe.config import TrainConfig
from teachonce.training.photos import Photos
from teachonce.training.student import PromptedStudent

if TYPE_CHECKING:
    from teachonce.rows.working_set import WorkingSet
    from teachonce.training.trainer import Trainer

Places = npt.NDArray[np.int64]
STEPS, ROWS, RATE = 300, 256, 0.001
"""Steps of so many rows each, at a rate that falls to 0 along half a cosine: AdamW without weight decay."""
FORM = 1
"""Raised when the fit or its setting changes: fits of two forms are never taken for each other."""
_AT_ONCE = 1024  # rows whose logits are in memory together


@dataclass(frozen=True, eq=False)
class LinearReference:
    """A fitted reference."""

    head: Head
    meta: PromptMeta
    """As of prompts: no tower carries any, and the head is all there is."""
    rows: int
    """Rows that it was fitted on."""
    held_out_top1: float | None
    """Top-1 on the samples that the run keeps apart, a fraction; None where it keeps none."""
    template_held_out_top1: float | None
    """The hand-written template's on the same samples."""


def why_none(trainer: Trainer) -> str:
    """Why a run has no linear reference; empty where it can have one."""
    if trainer.config.prompts.in_images:
        return "prompts in the image tower change the images: the features in the store are not theirs"
    if trainer.rows.features is None:
        return "the run reads no image features of the student from its store"
    if not len(_labelled(trainer)):
        return "no row that the run trains on has a class: there are no hard labels to fit"
    return ""


def fit_reference(trainer: Trainer) -> LinearReference:
    """Fit the reference on the rows that a run trains on, and measure it on those that the run keeps apart.

    A run of which `why_none` says nothing. The same rows give the same head, whatever the seed of the run.
    """
    rows, places = trainer.rows, _labelled(trainer)
    if rows.features is None:
        raise TeachOnceError("the rows of a linear reference have no features")
    labels, scale = rows.label_column[places].astype(np.int64), trainer.student.clip.logit_scale
    student = _student(trainer, np.unique(labels))
    head, vectors = student.head, _template_vectors(trainer, student)
    if head is None:
        raise TeachOnceError("a linear reference was made without its head")
    first = distinct_rows(student.groups)[0].to(vectors.device)
    names, known = vectors[first], student.known[first]
    steps = drawn_places(len(places))
    used = np.unique(steps)  # of many rows, no more are read than the steps show
    features = torch.from_numpy(rows.features.take(places[used], axis=0)).to(vectors.device)
    of_rows = student.known[torch.from_numpy(labels[used]).to(vectors.device)]
    start = names[known >= 0][known[known >= 0].argsort()]
    fit_linear(head, features, of_rows, start, names[known < 0], scale, np.searchsorted(used, steps))
    head.requires_grad_(False)
    with torch.no_grad(), exact_products():
        moved = head.classes(names, known)[student.groups.to(names.device)]
    apart = trainer.order.held_out
    apart = apart[rows.label_column[apart] >= 0]
    return LinearReference(
        head=head,
        meta=student.meta(),
        rows=len(places),
        held_out_top1=_top1(rows, apart, moved),
        template_held_out_top1=_top1(rows, apart, vectors),
    )


def drawn_places(rows: int) -> Places:
    """Which of some rows make each step, [STEPS, rows of a step]: epoch after epoch, each in an order of its own."""
    taken = min(ROWS, rows)
    epochs = -(-STEPS * taken // rows)
    order = np.concatenate([LINEAR_REFERENCE.at(0, epoch).permutation(rows) for epoch in range(epochs)])
    return order[: STEPS * taken].reshape(STEPS, taken)


def fit_linear(
    head: Head,
    features_nE: Tensor,
    known_n: Tensor,
    start_KE: Tensor,
    others_UE: Tensor,
    scale: float,
    steps: Places,
) -> None:
    """Fit a head of known names in place, by cross-entropy of each row among all names.

    The vectors of names without photos do not move, so what they add to a row's softmax is computed once.

    Args:
        head: of K known names, which does nothing yet.
        features_nE: unit image features of any floating-point type, on the device of the fit, as all tensors.
        known_n: int64, which known name each row has.
        start_KE: the template's class vectors of the known names, in their order.
        others_UE: those of all other names.
        scale: the model's logit scale.
        steps: [steps, rows of a step] of n.
    """
    every_name = torch.arange(len(start_KE), device=start_KE.device)
    optimiser = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=0.0)
    with exact_products():
        others_n = _mass_of(others_UE, features_nE, scale)
        for step, chosen in enumerate(torch.from_numpy(steps).to(start_KE.device)):
            for group in optimiser.param_groups:
                group["lr"] = RATE * (1 + math.cos(math.pi * step / len(steps))) / 2
            logits = scale * features_nE[chosen].float() @ head.classes(start_KE, every_name).T
            loss = F.cross_entropy(torch.cat([logits, others_n[chosen]], dim=1), known_n[chosen])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()


def _mass_of(vectors: Tensor, features_nE: Tensor, scale: float) -> Tensor:
    """ln of what names that do not move add to the softmax of each row, [n, 1]; [n, 0] where there are none."""
    if not len(vectors):
        return vectors.new_zeros(len(features_nE), 0)
    parts = torch.split(features_nE, _AT_ONCE)
    return torch.cat([(scale * part.float() @ vectors.T).logsumexp(1, keepdim=True) for part in parts])


def _labelled(trainer: Trainer) -> Places:
    """The places of all rows with a class that the run trains on."""
    has_class = trainer.rows.label_column >= 0
    has_class[trainer.order.held_out] = False
    return np.flatnonzero(has_class)


def _student(trainer: Trainer, with_photos: Places) -> PromptedStudent:
    """The run's student with a linear head that does nothing yet, and no prompts."""
    config = TrainConfig.of(
        tower="none", head="linear", supervision="hard", context=trainer.config.prompts.context, precision="fp32"
    )
    vocabulary = trainer.rows.vocabulary
    photos = replace(Photos.of(trainer.rows, trainer.order, "linear"), classes=with_photos.tolist())
    return PromptedStudent(config, trainer.student.clip, vocabulary.names, photos)


def _template_vectors(trainer: Trainer, student: PromptedStudent) -> Tensor:
    """The hand-written template's class vectors in full precision, [V, E]; the run's own where they are such."""
    exact = trainer.config.loop.precision == "fp32"
    return trainer.student.frozen_classes if exact else student.frozen_classes


def _top1(rows: WorkingSet, places: Places, vectors: Tensor) -> float | None:
    if not len(places) or rows.features is None:
        return None
    inverse, right = equal_rows(vectors), 0.0
    for start in range(0, len(places), _AT_ONCE):
        part = places[start : start + _AT_ONCE]
        images = torch.from_numpy(rows.features.take(part, axis=0)).to(vectors.device).float()
        labels = torch.from_numpy(rows.label_column[part].astype(np.int64))
        right += float(score(images, vectors, labels, inverse).top1.sum())
    return right / len(places)
