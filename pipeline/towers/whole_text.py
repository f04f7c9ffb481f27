"""Run a frozen text tower without a mask exactly: every position of every name, as each sees all others.

This module trains nothing (`learner` holds what is learned). Nothing that one name's text gives holds for another,
and padding behind a text is attended to like a word, so no prefix is shared and no position left out. What is saved:
equal names are run once, as everywhere; the last block computes the pooled position only; where prompts replace the
slot states, the slots' keys and values are the same for all names and computed once a block, and no slot state is run
before the block from which a slot goes on.

Without a mask attention does not ask for the order of rows: positions are in the embedding. So the slots of a name are
always its first rows, wherever they stand in the text.

Shapes: C distinct names, M slots, P positions of the context, W = P - M other positions, L blocks, D width, H heads,
d = D / H, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from teachonce.towers.blocks import finish_block, project
from teachonce.towers.packing import KeptLayouts, to_device
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import Letter
from teachonce.towers.text_parts import TextParts
from teachonce.towers.tokens import NameTokens


@dataclass(frozen=True, eq=False)
class _Texts:
    """The texts of some names, where the slots are left out."""

    ids: Tensor  # [C, W]
    positions: Tensor  # [C, W] in the context
    slot_positions: Tensor  # [C, M] in the context
    pooled: Tensor  # [C], which of the W is pooled


@dataclass(frozen=True, eq=False)
class WholeText:
    """A text tower without a mask.

    Args:
        parts: the tower's modules.
        start: ids of the start token: one or none.
        end: the id behind a text.
        padding: the id of all positions behind that.
    """

    parts: TextParts
    start: tuple[int, ...]
    end: tuple[int, ...]
    padding: int
    _layouts: KeptLayouts[_Texts] = field(default_factory=KeptLayouts, repr=False)

    @property
    def shares_slot_states(self) -> bool:
        """Whether slots before the name have the same states beside every name."""
        return False

    @torch.no_grad()
    def block_inputs(self, prompts: SlotPrompts) -> Tensor:
        """Return the input of every block at the slots of a text without a name, for carried prompts, [L, M, D]."""
        nothing = torch.tensor(self.end)
        names = NameTokens(
            ("",), nothing, torch.tensor([0, len(nothing)]), torch.tensor([0]), start=len(self.start), tail=len(nothing)
        )
        states: list[Tensor] = []
        self._run(prompts, self._lay_out(names, None, prompts.slots), states)
        return torch.stack(states)[:, 0]

    def features(self, prompts: SlotPrompts, names: NameTokens, chunk: Tensor | None) -> Tensor:
        """Compute the pooled states of distinct names behind the last block, projected, [C, E]."""
        key = (prompts.slots, self.parts.positional_embedding.device)
        texts = self._layouts.of(names, chunk, key, lambda: self._lay_out(names, chunk, prompts.slots))
        return self.parts.prepared().embed(self._run(prompts, texts, None))

    def _lay_out(self, names: NameTokens, chunk: Tensor | None, slots: int) -> _Texts:
        """All index arithmetic happens on the CPU."""
        chosen_C = names.chosen(chunk)
        lengths_C1, begins_C1 = names.lengths[chosen_C][:, None], names.offsets[chosen_C][:, None]
        first, front = len(self.start), names.front(slots)
        rows_W = torch.arange(self.parts.positions - slots)
        inside_CW = (rows_W - first).expand(len(chosen_C), -1)  # the place within name and ending
        is_own_CW = (inside_CW >= 0) & (inside_CW < lengths_C1)
        ids_CW = names.ids[torch.where(is_own_CW, begins_C1 + inside_CW, 0)]
        ids_CW = torch.where(is_own_CW, ids_CW, self.padding)
        ids_CW[:, :first] = torch.tensor(self.start, dtype=torch.int64)
        own_C1 = lengths_C1 - names.tail  # tokens before the slots that stand behind a name
        behind_CW = inside_CW >= own_C1
        positions_CW = rows_W + front * (inside_CW >= 0) + (slots - front) * behind_CW
        of_slots_M = torch.arange(slots)
        slot_positions_CM = first + of_slots_M + own_C1 * (of_slots_M >= front)
        ends_C = first + lengths_C1[:, 0] - names.end
        pooled_C = {"first": torch.zeros_like(ends_C), "last": torch.full_like(ends_C, len(rows_W) - 1)}
        device = self.parts.positional_embedding.device
        return _Texts(
            to_device(ids_CW, device),
            to_device(positions_CW, device),
            to_device(slot_positions_CM, device),
            to_device(pooled_C.get(self.parts.pool, ends_C), device),
        )

    def _run(self, prompts: SlotPrompts, texts: _Texts, states: list[Tensor] | None) -> Tensor:
        """Return the pooled states, [C, D]; `states` collects the slots' input of every block."""
        parts, slots, added = self.parts.prepared(), prompts.slots, 0
        x_CXD: Tensor = parts.token_embedding(texts.ids) + parts.positional_embedding[texts.positions]
        last = len(parts.blocks) - 1
        for index, block in enumerate(parts.blocks):
            if index == prompts.entry:
                x_CXD = torch.cat([self._entering(prompts, texts), x_CXD], 1)
            new = prompts.entering(index)
            if new is not None:
                added += len(new)
                x_CXD = torch.cat([new.expand(len(x_CXD), -1, -1), x_CXD], 1)
            live = slots + added if index >= prompts.entry else 0
            if states is not None:
                states.append(x_CXD[:, :live])
            pooled_C = texts.pooled + live if index == last else None
            x_CXD = _Block(block, index, prompts, live).run(x_CXD, pooled_C)
        return x_CXD

    def _entering(self, prompts: SlotPrompts, texts: _Texts) -> Tensor:
        """The slots' states where they first have any, [C, M, D]."""
        if prompts.context is None:
            return prompts.enter("residual", prompts.entry, None).expand(len(texts.ids), -1, -1)
        return prompts.context + self.parts.positional_embedding[texts.slot_positions]


