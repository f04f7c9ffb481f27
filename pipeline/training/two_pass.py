"""The exact gradient of a loss over any number of names' features, in memory bounded by a chunk of names.

This module knows neither losses nor what prompts are made of: the caller puts the losses' gradients on the features,
and gets the gradients of the parameters.

Shapes: K candidates, n distinct names of the candidates, E embedding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teachonce.core.streams import SECOND_PASS
from teachonce.towers.packing import to_device
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.tokens import NameTokens

_FEWEST = 64  # names that are computed at once, whatever the memory


class Tower(Protocol):
    """What is asked of a text tower."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def features(self, prompts: SlotPrompts, names: NameTokens, chunk: Tensor | None = None) -> Tensor:
        """[C, E] float32, differentiable in the prompts."""


@dataclass(frozen=True)
class PoissonSample:
    """Which names a second pass computes: each by itself, with a probability that grows with its gradient."""

    expected: int  # names drawn on average
    seed: int  # of the run
    step: int  # of the run, from 0

    def draw(self, norms: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Names, and 1 / pi of each: with these weights the sum over the drawn names has the whole sum's expectation.

        pi_c = min(1, a |g_c|) with sum pi = `expected`: for this expected number of names it is the choice of least
        variance (Poisson sampling with probability proportional to size). A name without gradient is never drawn; when
        no more than `expected` have one, all of them are, and nothing is random.

        Args:
            norms: [n] |g_c|; what is not finite counts as very large.

        Returns:
            [d] rising, and [d].
        """
        chance = inclusion(norms, self.expected)
        random = SECOND_PASS.at(self.seed, self.step)
        drawn = np.flatnonzero(random.random(len(norms)) < chance)
        return drawn, 1.0 / chance[drawn]


def inclusion(norms: npt.NDArray[np.float64], expected: int) -> npt.NDArray[np.float64]:
    """pi_c = min(1, a |g_c|) with sum pi = `expected`, or 1 for all with a gradient when they are no more, [n]."""
    sizes = np.nan_to_num(np.asarray(norms, np.float64), nan=1e300, posinf=1e300)
    if np.count_nonzero(sizes) <= expected:
        return (sizes > 0).astype(np.float64)
    falling = np.sort(sizes)[::-1]
    left = np.cumsum(falling[::-1])[::-1][: expected + 1]  # [t] sum of all but the t largest
    certain = int(np.argmax((expected - np.arange(len(left))) * falling[: len(left)] <= left))
    chance: npt.NDArray[np.float64] = np.minimum(1.0, (expected - certain) / left[certain] * sizes)
    return chance


@dataclass(frozen=True, eq=False)
class NamePlan:
    """The names of some candidates in chunks. Whoever keeps it spares the tower laying the same names out again."""

    names: Tensor  # [n] distinct ones by rising length, on the CPU
    chunks: tuple[Tensor, ...]  # the same, in parts
    place: Tensor  # [K] the row of each candidate, on the tower's device

    @classmethod
    def of(cls, names: NameTokens, classes: Tensor, class_chunk: int, device: torch.device) -> NamePlan:
        """Plan the names of candidates.

        Args:
            classes: [K] candidates.
            class_chunk: names of a chunk.
            device: the tower's.
        """
        needed, place = torch.unique(names.inverse[classes.cpu()], return_inverse=True)
        by_length = names.lengths[needed].argsort(stable=True)
        chosen = needed[by_length]
        return cls(chosen, torch.split(chosen, class_chunk), to_device(by_length.argsort()[place], device))


class TextPass:
    """Features of a step's candidate names; gradients gathered on them are pulled back to the prompts, exactly.

    Up to `class_chunk` distinct names: one forward, whose graph is kept until the gradients come. Beyond: all features
    without a graph, then chunk by chunk the features again, with a graph, into which the gradients are fed. This is the
    chain rule, so the result is the one-shot gradient up to the order of summation. Names of like length share a chunk,
    which leaves fewer groups for attention.

    The prompts are evaluated anew for each chunk, and with them the prefix: a handful of positions of some thousand a
    chunk. One graph of it for all chunks could not be freed with theirs.

    Attributes:
        features: [n, E] float32 leaf that requires a gradient, one row a distinct name. Let losses' gradients add up in
            its `grad`, over micro-batches if there are many rows, or ask autograd for each loss's own.
        place: [K] the row of `features` of each candidate, so `features[place]` is [K, E].

    Args:
        tower: the student's text tower.
        prompts: usually a `SlotLearner`.
        names: of all V classes of the vocabulary; a name that several candidates share is computed once.
        classes: [K] candidates.
        class_chunk: distinct names with a graph at once.
        autocast: entered around every forward, the same in both passes; by default no autocast.
        plan: that of an earlier pass with equal names, classes and chunk.
    """

    def __init__(
        self,
        tower: Tower,
        prompts: Callable[[], SlotPrompts],
        names: NameTokens,
        classes: Tensor,
        class_chunk: int,
        autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
        plan: NamePlan | None = None,
    ) -> None:
        self._tower, self._prompts, self._tokens, self._autocast = tower, prompts, names, autocast
        self._chunk = class_chunk
        self._plan = plan or NamePlan.of(names, classes, class_chunk, tower.device)
        self.place, chunks = self._plan.place, self._plan.chunks
        self._kept: Tensor | None = None
        if len(chunks) == 1:
            self._kept = self._forward(chunks[0])
            features = self._kept.detach().clone()
        else:
            with torch.no_grad():
                features = torch.cat([self._forward(chunk) for chunk in chunks])
        self.features = features.requires_grad_()

    def pull_back(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], sample: PoissonSample | None = None
    ) -> list[list[Tensor]]:
        """The gradients with respect to the prompts' parameters. May be called again while these have not changed.

        Args:
            parameters: what `prompts` depends on.
            gradients: each [n, E], of some loss with respect to `features`. They share every forward.
            sample: compute only names drawn by it, by their size in all gradients together: cheaper and unbiased, not
                exact. Without effect when all names fit into one chunk, as their graph is there anyway.

        Returns:
            For each gradient, for each parameter: its gradient, float32, zero where nothing reaches it.
        """
        if self._kept is not None:
            features, self._kept = self._kept, None
            return _pull_all(features, parameters, gradients)
        chunks = self._plan.chunks
        if sample is not None:
            norms = torch.stack([gradient.double().square().sum(1) for gradient in gradients]).sum(0).sqrt()
            drawn, weight = (torch.from_numpy(part) for part in sample.draw(norms.cpu().numpy()))
            chunks = torch.split(self._plan.names[drawn], self._chunk)
            drawn, weight = to_device(drawn, norms.device), to_device(weight.float(), norms.device)
            gradients = [gradient[drawn] * weight[:, None] for gradient in gradients]
        totals = [[_zeros(parameter) for parameter in parameters] for _ in gradients]
        parts = zip(*(torch.split(gradient, self._chunk) for gradient in gradients), strict=True)
        for chunk, of_chunk in zip(chunks, parts, strict=True):
            if not len(chunk):  # no name was drawn
                break
            pulled = _pull_all(self._forward(chunk), parameters, of_chunk)
            totals = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(totals, pulled, strict=True)]
        return totals

    def _forward(self, chunk: Tensor) -> Tensor:
        with self._autocast():
            return self._tower.features(self._prompts(), self._tokens, chunk)


def names_that_fit(features: Callable[[Tensor], Tensor], lengths: Tensor, memory: int) -> int:
    """How many names' graphs fit into memory, the longest names taken, at least 64.

    The bytes of a token are measured: what the graphs of two samples of names keep, less what both keep.

    Args:
        features: [c] distinct names to their features, with a graph.
        lengths: [C] tokens of each distinct name.
        memory: bytes.
    """
    falling = lengths.argsort(descending=True, stable=True)
    if len(falling) <= _FEWEST:
        return _FEWEST
    large = falling[torch.linspace(0, len(falling) - 1, _FEWEST).long()]
    small = large[::2]
    tokens = int(lengths[large].sum() - lengths[small].sum())
    of_token = max(1, (_kept_by(features, large) - _kept_by(features, small)) // max(1, tokens))
    needed = lengths[falling].cumsum(0) * of_token
    return max(_FEWEST, int((needed <= memory).sum()))


def _kept_by(features: Callable[[Tensor], Tensor], chunk: Tensor) -> int:
    """Bytes that the graph of some names' features keeps for the backward pass."""
    kept: dict[int, tuple[int, object]] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage._cdata] = (storage.nbytes(), storage)  # which stays, so that its number is not given again
        return x

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        features(chunk)
    return sum(size for size, _ in kept.values())


