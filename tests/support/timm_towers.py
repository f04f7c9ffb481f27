"""Small towers of timm's real kinds, and their prompted forward pass written the plain way.

Each is one of timm's own models, built by its own function with fewer and narrower blocks, under a name by which
open_clip's `TimmModel` builds it like any other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models import register_model
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor

from teachonce.towers.slots import SlotPrompts

L = 3
_WIDE = {"img_size": (16, 24), "patch_size": 8}
_SQUARE = {"img_size": 24, "patch_size": 8}
# name: (timm's model, what is smaller)
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "small_siglip": ("vit_base_patch16_siglip_224", {**_SQUARE, "embed_dim": 24, "num_heads": 3}),
    "small_clip": ("vit_large_patch14_clip_224", {**_WIDE, "embed_dim": 36, "num_heads": 3}),
    "small_gap": ("vit_medium_patch16_gap_256", {**_SQUARE, "embed_dim": 40, "num_heads": 5, "init_values": 0.4}),
    "small_registers": (
        "vit_medium_patch16_gap_256",
        {**_SQUARE, "embed_dim": 36, "num_heads": 3, "reg_tokens": 2, "class_token": True, "qk_norm": True},
    ),
    "small_mobileclip": (
        "vit_base_mci_224",
        {"img_size": 32, "embed_dim": 40, "num_heads": 5},
    ),
    "small_eva01": ("eva_giant_patch14_224", {**_WIDE, "embed_dim": 40, "num_heads": 5, "mlp_ratio": 2.3}),
    "small_eva02": (
        "eva02_base_patch16_clip_224",
        {**_WIDE, "embed_dim": 36, "num_heads": 3, "ref_feat_shape": (4, 4)},
    ),
    "small_eva02_e": ("eva02_enormous_patch14_clip_224", {**_SQUARE, "embed_dim": 40, "num_heads": 5, "mlp_ratio": 2}),
    "small_pe": (
        "vit_pe_core_tiny_patch16_384",
        {**_WIDE, "embed_dim": 40, "num_heads": 5, "attn_pool_num_heads": 4, "init_values": 0.3},
    ),
    "small_pe_g": ("vit_pe_core_gigantic_patch14_448", {**_SQUARE, "embed_dim": 24, "num_heads": 3, "mlp_ratio": 2.5}),
}


def _register(name: str, real: str, small: dict[str, Any]) -> None:
    def entry(pretrained: bool = False, **given: Any) -> Any:
        kept = {k: x for k, x in given.items() if not k.startswith(("pretrained_cfg", "cache_dir"))}
        changes = {**small, "depth": L, **kept}
        if real == "vit_base_mci_224":
            width = changes["embed_dim"]
            stem = ConvStem(
                channels=(width // 4, width // 4, width), kernel_size=(4, 2, 2), stride=(4, 2, 2), padding=0
            )
            changes["embed_layer"] = functools.partial(timm.layers.HybridEmbed, backbone=stem, proj=False)
        return timm.create_model(real, pretrained=False, **changes)

    entry.__name__ = name
    register_model(entry)


for _name, (_real, _small) in SMALL.items():
    _register(_name, _real, _small)


def vision_config(name: str, pool: str, proj: str | None = None) -> dict[str, Any]:
    """What an open_clip configuration says of one of these."""
    size = SMALL[name][1]["img_size"]
    return {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": size}


def plain_tokens(visual: Any, pixels: Tensor) -> Tensor:
    """Class token, registers and patches as they enter the first block."""
    trunk = visual.trunk
    x = trunk.patch_embed(pixels)
    starts = [t for t in (trunk.cls_token, getattr(trunk, "reg_token", None)) if t is not None]
    position = trunk.pos_embed
    if trunk.no_embed_class:
        x = x + position
    x = torch.cat([*(t.expand(len(x), -1, -1) for t in starts), x], dim=1)
    return trunk.norm_pre(x if trunk.no_embed_class else x + position)


Attention = Callable[[Tensor, Tensor, Tensor, int, Tensor | None, int], Tensor]
LetterInput = Callable[[SlotPrompts, str, int, Tensor, int], Tensor]


def plain_embedding(
    visual: Any, prompts: SlotPrompts, pixels: Tensor, letter_input: LetterInput, attention: Attention
) -> Tensor:
    """Image embeddings [B, E], written out: all tokens in one row, every letter of every slot in every block."""
    trunk, x = visual.trunk, plain_tokens(visual, pixels)
    tokens, post_norm = x.shape[1], type(trunk.blocks[0]).__name__ == "EvaBlockPostNorm"
    first = x.new_zeros(prompts.slots, x.shape[2]) if prompts.context is None else prompts.context
    x = torch.cat([x, first.expand(len(x), -1, -1)], dim=1)
    for layer, block in enumerate(trunk.blocks):
        if prompts.added is not None and 1 <= layer <= len(prompts.added):
            x = torch.cat([x, prompts.added[layer - 1].expand(len(x), -1, -1)], dim=1)
        attn, parts = block.attn, []
        for place, letter in enumerate(("query", "key", "value")):
            state = letter_input(prompts, letter, layer, x, tokens)
            made = _all_letters(attn, state if post_norm else block.norm1(state))[place]
            parts.append(_per_head(trunk, attn, letter, made, tokens))
        gate = None if prompts.gate is None else prompts.gate[layer].tanh()
        mixed = attn.proj(attn.norm(attention(*parts, attn.num_heads, gate, tokens)))
        x = letter_input(prompts, "residual", layer, x, tokens)
        if post_norm:
            x = x + block.norm1(mixed)
            x = x + block.norm2(block.mlp(x))
        else:
            x = x + _layer_scale(block, 1, mixed)
            x = x + _layer_scale(block, 2, block.mlp(block.norm2(x)))
    return visual.head(trunk.forward_head(trunk.norm(x[:, :tokens])))


def _all_letters(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if getattr(attn, "q_proj", None) is not None:
        return attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)
    joint = attn.qkv(x)
    if getattr(attn, "q_bias", None) is not None:
        joint = joint + torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
    query, key, value = joint.chunk(3, dim=-1)
    return query, key, value


def _per_head(trunk: Any, attn: Any, letter: str, x: Tensor, tokens: int) -> Tensor:
    """Norms and turns of single heads: patches turn by their place, whatever stands around them does not."""
    if letter == "value":
        return x
    heads = x.unflatten(2, (attn.num_heads, -1))
    heads = (attn.q_norm if letter == "query" else attn.k_norm)(heads)
    rope = getattr(trunk, "rope", None)
    if rope is not None:
        sine, cosine = rope.get_embed().chunk(2, dim=-1)
        turn = torch.complex(cosine[:, ::2], sine[:, ::2])[:, None]  # [patches, 1, d / 2]
        patches = slice(trunk.num_prefix_tokens, tokens)
        turned = torch.view_as_complex(heads[:, patches].unflatten(-1, (-1, 2)).contiguous()) * turn
        parts = [heads[:, : patches.start], torch.view_as_real(turned).flatten(-2), heads[:, tokens:]]
        heads = torch.cat(parts, dim=1)
    return heads.flatten(2)


def _layer_scale(block: Any, which: int, x: Tensor) -> Tensor:
    if hasattr(block, "ls1"):
        return getattr(block, f"ls{which}")(x)
    gamma = getattr(block, f"gamma_{which}")
    return x if gamma is None else x * gamma
