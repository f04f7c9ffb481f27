"""Run CLIP's frozen causal text tower exactly, computing only what can reach the end token.

This module trains nothing (`learner` holds what is learned) and refuses towers on which its short cuts would be wrong.

The text is [SOS] slots name suffix [EOT], or some slots stand between name and suffix. Under a causal mask what comes
before the name is the same for every name, so its keys and values are computed once; SOS sees only itself, so its keys
and values are constants; nothing after EOT is computed; names lie end to end, so nothing is padded; the last block
computes the EOT position only. Where prompts replace the slot states, keys and values of all slots are shared, wherever
the slots stand, and no slot state is run before the block from which a slot goes on.

Shapes: N names as given, C distinct names, T their tokens, M slots, F of them before the name, B behind it, P prefix
positions (SOS and slots), L blocks, D width, H heads, d = D / H, E embedding; G names of one length, n that length,
R rows of names (T, or T + C B with slots among them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from teachonce.errors import UnsupportedModelError, UsageError
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import Letter, Position
from teachonce.towers.tokens import BackSlots, Layout, NameTokens, PackedNames, encode_text, pack, tokenise_names

_SUPPORTED = "supported: causal CLIP or CustomTextCLIP towers of plain blocks, pooled at EOT, with CLIP's tokenizer"
_ROWS: dict[Letter, int] = {"query": 0, "key": 1, "value": 2}  # thirds of a block's projection
_SEEN: tuple[Letter, Letter] = ("key", "value")


@dataclass(frozen=True, eq=False)
class _StartToken:
    """What SOS gives in one block: constants of the tower, because SOS sees nothing but itself."""

    keys: Tensor  # [H, 1, d]
    values: Tensor  # [H, 1, d]


@dataclass(frozen=True, eq=False)
class _Prefix:
    """What all names see and share in one block: SOS, the slots before names, and all slots if prompts replace them."""

    keys: Tensor  # [H, P, d]
    values: Tensor  # [H, P, d]
    hidden: int  # how many of the P, the last, only rows behind the slots may see
    state: Tensor | None  # [F, D], the block's input at the slots before the name


@dataclass(frozen=True, eq=False)
class TextTower:
    """The frozen text tower of an open_clip model, which refers to the model's own modules and copies no weights."""

    token_embedding: nn.Embedding
    positional_embedding: Tensor
    blocks: tuple[Any, ...]
    ln_final: nn.Module
    projection: nn.Module | Tensor | None
    tokenizer: Any
    _start_tokens: dict[Any, list[_StartToken]] = field(default_factory=dict, repr=False)

    @classmethod
    def from_clip(cls, model: nn.Module, tokenizer: Any) -> TextTower:
        """Take the text tower out of a model and freeze it (`requires_grad_(False)`).

        Raises:
            UnsupportedModelError: the exact short cuts do not allow for something in the model; the message names it.
        """
        obstacle = text_obstacle(model)
        if obstacle is not None:
            raise _unsupported(obstacle)
        text = _text_part(model)
        _check_tokenizer(tokenizer, model, text)
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
    def most_slots(self) -> int:
        """The most slots that leave room for SOS, one token of a name, and EOT."""
        return self.context_length - 3

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.positional_embedding.device

    def tokenise(
        self, names: Sequence[str], suffix: str = ".", slots: int = 0, position: Position = "before"
    ) -> NameTokens:
        """Tokenise name, suffix and EOT. All must fit beside `slots` slots; `features` checks this again.

        Args:
            suffix: what follows a name, or the slots behind it.
            slots: M.
            position: where the slots stand, relative to the name.

        Raises:
            UsageError: there are no names, or a name is empty, too long or holds a special token.
        """
        tokens = tokenise_names(self.tokenizer, names, suffix, position)
        tokens.check_fits(slots, self.context_length)
        return tokens

    def embed_words(self, text: str) -> Tensor:
        """Return the token embeddings of a context such as "a photo of a", without position, [M, D].

        Raises:
            UsageError: the text has no token, or leaves no room for a name.
        """
        ids = encode_text(self.tokenizer, text, f"the context {text!r}")
        if len(ids) > self.most_slots:
            raise UsageError(f"the context {text!r} takes {len(ids)} of the text tower's {self.context_length} tokens")
        words: Tensor = self.token_embedding(torch.tensor(ids, device=self.device))
        return words

    @torch.no_grad()
    def block_inputs(self, prompts: SlotPrompts) -> Tensor:
        """Return the input of every block at slots before the name, for carried prompts, with position, [L, M, D]."""
        prompts.require_fit(self.layers, self.width)
        states = [layer.state for layer in self._run_prefix(prompts, prompts.slots)]
        return torch.stack([state for state in states if state is not None])

    def slot_states(self, context: str) -> Tensor:
        """Return `block_inputs` of a hand-written context, [L, M, D]."""
        return self.block_inputs(SlotPrompts(self.embed_words(context)))

    def slot_scales(self, context: str) -> Tensor:
        """Measure how large the slot states of a hand-written context are at every block, [L].

        sigma_l = sqrt(mean over slots m and units i of (h_lmi - mean_i h_lmi)^2), that is, centred over the width: the
        norm before attention drops each position's mean, so a shift does not count.
        """
        return self.slot_states(context).var(-1, correction=0).mean(-1).sqrt()

    def features(self, prompts: SlotPrompts, names: NameTokens, chunk: Tensor | None = None) -> Tensor:
        """Compute unit text features of distinct names, differentiable in the prompts: `encode_text`'s, up to rounding.

        Args:
            prompts: on the tower's device.
            names: the result of `tokenise`, which also says where the slots are.
            chunk: [C] indices of some distinct names; None: all names, in their order.

        Returns:
            [C, E] float32, under autocast too (float64 from a tower in float64). `names.expand` leads back to the
            names as given.

        Raises:
            UsageError: a name is too long beside these slots.
            TeachOnceError: the shapes of the prompts do not fit the tower.
        """
        prompts.require_fit(self.layers, self.width)
        names.check_fits(prompts.slots, self.context_length)
        packed = pack(names, chunk, prompts.slots, self.device)
        front = names.front(prompts.slots)
        x_RD = self.token_embedding(packed.ids) + self.positional_embedding[packed.positions]
        run = _Names(prompts, packed, slice(front, None))
        for index, (block, prefix) in enumerate(zip(self.blocks, self._run_prefix(prompts, front), strict=True)):
            if packed.back is not None and index == prompts.entry:
                x_RD = self._insert_slots(x_RD, prompts, packed.back, front)
            x_RD = run.block(block, index, x_RD, prefix, last=index == self.layers - 1)
        pooled = self.ln_final(x_RD)[packed.place]  # the last block has left one row a name
        if isinstance(self.projection, nn.Module):
            pooled = self.projection(pooled)
        elif self.projection is not None:
            pooled = pooled @ self.projection
        return F.normalize(pooled.to(torch.promote_types(pooled.dtype, torch.float32)), dim=-1)

    def _run_prefix(self, prompts: SlotPrompts, front: int) -> list[_Prefix]:
        """Run the slots before the name through all blocks, as far as names can see them."""
        state = self._first_state(prompts, front)
        visible = torch.ones(front, 1 + front, dtype=torch.bool, device=self.device).tril(1)
        layers: list[_Prefix] = []
        for index, (block, start) in enumerate(zip(self.blocks, self._run_start_token(), strict=True)):
            shared = front if index >= prompts.entry else prompts.slots
            keys, values = start.keys, start.values
            if shared:
                # The three letters are projected apart in every structure, so that zero prompts change no bit.
                of_slots = [
                    _project(block, x, block.ln_1(prompts.enter(x, index, state, slice(shared)))) for x in _SEEN
                ]
                keys, values = (torch.cat(both, 1) for both in zip((keys, values), of_slots, strict=True))
            layers.append(_Prefix(keys, values, shared - front, state))
            if front and prompts.entry <= index < self.layers - 1:  # of the last block, names read keys and values only
                q_HFd = _project(block, "query", block.ln_1(prompts.enter("query", index, state, slice(front))))
                mixed_HFd = F.scaled_dot_product_attention(q_HFd[None], keys[None], values[None], attn_mask=visible)[0]
                state = _finish_block(block, prompts.enter("residual", index, state, slice(front)), mixed_HFd)
        return layers

    def _first_state(self, prompts: SlotPrompts, front: int) -> Tensor | None:
        """[F, D], None when there is none: no slots before the name, or replaced ones."""
        if prompts.context is None or not front:
            return None
        return prompts.context[:front] + self.positional_embedding[1 : 1 + front]

    def _insert_slots(self, x_TD: Tensor, prompts: SlotPrompts, back: BackSlots, front: int) -> Tensor:
        """Put the slots behind every name among its tokens, [R, D]."""
        if prompts.context is None:
            slots_BD = prompts.enter("residual", prompts.entry, None, slice(front, None))
            slots_CBD = slots_BD.expand(*back.rows.shape, -1)
        else:
            slots_CBD = prompts.context[front:] + self.positional_embedding[back.positions]
        return torch.cat([x_TD, slots_CBD.flatten(0, 1)])[back.source]

    def _run_start_token(self) -> list[_StartToken]:
        """SOS in every block. The weights are frozen, so it is computed once for each place and precision."""
        kind = self.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (self.device, self.positional_embedding.dtype, precision)
        if key not in self._start_tokens:
            with torch.inference_mode(False), torch.no_grad():  # plain tensors: they enter graphs later
                self._start_tokens[key] = self._compute_start_token()
        return self._start_tokens[key]

    def _compute_start_token(self) -> list[_StartToken]:
        token = self.tokenizer.sot_token_id
        x_1D = self.token_embedding.weight[token : token + 1] + self.positional_embedding[:1]
        by_block = []
        for block in self.blocks:
            normed_1D = block.ln_1(x_1D)
            keys, values = (_project(block, letter, normed_1D) for letter in _SEEN)
            by_block.append(_StartToken(keys, values))
            x_1D = _finish_block(block, x_1D, values)  # its attention to itself is 1
        return by_block


