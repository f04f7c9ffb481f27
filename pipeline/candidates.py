"""Which classes enter the softmax of a step, with what weight, and the exact gradient over any number of them.

It does not know losses or prompts: `two_pass_backward` is handed both.

Shapes: V classes of the vocabulary, K candidates, B rows, m best classes a row, C distinct names, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teachonce.errors import TeachOnceError
from teachonce.text_tower import NameTokens, SlotPrompts, TextTower

_STREAM = 1  # keeps these draws apart from the sampler's, which share the key (seed, number)


@dataclass(frozen=True, eq=False)
class Candidates:
    """The classes of one step, shared by all its rows. On the CPU."""

    classes: Tensor  # [K] int64, rising
    log_weight: Tensor  # [K] float32: ln of how many classes each stands for, added inside the softmax
    forced: int  # classes that are there for certain: labels and best classes, or all
    vocabulary: int  # V

    def columns(self) -> Tensor:
        """Where each class of the vocabulary is among the candidates, -1 if it is not, [V] int64."""
        columns = torch.full((self.vocabulary,), -1)
        columns[self.classes] = torch.arange(len(self.classes))
        return columns


def all_candidates(vocabulary: int) -> Candidates:
    """Every class, each standing for itself."""
    return Candidates(torch.arange(vocabulary), torch.zeros(vocabulary), vocabulary, vocabulary)


def sampled_candidates(
    labels: npt.ArrayLike,
    top_classes: npt.ArrayLike,
    fill: int,
    vocabulary: int,
    seed: int,
    step: int,
    correction: Literal["ln", "none"] = "ln",
) -> Candidates:
    """The rows' labels and best classes D, and a uniform draw of n others without replacement.

    Inclusion is certain on D and n / (V - |D|) elsewhere, the same for all rows, so ln w is 0 on D and
    ln((V - |D|) / n) on the fill (the importance weight of sampled softmax, Jean et al. 2015, arXiv 1412.2007). When
    no more than n others exist, all are taken and all weigh 1. A pure function of its arguments.

    Args:
        labels: any shape; -1 (unmapped) is ignored.
        top_classes: any shape, the teacher's best classes of each row; -1 is ignored.
        fill: n. The number of candidates is |D| + n, so it varies with D.
        vocabulary: V.
        seed: of the run.
        step: of the run, from 0.
        correction: none: every ln w is 0.

    Raises:
        TeachOnceError: a class beyond the vocabulary.
    """
    ids = np.concatenate([np.asarray(labels, np.int64).ravel(), np.asarray(top_classes, np.int64).ravel()])
    if ids.size and ids.max() >= vocabulary:
        raise TeachOnceError(f"class {ids.max()} among the targets of a vocabulary of {vocabulary} classes")
    weight = np.full(vocabulary, -1.0, np.float32)  # below zero: not a candidate
    weight[ids[ids >= 0]] = 0.0
    others = np.flatnonzero(weight < 0)
    forced = vocabulary - len(others)
    if fill < len(others):
        random = np.random.Generator(np.random.Philox(counter=[0, 0, 0, _STREAM], key=[seed, step]))
        drawn = random.choice(others, fill, replace=False, shuffle=False)
        weight[drawn] = math.log(len(others) / fill) if correction == "ln" and fill else 0.0
    else:
        weight[others] = 0.0
    classes = np.flatnonzero(weight >= 0)
    return Candidates(torch.from_numpy(classes), torch.from_numpy(weight[classes]), forced, vocabulary)


def two_pass_backward(
    tower: TextTower,
    prompts: Callable[[], SlotPrompts],
    names: NameTokens,
    classes: Tensor,
    loss: Callable[[Tensor], Tensor],
    class_chunk: int,
) -> Tensor:
    """Add the gradient of a loss over candidate classes to the prompts' parameters, in bounded memory.

    Up to `class_chunk` distinct names: one plain forward and backward. Beyond: all features without a graph; the loss
    and its gradient with respect to the features; then chunk by chunk the features again, with a graph, into which
    that gradient is fed. This is the chain rule, so the result is the one-shot gradient up to the order of summation.

    The prompts are evaluated anew for each chunk, and with them the prefix. Keeping one graph would save a handful of
    positions of some thousand a chunk, and would need retain_graph, so the chunks' graphs could not be freed apart.

    Args:
        prompts: usually a `PromptLearner`.
        names: of all V classes of the vocabulary; a name that several candidates share is computed once.
        classes: [K] candidates.
        loss: takes their features [K, E] float32 on the tower's device to a scalar.
        class_chunk: distinct names with a graph at once.

    Returns:
        The loss, detached.
    """
    needed, place = torch.unique(names.inverse[classes.cpu()], return_inverse=True)
    place = place.to(tower.device)
    if len(needed) <= class_chunk:
        value = loss(tower.features(prompts(), names, needed)[place])
        torch.autograd.backward(value)
        return value.detach()
    # Names of like length share a chunk, which leaves fewer groups for attention; `place` follows them.
    by_length = names.lengths[needed].argsort(stable=True)
    needed, place = needed[by_length], by_length.argsort().to(tower.device)[place]
    chunks = torch.split(needed, class_chunk)
    with torch.no_grad():
        features = torch.cat([tower.features(prompts(), names, chunk) for chunk in chunks])
    features.requires_grad_()
    value = loss(features[place])
    torch.autograd.backward(value)
    if features.grad is not None:  # a loss that no feature reaches
        for chunk, part in zip(chunks, torch.split(features.grad, class_chunk), strict=True):
            torch.autograd.backward(tower.features(prompts(), names, chunk), part)
    return value.detach()
