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

from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import Structure, allocate
from teachonce.towers.text_tower import TextTower

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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(kind))  # the same model for the same kind
        model: nn.Module = model_class(embedding, dict(VISION), config, quick_gelu=quick_gelu)
    return randomised(model, torch.Generator().manual_seed(len(kind)))


def randomised(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """The model itself, its text tower with weights large enough that names have clearly distinct features."""
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


TEMPLATES = {"before": CONTEXT + " {}.", "around": "a photo {} of a.", "after": "{} " + CONTEXT + "."}


def full_tokens(model: Any, names: Sequence[str], template: str = TEMPLATES["before"]) -> Tensor:
    """[N, context length], padded, as open_clip does it."""
    texts = [template.replace("{}", name) for name in names]
    tokens: Tensor = tokenizer()(texts, context_length=text_part(model).context_length)
    return tokens


def plain_features(model: Any, prompts: SlotPrompts, names: Sequence[str], position: str = "before") -> Tensor:
    """Unit features [N, E] of `{slots} {name}.`, or with the slots elsewhere, by `plain_run`."""
    if prompts.added is not None:
        return accumulated(model, prompts, names)
    context, letters = spread(prompts)
    return plain_run(model, context, letters, prompts.replace, names, position)


def accumulated(model: Any, prompts: SlotPrompts, names: Sequence[str]) -> Tensor:
    """Slots before the name, to which blocks add: the row of states grows, and every row sees all before it."""
    assert prompts.context is not None and prompts.added is not None
    text, slots = text_part(model), prompts.slots
    tokens, places = _tokens_with_room(text.context_length, slots, slots, names, "before")
    x = put(text.token_embedding(tokens), places, prompts.context, add=False) + text.positional_embedding
    pooled = (tokens == 49407).int().argmax(1)
    for layer, block in enumerate(text.transformer.resblocks):
        if 1 <= layer <= len(prompts.added):
            behind = 1 + slots * layer
            new = prompts.added[layer - 1].expand(len(x), -1, -1)
            x, pooled = torch.cat([x[:, :behind], new, x[:, behind:]], 1), pooled + slots
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        x = plain_block(block, x, torch.zeros_like(future, dtype=x.dtype).masked_fill(future, -torch.inf))
    return project_pooled(text, text.ln_final(x)[torch.arange(len(x)), pooled])


def plain_block(block: Any, x: Tensor, mask: Tensor) -> Tensor:
    """A frozen block at all positions, [N, P, D]."""
    weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
    q, k, v = (block.ln_1(x) @ w.T + b for w, b in zip(weights, biases, strict=True))
    x = x + block.ls_1(block.attn.out_proj(_attention(q, k, v, block.attn.num_heads, mask)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def spread(prompts: SlotPrompts) -> tuple[Tensor, dict[str, dict[int, Tensor]]]:
    """The context, and for each letter the prompts of the blocks that have one."""
    depth = len(prompts.key) if prompts.replace and prompts.key is not None else 0
    letters: dict[str, dict[int, Tensor]] = {}
    for letter in ("query", "key", "value", "residual"):
        stack = getattr(prompts, letter)
        first = depth - 1 if prompts.replace and letter in ("query", "residual") else 0
        letters[letter] = {} if stack is None else {first + i: prompt for i, prompt in enumerate(stack)}
    context = prompts.context
    if context is None:  # what the slots hold at the input is replaced before anything reads it
        assert prompts.key is not None
        context = torch.full_like(prompts.key[0], 7.0)
    return context, letters


def plain_run(
    model: Any,
    context: Tensor,
    letters: dict[str, dict[int, Tensor]],
    replaces: bool,
    names: Sequence[str],
    position: str = "before",
) -> Tensor:
    """Every position of every text through every block; any letter may have a prompt in any block, dead or not."""
    text = text_part(model)
    slots = len(context)
    front = {"before": slots, "around": slots // 2, "after": 0}[position]
    tokens, places = _tokens_with_room(text.context_length, slots, front, names, position)
    x = put(text.token_embedding(tokens), places, context, add=False) + text.positional_embedding
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    mask = torch.zeros_like(future, dtype=x.dtype).masked_fill(future, -torch.inf)
    x = run_blocks(text, x, places, letters, replaces, mask)
    pooled = text.ln_final(x)[torch.arange(len(x)), (tokens == 49407).int().argmax(1)]
    return project_pooled(text, pooled)


def run_blocks(
    text: Any,
    x: Tensor,
    places: Tensor,
    letters: dict[str, dict[int, Tensor]],
    replaces: bool,
    mask: Tensor,
    added: Tensor | None = None,
) -> Tensor:
    """All positions [N, P, D] through all blocks.

    A letter's prompt in a block is added to the slot states, or stands in for them, for that letter only.

    Args:
        mask: what is added to the scores of attention, [P, P] or [N, 1, P, P].
        added: slots that blocks from the second on take at the end of the row; only without a mask, where no row asks
            for an order.
    """
    positions = x.shape[1]
    assert added is None or not mask.any()
    for layer, block in enumerate(text.transformer.resblocks):
        if added is not None and 1 <= layer <= len(added):
            x = torch.cat([x, added[layer - 1].expand(len(x), -1, -1)], 1)
            mask = mask.new_zeros(x.shape[1], x.shape[1])
        q, k, v, residual = (
            put(x, places, letters[letter][layer], add=not replaces) if layer in letters[letter] else x
            for letter in ("query", "key", "value", "residual")
        )
        weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
        q, k, v = (block.ln_1(h) @ w.T + b for h, w, b in zip((q, k, v), weights, biases, strict=True))
        x = residual + block.ls_1(block.attn.out_proj(_attention(q, k, v, block.attn.num_heads, mask)))
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    return x[:, :positions]


def project_pooled(text: Any, pooled: Tensor) -> Tensor:
    """Unit features of pooled and normed states."""
    projection = text.text_projection
    if projection is not None:
        pooled = projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection
    return F.normalize(pooled, dim=-1)


def _tokens_with_room(
    length: int, slots: int, front: int, names: Sequence[str], position: str
) -> tuple[Tensor, Tensor]:
    """Padded token ids [N, length] with zeros at the slots, and where the slots are [N, M]."""
    rows, places = [], []
    encode = tokenizer().encode
    for name in names:
        words, end = (encode(name + "."), []) if position == "before" else (encode(name), encode("."))
        row = [49406, *[0] * front, *words, *[0] * (slots - front), *end, 49407]
        places.append([*range(1, 1 + front), *range(1 + front + len(words), 1 + slots + len(words))])
        rows.append(row + [0] * (length - len(row)))
    return torch.tensor(rows), torch.tensor(places)


def put(x: Tensor, places: Tensor, prompt: Tensor, add: bool) -> Tensor:
    """`prompt` [M, D] at the slots of every text, added to what is there or in its place."""
    index = places[:, :, None].expand(-1, -1, x.shape[2])
    source = prompt.expand(len(x), -1, -1)
    return x.scatter_add(1, index, source) if add else x.scatter(1, index, source)


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor) -> Tensor:
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    mixed = (scores + mask).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2)


def random_prompts(tower: TextTower, structure: Structure, depth: int, slots: int = 4, seed: int = 0) -> SlotPrompts:
    """Prompts of a size that matters, as leaves that ask for gradients."""
    allocation = allocate(structure, tower.layers, depth)
    generator = torch.Generator().manual_seed(seed)
    dtype = tower.parts.positional_embedding.dtype

    def leaf(*shape: int) -> Tensor:
        return (0.5 * torch.randn(*shape, generator=generator, dtype=dtype)).requires_grad_()

    letters = {letter: leaf(len(blocks), slots, tower.width) for letter, blocks in allocation.blocks.items()}
    context = leaf(slots, tower.width) if allocation.context else None
    added = leaf(len(allocation.added), slots, tower.width) if allocation.added else None
    return SlotPrompts(context, **letters, replace=allocation.replace, added=added)
