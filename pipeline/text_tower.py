"""Run CLIP's frozen causal text tower exactly, computing only what can reach the end token.

It trains nothing (`prompts` holds what is learned) and refuses towers on which its short cuts would be wrong.

The text is [SOS] slots name suffix [EOT]. Under a causal mask the prefix [SOS] slots is the same for every name, so
its keys and values are computed once; nothing after EOT is computed; names lie end to end, so nothing is padded; the
last block computes the EOT position only.

Shapes: N names as given, C distinct names, T their tokens, M slots, P = 1 + M prefix positions, L blocks, D width,
H heads, d = D / H, E embedding; G names of one length, n that length, R query rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from teachonce.errors import TeachOnceError, UnsupportedModelError, UsageError

_SUPPORTED = "supported: causal CLIP or CustomTextCLIP towers of plain blocks, pooled at EOT, with CLIP's tokenizer"


@dataclass(frozen=True, eq=False)
class SlotPrompts:
    """What the slots hold, in the tower's own units, after any parametrisation.

    Layer l of `query`, `key`, `value` is added to the slot states before the first norm of block l, for that letter's
    projection only; the residual stream stays as it is (RPP, arXiv 2409.06166, in the carried reading). Blocks beyond
    the given layers add nothing. The last block's query at the slots is never used, so there is none.
    """

    context: Tensor  # [M, D] token embeddings of the slots, without position
    query: Tensor | None = None  # [up to L - 1, M, D]
    key: Tensor | None = None  # [up to L, M, D]
    value: Tensor | None = None  # [up to L, M, D]

    @property
    def slots(self) -> int:
        """M."""
        return self.context.shape[0]


@dataclass(frozen=True, eq=False)
class NameTokens:
    """Class names as tokens, each distinct token sequence once, in the order of first appearance. On the CPU."""

    names: tuple[str, ...]  # N names as given
    ids: Tensor  # [sum of lengths] int64: name, suffix and EOT of every distinct name, end to end
    offsets: Tensor  # [C + 1] int64: where each distinct name begins in `ids`
    inverse: Tensor  # [N] int64: the distinct name of each given one

    @property
    def count(self) -> int:
        """C, the number of distinct names."""
        return self.offsets.shape[0] - 1

    @property
    def lengths(self) -> Tensor:
        """[C] int64: tokens of each distinct name, EOT included."""
        return self.offsets.diff()

    def expand(self, features_CE: Tensor) -> Tensor:
        """Features of the distinct names to features of the names as given, [N, E]."""
        return features_CE[self.inverse.to(features_CE.device)]

    def check_fits(self, slots: int, context_length: int) -> None:
        """Refuse names that do not fit behind the slots.

        Raises:
            UsageError: with the first such name and its index; open_clip would truncate it in silence.
        """
        room = context_length - 1 - slots
        lengths_N = self.lengths[self.inverse]
        too_long = (lengths_N > room).nonzero().flatten().tolist()
        if too_long:
            index = too_long[0]
            raise UsageError(
                f"class name {index} ({self.names[index]!r}) takes {int(lengths_N[index])} tokens with its ending, but "
                f"after the start token and {slots} slots the text tower has room for {room}",
                hint="shorten the name or the context",
            )


@dataclass(frozen=True, eq=False)
class _PrefixLayer:
    """What one block sees and leaves of the prefix."""

    state: Tensor  # [P, D], the block's input
    keys: Tensor  # [H, P, d]
    values: Tensor  # [H, P, d]


@dataclass(frozen=True, eq=False)
class _Group:
    """Names of one length, which lie side by side."""

    names: slice
    tokens: slice
    count: int  # G
    mask: Tensor  # [n, n], 0 where a position may look, -inf where it may not


@dataclass(frozen=True, eq=False)
class _Packed:
    """The names of a call by rising length, end to end."""

    ids: Tensor  # [T]
    positions: Tensor  # [T], counted from SOS
    ends: Tensor  # [C], where each name's EOT lies among the T
    place: Tensor  # [C], where each name of the call went
    groups: tuple[_Group, ...]


@dataclass(frozen=True, eq=False)
class TextTower:
    """The frozen text tower of an open_clip model. It refers to the model's own modules and copies no weights."""

    token_embedding: nn.Embedding
    positional_embedding: Tensor
    blocks: tuple[Any, ...]
    ln_final: nn.Module
    projection: nn.Module | Tensor | None
    tokenizer: Any

    @classmethod
    def from_clip(cls, model: nn.Module, tokenizer: Any) -> TextTower:
        """Take the text tower out of a model and freeze it (`requires_grad_(False)`).

        Raises:
            UnsupportedModelError: naming what was found that the exact short cuts do not allow for.
        """
        text = _text_part(model)
        _check_tokenizer(tokenizer, text.token_embedding)
        _check_structure(model, text, tokenizer.eot_token_id)
        parts = (text.token_embedding, text.positional_embedding, text.transformer, text.ln_final, text.text_projection)
        for part in parts:
            if part is not None:
                part.requires_grad_(False)
        embedding, position, transformer, ln_final, projection = parts
        return cls(embedding, position, tuple(transformer.resblocks), ln_final, projection, tokenizer)

    @property
    def width(self) -> int:
        """D."""
        return self.positional_embedding.shape[1]

    @property
    def layers(self) -> int:
        """L."""
        return len(self.blocks)

    @property
    def context_length(self) -> int:
        """Positions of the tower, 77 for CLIP."""
        return self.positional_embedding.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.positional_embedding.device

    def tokenise(self, names: Sequence[str], suffix: str = ".", slots: int = 0) -> NameTokens:
        """Tokens that follow the slots: name, suffix, EOT.

        CLIP's BPE never joins across a space, so these equal the end of the tokens of `{context} {name}{suffix}`.
        Names that give the same tokens are kept once. All must fit behind `slots` slots; `features` checks it again.

        Raises:
            UsageError: no names; a name that is empty, too long or holds a special token.
        """
        if not names:
            raise UsageError("no class names were given")
        first: dict[tuple[int, ...], int] = {}
        inverse = []
        nothing = self.tokenizer.encode(suffix)  # what an empty name looks like
        for index, name in enumerate(names):
            ids = self._encode(name + suffix, f"class name {index} ({name!r})", nothing)
            inverse.append(first.setdefault((*ids, int(self.tokenizer.eot_token_id)), len(first)))
        flat = torch.tensor([token for ids in first for token in ids])
        offsets = torch.tensor([0, *map(len, first)]).cumsum(0)
        tokens = NameTokens(tuple(names), flat, offsets, torch.tensor(inverse))
        tokens.check_fits(slots, self.context_length)
        return tokens

    def embed_words(self, text: str) -> Tensor:
        """Token embeddings of a context such as "a photo of a", without position, [M, D].

        Raises:
            UsageError: the text has no token, or leaves no room for a name.
        """
        ids = self._encode(text, f"the context {text!r}")
        if len(ids) > self.context_length - 3:  # SOS, one token of a name, EOT
            raise UsageError(f"the context {text!r} takes {len(ids)} of the text tower's {self.context_length} tokens")
        words: Tensor = self.token_embedding(torch.tensor(ids, device=self.device))
        return words

    @torch.no_grad()
    def slot_states(self, context: str) -> Tensor:
        """The input of every block at the slots of a hand-written context, position included, [L, M, D]."""
        return torch.stack([x.state[1:] for x in self._run_prefix(SlotPrompts(self.embed_words(context)))])

    def slot_scales(self, context: str) -> Tensor:
        """How large the slot states of a hand-written context are at every block, [L].

        sigma_l = sqrt(mean over slots m and units i of (h_lmi - mean_i h_lmi)^2), that is, centred over the width:
        the norm before attention drops each position's mean, so a shift is no size.
        """
        return self.slot_states(context).var(-1, correction=0).mean(-1).sqrt()

    def features(self, prompts: SlotPrompts, names: NameTokens, chunk: Tensor | None = None) -> Tensor:
        """Unit text features of distinct names, differentiable in the prompts: `encode_text`'s, up to rounding.

        Args:
            prompts: on the tower's device.
            chunk: [C] indices of the distinct names wanted; None for all, in their order.

        Returns:
            [C, E] float32. `names.expand` leads back to the names as given.

        Raises:
            UsageError: a name is too long behind these slots.
            TeachOnceError: prompts whose shapes do not fit the tower.
        """
        self._check_prompts(prompts)
        names.check_fits(prompts.slots, self.context_length)
        prefix = self._run_prefix(prompts)
        packed = _pack(names, chunk, 1 + prompts.slots, self.device)
        x_TD = self.token_embedding(packed.ids) + self.positional_embedding[packed.positions]
        for block, layer in zip(self.blocks, prefix, strict=True):
            x_TD = _name_block(block, x_TD, layer, packed, last=layer is prefix[-1])
        pooled = self.ln_final(x_TD)[packed.place]  # the last block has left one row a name
        if isinstance(self.projection, nn.Module):
            pooled = self.projection(pooled)
        elif self.projection is not None:
            pooled = pooled @ self.projection
        return F.normalize(pooled.float(), dim=-1)

    def _run_prefix(self, prompts: SlotPrompts) -> list[_PrefixLayer]:
        """Run [SOS] slots through all blocks, as far as names can see it."""
        sos = self.token_embedding.weight[self.tokenizer.sot_token_id]
        h_PD = torch.cat([sos[None], prompts.context]) + self.positional_embedding[: 1 + prompts.slots]
        layers: list[_PrefixLayer] = []
        for index, block in enumerate(self.blocks):
            # The three letters are projected apart in every structure, so that zero prompts change no bit.
            k_HPd = _project(block, 1, block.ln_1(_add_at_slots(h_PD, prompts.key, index)))
            v_HPd = _project(block, 2, block.ln_1(_add_at_slots(h_PD, prompts.value, index)))
            layers.append(_PrefixLayer(h_PD, k_HPd, v_HPd))
            if len(layers) == self.layers:
                break  # names read keys and values only
            q_HPd = _project(block, 0, block.ln_1(_add_at_slots(h_PD, prompts.query, index)))
            mixed_HPd = F.scaled_dot_product_attention(q_HPd[None], k_HPd[None], v_HPd[None], is_causal=True)[0]
            h_PD = _finish_block(block, h_PD, mixed_HPd)
        return layers

    def _encode(self, text: str, where: str, nothing: Sequence[int] = ()) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text)
        if not ids or ids == nothing:
            raise UsageError(f"{where} is empty: the tokenizer finds no word in it")
        if max(ids) >= min(self.tokenizer.sot_token_id, self.tokenizer.eot_token_id):
            raise UsageError(f"{where} holds a special token of the tokenizer, which would end the text early")
        return ids

    def _check_prompts(self, prompts: SlotPrompts) -> None:
        slot = (prompts.slots, self.width)
        stacks = ((prompts.query, self.layers - 1), (prompts.key, self.layers), (prompts.value, self.layers))
        fits = [x is None or (x.shape[1:] == slot and x.shape[0] <= most) for x, most in stacks]
        if prompts.context.shape != slot or not all(fits):
            found = {name: tuple(x.shape) for name, x in vars(prompts).items() if x is not None}
            raise TeachOnceError(f"prompts of shapes {found} do not fit {self.layers} blocks of width {self.width}")


