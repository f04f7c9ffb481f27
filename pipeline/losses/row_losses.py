"""The training losses of rows over a step's candidates: cross-entropy with the label, divergence from the teacher.

It does not read stores, choose candidates or average over rows. All maths is float32 (float64 where given float64).

Candidates weigh ln w inside the softmax: ln p_c = s_c - ln sum_j w_j exp(s_j), the probability of c itself, not of the
w classes that it stands for. A weight of -inf means: no candidate of this row. Homonyms have one logit between them; in
`dense_rows`, how the teacher's mass is split among them adds a constant to the KL and nothing to its gradient. Only the
cross-entropy knows them: `ghost_rows`, `renormalise_rows` and the other soft losses take them as classes of their own.

Shapes: B rows, K candidates, k stored teacher classes a row, V classes of the vocabulary, G candidates of one name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from teachonce.losses.divergences import SoftLoss, divergence, ranked
from teachonce.losses.targets import SoftTargets

_NONE = -torch.inf  # the log of a mass of zero


def hard_rows(
    logits: Tensor,
    log_weight: Tensor,
    labels: Tensor,
    groups: Tensor | None = None,
    smoothing: float = 0.0,
    most_tied: int | None = None,
    power: float = 0.0,
) -> Tensor:
    """Cross-entropy with the label in nats, or generalised cross-entropy.

    Classes that share the label's name cannot be told apart by text, so a row costs -ln of the sum of softmax(s + ln w)
    over its label's group. Smoothing (Szegedy et al. 2016, arXiv 1512.00567): (1 - eps) of that + eps times the mean of
    -ln p over the vocabulary, estimated by the weighted mean over the candidates.

    Generalised cross-entropy (Zhang and Sabuncu 2018, arXiv 1805.07836, equation 6): (1 - p^q) / q, p the probability
    of the label's group. Its gradient is p^q times that of -ln p, so that rows whose label the student does not believe
    pull less. It becomes -ln p for q to 0 and 1 - p, which is half of the mean absolute error, for q = 1.

    Args:
        logits: [B, K], s.
        log_weight: [K] or [B, K], ln w.
        labels: [B] int64 columns of the candidates, -1 for none.
        groups: [K] int64, equal for candidates with the same name; None if all names differ.
        smoothing: eps, in [0, 1].
        most_tied: size of the largest group, where it is known: a GPU need not be asked for it.
        power: q of generalised cross-entropy, in (0, 1]; 0: cross-entropy. With it, no smoothing.

    Returns:
        [B]; 0 for a row without a label, or whose label is no candidate of the row.
    """
    scores = _exact(logits)
    label = labels.clamp(min=0)[:, None]
    has_label = (labels >= 0) & (_at(log_weight, label)[:, 0] > _NONE)
    weighted = _weighted(scores, log_weight)
    log_total = weighted.logsumexp(1)
    if groups is None:
        log_label = weighted.gather(1, label)[:, 0]
    else:
        members, real = _members(groups, label, most_tied)
        log_label = weighted.gather(1, members).masked_fill(~(real & has_label[:, None]), _NONE)
        log_label = log_label.masked_fill(~has_label[:, None], 0.0).logsumexp(1)
    loss = log_total - log_label
    if smoothing:
        weight = log_weight.exp()
        mean = (scores * weight).sum(1) / weight.sum(-1).clamp(min=torch.finfo(weight.dtype).tiny)
        loss = (1 - smoothing) * loss + smoothing * (log_total - mean)
    if power:
        loss = -torch.expm1(-power * loss) / power
    return torch.where(has_label, loss, 0.0)


def dense_rows(
    log_teacher: Tensor, logits: Tensor, log_weight: Tensor, tau: float, soft_loss: SoftLoss = "kl"
) -> Tensor:
    """tau^2 KL(teacher || student) in nats, its sum over the vocabulary estimated from the candidates.

    tau^2 sum_c b_c (ln p_T,c - ln p_S,c), b = w p_T, p_S = softmax(s / tau + ln w) / w (Hinton et al. 2015, arXiv
    1503.02531, with the importance weights of sampled softmax). The gradient is tau (w p_S sum(b) - b). Over all
    classes with w = 1 this is the KL itself. The other soft losses are the sums of `divergences`, with the same weights
    and the same factor tau^2.

    Args:
        log_teacher: [B, K], ln p_T at the teacher's temperature, normalised over the vocabulary; -inf is allowed.
        logits: [B, K], s at the student's own scale.
        log_weight: [K] or [B, K], ln w.
        tau: temperature of the student, above 0.
        soft_loss: what is computed of the two distributions.

    Returns:
        [B]; 0 where the teacher has no mass on the candidates.
    """
    scores = _exact(logits) / tau
    if soft_loss == "ranking":
        return tau * tau * ranked(log_teacher, scores, log_weight)
    log_student = scores - _weighted(scores, log_weight).logsumexp(1, keepdim=True)
    if soft_loss != "kl":
        return tau * tau * divergence(soft_loss, log_teacher, log_student, log_weight)
    mass = (log_teacher + log_weight).exp()
    return tau * tau * (mass * (log_teacher.masked_fill(mass == 0, 0.0) - log_student)).sum(1)


def ghost_rows(
    logits: Tensor,
    log_weight: Tensor,
    targets: SoftTargets,
    columns: Tensor,
    tau: float,
    teacher_tau: float,
    soft_loss: SoftLoss = "kl",
) -> Tensor:
    """tau^2 KL(teacher || student) in nats over the stored classes and one lump of everything else.

    By itself stands each stored class that is a certain candidate (ln w = 0). The teacher's lump is its stored tail and
    its other stored classes; the student's is the mass of all other candidates, the sum of w exp(s / tau), which
    estimates the same without bias. A stored class that only the uniform fill brought in is in the lump: by itself it
    would stand for w classes on one side and for one on the other. On a full candidate set this is a lower bound of the
    whole KL.

    Where the lump is empty on the student's side it is left out, and the teacher is renormalised over what remains. The
    other soft losses compare the same two lists; for `ranking` the lump stands last, since each class in it has less
    than any stored one.

    Args:
        logits: [B, K], s at the student's own scale.
        log_weight: [K] or [B, K], ln w of each candidate.
        targets: their `log_tail` is that of `teacher_tau`.
        columns: [V] int64, where a class is among the candidates, or -1.
        tau: temperature of the student, above 0.
        teacher_tau: temperature of the teacher, above 0.
        soft_loss: what is computed of the two lists.

    Returns:
        [B]; 0 where nothing remains of the teacher.
    """
    scores = _exact(logits) / tau
    teacher = targets.log_probs.to(scores.dtype) / teacher_tau
    place = targets.places(columns)
    single = (place >= 0) & (_at(log_weight, place.clamp(min=0)) == 0)
    marks = _marks(torch.where(single, place, -1), scores.shape[1]) | (log_weight == _NONE)
    lump_student = (scores + log_weight).masked_fill(marks, _NONE).logsumexp(1, keepdim=True)
    rest = torch.cat([teacher.masked_fill(single, _NONE), targets.log_tail.to(scores.dtype)[:, None]], 1)
    lump_teacher = rest.logsumexp(1, keepdim=True).masked_fill(lump_student == _NONE, _NONE)
    of_teacher = torch.cat([teacher.masked_fill(~single, _NONE), lump_teacher], 1)
    of_student = torch.cat([scores.gather(1, place.clamp(min=0)).masked_fill(~single, _NONE), lump_student], 1)
    return tau * tau * _apart(soft_loss, of_teacher, of_student, lump=True)


def renormalise_rows(
    logits: Tensor,
    log_weight: Tensor,
    targets: SoftTargets,
    columns: Tensor,
    tau: float,
    teacher_tau: float,
    soft_loss: SoftLoss = "kl",
) -> Tensor:
    """tau^2 KL(teacher || student) in nats over the row's stored classes that are candidates, as if no other existed.

    Both sides are renormalised over them, without weights. Over-confident: the teacher's tail is gone. Arguments and
    result as in `ghost_rows`.
    """
    scores = _exact(logits) / tau
    place = targets.places(columns)
    single = (place >= 0) & (_at(log_weight, place.clamp(min=0)) > _NONE)
    of_teacher = (targets.log_probs.to(scores.dtype) / teacher_tau).masked_fill(~single, _NONE)
    of_student = scores.gather(1, place.clamp(min=0)).masked_fill(~single, _NONE)
    return tau * tau * _apart(soft_loss, of_teacher, of_student, lump=False)


def _exact(logits: Tensor) -> Tensor:
    """At least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _at(log_weight: Tensor, place: Tensor) -> Tensor:
    """ln w at the given columns of each row, [B, k]."""
    return log_weight.expand(len(place), log_weight.shape[-1]).gather(1, place)


