"""How much each of several teachers counts for each row: by how sure of it the teacher is.

A teacher that hesitates on a photo should not speak as loudly there as one that does not (multi-teacher prompt
distillation weighs by confidence, arXiv 2606.23897). Probabilities of classes that share a name are added first, since
text cannot tell them apart: a teacher does not hesitate between them.

Shapes: T teachers, B rows, C classes, U distinct names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from teachonce.softening.rules import RowRule


@torch.inference_mode()
def row_weights(log_probs: Sequence[Tensor], names: Sequence[Tensor], rule: RowRule) -> Tensor:
    """Compute the weight of each teacher in each row, [T, B] float32; those of a row add up to 1.

    Args:
        log_probs: of each teacher, [B, C], logs of probabilities.
        names: of each teacher, [C] int64, a number for each class from 0, the same for classes that share a name.
        rule: how sure a teacher is; where all are unsure to the last bit, they count equally.
    """
    sure = torch.stack([_sure(_of_names(p, inverse), rule) for p, inverse in zip(log_probs, names, strict=True)])
    total = sure.sum(dim=0)
    equal = torch.full_like(sure, 1 / len(sure))
    return torch.where(total > 0, sure / total.clamp_min(torch.finfo(sure.dtype).tiny), equal)


def _of_names(log_probs_BC: Tensor, inverse_C: Tensor) -> Tensor:
    """Probabilities of the distinct names, [B, U]; as many columns as classes, where the last ones may be 0."""
    p = log_probs_BC.exp()
    return torch.zeros_like(p).index_add(1, inverse_C, p)


def _sure(p_BU: Tensor, rule: RowRule) -> Tensor:
    if rule == "confidence":
        return p_BU.amax(dim=1)
    if rule == "entropy":
        entropy: Tensor = torch.special.entr(p_BU).sum(dim=1)
        return entropy.neg().exp()
    if rule == "margin":
        best = p_BU.topk(min(2, p_BU.shape[1]), dim=1).values
        return best[:, 0] - best[:, 1] if best.shape[1] > 1 else best[:, 0]
    return torch.ones_like(p_BU[:, 0])
