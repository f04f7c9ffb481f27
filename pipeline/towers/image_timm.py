"""The parts of timm's VisionTransformer (SigLIP, MobileCLIP-B) and Eva (EVA, PE-Core) in open_clip's TimmModel.

Shapes: as in `image_backbone`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import HybridEmbed, PatchEmbed, RotaryEmbeddingCat, apply_rot_embed_cat
from timm.layers.attention import Attention, AttentionRope
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor

from teachonce.towers.image_backbone import Backbone, join_heads, linear_heads, split_heads, third
from teachonce.towers.structures import Letter

_CONVOLUTIONS = ("ConvNeXt", "FastVit", "ByobNet", "ResNet", "ResNetV2", "EfficientNet")


@dataclass(frozen=True, eq=False)
class _TimmBackbone(Backbone):
    """What both have in common: the input, the projections to letters, and the pooling."""

    visual: Any  # open_clip's TimmModel

    @property
    def trunk(self) -> Any:
        """timm's model."""
        return self.visual.trunk

    @property
    def blocks(self) -> tuple[Any, ...]:
        """The L blocks."""
        return tuple(self.trunk.blocks)

    @property
    def width(self) -> int:
        """D."""
        return int(self.trunk.embed_dim)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        dynamic = self.trunk.dynamic_img_size  # then what open_clip says holds, not what the trunk was built for
        height, width = self.visual.image_size if dynamic else self.trunk.patch_embed.img_size
        return height, width

    @property
    def weight(self) -> Tensor:
        """A weight, whose device and type are the tower's."""
        weight: Tensor = next(self.trunk.blocks.parameters())
        return weight

    @property
    def prefix(self) -> int:
        """P, the number of class tokens and registers."""
        return int(self.trunk.num_prefix_tokens)

    @property
    def pooled(self) -> slice:
        """The class token, the patches, or all tokens."""
        trunk = self.trunk
        if trunk.attn_pool is None and trunk.global_pool == "token":
            return slice(0, 1)
        return slice(None) if self._pools_prefix else slice(self.prefix, None)

    @property
    @abstractmethod
    def _pools_prefix(self) -> bool:
        """Whether pooling over tokens reads the class token and the registers too."""

    def norm(self, block: Any, x_BTD: Tensor) -> Tensor:
        """Normalise states as a pre-norm block does before attention."""
        normed: Tensor = block.norm1(x_BTD)
        return normed

    def project(self, block: Any, letter: Letter, normed_BTD: Tensor) -> Tensor:
        """Compute query, key or value without position, split into heads, [B, H, T, d]."""
        attn, initial = block.attn, letter[0]
        separate = getattr(attn, f"{initial}_proj", None)
        if separate is not None:
            x_BHTd = split_heads(separate(normed_BTD), attn.num_heads)
        else:
            joint = attn.qkv.bias
            bias = getattr(attn, f"{initial}_bias", None) if joint is None else third(joint, letter)
            x_BHTd = linear_heads(normed_BTD, third(attn.qkv.weight, letter), bias, attn.num_heads)
        if letter == "value":
            return x_BHTd
        normed: Tensor = getattr(attn, f"{initial}_norm")(x_BHTd)
        return normed

    def pool(self, x_BRD: Tensor) -> Tensor:
        """Map what the last block gives to the joint embedding, [B, E]."""
        trunk = self.trunk
        x_BRD = trunk.norm(x_BRD)
        x_BD = x_BRD.mean(1) if trunk.attn_pool is None else trunk.attn_pool(x_BRD)
        pooled: Tensor = self.visual.head(trunk.head(trunk.fc_norm(x_BD)))
        return pooled


@dataclass(frozen=True, eq=False)
class TimmVitBackbone(_TimmBackbone):
    """timm's VisionTransformer of plain pre-norm blocks, with or without a class token; positions at the input only."""

    @property
    def _pools_prefix(self) -> bool:
        return bool(self.trunk.pool_include_prefix)

    def tokens(self, pixels: Tensor) -> Tensor:
        """Compute the image's tokens as they enter the first block, [B, N, D]."""
        trunk = self.trunk
        out: Tensor = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(pixels)))
        return out

    def finish(self, block: Any, x_BTD: Tensor, mixed_BHTd: Tensor) -> Tensor:
        """Compute what follows attention in a pre-norm block, [B, T, D]."""
        attn = block.attn
        x_BTD = x_BTD + block.ls1(attn.proj(attn.norm(join_heads(mixed_BHTd))))
        out: Tensor = x_BTD + block.ls2(block.mlp(block.norm2(x_BTD)))
        return out


