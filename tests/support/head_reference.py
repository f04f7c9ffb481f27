"""Heads written the plain way: one class and one image after the other, in float64, from the papers' formulas.

It knows the classes of a head by their spelled names and takes nothing from the library. It tests nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Known:
    """What a head is told of a run's photos."""

    rows: dict[str, int]  # a spelled name -> its row in the head
    cache: Tensor  # [N, E] unit features of the labelled samples, in the order of the store
    cached: Sequence[str]  # [N] the spelled name of each
    teacher: TeacherSide | None = None  # where a head classifies in the teacher's space


@dataclass(frozen=True, eq=False)
class TeacherSide:
    """The teacher's class vectors and scale, and the matrix from the student's image features that is there first."""

    vectors: dict[str, Tensor]  # a spelled name -> the first class's vector
    scale: float
    start: Tensor  # [E, D]


def teacher_side(
    names: Sequence[str], vectors: Tensor, scale: float, features: Tensor, embeddings: Tensor, ridge: float
) -> TeacherSide:
    """The ridge regression by least squares with as many further rows as there are entries, sqrt(lambda) each.

    Args:
        vectors: [V, D] the teacher's class vectors.
        features: [N, E] unit image features of all rows that are trained on.
        embeddings: [N, D] the teacher's of the same.
        ridge: in units of the mean eigenvalue of the second moments.
    """
    x, e = features.double() / len(features) ** 0.5, embeddings.double() / len(features) ** 0.5
    weight = (ridge * x.square().sum() / x.shape[1]) ** 0.5
    more = weight * torch.eye(x.shape[1]).double()
    start = torch.linalg.lstsq(torch.cat([x, more]), torch.cat([e, torch.zeros(len(more), e.shape[1])])).solution
    by_name: dict[str, Tensor] = {}
    for name, vector in zip(names, vectors, strict=True):
        by_name.setdefault(name.lower(), vector.double())
    return TeacherSide(by_name, scale, start)


def known(names: Sequence[str], labels: Sequence[int], samples: Sequence[int], features: Tensor) -> Known:
    """Classes with photos in the order of the vocabulary; views of a sample are averaged.

    Args:
        names: of the vocabulary.
        labels: class of each row, -1 for none.
        samples: the sample of each row.
        features: [rows, E] unit image features.
    """
    rows: dict[str, int] = {}
    for class_number in sorted(set(labels) - {-1}):
        rows.setdefault(names[class_number].lower(), len(rows))
    cache, cached = [], []
    for sample in sorted(set(samples)):
        views = [row for row, number in enumerate(samples) if number == sample and labels[row] >= 0]
        if views:
            mean = features[views].double().mean(0)
            cache.append(mean / mean.norm())
            cached.append(names[labels[views[0]]].lower())
    return Known(rows, torch.stack(cache), cached)


def plain_logits(
    options: Any,
    of_head: Mapping[str, Tensor],
    known_to_head: Known,
    names: Sequence[str],
    text: Tensor,
    images: Tensor,
    scale: float,
) -> Tensor:
    """The logits with a head, [B, V].

    Args:
        options: the table `[head]` of the run.
        of_head: the head's parameters, float64.
        known_to_head: its classes.
        names: V class names.
        text: [V, E] unit features of the text tower.
        images: [B, E] unit features of the image tower.
        scale: the model's own.
    """
    lines = []
    for image in images:
        seen = _adapted(image, of_head, options.adapter_ratio) if options.head == "clip-adapter" else image
        votes = _votes(image, of_head, known_to_head, options) if options.head.startswith("tip") else {}
        line = []
        for name, vector in zip(names, text, strict=True):
            row = known_to_head.rows.get(name.lower())
            logit = scale * seen @ _vector(vector, row, of_head, options)
            if options.head == "teacher-space":
                assert known_to_head.teacher is not None
                there = _in_teacher_space(image, name, of_head, known_to_head.teacher)
                logit = (1 - options.head_weight) * logit + options.head_weight * there
            if options.head == "bias" and row is not None:
                logit = logit + options.head_weight * of_head["bias"][row]
            line.append(logit + votes.get(name.lower(), 0.0))
        lines.append(torch.stack(line))
    return torch.stack(lines)


def plain_training_logits(
    options: Any,
    of_head: Mapping[str, Tensor],
    known_to_head: Known,
    names: Sequence[str],
    text: Tensor,
    images: Tensor,
    scale: float,
) -> list[Tensor]:
    """The logits whose losses are added up; arguments as of `plain_logits`."""
    if options.head != "projection+linear":
        return [plain_logits(options, of_head, known_to_head, names, text, images, scale)]
    projected = text + text @ of_head["matrix"]
    projected = projected / projected.norm(dim=1, keepdim=True)
    held = projected.detach()
    moved = [
        held[number] + options.head_weight * of_head["residual"][row] if row is not None else held[number]
        for number, row in enumerate(known_to_head.rows.get(name.lower()) for name in names)
    ]
    moved = [vector / vector.norm() for vector in moved]
    return [scale * images @ projected.T, scale * images.detach() @ torch.stack(moved).T]


def plain_penalty(options: Any, of_head: Mapping[str, Tensor]) -> Tensor:
    """What the ridge penalty is times."""
    if options.head in ("projection", "projection+linear", "teacher-space"):
        return (next(of_head[name] for name in ("matrix", "move") if name in of_head) ** 2).sum()
    (added,) = of_head.values()
    return (added**2).sum() / len(added)


def _vector(vector: Tensor, row: int | None, of_head: Mapping[str, Tensor], options: Any) -> Tensor:
    if options.head == "linear" and row is not None:
        vector = vector + options.head_weight * of_head["residual"][row]
    if options.head == "projection":
        vector = vector + options.head_weight * (vector @ of_head["matrix"])
    return vector / vector.norm()


def _in_teacher_space(image: Tensor, name: str, of_head: Mapping[str, Tensor], teacher: TeacherSide) -> Tensor:
    """The teacher's scale times the cosine of the projected image with the teacher's class vector."""
    projected = image @ (teacher.start + of_head["move"])
    return teacher.scale * (projected / projected.norm()) @ teacher.vectors[name.lower()]


def _adapted(image: Tensor, of_head: Mapping[str, Tensor], ratio: float) -> Tensor:
    hidden = torch.clamp(of_head["down"] @ image, min=0)
    mixed = ratio * torch.clamp(of_head["up"] @ hidden, min=0) + (1 - ratio) * image
    return mixed / mixed.norm()


def _votes(image: Tensor, of_head: Mapping[str, Tensor], known_to_head: Known, options: Any) -> dict[str, Tensor]:
    """By spelled name: alpha times the sum over its cached features of exp(-beta (1 - cosine))."""
    move = of_head.get("move", torch.zeros_like(known_to_head.cache))
    votes: dict[str, Tensor] = {}
    for key, name in zip(known_to_head.cache + move, known_to_head.cached, strict=True):
        vote = options.tip_alpha * math.e ** (-options.tip_beta * (1 - image @ key))
        votes[name] = votes.get(name, torch.zeros(()).double()) + vote
    return votes
