"""Count the bytes of tensors that live at once while real work runs: every storage is asked whether it is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Holds(TorchDispatchMode):
    """Real bytes: after each operation, every storage that was ever seen is asked whether it still lives."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.kept: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self.see(weights)

    def see(self, made: Any) -> None:
        """Count what was made, and forget what is gone."""
        self.kept = {key: pair for key, pair in self.kept.items() if not pair[0].expired()}
        for x in tree_leaves(made):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                self.kept[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, self.now)

    @property
    def now(self) -> int:
        return sum(size for _, size in self.kept.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.see(made)
        return made
