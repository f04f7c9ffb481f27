"""The frozen teacher: unit image features in, its top-k soft labels over the whole vocabulary out.

It does not read images and does not store anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teachonce.errors import DataError, UsageError
from teachonce.label_codec import TopK
from teachonce.zeroshot import equal_rows


@dataclass(frozen=True)
class TeacherHead:
    """The text side of the teacher. C classes, U distinct names, E width of the joint embedding."""

    features_UE: Tensor
    """Unit text features of the distinct names, float32."""
    inverse_C: Tensor
    """Distinct name of each class: classes that share a name get exactly equal logits."""
    logit_scale: float

    def logits(self, images_BE: Tensor) -> Tensor:
        """Logits at the teacher's own temperature, [B, C] float32."""
        return (self.logit_scale * images_BE.float() @ self.features_UE.T)[:, self.inverse_C]


def head_of(class_embeddings: npt.NDArray[np.float32], logit_scale: float, device: str) -> TeacherHead:
    """The head of stored class embeddings, [C, E]; classes whose rows have equal bits are computed once, and tie."""
    embeddings = torch.from_numpy(class_embeddings)
    inverse = equal_rows(embeddings)
    first = torch.full((int(inverse.max()) + 1,), len(inverse))
    first = first.scatter_reduce(0, inverse, torch.arange(len(inverse)), "amin")
    return TeacherHead(embeddings[first].to(device), inverse.to(device), logit_scale)


def soft_labels(logits_BC: Tensor, top_k: int, temperatures: tuple[float, ...]) -> TopK:
    """The top k of softmax(logits) and the softened mass outside it.

    Args:
        logits_BC: float32.
        top_k: how many classes to keep.
        temperatures: tau for which ln sum_{c outside} p_c^(1/tau) is wanted; p is always at temperature 1.

    Raises:
        UsageError: k is larger than the vocabulary.
        DataError: a logit is NaN or infinite.
    """
    if top_k > logits_BC.shape[1]:
        raise UsageError(f"top-k {top_k} is larger than the vocabulary of {logits_BC.shape[1]} classes")
    if not torch.isfinite(logits_BC).all():
        raise DataError("the teacher gave a NaN or infinite logit",
                        hint="run with --set precision=fp32; if it stays, the weights are damaged")  # fmt: skip
    ids, values = exact_topk(logits_BC, top_k)
    total = torch.logsumexp(logits_BC, dim=1)
    outside = logits_BC.scatter(1, ids, float("-inf"))
    tails = [torch.logsumexp(outside / tau, dim=1) - total / tau for tau in temperatures]
    return TopK(
        ids.cpu().numpy(),
        (values - total[:, None]).cpu().numpy().astype(np.float32),
        torch.stack(tails, dim=1).cpu().numpy().astype(np.float32),
    )


def exact_topk(logits_BC: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """torch.topk with ties decided by class index, also at the boundary; the same on every device.

    Returns:
        Class ids and values, [B, k], by falling value, then rising class.
    """
    values, ids = torch.topk(logits_BC, top_k, dim=1)
    threshold = values[:, -1:]
    crowded = (logits_BC >= threshold).sum(dim=1) > top_k
    for row in torch.nonzero(crowded).flatten().tolist():
        inside = torch.nonzero(logits_BC[row] >= threshold[row]).flatten()  # rising class
        order = torch.argsort(logits_BC[row, inside], descending=True, stable=True)[:top_k]
        ids[row] = inside[order]
    ids = ids.sort(dim=1).values
    values = logits_BC.gather(1, ids)
    order = torch.argsort(values, dim=1, descending=True, stable=True)
    return ids.gather(1, order), values.gather(1, order)
