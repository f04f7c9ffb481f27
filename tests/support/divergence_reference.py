"""How far a teacher's distribution is from the student's, written the plain way in float64, over the whole vocabulary.

It takes nothing from the library. It tests nothing.

Shapes: B rows, V classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_student(logits: Tensor, log_weight: Tensor, tau: float) -> Tensor:
    """ln p of each class itself, [B, V]: its weight counts in the sum over all only."""
    return logits / tau - (logits / tau + log_weight).logsumexp(1, keepdim=True)


def divergence(teacher: Tensor, logits: Tensor, log_weight: Tensor, tau: float, kind: str = "kl") -> Tensor:
    """tau^2 times the divergence of the teacher's probability of each class from the student's, [B]."""
    weight = log_weight.exp()
    if kind == "ranking":
        return tau**2 * ranking(teacher, teacher, logits / tau, weight)
    return tau**2 * spread_apart(teacher, log_student(logits, log_weight, tau), weight, kind)


def apart(teacher: Tensor, student: Tensor, kind: str) -> Tensor:
    """Between the masses of each row, which are normalised first; 0 for a teacher without mass, [B].

    For a ranking the last column is a lump of classes that stand behind all others with a mass.
    """
    p = teacher / teacher.sum(1, keepdim=True).clamp(min=1e-300)
    here = (student > 0).double()
    if kind == "ranking":
        rank = p.clone()
        rank[:, -1] = rank[:, -1].clamp(max=1e-200)
        return ranking(rank, p, student.masked_fill(here == 0, 1.0).log(), here)
    q = student / student.sum(1, keepdim=True)
    return spread_apart(p, q.masked_fill(here == 0, 1.0).log(), here * (p.sum(1, keepdim=True) > 0), kind)


def spread_apart(p: Tensor, log_q: Tensor, weight: Tensor, kind: str) -> Tensor:
    """The weighted sum of a divergence's terms, [B]."""
    q, log_p = log_q.exp(), p.masked_fill(p == 0, 1e-7).log()
    forward, backward = p * (log_p - log_q), q * (log_q - log_p)
    m = (p + q) / 2
    js = (torch.xlogy(p, p) - p * m.log() + q * (log_q - m.log())) / 2
    terms = {"kl": forward, "reverse-kl": backward, "symmetric": (forward + backward) / 2, "js": js}[kind]
    return (weight * terms).sum(1)


def ranking(rank: Tensor, p: Tensor, s: Tensor, weight: Tensor) -> Tensor:
    """Each entry is chosen among all of no higher rank; entries without weight are not there, [B]."""
    total = torch.zeros(len(s)).double()
    for entry in range(s.shape[1]):
        behind = (rank <= rank[:, entry, None] * (1 + 1e-4)) * weight
        chosen = ((s - s[:, entry, None]).exp() * behind).sum(1).clamp(min=1e-300).log()
        total = total + torch.where(weight[:, entry] * p[:, entry] > 0, weight[:, entry] * p[:, entry] * chosen, 0.0)
    return total
