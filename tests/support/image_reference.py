"""Small random image towers, and the prompted one written the plain way: every token, every letter, explicit attention.

It takes no short cut on purpose: `image_tower` is tested against it and against open_clip's own `encode_image`.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from timm_towers import plain_embedding, vision_config
from torch import Tensor, nn
from torch.nn import functional as F

from teachonce.models.learner import SlotLearner, image_learner
from teachonce.models.prompts import Prompts
from teachonce.towers.image_tower import ImageTower
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import Init, Structure

L, M = 3, 3
TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
# kind: (model class, quick GELU, vision config)
TOWERS: dict[str, tuple[Any, bool, dict[str, Any]]] = {
    "openai": (open_clip.CLIP, True, {"width": 32, "patch_size": 16, "image_size": 32}),
    "laion": (open_clip.CLIP, False, {"width": 48, "patch_size": 8, "image_size": 32, "patch_dropout": 0.5}),
    "average": (
        open_clip.CustomTextCLIP,
        False,
        {
            "width": 32,
            "patch_size": 14,
            "image_size": 28,
            "no_ln_pre": True,
            "pool_type": "avg",
            "final_ln_after_pool": True,
        },
    ),
    "layer_scale": (
        open_clip.CLIP,
        False,
        {
            "width": 32,
            "patch_size": 8,
            "image_size": 24,
            "ls_init_value": 0.4,
            "pos_embed_type": "sin_cos_2d",
            "pool_type": "avg",
        },
    ),
    "wide": (
        open_clip.CustomTextCLIP,
        True,
        {"width": 32, "patch_size": 8, "image_size": (16, 40), "mlp_ratio": 2.0, "final_ln_after_pool": True},
    ),
}
OPEN_CLIP = sorted(TOWERS)
_CUSTOM = open_clip.CustomTextCLIP
TIMM: dict[str, tuple[Any, bool, dict[str, Any]]] = {
    "siglip": (_CUSTOM, False, vision_config("small_siglip", "map", "none")),
    "timm_clip": (_CUSTOM, False, vision_config("small_clip", "token")),
    "timm_average": (_CUSTOM, False, vision_config("small_gap", "avg", "linear")),
    "timm_registers": (_CUSTOM, False, vision_config("small_registers", "avg", "mlp")),
    "mobileclip_b": (_CUSTOM, False, vision_config("small_mobileclip", "token")),
    "eva01": (_CUSTOM, False, vision_config("small_eva01", "token")),
    "eva01_average": (_CUSTOM, False, vision_config("small_eva01", "avg", "linear")),
    "eva02": (_CUSTOM, False, vision_config("small_eva02", "token")),
    "eva02_e": (_CUSTOM, False, vision_config("small_eva02_e", "token")),
    "pe": (_CUSTOM, False, vision_config("small_pe", "map")),
    "pe_g": (_CUSTOM, False, vision_config("small_pe_g", "map")),
}
TOWERS |= TIMM
KINDS = sorted(TOWERS)


def build(kind: str, **changes: Any) -> nn.Module:
    """A model with random weights large enough that images have clearly distinct features."""
    model_class, quick_gelu, vision = TOWERS[kind]
    config = {"layers": L, "head_width": 16, **vision, **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(kind))
        model: nn.Module = model_class(24, config, dict(TEXT), quick_gelu=quick_gelu)
        randomise(model.visual)  # type: ignore[arg-type]
    return model.eval()


@torch.no_grad()
def randomise(visual: nn.Module) -> None:
    """Give an image tower weights of such sizes that no part of it is without effect."""
    for name, parameter in visual.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif parameter.ndim == 3:  # timm's class token, registers, positions and latent query
            parameter.copy_(0.3 * torch.randn_like(parameter))
        elif "positional" not in name:
            fan_in = parameter[0].numel() if name != "proj" else len(parameter)
            parameter.copy_(torch.randn_like(parameter) * fan_in**-0.5)


@functools.cache
def model_of(kind: str) -> Any:
    return build(kind)


@functools.cache
def exact_model_of(kind: str) -> Any:
    """The same in float64."""
    return copy.deepcopy(model_of(kind)).double()


@functools.cache
def tower_of(kind: str) -> ImageTower:
    return ImageTower.from_clip(model_of(kind))


def photos(kind: str, count: int = 3) -> Tensor:
    """Random pixels that fit a model."""
    return torch.randn(count, 3, *tower_of(kind).image_size, generator=torch.Generator().manual_seed(5))


def prompts_of(structure: Structure, depth: int, **keys: Any) -> Prompts:
    """What to ask of an image tower for M slots in its first `depth` blocks."""
    return Prompts(**{"structure": structure, "image_length": M, "image_depth": depth, **keys})


def learner_of(
    kind: str, structure: Structure, depth: int, init: Init = "normal", moved: float = 0.7, **keys: Any
) -> SlotLearner:
    """Prompts some way off their start, every number of them."""
    learner = image_learner(tower_of(kind), prompts_of(structure, depth, init=init, **keys))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.copy_(moved * torch.randn(parameter.shape, generator=generator))
    return learner


def plain_features(model: Any, prompts: SlotPrompts, pixels: Tensor) -> Tensor:
    """Unit features [B, E], written out: all tokens in one row, every letter of every slot in every block."""
    if isinstance(model.visual, TimmModel):
        return F.normalize(plain_embedding(model.visual, prompts, pixels, letter_input, attention), dim=-1)
    visual, tokens, slots = model.visual, 1 + model.visual.grid_size[0] * model.visual.grid_size[1], prompts.slots
    x = visual.conv1(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(x)
    first = x.new_zeros(slots, x.shape[2]) if prompts.context is None else prompts.context
    x = torch.cat([x, first.expand(len(x), -1, -1)], dim=1)
    for layer, block in enumerate(visual.transformer.resblocks):
        if prompts.added is not None and 1 <= layer <= len(prompts.added):
            x = torch.cat([x, prompts.added[layer - 1].expand(len(x), -1, -1)], dim=1)
        weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
        inputs = [letter_input(prompts, letter, layer, x, tokens) for letter in ("query", "key", "value")]
        q, k, v = (block.ln_1(a) @ w.T + b for a, w, b in zip(inputs, weights, biases, strict=True))
        gate = None if prompts.gate is None else prompts.gate[layer].tanh()
        mixed = block.attn.out_proj(attention(q, k, v, block.attn.num_heads, gate, tokens))
        x = letter_input(prompts, "residual", layer, x, tokens) + block.ls_1(mixed)
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    pooled, _ = visual._pool(x[:, :tokens])
    return F.normalize(pooled @ visual.proj, dim=-1)


def letter_input(prompts: SlotPrompts, letter: str, layer: int, x: Tensor, tokens: int) -> Tensor:
    """The states from which a block makes a letter, at all tokens."""
    stack, states = getattr(prompts, letter), x[:, tokens:]
    if prompts.replace:
        depth = len(prompts.key) if prompts.key is not None else 0
        if letter in ("key", "value") and layer < depth:
            states = stack[layer].expand_as(states)
        elif letter in ("query", "residual") and layer == depth - 1 and stack is not None:
            states = stack[0].expand_as(states)
    elif stack is not None and layer < len(stack):
        states = states + stack[layer]
    return torch.cat([x[:, :tokens], states], dim=1)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, gate: Tensor | None, tokens: int) -> Tensor:
    """Every token to every token; with a gate, the image's tokens read the slots apart."""
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    mixed = scores.softmax(-1) @ v
    if gate is not None:
        image = scores[:, :, :tokens]
        read = image[..., :tokens].softmax(-1) @ v[:, :, :tokens]
        gated = read + gate * (image[..., tokens:].softmax(-1) @ v[:, :, tokens:])
        mixed = torch.cat([gated, mixed[:, :, tokens:]], dim=2)
    return mixed.transpose(1, 2).flatten(2)


def gradients(features: Tensor, learner: SlotLearner) -> dict[str, Tensor]:
    """Of some direction of the features with respect to every parameter, by name."""
    direction = torch.randn(features.shape, generator=torch.Generator().manual_seed(1)).to(features)
    names, parameters = zip(*learner.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad((features * direction).sum(), parameters), strict=True))
