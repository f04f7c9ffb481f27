"""How prompts enter attention, and which of their tensors a tower can train at all.

This module holds no tensors: `slots` does. It loads nothing heavy, so that configs and `--help` can name the
structures.

Words: slots are the positions that hold prompts; letters are what a block makes of a slot (query, key, value) and the
residual stream that goes on from it. L blocks, M slots, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from teachonce.errors import UsageError

Letter = Literal["query", "key", "value", "residual"]
Structure = Literal[
    "shared",
    "unshared",
    "unshared-replace",
    "shared-replace",
    "q",
    "k",
    "v",
    "r",
    "qk",
    "qv",
    "qr",
    "kv",
    "kr",
    "vr",
    "qkr",
    "qvr",
    "kvr",
    "qkvr",
    "accumulate",
]
"""shared: one state a slot, at the input only (CoOp, arXiv 2109.01134; POMP, arXiv 2304.04704).
unshared: ours. Query, key and value prompts are added to the slot state in each block. The state is carried from block
to block, so that the query prompts live.
unshared-replace: RPP (arXiv 2409.06166) as reported by third parties. A review, itself machine-written, calls it SAPL
and gives X*_Q(l) = LN(Rep(X(l-1), P_Q(l))), likewise K and V; the paper's body was not available to us. Prompts stand
in for the slot state in each block. Where the next block replaces the slot again, what this block makes of it is lost.
shared-replace: one new state a slot in each block, of which query, key, value and residual are made alike (VPT-deep,
arXiv 2203.12119; the text side of MaPLe, arXiv 2210.03117, and of PromptSRC, arXiv 2307.06948).
Letters (q, k, v, r = residual): as unshared, with these letters only; unshared is `qkv`.
accumulate: each prompted block behind the first takes M new slots behind those that are there, and all are carried, so
that the keys and values of every earlier block's prompts stay to be attended (Modular Prompt Learning, arXiv
2502.14125, with its operations add and carry and without remove; its code has this in the image tower alone)."""
REPLACING: tuple[Structure, ...] = ("unshared-replace", "shared-replace")
"""The structures in which prompts stand in for the slot state."""
Position = Literal["before", "around", "after"]
"""Slots stand before the name, half on each side, or after it: CoOp's end, middle and front (arXiv 2109.01134)."""
Init = Literal["template", "words", "normal"]
"""What the slots hold before the first step; see `learner`."""

_LETTERS: Mapping[str, Letter] = {"q": "query", "k": "key", "v": "value", "r": "residual"}


@dataclass(frozen=True)
class Allocation:
    """The trained tensors of a structure on one tower. A tensor that could never get a gradient does not exist."""

    replace: bool
    context: bool  # whether slot states at the input are trained
    blocks: Mapping[Letter, range]  # blocks that have each letter; letters without any are absent
    added: range = range(0)  # blocks that take M new slots
    tied: bool = False  # whether the letters of a block are one tensor

    def parameters(self, slots: int, width: int) -> int:
        """Return how many numbers are trained: M D for the context, each addition, each letter or state of a block."""
        states = len(self.blocks["key"]) if self.tied else sum(map(len, self.blocks.values()))
        return slots * width * (self.context + states + len(self.added))


def written(context: str, suffix: str) -> str:
    """The template of a hand-written context: its words in front of a name, and what follows the name."""
    return f"{context} {{}}{suffix}"


def allocate(structure: Structure, layers: int, depth: int, key: str = "depth") -> Allocation:
    """Choose the trained tensors of a structure on a tower of L blocks.

    Carried letters are in the first `depth` blocks. Nothing reads what the last block makes of a slot, so it has
    neither query nor residual. In `unshared-replace` nothing reads what a replaced block makes of a slot if the next
    block replaces it again: only the last replaced block has a query and a residual, and only if a block follows. The
    residual is ours: the reported formula does not say what goes on from a replaced slot. The context would be replaced
    before anything reads it. `shared-replace` has the same letters, of one state a block. In `accumulate`
    the first block has the context, and each of the next `depth` - 1 blocks new slots.

    Args:
        layers: L.
        depth: the first `depth` blocks carry prompts; 0 means all. `shared` ignores it.
        key: the name of the depth where it was set, for messages.

    Raises:
        UsageError: the tower has fewer blocks than `depth`.
    """
    if not 0 <= depth <= layers:
        raise UsageError(
            f"{key} {depth} is out of range: the student's tower has {layers} blocks (0 means all)",
            hint=f"set {key} to a number from 0 to {layers}",
        )
    depth = depth or layers
    if structure in REPLACING:
        leaving = range(depth - 1, depth) if depth < layers else range(0)
        every = range(depth)
        blocks: dict[Letter, range] = {"query": leaving, "key": every, "value": every, "residual": leaving}
        return Allocation(True, False, _present(blocks), tied=structure == "shared-replace")
    if structure == "accumulate":
        return Allocation(False, True, {}, range(1, depth))
    letters = {"shared": "", "unshared": "qkv"}.get(structure, structure)
    most: Mapping[str, int] = {"q": layers - 1, "r": layers - 1}
    return Allocation(False, True, _present({_LETTERS[x]: range(min(depth, most.get(x, layers))) for x in letters}))


def _present(blocks: Mapping[Letter, range]) -> dict[Letter, range]:
    return {letter: where for letter, where in blocks.items() if where}
