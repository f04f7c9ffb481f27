"""Run a frozen causal text tower exactly, computing only what can reach the end token.

This module trains nothing (`learner` holds what is learned). On towers that are not causal its short cuts would be
wrong: `whole_text` runs those.

The text is [SOS] slots name suffix [EOT], or some slots stand between name and suffix. Under a causal mask what comes
before the name is the same for every name, so its keys and values are computed once; SOS sees only itself, so its keys
and values are constants, and towers without SOS have none; nothing after EOT is computed; names lie end to end, so
nothing is padded; the last block computes the EOT position only. Where prompts replace the slot states, keys and values
of all slots are shared, wherever the slots stand, and no slot state is run before the block from which a slot goes on.

Behind EOT there may be a class token, which sees the whole text and takes EOT's part (CoCa). The mask of the released
weights is one position off: the class token sees the first padding, which is a row of its own, and not itself.

Shapes: N names as given, C distinct names, T their tokens, M slots, F of them before the name, B behind it, P prefix
positions (SOS and slots), S start tokens (1 or 0), L blocks, D width, H heads, d = D / H, E embedding; G names of one
length, n that length, R rows of names (T, or T + C B with slots among them).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from teachonce.towers.blocks import attend_from_ends, attend_padded, finish_block, project
from teachonce.towers.packing import BackSlots, Group, KeptLayouts, Layout, PackedNames, pack
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import Letter
from teachonce.towers.text_parts import TextParts
from teachonce.towers.tokens import NameTokens

_SEEN: tuple[Letter, Letter] = ("key", "value")


@dataclass(frozen=True, eq=False)
class _StartToken:
    """What SOS gives in one block: constants of the tower, because SOS sees nothing but itself."""

    keys: Tensor  # [H, S, d]
    values: Tensor  # [H, S, d]


@dataclass(frozen=True, eq=False)
class _Prefix:
    """What all names see and share in one block: SOS, the slots before names, and all slots if prompts replace them."""

    keys: Tensor  # [H, P, d]
    values: Tensor  # [H, P, d]
    hidden: int  # how many of the P, the last, only rows behind the slots may see
    state: Tensor | None  # [F, D], the block's input at the slots before the name; more where prompts add slots


@dataclass(frozen=True, eq=False)
class CausalText:
    """A causal text tower.

    Args:
        parts: the tower's modules.
        start: ids of the start token: one or none.
    """

    parts: TextParts
    start: tuple[int, ...]
    _start_tokens: dict[Any, list[_StartToken]] = field(default_factory=dict, repr=False)
    _layouts: KeptLayouts[PackedNames] = field(default_factory=KeptLayouts, repr=False)

    @property
    def shares_slot_states(self) -> bool:
        """Whether slots before the name have the same states beside every name."""
        return True

    @torch.no_grad()
    def block_inputs(self, prompts: SlotPrompts) -> Tensor:
        """Return the input of every block at slots before the name, for carried prompts, with position, [L, M, D]."""
        states = [layer.state for layer in self._run_prefix(prompts, prompts.slots)]
        return torch.stack([state for state in states if state is not None])

    def features(self, prompts: SlotPrompts, names: NameTokens, chunk: Tensor | None) -> Tensor:
        """Compute the pooled states of distinct names behind the last block, projected, [C, E]."""
        parts, packed = self.parts.prepared(), self._laid_out(names, chunk, prompts.slots)
        front = names.front(prompts.slots)
        x_RD = self._embed(packed)
        run = _Names(prompts, packed, slice(front, None))
        last = len(parts.blocks) - 1
        for index, (block, prefix) in enumerate(zip(parts.blocks, self._run_prefix(prompts, front), strict=True)):
            if packed.back is not None and index == prompts.entry:
                x_RD = self._insert_slots(x_RD, prompts, packed.back, front)
            x_RD = run.block(block, index, x_RD, prefix, last=index == last)
        return parts.embed(x_RD[packed.place])  # the last block has left one row a name

    @property
    def _device(self) -> torch.device:
        return self.parts.positional_embedding.device

    def _laid_out(self, names: NameTokens, chunk: Tensor | None, slots: int) -> PackedNames:
        token, device = self.parts.class_token, self._device
        blind = token is not None and token.shifted
        return self._layouts.of(names, chunk, (slots, device), lambda: pack(names, chunk, slots, device, blind))

    def _embed(self, packed: PackedNames) -> Tensor:
        """The tokens of names with their positions, [T, D]; the id of a class token is not in the table."""
        parts, token, positions = self.parts, self.parts.class_token, packed.positions
        x_TD: Tensor = parts.token_embedding(packed.ids if token is None else packed.ids.clamp_min(0))
        if token is not None:
            ends = packed.layout.ends
            x_TD = x_TD.index_copy(0, ends, token.embedding.expand(len(ends), -1))
            positions = positions.index_fill(0, ends, parts.positions)
        return x_TD + parts.positional_embedding[positions]

    def _run_prefix(self, prompts: SlotPrompts, front: int) -> list[_Prefix]:
        """Run the slots before the name through all blocks, as far as names can see them."""
        state = self._first_state(prompts, front)
        blocks = self.parts.prepared().blocks
        first, last = len(self.start), len(blocks) - 1
        visible = _visible(front, first, self._device)
        layers: list[_Prefix] = []
        for index, (block, start) in enumerate(zip(blocks, self._run_start_token(), strict=True)):
            new = prompts.entering(index)
            if new is not None and state is not None:  # they stand right before the names, behind all slots
                state = torch.cat([state, new])
                visible = _visible(len(state), first, self._device)
            shared = front if index >= prompts.entry else prompts.slots
            keys, values = start.keys, start.values
            if shared:
                # The three letters are projected apart in every structure, so that zero prompts change no bit.
                of_slots = [project(block, x, block.ln_1(prompts.enter(x, index, state, slice(shared)))) for x in _SEEN]
                keys, values = (torch.cat(both, 1) for both in zip((keys, values), of_slots, strict=True))
            layers.append(_Prefix(keys, values, shared - front, state))
            if front and prompts.entry <= index < last:  # of the last block, names read keys and values only
                q_HFd = project(block, "query", block.ln_1(prompts.enter("query", index, state, slice(front))))
                mixed_HFd = F.scaled_dot_product_attention(q_HFd[None], keys[None], values[None], attn_mask=visible)[0]
                state = finish_block(block, prompts.enter("residual", index, state, slice(front)), mixed_HFd)
        return layers

    def _first_state(self, prompts: SlotPrompts, front: int) -> Tensor | None:
        """[F, D], None when there is none: no slots before the name, or replaced ones."""
        if prompts.context is None or not front:
            return None
        first = len(self.start)
        return prompts.context[:front] + self.parts.positional_embedding[first : first + front]

    def _insert_slots(self, x_TD: Tensor, prompts: SlotPrompts, back: BackSlots, front: int) -> Tensor:
        """Put the slots behind every name among its tokens, [R, D]."""
        if prompts.context is None:
            slots_BD = prompts.enter("residual", prompts.entry, None, slice(front, None))
            slots_CBD = slots_BD.expand(*back.rows.shape, -1)
        else:
            slots_CBD = prompts.context[front:] + self.parts.positional_embedding[back.positions]
        return torch.cat([x_TD, slots_CBD.flatten(0, 1)])[back.source]

    def _run_start_token(self) -> list[_StartToken]:
        """SOS in every block. The weights are frozen, so it is computed once for each place and precision."""
        key = (self._device, self.parts.positional_embedding.dtype, self.parts.autocast_type)
        if key not in self._start_tokens:
            with torch.inference_mode(False), torch.no_grad():  # plain tensors: they enter graphs later
                self._start_tokens[key] = self._compute_start_token()
        return self._start_tokens[key]

    def _compute_start_token(self) -> list[_StartToken]:
        parts, ids = self.parts, list(self.start)
        x_SD = parts.token_embedding.weight[ids] + parts.positional_embedding[: len(ids)]
        by_block = []
        for block in parts.blocks:
            normed_SD = block.ln_1(x_SD)
            keys, values = (project(block, letter, normed_SD) for letter in _SEEN)
            by_block.append(_StartToken(keys, values))
            x_SD = finish_block(block, x_SD, values)  # its attention to itself is 1
        return by_block


def _visible(slots: int, first: int, device: torch.device) -> Tensor:
    """Which of the `first` start tokens and the slots each slot sees, [slots, first + slots]."""
    return torch.ones(slots, first + slots, dtype=torch.bool, device=device).tril(first)


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
            return project(block, letter, normed_RD if changed_RD is x_RD else block.ln_1(changed_RD))

        k_HRd, v_HRd = heads("key"), heads("value")
        if last:
            q_HRd = project(block, "query", normed_RD[layout.ends])
            return finish_block(block, x_RD[layout.ends], _attend(q_HRd, k_HRd, v_HRd, prefix, layout, None, last))
        unseen_R1 = self.packed.back.unseen if self.packed.back is not None and prefix.hidden else None
        mixed_HRd = _attend(heads("query"), k_HRd, v_HRd, prefix, layout, unseen_R1, last)
        return finish_block(block, self._enter("residual", index, x_RD, back), mixed_HRd)

    def _enter(self, letter: Letter, index: int, x_RD: Tensor, back: BackSlots | None) -> Tensor:
        """What a letter is made of, [R, D]; `x_RD` itself where no prompt changes it."""
        if back is None:
            return x_RD
        states_CBD = x_RD[back.rows]
        entered = self.prompts.enter(letter, index, states_CBD, self.part)
        if entered is states_CBD:
            return x_RD
        return x_RD.index_copy(0, back.rows.flatten(), entered.expand_as(states_CBD).flatten(0, 1))


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
    if layout.padding is not None:
        given = (q_HRd, k_HRd, v_HRd, (prefix.keys, prefix.values), layout.groups, layout.padding)
        if last:
            return attend_from_ends(*given)
        return attend_padded(*given, unseen_R1, prefix.hidden)
    heads, _, d = q_HRd.shape
    q_HRd = q_HRd * d**-0.5
    to_prefix_HRP = q_HRd @ prefix.keys.transpose(1, 2)
    width = to_prefix_HRP.shape[2]
    if unseen_R1 is not None:
        hidden_P = torch.arange(width, device=q_HRd.device) >= width - prefix.hidden
        to_prefix_HRP = to_prefix_HRP.masked_fill(unseen_R1 & hidden_P, -torch.inf)
    prefix_weights, own_parts = [], []
    for group, q_HTd, k_HTd, v_HTd, prefix_HTP in _by_group(layout, last, q_HRd, k_HRd, v_HRd, to_prefix_HRP):
        names = (heads, group.count, -1)
        k_HGnd, v_HGnd = k_HTd.reshape(*names, d), v_HTd.reshape(*names, d)
        own_HGrn = q_HTd.reshape(*names, d) @ k_HGnd.transpose(2, 3)
        mask = group.of_ends if last else group.mask
        if mask is not None:
            own_HGrn = own_HGrn + mask
        both = torch.cat([prefix_HTP.reshape(*own_HGrn.shape[:3], width), own_HGrn], dim=-1).softmax(-1)
        to_prefix, to_own = torch.split(both, [width, own_HGrn.shape[-1]], -1)
        prefix_weights.append(to_prefix.flatten(1, 2))
        own_parts.append((to_own @ v_HGnd).flatten(1, 2))
    return torch.cat(prefix_weights, 1) @ prefix.values + torch.cat(own_parts, 1)


def _by_group(
    layout: Layout, last: bool, q_HRd: Tensor, k_HRd: Tensor, v_HRd: Tensor, to_prefix_HRP: Tensor
) -> Iterator[tuple[Group, Tensor, Tensor, Tensor, Tensor]]:
    """Each group with its part of every tensor: a split has one gradient, each slice would have one full of zeros."""
    rows = [group.rows.stop - group.rows.start for group in layout.groups]
    asking = [group.count for group in layout.groups] if last else rows
    given = ((q_HRd, asking), (k_HRd, rows), (v_HRd, rows), (to_prefix_HRP, asking))
    parts = (torch.split(x, sizes, 1) for x, sizes in given)
    return zip(layout.groups, *parts, strict=True)
