"""The losses of others as their papers and codes state them, of features alone, in float64 and without short cuts.

`test_published_losses` compares the shipped recipes with them. Nothing here shares code with the library.

Shapes: B rows, C classes with distinct names, E embedding; features are unit, logits are scale times their products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def cross_entropy(logits_BC: Tensor, labels: Sequence[int]) -> Tensor:
    """CoOp (arXiv 2109.01134, equation 3), MaPLe (arXiv 2210.03117): -ln of the label's softmax, mean over rows."""
    rows = [-(row[label] - torch.log(torch.exp(row).sum())) for row, label in zip(logits_BC, labels, strict=True)]
    return torch.stack(rows).mean()


def divergence(p_BC: Tensor, q_BC: Tensor) -> Tensor:
    """The sum over rows and classes of p ln(p / q)."""
    return (p_BC * (p_BC / q_BC).log()).sum()


def kgcoop(logits_BC: Tensor, labels: Sequence[int], texts_CE: Tensor, bare_CE: Tensor) -> Tensor:
    """KgCoOp (arXiv 2303.13283, equations 6 and 7) with lambda = 8."""
    knowledge = sum(((w - w0) ** 2).sum() for w, w0 in zip(texts_CE, bare_CE, strict=True)) / len(texts_CE)
    return cross_entropy(logits_BC, labels) + 8.0 * knowledge


def prograd(task: Tensor, general: Tensor) -> Tensor:
    """ProGrad (arXiv 2205.14865, equation 5) with lambda = 1, of gradients as one vector each."""
    cosine = (task @ general) / (task.norm() * general.norm())
    return task if cosine > 0 else task - (task @ general) / general.norm() ** 2 * general


def promptsrc(
    logits_BC: Tensor,
    labels: Sequence[int],
    texts_CE: Tensor,
    templates_TCE: Tensor,
    zero_shot_BE: Tensor,
    scale: float,
) -> Tensor:
    """PromptSRC's text side (arXiv 2307.06948, equations 2 and 3, with the means of trainers/promptsrc.py).

    Args:
        templates_TCE: the bare student's unit features of each template.
        zero_shot_BE: its unit image features.
    """
    mean = templates_TCE.mean(0)
    bare = mean / mean.norm(dim=1, keepdim=True)
    text = (texts_CE - bare).abs().sum() / texts_CE.numel()
    zero_shot = torch.softmax(scale * zero_shot_BE @ bare.T, 1)
    logits = divergence(zero_shot, torch.softmax(logits_BC, 1)) / logits_BC.numel()
    return cross_entropy(logits_BC, labels) + 25.0 * text + logits


def kdpl(student_BC: Tensor, teacher_BC: Tensor, most: int | None = None) -> Tensor:
    """KDPL (arXiv 2407.03056, section 3): half of each divergence, mean over rows.

    Args:
        student_BC, teacher_BC: logits.
        most: without class names, the softmaxes are over so many classes with the largest mean probability of the
            teacher; None: over all.
    """
    if most is not None:
        chosen = torch.softmax(teacher_BC, 1).mean(0).argsort(descending=True)[:most]
        student_BC, teacher_BC = student_BC[:, chosen], teacher_BC[:, chosen]
    p, q = torch.softmax(teacher_BC, 1), torch.softmax(student_BC, 1)
    return (0.5 * divergence(p, q) + 0.5 * divergence(q, p)) / len(p)


def pomp(logits_BC: Tensor, labels: Sequence[int], drawn: Sequence[int]) -> Tensor:
    """POMP (arXiv 2304.04704, equation 5; the margin is that of trainers/pomp.py), mean over rows.

    Args:
        drawn: K - 1 classes drawn from all C, for the whole batch; a row's own label is no negative of the row.
    """
    rows = []
    for row, label in zip(logits_BC, labels, strict=True):
        negatives = [c for c in drawn if c != label]
        margin = math.log10((len(row) - 1) / len(negatives))
        rows.append(torch.log(row[label].exp() + (row[negatives] + margin).exp().sum()) - row[label])
    return torch.stack(rows).mean()


def tip_adapter_logits(
    images_BE: Tensor, texts_CE: Tensor, keys_NE: Tensor, values_NC: Tensor, scale: float, alpha: float, beta: float
) -> Tensor:
    """Tip-Adapter (arXiv 2207.09519, equations 3 to 5), [B, C]: alpha phi(f F^T) L + scale f W^T.

    phi(x) = exp(-beta (1 - x)). Tip-Adapter-F trains the keys F with cross-entropy of these logits.

    Args:
        keys_NE: F, the features of the cached photos.
        values_NC: L, their labels, one hot.
    """
    affinity = torch.exp(-beta * (1 - images_BE @ keys_NE.T))
    return alpha * affinity @ values_NC + scale * images_BE @ texts_CE.T


def promptkd(
    images_BE: Tensor, projection_ED: Tensor, texts_CD: Tensor, teacher_BC: Tensor, scale: float, weight: float
) -> Tensor:
    """PromptKD (arXiv 2403.02781, equation 5, with the mean of trainers/promptkd.py) at temperature 1.

    Args:
        projection_ED: takes image features into the teacher's space.
        texts_CD: the teacher's class vectors, unit.
        teacher_BC: the teacher's logits.
    """
    projected = images_BE @ projection_ED
    logits = scale * projected / projected.norm(dim=1, keepdim=True) @ texts_CD.T
    return weight * divergence(torch.softmax(teacher_BC, 1), torch.softmax(logits, 1)) / logits.numel()