@dataclass(frozen=True, eq=False)
class TimmEvaBackbone(_TimmBackbone):
    """timm's Eva: pre-norm or post-norm blocks; patches have a rotary position in every block, other tokens have none.

    The slots, which stand behind the patches, have none either: they take no part in `place`.
    """

    @property
    def _pools_prefix(self) -> bool:
        return self.trunk.attn_pool is not None  # its attention pooling reads the class token too, its mean does not

    def tokens(self, pixels: Tensor) -> Tensor:
        """Compute the image's tokens as they enter the first block, [B, N, D]."""
        trunk = self.trunk
        x_BND, _ = trunk._pos_embed(trunk.patch_embed(pixels))
        out: Tensor = trunk.norm_pre(x_BND)
        return out

    def norm(self, block: Any, x_BTD: Tensor) -> Tensor:
        """Normalise states as the block does before attention; post-norm blocks (EVA02-E) do not."""
        return x_BTD if type(block) is EvaBlockPostNorm else super().norm(block, x_BTD)

    def place(self, x_BHRd: Tensor, rows: slice) -> Tensor:
        """Turn queries or keys of patches by their rotary position; tokens in front of the patches stay."""
        if self.trunk.rope is None:
            return x_BHRd
        turns = self.trunk.rope.get_embed()  # [patches, 2 d], sines and cosines
        none = torch.zeros_like(turns[: self.prefix])
        none[:, none.shape[1] // 2 :] = 1  # sine 0, cosine 1
        turned: Tensor = apply_rot_embed_cat(x_BHRd, torch.cat([none, turns])[rows])
        return turned.type_as(x_BHRd)

    def finish(self, block: Any, x_BTD: Tensor, mixed_BHTd: Tensor) -> Tensor:
        """Compute what follows attention in a pre-norm or a post-norm block, [B, T, D]."""
        attn = block.attn
        from_attention = attn.proj(attn.norm(join_heads(mixed_BHTd)))
        if type(block) is EvaBlockPostNorm:
            x_BTD = x_BTD + block.norm1(from_attention)
            out: Tensor = x_BTD + block.norm2(block.mlp(x_BTD))
            return out
        x_BTD = x_BTD + _scaled(block.gamma_1, from_attention)
        return x_BTD + _scaled(block.gamma_2, block.mlp(block.norm2(x_BTD)))


def _scaled(gamma: Tensor | None, x_BTD: Tensor) -> Tensor:
    return x_BTD if gamma is None else gamma * x_BTD


def timm_backbone(visual: Any) -> type[_TimmBackbone] | str:
    """Return the class of parts for a TimmModel, or what in it keeps slots out."""
    trunk = visual.trunk
    kind = type(trunk)
    if kind is VisionTransformer:
        return _vit_obstacle(trunk) or TimmVitBackbone
    if kind is Eva:
        return _eva_obstacle(trunk) or TimmEvaBackbone
    why = ", which is made of convolutions" if kind.__name__ in _CONVOLUTIONS else ""
    return f"a timm tower of class {kind.__name__}{why}"


def _vit_obstacle(trunk: Any) -> str | None:
    stem = trunk.patch_embed
    before = getattr(stem, "backbone", None)
    if type(stem) is HybridEmbed and type(before) is not ConvStem:
        as_in = " (as in ViTamin)" if type(before).__name__ == "MbConvStages" else ""
        return f"a hybrid timm tower: convolutions of class {type(before).__name__} before its blocks{as_in}"
    if type(stem) not in (PatchEmbed, HybridEmbed):
        return f"patches made by {type(stem).__name__}"
    return _shared_obstacle(trunk, (Block,), (Attention,))


def _eva_obstacle(trunk: Any) -> str | None:
    if type(trunk.patch_embed) is not PatchEmbed:
        return f"patches made by {type(trunk.patch_embed).__name__}"
    if trunk.rope is not None and type(trunk.rope) is not RotaryEmbeddingCat:
        return f"positions of class {type(trunk.rope).__name__}"
    if trunk.dynamic_img_size:
        return "rotary positions for images of changing size (dynamic_img_size)"
    return _shared_obstacle(trunk, (EvaBlock, EvaBlockPostNorm), (EvaAttention, AttentionRope))


def _shared_obstacle(trunk: Any, blocks: tuple[type, ...], attentions: tuple[type, ...]) -> str | None:
    pool = trunk.attn_pool
    if pool is not None and type(pool) is not AttentionPoolLatent:
        return f"pooling of class {type(pool).__name__}"
    if pool is None and trunk.global_pool not in ("token", "avg"):
        return f"pooling of type '{trunk.global_pool}'"
    for block in trunk.blocks:
        if type(block) not in blocks:
            return f"blocks of class {type(block).__name__}"
        attn = block.attn
        if type(attn) not in attentions:
            return f"attention of class {type(attn).__name__}"
        if getattr(attn, "gate", None) is not None:
            return "attention whose outcome is gated"
        if getattr(attn, "num_kv_groups", 1) != 1:
            return "attention in which heads share keys and values"
        if getattr(attn, "rotate_half", False):
            return "rotary positions that turn halves (rotate_half)"
    return None