def text_obstacle(model: nn.Module) -> str | None:
    """Say what in a model's structure keeps prompts out of its text tower; None: prompts can enter.

    The model may be on the meta device. Its tokenizer is not looked at: `TextTower.from_clip` does that.
    """
    text = _text_part(model)
    if text is None:
        custom = isinstance(model, open_clip.CustomTextCLIP)
        return f"a tower of class {type(model.text if custom else model).__name__}"
    pool = _of_text(model, text, "pool_type")
    if getattr(text, "cls_emb", None) is not None:
        return "a class token after the text (cls_emb, as in CoCa)"
    mask = text.attn_mask
    # On the meta device a mask has no values; open_clip makes no other mask than the causal one.
    if mask is None or not (mask.is_meta or torch.equal(mask, torch.full_like(mask, -torch.inf).triu(1))):
        return "no causal mask: positions see what follows them (as in SigLIP and CLIPA)"
    if pool not in ("argmax", "eos"):
        return f"pooling of type '{pool}'"
    for block in text.transformer.resblocks:
        if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
            return f"blocks of class {type(block).__name__}"
    for parameter in text.transformer.parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            return f"weights in {parameter.dtype}; load the model in float32 and use autocast"
    return None


def _text_part(model: nn.Module) -> Any:
    """The module whose attributes are the text tower's parts; None if the tower is of another make."""
    if isinstance(model, open_clip.CLIP):
        return model
    custom = isinstance(model, open_clip.CustomTextCLIP)
    return model.text if custom and type(model.text) is TextTransformer else None


