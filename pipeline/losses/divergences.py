"""How far a student's distribution is from a teacher's, in the ways that a soft loss may count it.

The module knows neither where the teacher's masses come from (`targets`) nor which classes stand by themselves
(`row_losses`); it is given logs of masses, one column an entry of the list that is compared. Sums over classes may be
estimates: each entry then weighs w.

Shapes: B rows, n entries a row.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

SoftLoss = Literal["kl", "reverse-kl", "js", "symmetric", "ranking"]
"""kl: KL(teacher || student) (Hinton et al. 2015, arXiv 1503.02531). reverse-kl: KL(student || teacher), which asks for
no mass where the teacher has little (Gu et al. 2023, arXiv 2306.08543). js: Jensen-Shannon, the mean of both sides' KL
to their mean, at most ln 2 (Lin 1991). symmetric: the mean of kl and reverse-kl (KDPL, arXiv 2407.03056). ranking: a
list-wise loss of the teacher's order, each place weighted by the teacher's probability (PLD, arXiv 2506.12542)."""

_NONE = -torch.inf  # the log of a mass of zero
LEAST = math.log(1e-7)
"""The log of what an entry without any mass of the teacher counts as in KL(student || teacher), which has no value
there. Symmetric cross-entropy (arXiv 1908.06112) sets such a log to -4."""
_EQUAL = 1e-4  # nats: closer masses are equal up to the rounding of float32 logits, as those of homonyms are
_FAR = -1e30  # an entry that takes no part in a ranking: finite, so that gradients are


def divergence(kind: SoftLoss, log_p: Tensor, log_q: Tensor, log_weight: Tensor) -> Tensor:
    """The divergence between two distributions in nats, by any of the kinds but `ranking`.

    kl: sum w p (ln p - ln q). reverse-kl: sum w q (ln q - ln p). symmetric: half of each. js: half of
    sum w (p (ln p - ln m) + q (ln q - ln m)) with m = (p + q) / 2.

    Args:
        log_p: [B, n] the teacher's, without gradient; -inf is allowed.
        log_q: [B, n] the student's; -inf: the entry is not there at all.
        log_weight: [n] or [B, n], ln w; -inf: the entry is not there at all.

    Returns:
        [B]; 0 where the teacher has no mass on the entries that are there.
    """
    absent = (log_q == _NONE) | (log_weight == _NONE)
    log_q = log_q.masked_fill(absent, 0.0)
    weight = log_weight.exp() * ~absent
    empty = absent | (log_p == _NONE)
    share_p = log_p.exp().masked_fill(empty, 0.0)
    if kind == "js":
        log_m = torch.logaddexp(log_p.masked_fill(absent, 0.0), log_q) - math.log(2)
        forward = share_p * (log_p.masked_fill(empty, 0.0) - log_m)
        terms = (forward + log_q.exp() * (log_q - log_m)) / 2
    else:
        forward = share_p * (log_p.masked_fill(empty, 0.0) - log_q)
        backward = log_q.exp() * (log_q - log_p.masked_fill(empty, LEAST))
        terms = {"kl": forward, "reverse-kl": backward}.get(kind, (forward + backward) / 2)
    return (weight * terms).sum(1) * ~empty.all(1)


def ranked(log_p: Tensor, scores: Tensor, log_weight: Tensor, last: Tensor | None = None) -> Tensor:
    """The list-wise loss of the teacher's order (PLD, arXiv 2506.12542, its weighted Plackett-Luce likelihood).

    sum_k a_k (ln sum_{j: p_j <= p_k} w_j exp(s_j) - s_k), a = w p: each entry is to be chosen among those that the
    teacher ranks no higher, and counts as much as the teacher believes in it. Entries of equal p, up to rounding, share
    the sum of all of them (Breslow's rule), so that no order is made up. The paper puts the label first; here the label
    is the hard loss's alone.

    Args:
        log_p: [B, n] ln p of the teacher, without gradient; -inf is allowed.
        scores: [B, n], s; -inf: the entry is not there at all.
        log_weight: [n] or [B, n], ln w; -inf: the entry is not there at all.
        last: [B, n] bool, entries that stand behind all with a mass, whatever theirs is: lumps of classes each of which
            has less.

    Returns:
        [B], at least 0; 0 where the teacher has no mass on the entries that are there.
    """
    absent = (scores == _NONE) | (log_weight == _NONE)
    scores = scores.masked_fill(absent, 0.0)
    share = (log_p + log_weight).exp().masked_fill(absent, 0.0)
    place = log_p if last is None else torch.where(last & (log_p > _NONE), torch.finfo(log_p.dtype).min, log_p)
    place = place.masked_fill(absent, _NONE)
    place, order = place.sort(dim=1, descending=True, stable=True)
    weighted = (scores + log_weight.masked_fill(log_weight == _NONE, 0.0)).masked_fill(absent, _FAR)
    behind = weighted.gather(1, order).flip(1).logcumsumexp(1).flip(1)  # of each place and all after it
    number = torch.arange(place.shape[1], device=place.device).expand_as(place)
    first = torch.cat([torch.ones_like(absent[:, :1]), place[:, 1:] < place[:, :-1] - _EQUAL], 1)
    group = torch.where(first, number, 0).cummax(1).values  # where the entries of equal mass begin
    return (share.gather(1, order) * (behind.gather(1, group) - scores.gather(1, order))).sum(1)
