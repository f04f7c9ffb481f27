"""Coupled image prompts written the plain way: one block, one letter and one slot at a time, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from teachonce.models.coupled import CoupledLearner
from teachonce.towers.slots import SlotPrompts


def coupled_prompts(
    learner: CoupledLearner, text: SlotPrompts, leaves: Mapping[str, Tensor], sizes: tuple[Tensor, Tensor], unit: float
) -> SlotPrompts:
    """P~ = s ((F + unit A) P / t + b), MaPLe's F_l(P_l) with our units.

    Args:
        learner: says how the maps F begin and which prompts there are.
        text: the text prompts, float64.
        leaves: the learner's parameters by name.
        sizes: of slot states in each block of the text tower and of the image tower.
        unit: of the maps' parameters.
    """
    of_text, of_image = sizes

    def mapped(place: str, block: int, prompt: Tensor, index: int | None = None) -> Tensor:
        index = block if index is None else index
        first = learner.get_buffer(f"start_{place}")[index].double()
        weight = first + unit * leaves[f"map_{place}"][index]
        slots = [weight @ (slot / of_text[block]) + leaves[f"bias_{place}"][index] for slot in prompt]
        return of_image[block] * torch.stack(slots)

    values: dict[str, Any] = {"context": None}
    if text.context is not None:
        values["context"] = mapped("context", 0, text.context)
    for letter, blocks in learner.allocation.blocks.items():
        stack, prompts = getattr(text, letter), []
        for block in blocks:
            if text.replace and letter in ("query", "residual"):
                assert text.key is not None
                there = stack is not None and block == len(text.key) - 1
                prompt = stack[0] if there else text.key[block]
            elif stack is not None and block < len(stack):
                prompt = stack[block]
            else:
                prompt = torch.zeros_like(text.context)  # type: ignore[arg-type]
            prompts.append(mapped("blocks", block, prompt))
        values[letter] = torch.stack(prompts)
    if learner.allocation.added:
        assert text.added is not None
        pairs = zip(learner.allocation.added, text.added, strict=False)
        values["added"] = torch.stack([mapped("blocks", block, prompt, block - 1) for block, prompt in pairs])
    if "gate" in leaves:
        values["gate"] = leaves["gate"]
    return SlotPrompts(**values, replace=text.replace)