@dataclass(frozen=True, eq=False)
class _Block:
    """One block at the rows of names, of which the first `live` are slots."""

    block: Any
    index: int
    prompts: SlotPrompts
    live: int  # M, or 0 where no slot has a state yet

    def run(self, x_CXD: Tensor, pooled_C: Tensor | None) -> Tensor:
        """[C, X, D], or [C, D] of the pooled rows where they are given."""
        normed_CXD = self.block.ln_1(x_CXD)
        k_CHXd, v_CHXd = self._seen("key", x_CXD, normed_CXD), self._seen("value", x_CXD, normed_CXD)
        if pooled_C is not None:
            names_C = torch.arange(len(x_CXD), device=x_CXD.device)
            q_CH1d = project(self.block, "query", normed_CXD[names_C, pooled_C][:, None])
            mixed_CH1d = F.scaled_dot_product_attention(q_CH1d, k_CHXd, v_CHXd)
            return finish_block(self.block, x_CXD[names_C, pooled_C][:, None], mixed_CH1d)[:, 0]
        q_CHXd = self._project("query", x_CXD, normed_CXD)
        mixed_CHXd = F.scaled_dot_product_attention(q_CHXd, k_CHXd, v_CHXd)
        return finish_block(self.block, self._enter("residual", x_CXD), mixed_CHXd)

    def _seen(self, letter: Letter, x_CXD: Tensor, normed_CXD: Tensor) -> Tensor:
        """Keys or values, [C, H, X, d]; those of slots without a state stand before the rows."""
        rows_CHXd = self._project(letter, x_CXD, normed_CXD)
        if self.live:
            return rows_CHXd
        entered_MD = self.prompts.enter(letter, self.index, None)
        slots_HMd = project(self.block, letter, self.block.ln_1(entered_MD))
        return torch.cat([slots_HMd.expand(len(x_CXD), -1, -1, -1), rows_CHXd], 2)

    def _project(self, letter: Letter, x_CXD: Tensor, normed_CXD: Tensor) -> Tensor:
        changed_CXD = self._enter(letter, x_CXD)
        return project(self.block, letter, normed_CXD if changed_CXD is x_CXD else self.block.ln_1(changed_CXD))

    def _enter(self, letter: Letter, x_CXD: Tensor) -> Tensor:
        """What a letter is made of, [C, X, D]; `x_CXD` itself where no prompt changes it."""
        if not self.live:
            return x_CXD
        states_CMD = x_CXD[:, : self.live]
        entered = self.prompts.enter(letter, self.index, states_CMD)
        if entered is states_CMD:
            return x_CXD
        return torch.cat([entered.expand_as(states_CMD), x_CXD[:, self.live :]], 1)
