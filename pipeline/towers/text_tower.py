"""The frozen text tower of a CLIP, with prompts in it: words to slots, names to tokens, both to features.

Two implementations stand behind it: `causal_text` takes every short cut that a causal mask allows, `whole_text` runs
every position where there is no mask. They give what open_clip's `encode_text` gives, and nobody who calls the tower
knows which one it is.

This module trains nothing (`learner` holds what is learned) and refuses towers on which both would be wrong.

Shapes: N names as given, C distinct names, M slots, L blocks, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teachonce.errors import UnsupportedModelError, UsageError
from teachonce.towers.causal_text import CausalText
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import Position
from teachonce.towers.text_coder import TextCoder
from teachonce.towers.text_parts import TextParts, structure_obstacle, unsupported
from teachonce.towers.tokens import NameTokens, behind_slots, encode_text, tokenise_names
from teachonce.towers.whole_text import WholeText

_CLASS = -1  # stands for a class token among ids: it is in no table


class TextRun(Protocol):
    """How a tower runs prompts and names."""

    @property
    def shares_slot_states(self) -> bool:
        """Whether slots before the name have the same states beside every name."""

    def block_inputs(self, prompts: SlotPrompts) -> Tensor:
        """[L, M, D] the input of every block at slots before the name, for carried prompts, without a graph."""

    def features(self, prompts: SlotPrompts, names: NameTokens, chunk: Tensor | None) -> Tensor:
        """[C, E] features of distinct names, differentiable in the prompts, of any length."""


@dataclass(frozen=True, eq=False)
class TextTower:
    """The frozen text tower of an open_clip model, which refers to the model's own modules and copies no weights."""

    parts: TextParts
    tokenizer: Any
    coder: TextCoder
    run: TextRun

    @classmethod
    def from_clip(cls, model: nn.Module, tokenizer: Any) -> TextTower:
        """Take the text tower out of a model and freeze it (`requires_grad_(False)`).

        Raises:
            UnsupportedModelError: prompts cannot enter the model exactly; the message names what is in their way.
        """
        parts = TextParts.of(model)
        coder = TextCoder.of(tokenizer)
        _check_ids(parts, coder)
        run: TextRun
        if parts.causal:
            coder = _with_class_token(parts, coder)
            run = CausalText(parts, coder.start)
        else:
            run = WholeText(parts, coder.start, coder.end, coder.padding)
        return cls(parts, tokenizer, coder, run)

    @property
    def width(self) -> int:
        """D."""
        return self.parts.positional_embedding.shape[1]

    @property
    def layers(self) -> int:
        """L."""
        return len(self.parts.blocks)

    @property
    def context_length(self) -> int:
        """Positions of a text, 77 for CLIP."""
        return self.parts.positions

    @property
    def most_slots(self) -> int:
        """The most slots that leave room for the start token, one token of a name, and the end."""
        return self._room - len(self.coder.start) - 1 - len(self.coder.end)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.parts.positional_embedding.device

    @property
    def start_embedding(self) -> Tensor | None:
        """The embedding of the start token, without position, [D]; None where texts have none."""
        return self.parts.token_embedding.weight[self.coder.start[0]] if self.coder.start else None

    @property
    def shares_slot_states(self) -> bool:
        """Whether slots before the name have the same states beside every name: so it is in causal towers."""
        return self.run.shares_slot_states

    def tokenise(
        self, names: Sequence[str], suffix: str = ".", slots: int = 0, position: Position = "before"
    ) -> NameTokens:
        """Tokenise name, suffix and end. All must fit beside `slots` slots; `features` checks this again.

        Args:
            suffix: what follows a name, or the slots behind it.
            slots: M.
            position: where the slots stand, relative to the name.

        Raises:
            UsageError: there are no names, or a name is empty, too long or holds a special token.
        """
        tokens = tokenise_names(self.coder, names, suffix, position, slots)
        tokens.check_fits(slots, self._room)
        return tokens

    def embed_words(self, text: str, position: Position = "before") -> Tensor:
        """Return the token embeddings of a context such as "a photo of a", without position, [M, D].

        Args:
            position: where the context stands, relative to the name: some tokenizers give the first word of a text an
                id of its own.

        Raises:
            UsageError: the text has no token, or leaves no room for a name.
        """
        where = f"the context {text!r}"
        ids = encode_text(self.coder, text, where)
        if not behind_slots(position, len(ids)):
            ids = encode_text(self.coder, text, where, follows=True)
        if len(ids) > self.most_slots:
            raise UsageError(f"{where} takes {len(ids)} of the text tower's {self.context_length} tokens")
        words: Tensor = self.parts.token_embedding(torch.tensor(ids, device=self.device))
        return words

    def finds_words(self, text: str) -> bool:
        """Return whether the tokenizer finds any word in a text: some drop all punctuation."""
        return bool(self.coder.encode([text])[0])

    def block_inputs(self, prompts: SlotPrompts) -> Tensor:
        """Return the input of every block at slots before the name, for carried prompts, with position, [L, M, D].

        Where they differ with the name (`shares_slot_states`), those of a text without a name.
        """
        prompts.require_fit(self.layers, self.width)
        return self.run.block_inputs(prompts)

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
        names.check_fits(prompts.slots, self._room)
        pooled = self.run.features(prompts, names, chunk)
        return F.normalize(pooled.to(torch.promote_types(pooled.dtype, torch.float32)), dim=-1)

    @property
    def _room(self) -> int:
        """Positions in all, a class token's among them: it is counted as a token of every name."""
        return self.parts.positional_embedding.shape[0]


def text_obstacle(model: nn.Module) -> str | None:
    """Say what in a model's text tower keeps prompts out, such as `blocks of class X`; None where they can enter.

    Only the structure is looked at: it works on the meta device, and neither needs nor judges a tokenizer.
    """
    return structure_obstacle(model)


def _check_ids(parts: TextParts, coder: TextCoder) -> None:
    rows = parts.token_embedding.num_embeddings
    if max(*coder.start, *coder.end, coder.padding) >= rows:
        raise unsupported(f"a token table of {rows} rows, which is too short for the tokenizer's start or end token")
    if parts.pool == "end" and parts.eos != coder.end[0]:
        raise unsupported(f"pooling at token {parts.eos} where the tokenizer ends texts with {coder.end[0]}")
    if parts.pool == "highest" and not coder.end_is_highest:
        raise unsupported(f"pooling at the highest token, and a tokenizer whose end token {coder.end[0]} is not that")
    if parts.pool == "first" and not coder.start:
        raise UnsupportedModelError(
            "this model's text tower cannot carry prompts: it pools at the first position, and its tokenizer puts no "
            "start token there: a slot would stand in its place"
        )


def _with_class_token(parts: TextParts, coder: TextCoder) -> TextCoder:
    """The coder with what the class token of a tower adds to every text."""
    token = parts.class_token
    if token is None:
        return coder
    if token.padding != coder.padding:
        raise unsupported(f"a mask for padding {token.padding} where the tokenizer pads with {coder.padding}")
    behind = (coder.padding, _CLASS) if token.shifted else (_CLASS,)
    return replace(coder, end=coder.end + behind, reserved=coder.reserved | {token.padding})
