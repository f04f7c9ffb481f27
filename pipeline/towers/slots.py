"""What the slots of a tower hold: the value that passes between learner, towers and files.

This module neither trains (`learner`) nor runs a tower (`text_tower`, `image_tower`).

Shapes: M slots, L blocks, D width, n blocks that have a letter; X any leading sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from teachonce.errors import TeachOnceError
from teachonce.towers.structures import Letter


@dataclass(frozen=True, eq=False)
class SlotPrompts:
    """What the slots hold, in the tower's own units, after any parametrisation.

    Carried: `context` enters the first block and is carried through all blocks (CoOp, POMP). The rest of this paragraph
    is ours. Layer l of `query`, `key` and `value` is added to the slot states before the first norm of block l, for
    that letter's projection only; layer l of `residual` is added to the residual stream only. Blocks beyond a stack add
    nothing.

    Replace (RPP, arXiv 2409.06166, as reported by third parties): in the first len(key) blocks the slots' keys and
    values come from `key` and `value` in place of a slot state. If another block follows, the slot goes on from the
    last of them: its query is made of `query[0]`, and its residual stream is `residual[0]` (this residual is ours).

    Accumulate (arXiv 2502.14125): carried, and layer l of `added` are M further slots that enter at the input of block
    l + 1, behind the slots that are there. They have no position.
    """

    context: Tensor | None  # [M, D] slot states at the input (text: without position); None in replace
    query: Tensor | None = None  # [n, M, D]; replace: [1, M, D], of block len(key) - 1, or None when no block follows
    key: Tensor | None = None  # [n, M, D], from block 0
    value: Tensor | None = None  # [n, M, D], from block 0
    residual: Tensor | None = None  # [n, M, D]; replace: as query
    replace: bool = False
    added: Tensor | None = None  # [n, M, D], from block 1; carried only, and without letters
    gate: Tensor | None = None  # [L], image towers only: o = Attn(real) + tanh(g_l) Attn(slots) (arXiv 2303.16199)

    @property
    def slots(self) -> int:
        """Number of slots, M."""
        if self.context is not None:
            return self.context.shape[0]
        return self._replaced_keys.shape[1]

    @property
    def entry(self) -> int:
        """The first block in which the slots have a query and a residual stream: 0 if carried.

        Replace: the last replaced block, or L (no block) when no block follows it.
        """
        if not self.replace:
            return 0
        return len(self._replaced_keys) - (self.query is not None)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are present, by name."""
        return {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}

    def apply(self, change: Callable[[Tensor], Tensor]) -> SlotPrompts:
        """Return the same prompts with every tensor changed: `prompts.apply(lambda x: x.to(device))`."""
        changed: dict[str, Any] = {name: change(x) for name, x in self.tensors().items()}
        return replace(self, **changed)

    def entering(self, block: int) -> Tensor | None:
        """The slots that are new in a block, [M, D]; None where there are none. Those of `context` are not told."""
        if self.added is None or not 1 <= block <= len(self.added):
            return None
        return self.added[block - 1]

    def enter(self, letter: Letter, block: int, states: Tensor | None, part: slice = slice(None)) -> Tensor:
        """Compute the input of a letter at the slots `part` in a block.

        Args:
            states: [X, slots of the part, D], the carried slot states; None where there are none (replace).

        Returns:
            [X, slots of the part, D], or [slots of the part, D] where the prompts replace the states. Exactly
            `states`, the same object, where the block has no prompt of this letter.

        Raises:
            TeachOnceError: there is neither a state nor a prompt.
        """
        stack: Tensor | None = getattr(self, letter)
        index = block - self.entry if self.replace and letter in ("query", "residual") else block
        if stack is not None and 0 <= index < len(stack):
            if self.replace:
                return stack[index, part]
            if states is not None:
                return states + stack[index, part]
        if states is None:
            raise TeachOnceError(f"block {block} has neither a slot state nor a prompt for its {letter}")
        return states

    def require_fit(self, layers: int, width: int, gated: bool = False) -> None:
        """Check the shapes against a tower of L blocks.

        Args:
            layers: L.
            width: D.
            gated: whether the tower knows a gate.

        Raises:
            TeachOnceError: the shapes do not fit; the message names them.
        """
        fits = self._replaced_fit(layers) if self.replace else self._carried_fit(layers)
        slot = (self.slots, width) if self.context is not None or self.key is not None else None
        stacks = (self.query, self.key, self.value, self.residual, self.added)
        fits = fits and all(x is None or x.shape[1:] == slot for x in stacks)
        fits = fits and (self.context is None or self.context.shape == slot)
        fits = fits and (self.gate is None or (gated and self.gate.shape == (layers,)))
        if not fits:
            shapes = {name: tuple(x.shape) for name, x in self.tensors().items()}
            kind = "replacing" if self.replace else "carried"
            raise TeachOnceError(f"{kind} prompts of shapes {shapes} do not fit {layers} blocks of width {width}")

    @property
    def _replaced_keys(self) -> Tensor:
        if self.key is None:
            raise TeachOnceError("prompts without a context need keys and values that replace the slot states")
        return self.key

    def _carried_fit(self, layers: int) -> bool:
        most = ((self.query, layers - 1), (self.residual, layers - 1), (self.key, layers), (self.value, layers))
        if self.added is not None and (len(self.added) >= layers or any(x is not None for x, _ in most)):
            return False
        return self.context is not None and all(x is None or len(x) <= blocks for x, blocks in most)

    def _replaced_fit(self, layers: int) -> bool:
        if self.context is not None or self.added is not None or self.key is None or self.value is None:
            return False
        depth = len(self.key)
        leaving = [x is not None and len(x) == 1 for x in (self.query, self.residual)]
        absent = self.query is None and self.residual is None
        return len(self.value) == depth and (0 < depth < layers and all(leaving) or depth == layers and absent)