def _text_part(model: nn.Module) -> Any:
    """The module whose attributes are the text tower's parts."""
    if isinstance(model, open_clip.CLIP):
        return model
    custom = isinstance(model, open_clip.CustomTextCLIP)
    if custom and type(model.text) is TextTransformer:
        return model.text
    raise _unsupported(f"a tower of class {type(model.text if custom else model).__name__}")


def _check_structure(model: nn.Module, text: Any, eot: int) -> None:
    prefix = "text_" if text is model else ""  # open_clip's CLIP keeps two attributes under longer names
    pool, eos = getattr(text, prefix + "pool_type"), getattr(text, prefix + "eos_id")
    if getattr(text, "cls_emb", None) is not None:
        raise _unsupported("a class token after the text (cls_emb, as in CoCa)")
    mask = text.attn_mask
    if mask is None or not torch.equal(mask, torch.full_like(mask, -torch.inf).triu(1)):
        raise _unsupported("no causal mask: positions see what follows them (as in SigLIP and CLIPA)")
    if pool not in ("argmax", "eos"):
        raise _unsupported(f"pooling of type '{pool}'")
    if pool == "eos" and eos != eot:
        raise _unsupported(f"pooling at token {eos} where the tokenizer ends texts with {eot}")
    for block in text.transformer.resblocks:
        if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
            raise _unsupported(f"blocks of class {type(block).__name__}")
    for parameter in text.transformer.parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise _unsupported(f"weights in {parameter.dtype}; load the model in float32 and use autocast")


