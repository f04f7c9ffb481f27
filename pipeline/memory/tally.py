"""Count the bytes that are alive while product code runs on fake tensors: sizes, types and places, but no numbers.

The weights of a model are replaced by PyTorch's fake tensors, so that every result is one as well; a dispatch mode
adds the bytes of each storage when an operation makes it and subtracts them when the storage dies. Whole numbers and
truth values stay real, because sizes follow from them. The fake tensors are on the CPU, where the engine needs no
driver; `as_on_a_gpu` makes the product lay names out, and autocast keep types, as they would on a GPU.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from teachonce.models.clip import LoadedClip
from teachonce.towers import packing, text_parts

_ASKS_FOR_A_NUMBER = torch.ops.aten._local_scalar_dense.default
_ASKS_FOR_EQUALITY = torch.ops.aten.equal.default
_ASKS_FOR_A_PLACE = torch.ops.prim.device.default


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Enter it with `with`, and run the work on a model of `fake_model` inside.

    Attributes:
        live: bytes that are alive now.
        peak: the most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._alive: dict[int, Any] = {}  # references to storages, by their numbers

    def fake_model(self, clip: LoadedClip) -> LoadedClip:
        """The same model with fake weights, on the CPU; its weights count from now on."""
        weights = [*clip.model.parameters(), *clip.model.buffers()]
        memo: dict[int, Any] = {id(weight): self._like(weight) for weight in weights}
        fake = tuple(memo.values())
        model = copy.deepcopy(clip.model, memo)
        for weight in fake:
            self._count(weight)
        return replace(clip, model=model, device=torch.device("cpu"), image_tower=None)

    def _like(self, weight: Tensor) -> Tensor:
        if not weight.is_floating_point():
            return weight.cpu()
        with self._fake:
            made = torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device="cpu")
        return nn.Parameter(made, weight.requires_grad) if isinstance(weight, nn.Parameter) else made

    def empty(self, *size: int, dtype: torch.dtype = torch.float32, like_images: bool = False) -> Tensor:
        """A fake tensor, which counts.

        Args:
            size: of the tensor.
            dtype: its type.
            like_images: whether channels lie last.
        """
        form = torch.channels_last if like_images else torch.contiguous_format
        with self._fake:
            made = torch.empty(size, dtype=dtype, memory_format=form)
        self._count(made)
        return made

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation and count what it makes."""
        options = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, options)) if isinstance(x, Tensor)]
        fake = any(isinstance(x, FakeTensor) for x in tensors)
        if operation is _ASKS_FOR_A_PLACE:
            return args[0].fake_device if fake else args[0].device
        if fake and operation is _ASKS_FOR_A_NUMBER:
            return torch.ones((), dtype=args[0].dtype).item()
        if fake and operation is _ASKS_FOR_EQUALITY:
            return True
        if torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), "CompositeImplicitAutograd"):
            with self:  # inference mode hands over compositions whole
                return operation.decompose(*args, **options)
        if not fake and any(map(_has_numbers, tensors)):
            args, options = tree_map(self._faked, (args, options))
        result = operation(*args, **options)
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self._count(x)
        return result

    def _faked(self, x: object) -> object:
        return self._fake.from_tensor(x) if isinstance(x, Tensor) and _has_numbers(x) else x

    def _count(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def gone(_: object) -> None:
            self.live -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


def _has_numbers(x: Tensor) -> bool:
    """Whether a real tensor holds what is computed, and not what is counted: single numbers stay, as Adam's step."""
    return x.is_floating_point() and x.ndim > 0


class _TypesOfCuda(TorchFunctionMode):
    """Norms and softmax in float32 under autocast, as CUDA's lists have it; those of the CPU leave them as they are."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if function in _IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, options = tree_map(_widened, (args, options))
        return function(*args, **options)


_IN_FLOAT32: set[Callable[..., Any]] = {F.layer_norm, F.softmax, Tensor.softmax, torch.softmax}


def _widened(x: object) -> object:
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16) else x


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Let the product lay names out, fuse activations and keep types as it does on a GPU."""
    before = packing.merges_lengths, text_parts.fuses_activations
    packing.merges_lengths = text_parts.fuses_activations = lambda device: True
    try:
        with _TypesOfCuda():
            yield
    finally:
        packing.merges_lengths, text_parts.fuses_activations = before