def _of_text(model: nn.Module, text: Any, name: str) -> Any:
    """An attribute of the text tower; open_clip's CLIP keeps two of them under longer names."""
    return getattr(text, f"text_{name}" if text is model else name)


def _check_tokenizer(tokenizer: Any, model: nn.Module, text: Any) -> None:
    embedding: nn.Embedding = text.token_embedding
    specials: list[Any] = [getattr(tokenizer, name, None) for name in ("sot_token_id", "eot_token_id")]
    embedded = all(isinstance(token, int) and token < embedding.num_embeddings for token in specials)
    # `argmax` pooling finds EOT as the highest id of a text.
    if not (embedded and specials == sorted(specials) and callable(getattr(tokenizer, "encode", None))):
        raise _unsupported(f"a tokenizer of class {type(tokenizer).__name__} without `encode`, start and end tokens")
    eos, eot = _of_text(model, text, "eos_id"), tokenizer.eot_token_id
    if _of_text(model, text, "pool_type") == "eos" and eos != eot:
        raise _unsupported(f"pooling at token {eos} where the tokenizer ends texts with {eot}")


def _unsupported(obstacle: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"this model's text tower cannot carry prompts: it has {obstacle}; {_SUPPORTED}")


@dataclass(frozen=True, eq=False)
class _Names:
    """Names on their way through the blocks."""

    prompts: SlotPrompts
    packed: PackedNames
    part: slice  # which of the M slots stand behind the name

    def block(self, block: Any, index: int, x_RD: Tensor, prefix: _Prefix, last: bool) -> Tensor:
        """One block at the rows of names, [R, D]; the last one at their EOT only, [C, D]."""
        back = self.packed.back if index >= self.prompts.entry else None  # whose slots are among the rows
        layout = self.packed.layout if back is None else back.layout
        normed_RD = block.ln_1(x_RD)

        def heads(letter: Letter) -> Tensor:
            changed_RD = self._enter(letter, index, x_RD, back)
            return _project(block, letter, normed_RD if changed_RD is x_RD else block.ln_1(changed_RD))

        k_HRd, v_HRd = heads("key"), heads("value")
        if last:
            q_HRd = _project(block, "query", normed_RD[layout.ends])
            return _finish_block(block, x_RD[layout.ends], _attend(q_HRd, k_HRd, v_HRd, prefix, layout, None, last))
        unseen_R1 = self.packed.back.unseen if self.packed.back is not None and prefix.hidden else None
        mixed_HRd = _attend(heads("query"), k_HRd, v_HRd, prefix, layout, unseen_R1, last)
        return _finish_block(block, self._enter("residual", index, x_RD, back), mixed_HRd)

    def _enter(self, letter: Letter, index: int, x_RD: Tensor, back: BackSlots | None) -> Tensor:
        """What a letter is made of, [R, D]; `x_RD` itself where no prompt changes it."""
        if back is None:
            return x_RD
        states_CBD = x_RD[back.rows]
        entered = self.prompts.enter(letter, index, states_CBD, self.part)
        if entered is states_CBD:
            return x_RD
        return x_RD.index_copy(0, back.rows.flatten(), entered.expand_as(states_CBD).flatten(0, 1))


