"""The frozen teacher turns unit image features into its top-k soft labels over the whole vocabulary.

This module does not read images and does not store anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teachonce.errors import DataError, UsageError
from teachonce.labels.codec import TopK
from teachonce.models.classifier import distinct_rows, equal_rows
from teachonce.phrases import phrase

LOGITS_BYTES = 2**30  # bytes of one batch's logits; taking their top k needs three times as much again


@dataclass(frozen=True)
class TeacherHead:
    """The text side of the teacher. C classes, U distinct names, E width of the joint embedding."""

    features_UE: Tensor
    """Unit text features of the distinct names, float32."""
    inverse_C: Tensor
    """The distinct name of each class. Classes that share a name get exactly equal logits."""
    logit_scale: float

    def logits(self, images_BE: Tensor) -> Tensor:
        """Compute logits at the teacher's own temperature, [B, C] float32."""
        logits = self.logit_scale * images_BE.float() @ self.features_UE.T
        return logits if self._in_class_order else logits[:, self.inverse_C]

    @cached_property
    def _in_class_order(self) -> bool:
        """Whether every class has a name of its own, at the class's own place."""
        class_order = torch.arange(len(self.features_UE), device=self.inverse_C.device)
        return torch.equal(self.inverse_C, class_order)

    def tile_that_fits(self, batch: int) -> int | None:
        """Return how many distinct names to take at a time so that their logits stay small; None: all at once."""
        if 4 * batch * len(self.inverse_C) <= LOGITS_BYTES:
            return None
        return max(1, LOGITS_BYTES // (4 * batch))


def head_of(class_embeddings: npt.NDArray[np.float32], logit_scale: float, device: str) -> TeacherHead:
    """Make the head of class embeddings, [C, E]; classes whose rows have equal bits are computed once, and tie."""
    embeddings = torch.from_numpy(class_embeddings)
    inverse = equal_rows(embeddings)
    if int(inverse.max()) + 1 == len(inverse):
        inverse = torch.arange(len(inverse))  # all rows differ: in the classes' order, logits need no reordering
    return TeacherHead(embeddings[distinct_rows(inverse)[0]].to(device), inverse.to(device), logit_scale)


@dataclass(frozen=True, eq=False)
class PendingTopK:
    """The top k of a batch while the device still computes it: `fetch` waits, making the object does not.

    A worker can so give the accelerator its next batch before it looks at the results of the last one.
    """

    logits_BC: Tensor
    parts: tuple[Tensor, ...]
    """These tensors are in host memory once `ready`: class ids [B, k], log-probabilities [B, k], tails [B, T], the sum
    of all logits."""
    ready: torch.cuda.Event | None

    def fetch(self) -> TopK:
        """Wait for the device.

        Raises:
            DataError: a logit is NaN or infinite.
        """
        if self.ready is not None:
            self.ready.synchronize()
        ids, log_probs, tails, total = self.parts
        # A sum is cheaper than a look at each logit; only finite logits near the end of float32 overflow in it.
        if not (bool(torch.isfinite(total)) or bool(torch.isfinite(self.logits_BC).all())):
            raise DataError(
                "the teacher gave a NaN or infinite logit",
                hint=phrase("run with {precision=fp32}; if it stays, the weights are damaged"),
            )
        return TopK(ids.numpy(), log_probs.numpy().astype(np.float32), tails.numpy().astype(np.float32))


def begin_soft_labels(logits_BC: Tensor, top_k: int, temperatures: tuple[float, ...]) -> PendingTopK:
    """Begin to compute the top k of softmax(logits); see `soft_labels`.

    Raises:
        UsageError: k is larger than the vocabulary.
    """
    if top_k > logits_BC.shape[1]:
        raise UsageError(f"top-k {top_k} is larger than the vocabulary of {logits_BC.shape[1]} classes")
    ids, values = exact_topk(logits_BC, top_k)
    total = torch.logsumexp(logits_BC, dim=1)
    outside = logits_BC.scatter(1, ids, float("-inf"))
    tails = [torch.logsumexp(outside if tau == 1 else outside / tau, dim=1) - total / tau for tau in temperatures]
    parts = (ids, values - total[:, None], torch.stack(tails, dim=1), logits_BC.sum())
    if logits_BC.device.type != "cuda":
        return PendingTopK(logits_BC, parts, None)
    fetched = tuple(part.to("cpu", non_blocking=True) for part in parts)
    ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
    ready.record(torch.cuda.current_stream(logits_BC.device))
    return PendingTopK(logits_BC, fetched, ready)


def soft_labels(logits_BC: Tensor, top_k: int, temperatures: tuple[float, ...]) -> TopK:
    """Compute the top k of softmax(logits) and the softened mass outside it.

    Args:
        logits_BC: float32.
        top_k: how many classes to keep.
        temperatures: each tau for which ln sum_{c outside} p_c^(1/tau) is computed; p is always at temperature 1.

    Raises:
        UsageError: k is larger than the vocabulary.
        DataError: a logit is NaN or infinite.
    """
    return begin_soft_labels(logits_BC, top_k, temperatures).fetch()


class Pending(Protocol):
    """The top k of a batch that is being computed."""

    def fetch(self) -> TopK:
        """Wait for the top k."""


@dataclass(frozen=True)
class _Done:
    result: TopK

    def fetch(self) -> TopK:
        return self.result


def begin_tiled_soft_labels(
    head: TeacherHead, images_BE: Tensor, top_k: int, temperatures: tuple[float, ...], tile: int
) -> Pending:
    """Begin as `begin_soft_labels` does, for class lists whose logits do not fit: `tile` distinct names at a time.

    Classes that share a name still tie exactly. Classes that leave the running top k join the tails, so nothing is ever
    computed as a difference of large masses.
    """
    if top_k > len(head.inverse_C):
        raise UsageError(f"top-k {top_k} is larger than the vocabulary of {len(head.inverse_C)} classes")
    device, rows = images_BE.device, len(images_BE)
    ids, values = (torch.empty(rows, 0, dtype=kind, device=device) for kind in (torch.int64, torch.float32))
    total, *tails = (torch.full((rows,), float("-inf"), device=device) for _ in (1.0, *temperatures))
    for start in range(0, len(head.features_UE), tile):
        classes = torch.nonzero((head.inverse_C >= start) & (head.inverse_C < start + tile)).flatten()
        names = head.features_UE[start : start + tile]
        logits = (head.logit_scale * images_BE.float() @ names.T)[:, head.inverse_C[classes] - start]
        total = torch.logaddexp(total, torch.logsumexp(logits, dim=1))
        ids = torch.cat([ids, classes.expand(rows, -1)], dim=1)
        values = torch.cat([values, logits], dim=1)
        by_class = ids.argsort(dim=1)
        ids, values = ids.gather(1, by_class), values.gather(1, by_class)
        places, _ = exact_topk(values, min(top_k, values.shape[1]))
        outside = values.scatter(1, places, float("-inf"))
        tails = [
            torch.logaddexp(tail, torch.logsumexp(outside / tau, dim=1))
            for tail, tau in zip(tails, temperatures, strict=True)
        ]
        ids, values = ids.gather(1, places), values.gather(1, places)
    if not bool(torch.isfinite(total).all()):
        raise DataError(
            "the teacher gave a NaN or infinite logit",
            hint=phrase("run with {precision=fp32}; if it stays, the weights are damaged"),
        )
    columns = [tail - total / tau for tail, tau in zip(tails, temperatures, strict=True)]
    return _Done(
        TopK(
            ids.cpu().numpy(),
            (values - total[:, None]).cpu().numpy().astype(np.float32),
            torch.stack(columns, dim=1).cpu().numpy().astype(np.float32),
        )
    )


def exact_topk(logits_BC: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Compute torch.topk with ties decided by class index, also at the boundary; all devices give the same result.

    Nothing waits for the device: logit and class are one whole number each, and no two of these numbers are equal.

    Args:
        logits_BC: float32, or a narrower float; 0 and -0 tie.
        top_k: how many classes to take.

    Returns:
        Class ids and values, [B, k], by falling value, then rising class.
    """
    last = logits_BC.shape[1] - 1
    keys = _rising(logits_BC).to(torch.int64)
    keys.bitwise_left_shift_(32).bitwise_or_(torch.arange(last, -1, -1, device=logits_BC.device))
    ids = last - torch.topk(keys, top_k, dim=1).values.bitwise_and_(2**32 - 1)
    return ids, logits_BC.gather(1, ids)


def _rising(values: Tensor) -> Tensor:
    """Return whole numbers that are ordered as floats of 32 bits or fewer are, int32."""
    bits = values.float().view(torch.int32)
    # Below zero the bits of a float rise with its distance from zero. -0 has the lowest bits of all and becomes 0.
    return torch.where(bits < 0, torch.iinfo(torch.int32).min - bits, bits)
