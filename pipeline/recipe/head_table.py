"""The keys of `[head]`: what is trained behind the towers.

At each key stand its range, the source of its default, and when it does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from teachonce.core.strict import LATER, OURS, Above, AtLeast, AtMost, Idle, Source, Table, idle
from teachonce.heads.kinds import CACHES, PENALTIES, HeadKind, Learn
from teachonce.recipe.tables import LARGEST_RATE


def only_with(*heads: HeadKind) -> Idle:
    """The field does nothing with other heads than these."""
    return Idle(("head",), lambda values: values["head"] not in heads)


ADDED = only_with("linear", "bias", "projection", "projection+linear", "teacher-space")
PENALISED = only_with("linear", "bias", "tip-adapter-f", "projection", "projection+linear", "teacher-space")
TRAINED = Idle(("head",), lambda values: values["head"] in ("none", "tip-adapter"))
HANDICAPPED = only_with("linear", "projection+linear")
NO_HEAD = idle(head="none")
CACHED = only_with(*CACHES)
NETWORK = only_with("clip-adapter")


def _not_after(values: Mapping[str, Any]) -> bool:
    return bool(values["head_learn"] != "after")


NOT_AFTER = Idle(("head_learn",), _not_after, needs='head_learn = "after"')


@dataclass(frozen=True, kw_only=True)
class Head(Table):
    """What is trained behind the towers, on the features that the store keeps."""

    head: Annotated[HeadKind, Source("ours: prompts alone"), LATER] = "none"
    """linear: a residual vector for each class with photos (Task Residual, arXiv 2211.10277). bias: a number for each.
    tip-adapter, tip-adapter-f: cached rows (arXiv 2207.09519). clip-adapter: a network on image features (arXiv
    2110.04544). projection: one matrix for the vectors of all names (ProLIP, arXiv 2410.05270). projection+linear:
    both, residuals behind the matrix. teacher-space: image features through a matrix, beside the teacher's class
    vectors (PromptKD, arXiv 2403.02781). With tower = "none" the head is all that is trained."""
    head_learn: Annotated[Learn, NO_HEAD, idle(tower="none"), OURS, LATER] = "together"
    """together: prompts and head in the same steps. after: the prompts in `steps`, then the head in `head_steps`."""
    head_steps: Annotated[
        int, Above(0), NO_HEAD, idle(tower="none"), NOT_AFTER, idle(head="tip-adapter"), OURS, LATER
    ] = 300
    """after: the steps of the head. With tower = "none" a head has `steps`."""
    head_weight: Annotated[float, Above(0), ADDED, Source("ours; Task Residual: 0.5"), LATER] = 1.0
    """Between what is there without the head and what the head adds: residuals, numbers, or the matrix's product.
    teacher-space: the share of the teacher's space in the logits, at most 1; 1 is PromptKD."""
    head_penalty: Annotated[
        float | Literal["auto"],
        AtLeast(0),
        PENALISED,
        Source("ours: 0.2 for projection, 0.02 for teacher-space, else 0"),
        LATER,
    ] = "auto"
    """Ridge: times the mean over classes or cached rows of what is added, squared; projection: times |A|^2;
    teacher-space: times the squared distance of its matrix from where it began."""
    head_handicap: Annotated[
        float, AtLeast(0), HANDICAPPED, Source("ours: none; calibrated stacking, arXiv 1605.04253"), LATER
    ] = 0.0
    """Nats taken from the logits of the classes with photos when they compete with names that have none: such classes
    win too often (calibrated stacking, Chao et al. 2016, arXiv 1605.04253). Training does not see it."""
    head_rate: Annotated[
        float, Above(0), AtMost(LARGEST_RATE), TRAINED, Source("Tip-Adapter-F and others: 0.001"), LATER
    ] = 0.001
    """The learning rate of the head, which follows the same schedule as that of the prompts."""
    tip_alpha: Annotated[float, Above(0), CACHED, Source("Tip-Adapter"), LATER] = 1.0
    """What a cached row adds to the logit of its class at no distance."""
    tip_beta: Annotated[float, Above(0), CACHED, Source("Tip-Adapter"), LATER] = 5.5
    """How fast that falls: exp(-beta (1 - cosine))."""
    adapter_ratio: Annotated[float, Above(0), AtMost(1), NETWORK, Source("CLIP-Adapter"), LATER] = 0.2
    """The share of the network in image features."""
    adapter_width: Annotated[int, AtLeast(0), NETWORK, Source("CLIP-Adapter: a quarter of the width"), LATER] = 0
    """Hidden units; 0: a quarter of the embedding's width."""

    @property
    def penalty(self) -> float:
        """The weight of the ridge penalty."""
        if self.head in ("none", "tip-adapter", "clip-adapter"):
            return 0.0
        return PENALTIES.get(self.head, 0.0) if isinstance(self.head_penalty, str) else self.head_penalty

    @property
    def is_trained(self) -> bool:
        """Whether there is a head with something to train."""
        return self.head not in ("none", "tip-adapter")
