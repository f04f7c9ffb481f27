"""What MaPLe and PromptSRC compute with their prompts, written from their papers on open_clip's own blocks, in float64.

MaPLe (arXiv 2210.03117), equations 1 to 4: in the first J blocks of both towers the slots' states are replaced by the
block's prompts; from there on they are carried. An image prompt is a linear map of the text prompt of its block.
PromptSRC (arXiv 2307.06948) has the same with independent prompts in the two towers.
It shares no code with the product, and tests nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F


def text_features(model: Any, prompts: Sequence[Tensor], names: Sequence[str]) -> Tensor:
    """Unit features [N, E] of `[SOS] prompts name. [EOT]`.

    Args:
        prompts: each [M, D], of block 0, 1, ...; the first has no position yet.
    """
    exact = copy.deepcopy(model).double()
    first, *deeper = [prompt.double() for prompt in prompts]
    slots = len(first)
    filler = " ".join("X" * slots)
    tokens = open_clip.SimpleTokenizer()([f"{filler} {name}." for name in names], exact.context_length)
    x = exact.token_embedding(tokens)
    x = torch.cat([x[:, :1], first.expand(len(x), -1, -1), x[:, 1 + slots :]], dim=1) + exact.positional_embedding
    mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=torch.float64).triu(1)
    for index, block in enumerate(exact.transformer.resblocks):
        if 1 <= index <= len(deeper):
            x = torch.cat([x[:, :1], deeper[index - 1].expand(len(x), -1, -1), x[:, 1 + slots :]], dim=1)
        x = block(x, attn_mask=mask)
    ends = tokens.argmax(dim=-1)
    pooled = exact.ln_final(x)[torch.arange(len(x)), ends]
    return F.normalize(pooled @ exact.text_projection, dim=-1)


def image_features(model: Any, prompts: Sequence[Tensor], pixels: Tensor) -> Tensor:
    """Unit features [B, E] with prompts behind the patches; without any, the bare tower's.

    Args:
        prompts: each [M, W], of block 0, 1, ...; the first passes through the tower's first norm.
    """
    exact = copy.deepcopy(model).double().visual
    patches = exact.conv1(pixels.double()).flatten(2).transpose(1, 2)
    start = exact.class_embedding.expand(len(patches), 1, -1)
    x = torch.cat([start, patches], dim=1) + exact.positional_embedding
    slots = len(prompts[0]) if prompts else 0
    if prompts:
        x = torch.cat([x, prompts[0].double().expand(len(x), -1, -1)], dim=1)
    x = exact.ln_pre(x)
    for index, block in enumerate(exact.transformer.resblocks):
        if 1 <= index < len(prompts):
            x = torch.cat([x[:, : x.shape[1] - slots], prompts[index].double().expand(len(x), -1, -1)], dim=1)
        x = block(x)
    return F.normalize(exact.ln_post(x[:, 0]) @ exact.proj, dim=-1)
