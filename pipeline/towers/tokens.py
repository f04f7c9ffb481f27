"""Class names as tokens.

This module knows ids only: `packing` lays them out, `causal_text` and `whole_text` embed them and run the tower.

Shapes: N names as given, C distinct names (of a call: the chosen ones), M slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from teachonce.errors import TeachOnceError, UsageError
from teachonce.towers.structures import Position
from teachonce.towers.text_coder import TextCoder


class NameRefused(UsageError):
    """A text tower cannot take a class name.

    Args:
        index: of the name among those given.
        name: as it was given.
        why: the end of a sentence about the name.
        hint: what to do about it.
    """

    def __init__(self, index: int, name: str, why: str, hint: str) -> None:
        super().__init__(f"class name {index} ({name!r}) {why}", hint)
        self.index = index
        self.name = name
        self.why = why


class NameTooLong(NameRefused):
    """A class name has more tokens than the text tower has room for.

    Args:
        index: of the name among those given.
        name: as it was given.
        tokens: of the name with its ending.
        slots: places that prompts take.
        room: tokens that fit beside start token and slots.
        start: whether there is a start token.
    """

    def __init__(self, index: int, name: str, tokens: int, slots: int, room: int, start: bool = True) -> None:
        why = (
            f"takes {tokens} tokens with its ending, but after {'the start token and ' if start else ''}{slots} slots "
            f"the text tower has room for {room}"
        )
        super().__init__(index, name, why, "shorten the name or the context")
        self.tokens = tokens
        self.slots = slots
        self.room = room


@dataclass(frozen=True, eq=False)
class NameTokens:
    """Class names as tokens, on the CPU: each distinct token sequence once, in the order of first appearance."""

    names: tuple[str, ...]  # N names as given
    ids: Tensor  # [sum of lengths] int64: name, suffix and end of every distinct name, end to end
    offsets: Tensor  # [C + 1] int64: where each distinct name begins in `ids`
    inverse: Tensor  # [N] int64: the distinct name of each given one
    position: Position = "before"  # where the slots are
    tail: int = 1  # tokens of suffix and end: slots that are not before a name stand before its last `tail` tokens
    start: int = 1  # start tokens before the text: one or none
    end: int = 1  # tokens after name and suffix; the pooled one is the first of them

    @property
    def count(self) -> int:
        """C, the number of distinct names."""
        return self.offsets.shape[0] - 1

    @property
    def lengths(self) -> Tensor:
        """[C] int64: tokens of each distinct name, its end included, slots not."""
        return self.offsets.diff()

    def chosen(self, chunk: Tensor | None) -> Tensor:
        """Return the indices of a chunk on the CPU, [C]; of all distinct names where there is none."""
        chosen_C = torch.arange(self.count) if chunk is None else chunk.cpu()
        if not chosen_C.numel():
            raise TeachOnceError("features of no names were asked for")
        return chosen_C

    def front(self, slots: int) -> int:
        """Return how many slots stand before the name: all, half of them rounded down, or none."""
        return {"before": slots, "around": slots // 2, "after": 0}[self.position]

    def expand(self, features_CE: Tensor) -> Tensor:
        """Expand features of the distinct names to features of the names as given, [N, E]."""
        return features_CE[self.inverse.to(features_CE.device)]

    def check_fits(self, slots: int, context_length: int) -> None:
        """Refuse names that do not fit beside the slots.

        Raises:
            NameTooLong: a name does not fit; it has the first one and its index. open_clip would truncate it silently.
        """
        room = context_length - self.start - slots
        lengths_N = self.lengths[self.inverse]
        too_long = (lengths_N > room).nonzero().flatten().tolist()
        if too_long:
            index = too_long[0]
            raise NameTooLong(index, self.names[index], int(lengths_N[index]), slots, room, self.start > 0)


def encode_text(coder: TextCoder, text: str, where: str, follows: bool = False) -> list[int]:
    """Return the token ids of a text, without start and end.

    Args:
        where: a description of the text, for messages.
        follows: a name stands before the text.

    Raises:
        UsageError: the text has no token, or has a token that is reserved.
    """
    ids = coder.encode([text], follows)[0]
    refusal = _refusal(coder, ids)
    if refusal is not None:
        why, hint = refusal
        raise UsageError(f"{where} {why}", hint=hint)
    return ids


def _refusal(coder: TextCoder, ids: list[int], nothing: list[int] | None = None) -> tuple[str, str] | None:
    """Why the ids of a text are refused and what to do about that text; None where they are fine."""
    if not ids or ids == nothing:
        return "is empty: the tokenizer finds no word in it", "give it at least one word"
    if not coder.reserved.isdisjoint(ids):
        why = "holds a special token of the tokenizer, which would end the text early"
        return why, "write it in words, without <...> of the tokenizer's own"
    return None


def behind_slots(position: Position, slots: int) -> bool:
    """Whether slots stand before the name. Where their number is not known, 0, half of them are taken to be some."""
    return position == "before" or (position == "around" and slots != 1)


def tokenise_names(
    coder: TextCoder, names: Sequence[str], suffix: str, position: Position, slots: int = 0
) -> NameTokens:
    """Tokenise name, suffix and end.

    No tokenizer that is taken joins across a space, so with the slots before the name these equal the end of the tokens
    of `{context} {name}{suffix}`. Where slots stand between name and suffix, the two are tokenised apart.

    Raises:
        UsageError: there are no names.
        NameRefused: a name is empty or holds a special token.
    """
    if not names:
        raise UsageError("no class names were given", hint="give a list of at least one name")
    before, follows = position == "before", behind_slots(position, slots)
    ending = coder.encode_ending(suffix)
    refusal = _refusal(coder, ending) if ending else None
    if refusal is not None:
        why, hint = refusal
        raise UsageError(f"the ending {suffix!r} {why}", hint=hint)
    # This is what an empty name looks like.
    nothing = coder.encode([suffix], follows)[0] if before else []
    first: dict[tuple[int, ...], int] = {}
    inverse = []
    rows = coder.encode([name + suffix if before else name for name in names], follows)
    for index, (name, ids) in enumerate(zip(names, rows, strict=True)):
        refusal = _refusal(coder, ids, nothing)
        if refusal is not None:
            raise NameRefused(index, name, *refusal)
        ids = ids if before else ids + ending
        inverse.append(first.setdefault((*ids, *coder.end), len(first)))
    flat = torch.tensor([token for ids in first for token in ids])
    offsets = torch.tensor([0, *map(len, first)]).cumsum(0)
    tail = len(ending) + len(coder.end)
    return NameTokens(
        tuple(names), flat, offsets, torch.tensor(inverse), position, tail, len(coder.start), len(coder.end)
    )
