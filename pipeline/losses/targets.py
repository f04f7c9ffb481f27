"""The teacher's distribution over a step's candidates, from what a label store keeps of it.

This module reads no store and computes no loss. Results are natural logs, normalised over the whole vocabulary, so that
the mass of the candidates is what the teacher gives them and not 1.

Shapes: B rows, k stored classes a row, K candidates, V classes of the vocabulary, D width of the teacher's embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Tail = Literal["residual-uniform", "to-label"]
_NONE = -torch.inf  # the log of a mass of zero
_TILE = 4096  # classes whose logits are held at once when only their sum is wanted


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """What a label store keeps of the teacher for B rows, on the logits' device."""

    class_ids: Tensor  # [B, k] int64 in [0, V), each once, or -1: no class, with log-probability -inf
    log_probs: Tensor  # [B, k] float32, natural, at the teacher's own temperature; -inf is allowed
    log_tail: Tensor  # [B] float32, ln of the sum over all other classes of p^(1/tau), for the tau in use; or -inf

    def places(self, columns: Tensor) -> Tensor:
        """The column of each stored class, -1 for none, [B, k]. `columns`: [V], as of `Candidates.columns`."""
        return torch.where(self.class_ids >= 0, columns[self.class_ids.clamp(min=0)], -1)


def top_k_columns(
    targets: SoftTargets,
    columns: Tensor,
    labels: Tensor,
    candidates: int,
    teacher_tau: float,
    tail: Tail,
) -> Tensor:
    """The teacher on the candidates, with a rule for the classes that are not stored.

    residual-uniform: every class that is not stored has an equal share of the tail (TinyViT, arXiv 2207.10666).
    to-label: the whole tail goes to the label, stored or not; a row without a label has no tail.

    In both, a tail that no class can take (every class of the vocabulary is stored) is dropped. A row in which the
    teacher has no mass at all is -inf everywhere.

    Args:
        targets: their `log_tail` is that of `teacher_tau`.
        columns: [V] int64, where a class is among the candidates, or -1.
        labels: [B] int64 classes of the vocabulary (not columns), -1 for none.
        candidates: K.
        teacher_tau: temperature of the teacher, above 0.

    Returns:
        [B, K] ln p_T, -inf where it has no mass.
    """
    stored = targets.class_ids >= 0
    head = (targets.log_probs.float() / teacher_tau).masked_fill(~stored, _NONE)
    unstored = len(columns) - stored.sum(1)
    can_take = unstored > 0 if tail == "residual-uniform" else labels >= 0
    log_tail = targets.log_tail.float().masked_fill(~can_take, _NONE)
    log_total = torch.cat([head, log_tail[:, None]], 1).logsumexp(1)
    log_total = log_total.masked_fill(log_total == _NONE, 0.0)[:, None]
    head, log_tail = head - log_total, log_tail[:, None] - log_total
    share = log_tail - unstored.clamp(min=1).log()[:, None]
    rest = share if tail == "residual-uniform" else torch.full_like(share, _NONE)
    log_p = rest.repeat(1, candidates + 1)  # the last column takes all other classes, and is dropped
    place = targets.places(columns)
    log_p.scatter_(1, torch.where(place >= 0, place, candidates), head)
    if tail == "to-label":
        label = torch.where(labels >= 0, columns[labels.clamp(min=0)], -1)[:, None]
        label = torch.where(label >= 0, label, candidates)
        log_p.scatter_(1, label, torch.logaddexp(log_p.gather(1, label), log_tail))
    return log_p[:, :candidates]


def embedding_columns(
    embedding: Tensor, class_embeddings: Tensor, scale: float, teacher_tau: float, classes: Tensor
) -> Tensor:
    """The teacher on the candidates from its image embeddings: softmax(scale cos / tau) over all V, exact.

    With the frozen student's image and text features in place of the teacher's these are the targets of
    self-consistency (PromptSRC, arXiv 2307.06948). Always float32: bfloat16 logits cost some 5e-4 nats.

    Args:
        embedding: [B, D] unit.
        class_embeddings: [V, D] unit, of the run's vocabulary.
        scale: the teacher's own factor on the cosine.
        teacher_tau: temperature of the teacher, above 0.
        classes: [K] int64 candidates, rising, each once.

    Returns:
        [B, K] ln p_T float32. Beyond it, no more than B x 4,096 logits are held at once.
    """
    with torch.no_grad(), torch.autocast(embedding.device.type, enabled=False):
        images, texts = embedding.float() * (scale / teacher_tau), class_embeddings.float()
        if len(classes) == len(texts):
            return (images @ texts.T).log_softmax(1)
        sums = torch.stack([(images @ tile.T).logsumexp(1) for tile in torch.split(texts, _TILE)], 1)
        return images @ texts[classes].T - sums.logsumexp(1, keepdim=True)
