"""Class names as tokens, and how a text tower lays them end to end so that nothing is padded.

This module knows the tokenizer's ids only: `text_tower` embeds them and runs the tower.

Shapes: N names as given, C distinct names (of a call: the chosen ones), T their tokens, M slots of which B come after
the name, R rows of a layout, P prefix positions that names share, n rows of a name.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from teachonce.errors import TeachOnceError, UsageError
from teachonce.towers.structures import Position


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
    """

    def __init__(self, index: int, name: str, tokens: int, slots: int, room: int) -> None:
        why = (
            f"takes {tokens} tokens with its ending, but after the start token and {slots} slots the text tower has "
            f"room for {room}"
        )
        super().__init__(index, name, why, "shorten the name or the context")
        self.tokens = tokens
        self.slots = slots
        self.room = room


@dataclass(frozen=True, eq=False)
class NameTokens:
    """Class names as tokens, on the CPU: each distinct token sequence once, in the order of first appearance."""

    names: tuple[str, ...]  # N names as given
    ids: Tensor  # [sum of lengths] int64: name, suffix and EOT of every distinct name, end to end
    offsets: Tensor  # [C + 1] int64: where each distinct name begins in `ids`
    inverse: Tensor  # [N] int64: the distinct name of each given one
    position: Position = "before"  # where the slots are
    tail: int = 1  # tokens of suffix and EOT: slots that are not before a name stand before its last `tail` tokens

    @property
    def count(self) -> int:
        """C, the number of distinct names."""
        return self.offsets.shape[0] - 1

    @property
    def lengths(self) -> Tensor:
        """[C] int64: tokens of each distinct name, EOT included, slots not."""
        return self.offsets.diff()

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
        room = context_length - 1 - slots
        lengths_N = self.lengths[self.inverse]
        too_long = (lengths_N > room).nonzero().flatten().tolist()
        if too_long:
            index = too_long[0]
            raise NameTooLong(index, self.names[index], int(lengths_N[index]), slots, room)


def encode_text(tokenizer: Any, text: str, where: str, nothing: Sequence[int] = ()) -> list[int]:
    """Return the token ids of a text, without SOS and EOT.

    Args:
        where: a description of the text, for messages.
        nothing: ids that count as no text.

    Raises:
        UsageError: the text has no token, or has a special token of the tokenizer.
    """
    ids: list[int] = tokenizer.encode(text)
    refusal = _refusal(tokenizer, ids, nothing)
    if refusal is not None:
        why, hint = refusal
        raise UsageError(f"{where} {why}", hint=hint)
    return ids


def _refusal(tokenizer: Any, ids: list[int], nothing: Sequence[int]) -> tuple[str, str] | None:
    """Why the ids of a text are refused and what to do about that text; None where they are fine."""
    if not ids or ids == nothing:
        return "is empty: the tokenizer finds no word in it", "give it at least one word"
    if max(ids) >= min(tokenizer.sot_token_id, tokenizer.eot_token_id):
        why = "holds a special token of the tokenizer, which would end the text early"
        return why, "write it in words, without <...> of the tokenizer's own"
    return None


def tokenise_names(tokenizer: Any, names: Sequence[str], suffix: str, position: Position) -> NameTokens:
    """Tokenise name, suffix and EOT.

    CLIP's BPE never joins across a space, so with the slots before the name these equal the end of the tokens of
    `{context} {name}{suffix}`. Where slots stand between name and suffix, the two are tokenised apart.

    Raises:
        UsageError: there are no names.
        NameRefused: a name is empty or holds a special token.
    """
    if not names:
        raise UsageError("no class names were given", hint="give a list of at least one name")
    end: list[int] = tokenizer.encode(suffix)
    if end:
        encode_text(tokenizer, suffix, f"the ending {suffix!r}")  # checks that the ending holds no special token
    eot = int(tokenizer.eot_token_id)
    first: dict[tuple[int, ...], int] = {}
    inverse = []
    for index, name in enumerate(names):
        before = position == "before"
        ids: list[int] = tokenizer.encode(name + suffix if before else name)
        refusal = _refusal(tokenizer, ids, end if before else ())  # `end` is what an empty name looks like
        if refusal is not None:
            raise NameRefused(index, name, *refusal)
        ids = ids if before else ids + end
        inverse.append(first.setdefault((*ids, eot), len(first)))
    flat = torch.tensor([token for ids in first for token in ids])
    offsets = torch.tensor([0, *map(len, first)]).cumsum(0)
    return NameTokens(tuple(names), flat, offsets, torch.tensor(inverse), position, len(end) + 1)


