"""Learn prompts of an image tower: where its slots start and in which units they are trained.

It does not run images (`image_tower` does); what is trained and how parameters are kept is `prompts`' own work.

Shapes: M slots, L blocks, D width.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from teachonce.errors import UsageError
from teachonce.image_tower import ImageTower
from teachonce.prompts import NOISE, PromptSpec, SlotLearner, replacing
from teachonce.slot_prompts import SlotPrompts
from teachonce.structures import allocate


def image_learner(tower: ImageTower, spec: PromptSpec, length: int, depth: int) -> SlotLearner:
    """The trainable prompts of an image tower at their start.

    No words say what an image slot should hold and no slot has a position: equal ones would stay equal for ever. So
    slots begin as N(0, 0.02) with zero deltas (VPT, arXiv 2203.12119). Replacing prompts begin as the states that such
    slots have in front of one grey image at the input of each block.

    `init` = template: the slots are behind a gate in every block, which begins closed and is trained: step 0 is the
    frozen student exactly (LLaMA-Adapter, arXiv 2303.16199). words, normal: no gate; the slots count at once.

    Args:
        tower: the student's.
        spec: structure, init, layer_scale and seed count; what it says of context, length and depth is about text.
        length: M.
        depth: the first `depth` blocks carry prompts; 0 means all. Without effect for `shared`.

    Raises:
        UsageError: no slots, or a depth beyond the tower.
    """
    if length < 1:
        raise UsageError(f"{length} slots in the image tower", hint="set image_length to 1 or more")
    try:
        allocation = allocate(spec.structure, tower.layers, depth)
    except UsageError as problem:
        raise UsageError(f"image_depth: {problem.message}", problem.hint.replace("depth", "image_depth")) from None
    sigma_L = tower.patch_scales()
    generator = torch.Generator().manual_seed(spec.seed)  # on the CPU: the same numbers on every device
    noise = torch.randn(length, tower.width, generator=generator).to(sigma_L)
    start = SlotPrompts(NOISE * noise)
    if allocation.replace:
        start = replacing(allocation, start, tower.block_inputs(start))
    if spec.init == "template":
        start = replace(start, gate=torch.zeros_like(sigma_L))
    scales_L = sigma_L if spec.layer_scale else torch.ones_like(sigma_L)
    return SlotLearner(allocation, start, scales_L, tower.block_inputs)