def _check_tokenizer(tokenizer: Any, embedding: nn.Embedding) -> None:
    specials: list[Any] = [getattr(tokenizer, name, None) for name in ("sot_token_id", "eot_token_id")]
    known = all(isinstance(token, int) and token < embedding.num_embeddings for token in specials)
    # `argmax` pooling finds EOT as the highest id of a text.
    if not (known and specials == sorted(specials) and callable(getattr(tokenizer, "encode", None))):
        raise _unsupported(f"a tokenizer of class {type(tokenizer).__name__} without `encode`, start and end tokens")


def _unsupported(found: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"this model's text tower cannot carry prompts: it has {found}; {_SUPPORTED}")


def _add_at_slots(h_PD: Tensor, deltas: Tensor | None, layer: int) -> Tensor:
    if deltas is None or layer >= deltas.shape[0]:
        return h_PD
    return torch.cat([h_PD[:1], h_PD[1:] + deltas[layer]])


def _project(block: Any, letter: int, x_XD: Tensor) -> Tensor:
    """One of query (0), key (1), value (2), split into heads, [H, X, d]."""
    attn, rows = block.attn, slice(letter * x_XD.shape[1], (letter + 1) * x_XD.shape[1])
    projected = F.linear(x_XD, attn.in_proj_weight[rows], attn.in_proj_bias[rows])
    return projected.view(len(x_XD), attn.num_heads, -1).transpose(0, 1)