@dataclass(frozen=True, eq=False)
class Group:
    """Names of one length, which lie side by side."""

    names: slice
    rows: slice
    count: int
    mask: Tensor  # [n, n], 0 where a row may look, -inf where it may not


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the rows of a call's names lie: by rising length, end to end."""

    ends: Tensor  # [C], the row of each name's EOT
    groups: tuple[Group, ...]


@dataclass(frozen=True, eq=False)
class BackSlots:
    """The rows of a call's names where slots stand between name and suffix."""

    layout: Layout  # the rows with the slots among them
    source: Tensor  # [R]: which of the T token rows, or T + i for the i-th of the C B slots
    rows: Tensor  # [C, B]: where the slots lie among the R rows
    positions: Tensor  # [C, B], counted from SOS
    unseen: Tensor  # [T, 1] bool: token rows before the slots, which must not see them


@dataclass(frozen=True, eq=False)
class PackedNames:
    """The names of a call."""

    ids: Tensor  # [T]
    positions: Tensor  # [T], counted from SOS
    place: Tensor  # [C], where each name of the call went
    layout: Layout  # of the tokens alone
    back: BackSlots | None


def pack(names: NameTokens, chunk: Tensor | None, slots: int, device: torch.device) -> PackedNames:
    """Lay the chosen names end to end by rising length. All index arithmetic happens on the CPU.

    Args:
        chunk: [C] indices of some distinct names; None: all names.
        slots: M.
        device: the device of the result.
    """
    chosen_C = torch.arange(names.count) if chunk is None else chunk.cpu()
    if not chosen_C.numel():
        raise TeachOnceError("features of no names were asked for")
    lengths_C = names.lengths[chosen_C]
    order_C = lengths_C.argsort(stable=True)
    lengths_C, starts_C = lengths_C[order_C], names.offsets[chosen_C[order_C]]
    inside_T = _inside(lengths_C)
    front = names.front(slots)
    behind_T = inside_T >= (lengths_C - names.tail).repeat_interleave(lengths_C)
    back = _back_slots(lengths_C, names.tail, slots - front, 1 + front, behind_T, device) if front < slots else None
    return PackedNames(
        ids=names.ids[starts_C.repeat_interleave(lengths_C) + inside_T].to(device),
        positions=(1 + front + inside_T + (slots - front) * behind_T).to(device),
        place=order_C.argsort().to(device),
        layout=_layout(lengths_C, device),
        back=back,
    )


def _inside(lengths_C: Tensor) -> Tensor:
    """Return the place of every row within its name, [T]."""
    ends_C = lengths_C.cumsum(0)
    return torch.arange(int(ends_C[-1])) - (ends_C - lengths_C).repeat_interleave(lengths_C)


def _layout(lengths_C: Tensor, device: torch.device) -> Layout:
    longest = int(lengths_C[-1])
    mask = torch.full((longest, longest), -torch.inf, device=device).triu(1)
    groups, name, row = [], 0, 0
    for length, members in itertools.groupby(lengths_C.tolist()):
        count = len(list(members))
        rows = slice(row, row + count * length)
        groups.append(Group(slice(name, name + count), rows, count, mask[:length, :length]))
        name, row = name + count, rows.stop
    return Layout((lengths_C.cumsum(0) - 1).to(device), tuple(groups))


def _back_slots(
    lengths_C: Tensor, tail: int, back: int, first: int, behind_T: Tensor, device: torch.device
) -> BackSlots:
    """Put `back` slots before the last `tail` tokens of every name, whose first token is at position `first`."""
    with_slots_C = lengths_C + back
    begins_C = with_slots_C.cumsum(0) - with_slots_C
    own_C1 = (lengths_C - tail)[:, None]  # tokens before the slots
    rows_CB = begins_C[:, None] + own_C1 + torch.arange(back)
    source_R = torch.empty(int(with_slots_C.sum()), dtype=torch.int64)
    is_slot_R = torch.zeros_like(source_R, dtype=torch.bool)
    is_slot_R[rows_CB.flatten()] = True
    source_R[~is_slot_R] = torch.arange(len(behind_T))
    source_R[rows_CB.flatten()] = len(behind_T) + torch.arange(rows_CB.numel())
    return BackSlots(
        layout=_layout(with_slots_C, device),
        source=source_R.to(device),
        rows=rows_CB.to(device),
        positions=(first + own_C1 + torch.arange(back)).to(device),
        unseen=~behind_T[:, None].to(device),
    )
