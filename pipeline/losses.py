"""The training loss over a step's candidate classes: cross-entropy with the label, KL to the stored teacher.

It does not read stores and does not choose candidates. All maths is float32.

Shapes: B rows, K candidates, k stored teacher classes a row, V classes of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from teachonce.errors import TeachOnceError

_NONE = -torch.inf  # the log of nothing


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """What a label store keeps of the teacher for B rows, on the logits' device."""

    class_ids: Tensor  # [B, k] int64 in [0, V), or -1: no class, with log-probability -inf
    log_probs: Tensor  # [B, k] float32, natural, at the teacher's own temperature; -inf is allowed
    log_tail: Tensor  # [B] float32, ln of the sum over all other classes of p^(1/tau), for the tau in use; or -inf


def hard_loss(logits: Tensor, log_weight: Tensor, labels: Tensor, groups: Tensor | None = None) -> Tensor:
    """Cross-entropy with the label, mean over the rows that have one; 0 if none has.

    p = softmax(s + ln w). Classes that share the label's name cannot be told apart by text, so the loss of a row is
    -ln of the sum of p over its label's group.

    Args:
        logits: [B, K], s.
        log_weight: [K], ln w.
        labels: [B] int64 columns of the candidates, -1 for none.
        groups: [K] int64, equal for candidates with the same name; None if all names differ.

    Returns:
        A scalar in nats.
    """
    rows = labels >= 0
    if not rows.any():
        return logits.float().sum() * 0.0
    log_p = (logits[rows].float() + log_weight).log_softmax(1)
    labels = labels[rows]
    if groups is None:
        return -log_p.gather(1, labels[:, None]).mean()
    same = groups[None] == groups[labels][:, None]
    return -log_p.masked_fill(~same, _NONE).logsumexp(1).mean()


def soft_loss(
    logits: Tensor,
    log_weight: Tensor,
    targets: SoftTargets,
    columns: Tensor,
    tau: float,
    tail: Literal["ghost", "renormalise"] = "ghost",
) -> Tensor:
    """tau^2 KL(teacher || student) at temperature tau, mean over all rows (Hinton et al., 2015, arXiv 1503.02531).

    ghost: each row compares two distributions over its stored classes among the certain candidates (ln w = 0), each
    by itself, and one lump of everything else. The teacher's lump is its stored tail and its other stored classes;
    the student's is the mass of all other candidates, the sum of w exp(s / tau), which estimates the same without
    bias. A stored class that only the uniform fill brought in is in the lump: by itself it would stand for w classes
    on one side and for one on the other. On a full candidate set this is a lower bound of the whole KL.
    renormalise: both sides over the row's stored classes that are candidates, without weights, as if no other existed.

    Special rows: where the lump is empty on the student's side it is left out, and the teacher is renormalised over
    what remains; where nothing remains of the teacher the row counts 0.

    Args:
        logits: [B, K], s at the student's own scale.
        log_weight: [K], ln w of each candidate.
        columns: [V] int64, where a class is among the candidates, or -1.
        tau: temperature, above 0.

    Returns:
        A scalar in nats.
    """
    scores = logits.float() / tau
    teacher = targets.log_probs.float() / tau
    known = targets.class_ids >= 0
    place = torch.where(known, columns[targets.class_ids.clamp(min=0)], -1)  # [B, k]
    single = place >= 0
    if tail == "ghost":
        single &= log_weight[place.clamp(min=0)] == 0
    singles_teacher = teacher.masked_fill(~single, _NONE)
    singles_student = scores.gather(1, place.clamp(min=0)).masked_fill(~single, _NONE)
    if tail == "renormalise":
        return tau * tau * _kl(singles_teacher, singles_student).mean()
    marks = _marks(torch.where(single, place, -1), scores.shape[1])
    lump_student = (scores + log_weight).masked_fill(marks, _NONE).logsumexp(1)
    rest = torch.cat([teacher.masked_fill(single, _NONE), targets.log_tail.float()[:, None]], 1)
    lump_teacher = torch.where(lump_student == _NONE, _NONE, rest.logsumexp(1))
    whole_teacher = torch.cat([singles_teacher, lump_teacher[:, None]], 1)
    whole_student = torch.cat([singles_student, lump_student[:, None]], 1)
    return tau * tau * _kl(whole_teacher, whole_student).mean()


def combine(
    supervision: Literal["hard", "hard+soft", "soft"], hard: Tensor | None, soft: Tensor | None, soft_weight: float
) -> Tensor:
    """The loss of a step: hard, hard + soft_weight * soft, or soft. What is not used may be None.

    Raises:
        TeachOnceError: a part that the supervision needs is missing.
    """
    if supervision == "hard" and hard is not None:
        return hard
    if supervision == "soft" and soft is not None:
        return soft
    if supervision == "hard+soft" and hard is not None and soft is not None:
        return hard + soft_weight * soft
    raise TeachOnceError(f"supervision '{supervision}' needs a loss that was not computed")


def _marks(place: Tensor, candidates: int) -> Tensor:
    """True at the given columns of each row, [B, K]; -1 marks nothing."""
    marks = torch.zeros(len(place), candidates + 1, dtype=torch.bool, device=place.device)
    # -1 marks one column too many, which is dropped.
    return marks.scatter_(1, torch.where(place >= 0, place, candidates), True)[:, :candidates]


def _kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL in nats of each row between unnormalised logs; 0 where the teacher has no mass, [B].

    The student is finite wherever the teacher is.
    """
    empty = (teacher == _NONE).all(1, keepdim=True)
    log_p = teacher.masked_fill(empty, 0.0).log_softmax(1)
    log_q = student.masked_fill(empty, 0.0).log_softmax(1)
    terms = log_p.exp() * (log_p - log_q)
    return terms.masked_fill(empty | (teacher == _NONE), 0.0).sum(1)
