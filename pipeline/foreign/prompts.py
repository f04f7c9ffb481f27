"""What is read of a checkpoint of another project: its prompts, and what proves their student.

Shapes: M slots, D width of the text tower, W width of the image tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Method = Literal["CoOp", "KgCoOp", "MaPLe", "PromptSRC"]
"""Whose file it is. CoOp stands for POMP and ProGrad as well, and PromptSRC for independent prompts in both towers (its
IVLP): their files do not differ."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignPrompts:
    """The prompts of a checkpoint, in float32, and what proves their student."""

    method: Method
    context: Tensor  # [M, D] enters the text tower's first block, before its position is added
    deeper: tuple[Tensor, ...] = ()  # each [M, D]: replaces the slots' states in text block 1, 2, ...
    image: tuple[Tensor, ...] = ()  # each [M', W]: the same of image block 0, 1, ...; the first is not yet normed
    start: Tensor | None  # [D] the start token's embedding in the prompts' own student; None if the file lacks it
    positions: int | None  # context length of the prompts' own student; None if the file lacks it
    weights: Mapping[str, Tensor] = field(default_factory=dict)  # of the frozen student, by its own names
    rounding: float  # how far the student's numbers in the file may be off, relative to a tensor's largest
    epoch: int | None
    digest: str
    """SHA-256 (hex) of the file."""

    @property
    def replaces(self) -> bool:
        """Whether the prompts replace the slots' states block by block, as in MaPLe and PromptSRC."""
        return self.method in ("MaPLe", "PromptSRC")