def _project(block: Any, letter: Letter, x_XD: Tensor) -> Tensor:
    """Query, key or value, split into heads, [H, X, d]."""
    attn, width = block.attn, x_XD.shape[1]
    rows = slice(_ROWS[letter] * width, (_ROWS[letter] + 1) * width)
    projected = F.linear(x_XD, attn.in_proj_weight[rows], attn.in_proj_bias[rows])
    return projected.view(len(x_XD), attn.num_heads, -1).transpose(0, 1)


def _finish_block(block: Any, x_RD: Tensor, mixed_HRd: Tensor) -> Tensor:
    """What follows attention in a pre-norm block."""
    x_RD = x_RD + block.ls_1(block.attn.out_proj(mixed_HRd.transpose(0, 1).flatten(1)))
    out: Tensor = x_RD + block.ls_2(block.mlp(block.ln_2(x_RD)))
    return out


def _attend(
    q_HRd: Tensor,
    k_HRd: Tensor,
    v_HRd: Tensor,
    prefix: _Prefix,
    layout: Layout,
    unseen_R1: Tensor | None,
    last: bool,
) -> Tensor:
    """Causal attention of every name to the shared prefix and to itself, [H, R, d].

    The prefix enters as one product over all rows, so its keys and values are never copied to the names.
    """
    heads, _, d = q_HRd.shape
    q_HRd = q_HRd * d**-0.5
    to_prefix_HRP = q_HRd @ prefix.keys.transpose(1, 2)
    width = to_prefix_HRP.shape[2]
    if unseen_R1 is not None:
        hidden_P = torch.arange(width, device=q_HRd.device) >= width - prefix.hidden
        to_prefix_HRP = to_prefix_HRP.masked_fill(unseen_R1 & hidden_P, -torch.inf)
    prefix_weights, own_parts = [], []
    for group in layout.groups:
        rows, names = (group.names if last else group.rows), (heads, group.count, -1)
        q_HGrd = q_HRd[:, rows].reshape(*names, d)
        k_HGnd, v_HGnd = (x_HRd[:, group.rows].reshape(*names, d) for x_HRd in (k_HRd, v_HRd))
        own_HGrn = q_HGrd @ k_HGnd.transpose(2, 3)
        if not last:  # EOT sees its whole name
            own_HGrn = own_HGrn + group.mask
        both = torch.cat([to_prefix_HRP[:, rows].reshape(*names, width), own_HGrn], dim=-1).softmax(-1)
        prefix_weights.append(both[..., :width].flatten(1, 2))
        own_parts.append((both[..., width:] @ v_HGnd).flatten(1, 2))
    return torch.cat(prefix_weights, 1) @ prefix.values + torch.cat(own_parts, 1)
