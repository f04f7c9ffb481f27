"""The prompted text tower of any family written the plain way: open_clip's tokens, masks and pooling, all positions.

It takes no short cut and does not know how the product tokenises: the slots are the places of a hand-written context in
the tokens that the model's own tokenizer gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.transformer import text_global_pool
from torch import Tensor
from tower_reference import CONTEXT, TEMPLATES, project_pooled, put, run_blocks, spread, text_part

from teachonce.towers.slots import SlotPrompts

SLOTS = len(CONTEXT.split())  # each word of the context is one token of every tokenizer here


def family_features(
    model: Any, tokenizer: Any, prompts: SlotPrompts, names: Sequence[str], position: str = "before"
) -> Tensor:
    """Unit features [N, E] of names with four slots."""
    context, letters = spread(prompts)
    return family_run(model, tokenizer, context, letters, prompts.replace, names, position, prompts.added)


def family_run(
    model: Any,
    tokenizer: Any,
    context: Tensor,
    letters: dict[str, dict[int, Tensor]],
    replaces: bool,
    names: Sequence[str],
    position: str = "before",
    added: Tensor | None = None,
) -> Tensor:
    """Any letter may have a prompt in any block, dead or not; see `tower_reference.run_blocks`."""
    text = text_part(model)
    room = text.context_length
    tokens = tokenizer([TEMPLATES[position].replace("{}", name) for name in names], context_length=room)
    places = _places(tokenizer, names, position)
    x = put(text.token_embedding(tokens), places, context, add=False)
    class_token = getattr(text, "cls_emb", None)
    if class_token is not None:
        x = torch.cat([x, class_token.expand(len(x), 1, -1)], 1)
    x = x + text.positional_embedding
    mask = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype) if text.attn_mask is None else text.attn_mask.to(x.dtype)
    if class_token is not None:  # open_clip's own mask, which is one position off
        hidden = text._build_additive_mask(tokens, x.shape[1], x.dtype)[:: text.heads]
        mask = mask + hidden[:, None]
    x = text.ln_final(run_blocks(text, x, places, letters, replaces, mask, added))
    if class_token is not None:
        return project_pooled(text, x[:, -1])
    kind = text.pool_type if hasattr(text, "pool_type") else text.text_pool_type
    eos = text.eos_id if hasattr(text, "eos_id") else text.text_eos_id
    return project_pooled(text, text_global_pool(x, tokens, kind, eos))


def _places(tokenizer: Any, names: Sequence[str], position: str) -> Tensor:
    """Where the words of the context are among the tokens, [N, 4], by counting the tokens of shorter texts."""
    alone = _length(tokenizer, "a")
    start, front = alone - 2, {"before": SLOTS, "around": 2, "after": 0}[position]
    rows = []
    for name in names:
        middle = {"before": 0, "around": _length(tokenizer, f"a {name}") - alone}.get(position)
        if middle is None:
            middle = _length(tokenizer, name) - start - 1
        rows.append([*range(start, start + front), *range(start + front + middle, start + SLOTS + middle)])
    return torch.tensor(rows)


def _length(tokenizer: Any, text: str) -> int:
    """Tokens of a text with its start and its one end token, without padding."""
    row = tokenizer([text], context_length=60)[0].tolist()
    padding = row[-1]
    while row[-1] == padding:
        row.pop()
    inner = getattr(tokenizer, "tokenizer", None)
    end_is_padding = getattr(tokenizer, "strip_sep_token", False) or getattr(inner, "eos_token_id", None) == padding
    return len(row) + end_is_padding