def _finish_block(block: Any, x_RD: Tensor, mixed_HRd: Tensor) -> Tensor:
    """What follows attention in a pre-norm block."""
    x_RD = x_RD + block.ls_1(block.attn.out_proj(mixed_HRd.transpose(0, 1).flatten(1)))
    out: Tensor = x_RD + block.ls_2(block.mlp(block.ln_2(x_RD)))
    return out


def _name_block(block: Any, x_TD: Tensor, prefix: _PrefixLayer, packed: _Packed, last: bool) -> Tensor:
    """One block at the names' positions, R = T; in the last block at their EOT only, R = C."""
    normed_TD = block.ln_1(x_TD)
    k_HTd, v_HTd = _project(block, 1, normed_TD), _project(block, 2, normed_TD)
    if last:
        x_TD, normed_TD = x_TD[packed.ends], normed_TD[packed.ends]
    q_HRd = _project(block, 0, normed_TD)
    return _finish_block(block, x_TD, _attend(q_HRd, k_HTd, v_HTd, prefix, packed.groups, last))


def _attend(
    q_HRd: Tensor, k_HTd: Tensor, v_HTd: Tensor, prefix: _PrefixLayer, groups: Sequence[_Group], last: bool
) -> Tensor:
    """Causal attention of every name to the shared prefix and to itself, [H, R, d].

    The prefix enters as one product over all rows, so its keys and values are never copied to the names.
    """
    heads, _, d = q_HRd.shape
    q_HRd = q_HRd * d**-0.5
    to_prefix_HRP = q_HRd @ prefix.keys.transpose(1, 2)
    width = to_prefix_HRP.shape[2]
    prefix_weights, own_parts = [], []
    for group in groups:
        rows, names = (group.names if last else group.tokens), (heads, group.count, -1)
        q_HGrd = q_HRd[:, rows].reshape(*names, d)
        k_HGnd, v_HGnd = (x_HTd[:, group.tokens].reshape(*names, d) for x_HTd in (k_HTd, v_HTd))
        own_HGrn = q_HGrd @ k_HGnd.transpose(2, 3)
        if not last:  # EOT sees its whole name
            own_HGrn = own_HGrn + group.mask
        both = torch.cat([to_prefix_HRP[:, rows].reshape(*names, width), own_HGrn], dim=-1).softmax(-1)
        prefix_weights.append(both[..., :width].flatten(1, 2))
        own_parts.append((both[..., width:] @ v_HGnd).flatten(1, 2))
    return torch.cat(prefix_weights, 1) @ prefix.values + torch.cat(own_parts, 1)


def _pack(names: NameTokens, chunk: Tensor | None, first_position: int, device: torch.device) -> _Packed:
    """Lay the wanted names end to end by rising length. All index arithmetic happens on the CPU."""
    wanted = torch.arange(names.count) if chunk is None else chunk.cpu()
    if not wanted.numel():
        raise TeachOnceError("features of no names were asked for")
    lengths = names.lengths[wanted]
    order = lengths.argsort(stable=True)
    lengths, starts = lengths[order], names.offsets[wanted[order]]
    ends = lengths.cumsum(0)
    inside = torch.arange(int(ends[-1])) - (ends - lengths).repeat_interleave(lengths)
    groups, name, token = [], 0, 0
    for length, members in itertools.groupby(lengths.tolist()):
        count = len(list(members))
        mask = torch.full((length, length), -torch.inf, device=device).triu(1)
        groups.append(_Group(slice(name, name + count), slice(token, token + count * length), count, mask))
        name, token = name + count, token + count * length
    return _Packed(
        ids=names.ids[starts.repeat_interleave(lengths) + inside].to(device),
        positions=(first_position + inside).to(device),
        ends=(ends - 1).to(device),
        place=order.argsort().to(device),
        groups=tuple(groups),
    )