def _weighted(scores: Tensor, log_weight: Tensor) -> Tensor:
    """s + ln w, [B, K]. A row without candidates gets all of them: its loss becomes 0 later, and must not be NaN."""
    if log_weight.ndim == 2:
        log_weight = log_weight.masked_fill((log_weight == _NONE).all(1, keepdim=True), 0.0)
    return scores + log_weight


def _members(groups: Tensor, label: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """The columns that share each label's name, [B, G], and which of the entries are some."""
    order = groups.argsort(stable=True)
    ordered, wanted = groups[order], groups[label]
    first = torch.searchsorted(ordered, wanted)
    last = torch.searchsorted(ordered, wanted, right=True)
    most = int((last - first).max()) if most is None else most
    place = first + torch.arange(most, device=groups.device)
    return order[place.clamp(max=len(groups) - 1)], place < last


def _marks(place: Tensor, candidates: int) -> Tensor:
    """True at the given columns of each row, [B, K]; -1 marks nothing."""
    marks = torch.zeros(len(place), candidates + 1, dtype=torch.bool, device=place.device)
    # -1 marks one column too many, which is dropped.
    return marks.scatter_(1, torch.where(place >= 0, place, candidates), True)[:, :candidates]


def _apart(soft_loss: SoftLoss, teacher: Tensor, student: Tensor, lump: bool) -> Tensor:
    """The soft loss of each row between unnormalised logs, whose last column may be a lump of many classes, [B]."""
    if soft_loss == "kl":
        return _kl(teacher, student)
    empty = (teacher == _NONE).all(1, keepdim=True)
    weight = student.new_zeros(student.shape[1])
    log_p = teacher.masked_fill(empty, 0.0).log_softmax(1).masked_fill(empty, _NONE)
    if soft_loss == "ranking":
        last = torch.zeros_like(teacher, dtype=torch.bool)
        last[:, -1:] = lump
        return ranked(log_p, student, weight, last)
    nothing = (student == _NONE).all(1, keepdim=True)
    log_q = student.masked_fill(nothing, 0.0).log_softmax(1)
    return divergence(soft_loss, log_p, log_q, weight)


def _kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL in nats of each row between unnormalised logs; 0 where the teacher has no mass, [B].

    The student is finite wherever the teacher is.
    """
    empty = (teacher == _NONE).all(1, keepdim=True)
    log_p = teacher.masked_fill(empty, 0.0).log_softmax(1)
    log_q = student.masked_fill(empty, 0.0).log_softmax(1)
    terms = log_p.exp() * (log_p - log_q)
    return terms.masked_fill(empty | (teacher == _NONE), 0.0).sum(1)
