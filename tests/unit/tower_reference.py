"""Small random CLIP models, and the prompted text tower written the plain way: every position, explicit mask.

It takes no short cut on purpose: `text_tower` is tested against it and against open_clip's own `encode_text`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teachonce.text_tower import SlotPrompts

torch.set_num_threads(1)  # for models this small a second thread only waits

VISION = {"layers": 1, "width": 32, "head_width": 16, "image_size": 32, "patch_size": 32}
CONTEXT = "a photo of a"

# kind: (model class, quick GELU, embedding, text config)
TOWERS: dict[str, tuple[Any, bool, int, dict[str, Any]]] = {
    "openai": (open_clip.CLIP, True, 24, {"width": 32, "heads": 4, "layers": 3}),
    "laion": (open_clip.CLIP, False, 32, {"width": 48, "heads": 2, "layers": 4}),
    "short": (open_clip.CLIP, False, 40, {"width": 64, "heads": 8, "layers": 2, "context_length": 24}),
    "custom_text": (open_clip.CustomTextCLIP, False, 24, {"width": 32, "heads": 4, "layers": 3, "proj_bias": True}),
    "layer_scale": (open_clip.CLIP, False, 24, {"width": 32, "heads": 2, "layers": 3, "ls_init_value": 0.3}),
    "eos": (open_clip.CLIP, True, 24, {"width": 32, "heads": 2, "layers": 3, "pool_type": "eos", "eos_id": 49407}),
    "one_block": (open_clip.CLIP, False, 24, {"width": 32, "heads": 2, "layers": 1}),
}

NAMES = [
    "tench",
    "great white shark",
    "t-shirt",
    "jack-o'-lantern",
    "4x4",
    "Boeing 747-400",
    "shepherd's pie",
    "o'clock",
    "St. Bernard",
    "  leading space",
    "trailing space  ",
    "two  spaces",
    "café au lait",
    "C++",
    "a",
    "ice cream (vanilla)",
    "salt & pepper",
    "x" * 12,
    "'s",
    "...",
    "naïve – dash",
    "very long winded name of a rather small bird",
]


@functools.cache
def tokenizer() -> Any:
    """CLIP's own."""
    return open_clip.SimpleTokenizer()


def tiny_clip(kind: str, **text_changes: Any) -> nn.Module:
    """A model of `TOWERS` with random weights large enough that names have clearly distinct features."""
    model_class, quick_gelu, embedding, text = TOWERS[kind]
    config = {"context_length": 77, "vocab_size": 49408, **text, **text_changes}
    generator = torch.Generator().manual_seed(len(kind))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(kind))  # the same model for the same kind
        model: nn.Module = model_class(embedding, dict(VISION), config, quick_gelu=quick_gelu)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("visual") or name in ("logit_scale", "logit_bias"):
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if "embedding" in name or parameter.ndim == 1:
                # norms around 1, biases and embeddings of a size that matters, LayerScale as configured
                parameter.add_(0.1 * noise if ".ls_" in name or parameter.ndim == 1 else 0.5 * noise)
            else:
                parameter.copy_(1.5 * noise * parameter.shape[-1] ** -0.5)
    return model.eval()


def text_part(model: Any) -> Any:
    """Where the text modules are attributes."""
    return model.text if hasattr(model, "text") else model


def full_tokens(model: Any, names: Sequence[str], template: str = CONTEXT + " {}.") -> Tensor:
    """[N, context length], padded, as open_clip does it."""
    texts = [template.replace("{}", name) for name in names]
    tokens: Tensor = tokenizer()(texts, context_length=text_part(model).context_length)
    return tokens


def plain_features(model: Any, prompts: SlotPrompts, names: Sequence[str]) -> Tensor:
    """Unit features [N, E] of `{context} {name}.` with the slots' embeddings and per-layer letters replaced."""
    text, tokens = text_part(model), full_tokens(model, names)
    slots = slice(1, 1 + len(prompts.context))
    x = text.token_embedding(tokens)
    x = torch.cat([x[:, :1], prompts.context.expand(len(x), -1, -1), x[:, slots.stop :]], dim=1)
    x = x + text.positional_embedding
    for layer, block in enumerate(text.transformer.resblocks):
        q, k, v = (_letter(block, i, x, _at(stack, layer), slots) for i, stack in enumerate(_stacks(prompts)))
        x = x + block.ls_1(block.attn.out_proj(_attention(q, k, v, block.attn.num_heads)))
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    pooled = text.ln_final(x)[torch.arange(len(x)), (tokens == 49407).int().argmax(1)]
    projection = text.text_projection
    pooled = projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection
    return F.normalize(pooled, dim=-1)


def _stacks(prompts: SlotPrompts) -> tuple[Tensor | None, ...]:
    return prompts.query, prompts.key, prompts.value


def _at(stack: Tensor | None, layer: int) -> Tensor | None:
    return None if stack is None or layer >= len(stack) else stack[layer]


def _letter(block: Any, letter: int, x: Tensor, prompt: Tensor | None, slots: slice) -> Tensor:
    if prompt is not None:
        shift = torch.zeros_like(x[0])
        shift = shift.index_add(0, torch.arange(slots.start, slots.stop), prompt)
        x = x + shift
    weight, bias = block.attn.in_proj_weight.chunk(3)[letter], block.attn.in_proj_bias.chunk(3)[letter]
    return block.ln_1(x) @ weight.T + bias


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2)
