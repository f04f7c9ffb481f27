"""The parts of open_clip's own VisionTransformer, for `ImageTower`.

Shapes: as in `image_backbone`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from teachonce.towers.image_backbone import Backbone, join_heads, linear_heads, third
from teachonce.towers.structures import Letter


@dataclass(frozen=True, eq=False)
class OpenClipBackbone(Backbone):
    """open_clip's VisionTransformer of plain pre-norm blocks: [class] patches, positions at the input only."""

    visual: Any

    @staticmethod
    def obstacle(visual: Any) -> str | None:
        """Say what in a VisionTransformer keeps slots out; None where nothing does."""
        if visual.attn_pool is not None:
            return "attentional pooling (attn_pool, as in CoCa)"
        if visual.pool_type not in ("tok", "avg"):
            return f"pooling of type '{visual.pool_type}'"
        for block in visual.transformer.resblocks:
            if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
                return f"blocks of class {type(block).__name__}"
        return None

    @property
    def blocks(self) -> tuple[Any, ...]:
        """The L blocks."""
        return tuple(self.visual.transformer.resblocks)

    @property
    def width(self) -> int:
        """D."""
        return int(self.visual.positional_embedding.shape[1])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width = self.visual.image_size
        return height, width

    @property
    def weight(self) -> Tensor:
        """A weight, whose device and type are the tower's."""
        weight: Tensor = self.visual.conv1.weight
        return weight

    @property
    def prefix(self) -> int:
        """The class token is in front of the patches."""
        return 1

    @property
    def pooled(self) -> slice:
        """The class token, or the patches."""
        return slice(0, 1) if self.visual.pool_type == "tok" else slice(1, None)

    def tokens(self, pixels: Tensor) -> Tensor:
        """Compute class token and patches as they enter the first block, [B, N, D]."""
        visual = self.visual
        patches: Tensor = visual.conv1(pixels).flatten(2).transpose(1, 2)
        start = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x_BND = torch.cat([start, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        out: Tensor = visual.ln_pre(x_BND)
        return out

    def norm(self, block: Any, x_BTD: Tensor) -> Tensor:
        """Normalise states as the block does before attention."""
        normed: Tensor = block.ln_1(x_BTD)
        return normed

    def project(self, block: Any, letter: Letter, normed_BTD: Tensor) -> Tensor:
        """Compute query, key or value, split into heads, [B, H, T, d]."""
        attn = block.attn
        weight, bias = third(attn.in_proj_weight, letter), third(attn.in_proj_bias, letter)
        return linear_heads(normed_BTD, weight, bias, attn.num_heads)

    def finish(self, block: Any, x_BTD: Tensor, mixed_BHTd: Tensor) -> Tensor:
        """Compute what follows attention in a pre-norm block, [B, T, D]."""
        x_BTD = x_BTD + block.ls_1(block.attn.out_proj(join_heads(mixed_BHTd)))
        out: Tensor = x_BTD + block.ls_2(block.mlp(block.ln_2(x_BTD)))
        return out

    def pool(self, x_BRD: Tensor) -> Tensor:
        """Map what the last block gives to the joint embedding, [B, E]."""
        ln_post, proj = self.visual.ln_post, self.visual.proj
        pooled: Tensor = ln_post(x_BRD.mean(1)) if self.visual.final_ln_after_pool else ln_post(x_BRD).mean(1)
        return pooled if proj is None else pooled @ proj
