"""Class names as tokens, and how a causal text tower lays them end to end so that nothing is padded.

This module knows ids only: `causal_text` and `whole_text` embed them and run the tower.

Shapes: N names as given, C distinct names (of a call: the chosen ones), T their tokens, M slots of which B come after
the name, R rows of a layout, P prefix positions that names share, n rows of a name.
"""

from __future__ import annotations

import itertools
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

    ends: Tensor  # [C], the last row of each name, which is pooled
    groups: tuple[Group, ...]
    blind: bool  # whether that row does not see itself


@dataclass(frozen=True, eq=False)
class BackSlots:
    """The rows of a call's names where slots stand between name and suffix."""

    layout: Layout  # the rows with the slots among them
    source: Tensor  # [R]: which of the T token rows, or T + i for the i-th of the C B slots
    rows: Tensor  # [C, B]: where the slots lie among the R rows
    positions: Tensor  # [C, B] in the context
    unseen: Tensor  # [T, 1] bool: token rows before the slots, which must not see them


@dataclass(frozen=True, eq=False)
class PackedNames:
    """The names of a call."""

    ids: Tensor  # [T]
    positions: Tensor  # [T] in the context
    place: Tensor  # [C], where each name of the call went
    layout: Layout  # of the tokens alone
    back: BackSlots | None


def pack(names: NameTokens, chunk: Tensor | None, slots: int, device: torch.device, blind: bool = False) -> PackedNames:
    """Lay the chosen names end to end by rising length. All index arithmetic happens on the CPU.

    Args:
        chunk: [C] indices of some distinct names; None: all names.
        slots: M.
        device: the device of the result.
        blind: the last token of each name does not see itself.
    """
    chosen_C = names.chosen(chunk)
    lengths_C = names.lengths[chosen_C]
    order_C = lengths_C.argsort(stable=True)
    lengths_C, starts_C = lengths_C[order_C], names.offsets[chosen_C[order_C]]
    inside_T = _inside(lengths_C)
    front = names.front(slots)
    behind_T = inside_T >= (lengths_C - names.tail).repeat_interleave(lengths_C)
    back = None
    if front < slots:
        back = _back_slots(lengths_C, names.tail, slots - front, names.start + front, behind_T, device, blind)
    return PackedNames(
        ids=names.ids[starts_C.repeat_interleave(lengths_C) + inside_T].to(device),
        positions=(names.start + front + inside_T + (slots - front) * behind_T).to(device),
        place=order_C.argsort().to(device),
        layout=_layout(lengths_C, device, blind),
        back=back,
    )


def _inside(lengths_C: Tensor) -> Tensor:
    """Return the place of every row within its name, [T]."""
    ends_C = lengths_C.cumsum(0)
    return torch.arange(int(ends_C[-1])) - (ends_C - lengths_C).repeat_interleave(lengths_C)


def _layout(lengths_C: Tensor, device: torch.device, blind: bool) -> Layout:
    longest = int(lengths_C[-1])
    mask = torch.full((longest, longest), -torch.inf, device=device).triu(1)
    groups, name, row = [], 0, 0
    for length, members in itertools.groupby(lengths_C.tolist()):
        count = len(list(members))
        rows = slice(row, row + count * length)
        seen = mask[:length, :length]
        if blind:
            seen = seen.clone()
            seen[-1, -1] = -torch.inf
        groups.append(Group(slice(name, name + count), rows, count, seen))
        name, row = name + count, rows.stop
    return Layout((lengths_C.cumsum(0) - 1).to(device), tuple(groups), blind)


def _back_slots(
    lengths_C: Tensor, tail: int, back: int, first: int, behind_T: Tensor, device: torch.device, blind: bool
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
        layout=_layout(with_slots_C, device, blind),
        source=source_R.to(device),
        rows=rows_CB.to(device),
        positions=(first + own_C1 + torch.arange(back)).to(device),
        unseen=~behind_T[:, None].to(device),
    )
