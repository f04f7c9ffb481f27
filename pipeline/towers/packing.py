"""How a causal text tower lays names end to end, so that nothing is padded but, on a GPU, inside attention.

This module knows ids only: `causal_text` embeds them and runs the tower. All index arithmetic happens on the CPU, and
what a tower has laid out stays on its device for as long as whoever asked for these names keeps asking with the same
tensor.

Shapes: C distinct names of a call, T their tokens, M slots of which B come after the name, R rows of a layout, n rows
of a name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from teachonce.towers.tokens import NameTokens

T = TypeVar("T")
_ROWS_OF_A_GROUP = 8192  # rows of padding that cost about as much time as the launches of one more group


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device. On a GPU the host does not wait for what was queued before the copy."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


class KeptLayouts(Generic[T]):
    """What was laid out for chunks of names, each for as long as the tensor that chose the chunk lives."""

    def __init__(self) -> None:
        self._of_chunks: Any = WeakIdKeyDictionary()

    def of(self, names: NameTokens, chunk: Tensor | None, key: object, make: Callable[[], T]) -> T:
        """The layout of a chunk, made where there is none yet.

        Args:
            chunk: the tensor itself is what a layout is kept by; without one nothing is kept.
            key: what else the layout depends on.
        """
        if chunk is None or chunk.is_inference():
            return make()
        kept = self._of_chunks.get(chunk)
        if kept is None or kept[0] is not names or kept[1] != (key, chunk._version):
            with torch.inference_mode(False):  # plain tensors: they enter graphs later
                kept = (names, (key, chunk._version), make())
            self._of_chunks[chunk] = kept
        layout: T = kept[2]
        return layout


@dataclass(frozen=True, eq=False)
class Group:
    """Names of one length, or padded to one, which lie side by side."""

    names: slice
    rows: slice  # with padding, of the padded rows
    count: int
    mask: Tensor  # [n, n], 0 where a row may look, -inf where it may not
    of_ends: Tensor | None  # [n] or [count, 1, n] likewise, of the pooled rows; None where they see all rows
    length: int = 0  # n, where names are padded to it
    source: Tensor | None = None  # [count n], the row that each holds; None where nothing is padded
    padding: Tensor | None = None  # which of the count n are padding


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the rows of a call's names lie: by rising length, end to end."""

    ends: Tensor  # [C], the last row of each name, which is pooled
    groups: tuple[Group, ...]
    real: Tensor | None = None  # [R], where each row is among the padded ones; None: nothing is padded


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
        ids=to_device(names.ids[starts_C.repeat_interleave(lengths_C) + inside_T], device),
        positions=to_device(names.start + front + inside_T + (slots - front) * behind_T, device),
        place=to_device(order_C.argsort(), device),
        layout=_layout(lengths_C, device, blind),
        back=back,
    )


def _inside(lengths_C: Tensor) -> Tensor:
    """Return the place of every row within its name, [T]."""
    ends_C = lengths_C.cumsum(0)
    return torch.arange(int(ends_C[-1])) - (ends_C - lengths_C).repeat_interleave(lengths_C)


def _layout(lengths_C: Tensor, device: torch.device, blind: bool) -> Layout:
    ends_C = to_device(lengths_C.cumsum(0) - 1, device)
    longest = int(lengths_C[-1])
    mask = torch.full((longest, longest), -torch.inf, device=device).triu(1)
    if merges_lengths(device) and not blind:
        return _padded(lengths_C, ends_C, mask)
    groups, name, row = [], 0, 0
    for length, members in itertools.groupby(lengths_C.tolist()):
        count = len(list(members))
        rows = slice(row, row + count * length)
        seen = mask[:length, :length]
        if blind:
            seen = seen.clone()
            seen[-1, -1] = -torch.inf
        groups.append(Group(slice(name, name + count), rows, count, seen, seen[-1] if blind else None))
        name, row = name + count, rows.stop
    return Layout(ends_C, tuple(groups))


def _padded(lengths_C: Tensor, ends_C: Tensor, mask: Tensor) -> Layout:
    """Names in few groups. A row of padding repeats the name's last row, and the causal mask hides it from the name."""
    device, sizes = ends_C.device, _merged(lengths_C.tolist())
    widths_C = torch.cat([torch.full((count,), length) for count, length in sizes])
    starts_C = lengths_C.cumsum(0) - lengths_C
    groups, name, row = [], 0, 0
    for count, length in sizes:
        names, rows = slice(name, name + count), slice(row, row + count * length)
        inside_n, lasts_C1 = torch.arange(length), lengths_C[names, None] - 1
        source = (starts_C[names, None] + torch.minimum(inside_n, lasts_C1)).flatten()
        padding = (inside_n > lasts_C1).flatten().nonzero()[:, 0]
        of_ends = mask[to_device(lasts_C1[:, 0], device), None, :length]
        here = (to_device(x, device) for x in (source, padding))
        groups.append(Group(names, rows, count, mask[:length, :length], of_ends, length, *here))
        name, row = names.stop, rows.stop
    real = _inside(lengths_C) + (widths_C.cumsum(0) - widths_C).repeat_interleave(lengths_C)
    return Layout(ends_C, tuple(groups), to_device(real, device))


def _merged(lengths: list[int]) -> list[tuple[int, int]]:
    """How many names, of rising length, share a group, and the length to which they are padded: the cheapest way."""
    counted = [(length, len(list(members))) for length, members in itertools.groupby(lengths)]
    best: list[tuple[int, list[tuple[int, int]]]] = [(0, [])]
    for upper in range(1, len(counted) + 1):
        length, ways, count = counted[upper - 1][0], [], 0
        for lower in range(upper - 1, -1, -1):
            count += counted[lower][1]
            cost, groups = best[lower]
            ways.append((cost + count * length + _ROWS_OF_A_GROUP, [*groups, (count, length)]))
        best.append(min(ways, key=lambda way: way[0]))
    return best[-1][1]


def merges_lengths(device: torch.device) -> bool:
    """Whether names of several lengths are padded to one: where a launch costs more than some rows of padding."""
    return device.type != "cpu"


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
        source=to_device(source_R, device),
        rows=to_device(rows_CB, device),
        positions=to_device(first + own_C1 + torch.arange(back), device),
        unseen=to_device(~behind_T[:, None], device),
    )
