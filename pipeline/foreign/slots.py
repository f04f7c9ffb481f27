"""Put prompts from outside into the slots of our towers, so that features are those of their own forward pass.

A context at the input is `shared`. Prompts that replace the slots' states in the first J blocks are `shared-replace`:
one state for the query, the key, the value and the residual of a block. What enters the first block is the context with
its position (text), or with the tower's first norm behind it (image).

Shapes: M slots, D width, J blocks with prompts, L blocks.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from teachonce.foreign.prompts import ForeignPrompts
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.text_tower import TextTower


def text_slots(prompts: ForeignPrompts, tower: TextTower) -> SlotPrompts:
    """The prompts of the text tower, float32, on the CPU; slots stand before the name where blocks replace them."""
    context = SlotPrompts(context=prompts.context)
    if not prompts.replaces:
        return context
    first = tower.block_inputs(context.apply(lambda x: x.to(tower.device)))[0]
    return _replacing([first.float().cpu(), *prompts.deeper], tower.layers)


@torch.no_grad()
def image_slots(prompts: ForeignPrompts, visual: Any, layers: int) -> SlotPrompts | None:
    """The prompts of the image tower, likewise; None where the file has none.

    Args:
        visual: the student's own image tower, open_clip's VisionTransformer: the weights of a file that has image
            prompts have proved that.
        layers: L.
    """
    if not prompts.image:
        return None
    first, *deeper = prompts.image
    normed = visual.ln_pre(first.to(visual.conv1.weight))
    return _replacing([normed.float().cpu(), *deeper], layers)


def _replacing(states: list[Tensor], layers: int) -> SlotPrompts:
    """One state for every letter in each of the first blocks."""
    stack_JMD = torch.stack(states)
    made = SlotPrompts(context=None, key=stack_JMD, value=stack_JMD.clone(), replace=True)
    if len(states) == layers:  # behind the last block nothing reads a slot
        return made
    return dataclasses.replace(made, query=stack_JMD[-1:].clone(), residual=stack_JMD[-1:].clone())