class FixedPass:
    """Features that no prompt reaches, where `TextPass` is expected: of an unprompted text tower.

    Attributes:
        features: [V, E], without gradient.
        place: [K] candidates.
    """

    def __init__(self, features: Tensor, classes: Tensor) -> None:
        self.features, self.place = features, to_device(classes, features.device)


def pulled_back(outputs: Tensor, parameters: Sequence[Tensor], gradient: Tensor, keep: bool = False) -> list[Tensor]:
    """The gradient with respect to parameters, given that with respect to outputs.

    Under float16 a small gradient would vanish on its way, so it is brought near 1 by a power of two, which is exact,
    and the result is brought back.

    Args:
        outputs: with a graph.
        gradient: of the outputs' shape.
        keep: whether the graph is used again; else it is freed.

    Returns:
        For each parameter, float32; zero where nothing reaches it.
    """
    power = _power(gradient)
    scaled = torch.autograd.grad(outputs, parameters, gradient / power, retain_graph=keep, allow_unused=True)
    return [
        _zeros(parameter) if part is None else part.to(torch.promote_types(part.dtype, torch.float32)) * power
        for parameter, part in zip(parameters, scaled, strict=True)
    ]


def _pull_all(outputs: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """`pulled_back` for several gradients; the graph is freed with the last."""
    last = len(gradients) - 1
    return [pulled_back(outputs, parameters, gradient, keep=number < last) for number, gradient in enumerate(gradients)]


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))


def _power(gradient: Tensor) -> Tensor:
    """The power of two just above the largest entry, a scalar; within what float32 can divide by and multiply with."""
    exponent = torch.frexp(gradient.abs().amax().float().nan_to_num(1.0, 1.0)).exponent.clamp(-100, 100)
    return ((exponent.int() + 127) << 23).view(torch.float32)  # a float put together from bits is exact on every device


def gradients_of(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of a loss on each input: class features, image features, a head; zeros where it reaches none."""
    wanted = [x for x in inputs if x.requires_grad]
    gradients = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
    by_input = {id(x): part for x, part in zip(wanted, gradients, strict=True) if part is not None}
    return [torch.zeros_like(x) if (part := by_input.get(id(x))) is None else part for x in inputs]


def add_gradients(sums: list[list[Tensor]], parts: list[list[Tensor]]) -> None:
    """Add the parts to the sums in place; sums that are still empty become the parts."""
    if not sums:
        sums.extend(parts)
        return
    for total, more in zip(sums, parts, strict=True):
        total[:] = [a + b for a, b in zip(total, more, strict=True)]
