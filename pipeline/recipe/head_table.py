"""The keys of `[head]`: what is trained behind the towers.

At each key stand its range, the source of its default, and when it does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from teachonce.core.strict import LATER, OURS, Above, AtLeast, AtMost, Source, Table, idle
from teachonce.heads.kinds import PENALTIES, HeadKind
from teachonce.recipe.tables import LARGEST_RATE

NO_HEAD = idle(head="none")


@dataclass(frozen=True, kw_only=True)
class Head(Table):
    """What is trained behind the towers, on the features that the store keeps."""

    head: Annotated[HeadKind, Source("ours: prompts alone"), LATER] = "none"
    """linear: a residual vector for each class with photos (Task Residual, arXiv 2211.10277). projection: one matrix
    for the vectors of all names (ProLIP, arXiv 2410.05270). With tower = "none" the head is all that is trained."""
    head_weight: Annotated[float, Above(0), NO_HEAD, Source("ours; Task Residual: 0.5"), LATER] = 1.0
    """Between the class vectors of the text tower and what the head adds to them."""
    head_penalty: Annotated[
        float | Literal["auto"], AtLeast(0), NO_HEAD, Source("ours: 0.2 for projection, else 0"), LATER
    ] = "auto"
    """Ridge: times the mean squared norm of the residuals, or times |A|^2 of the projection."""
    head_rate: Annotated[float, Above(0), AtMost(LARGEST_RATE), NO_HEAD, OURS, LATER] = 0.001
    """The learning rate of the head, which follows the same schedule as that of the prompts."""

    @property
    def penalty(self) -> float:
        """The weight of the ridge penalty."""
        return PENALTIES.get(self.head, 0.0) if isinstance(self.head_penalty, str) else self.head_penalty
