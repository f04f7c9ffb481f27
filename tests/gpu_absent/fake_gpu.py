"""A GPU that is not there: product code runs with GPU tensors that hold no numbers, and what CUDA would do is counted.

Tensors on the GPU are fake (shape, type, device and no data); tensors on the CPU stay real, so that the index
arithmetic of a step is the true one. A dispatch mode above PyTorch's FakeTensorMode sees every operation: a mix of CPU
and GPU tensors raises, as on CUDA; what makes the host wait gives it ones in place of numbers and is counted, like
kernels and copies (`tally`).

Two devices stand in for a GPU:

    cuda      has the real name and the real lists of autocast, so every branch of the product on CUDA is taken. The
              engine refuses it without a driver: `torch.autograd.grad` gives empty gradients of the right shapes.
    fakegpu   is a backend registered from Python, on which the engine runs: backward operations are watched too. It has
              no autocast.

It sees neither values nor what real kernels refuse, neither memory nor time, and no races of streams.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from fake_machine import Pinned, pretended, register
from tally import (
    HIDDEN_COPY,
    WAITS_FOR_A_NUMBER,
    WAITS_FOR_A_SHAPE,
    WAITS_FOR_A_TENSOR,
    WAITS_FOR_AN_EVENT,
    Copy,
    Tally,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import teachonce
import teachonce.stages

Kind = Literal["cuda", "fakegpu"]
TESTED = ("2.14",)
"""Versions of PyTorch on which this was tried: it stands on parts that PyTorch promises nobody."""

aten = torch.ops.aten
_SHAPE_NEEDS_VALUES = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
    aten.is_nonzero.default,
}
_LAUNCHES_NOTHING = {
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh.default,
    aten._unsafe_view.default,
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
_COPIES = (aten._to_copy.default, aten.copy_.default)
_PRODUCT = tuple(str(Path(str(module.__file__)).parent) for module in (teachonce, teachonce.stages))


def is_tried() -> bool:
    """Whether the guard was tried with this version of PyTorch."""
    return torch.__version__.startswith(TESTED)


class FakeGpu(TorchDispatchMode):
    """Enter it with `with`, and move a model to `device` inside.

    Args:
        kind: which of the two devices.
    """

    def __init__(self, kind: Kind = "cuda") -> None:
        super().__init__()
        if kind == "fakegpu":
            register(kind)
        self.kind, self.device, self.tally = kind, torch.device(kind, 0), Tally()
        self._fake = FakeTensorMode(allow_non_fake_inputs=False)
        self._pinned = Pinned()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> FakeGpu:
        self._open = contextlib.ExitStack()
        self._open.enter_context(self._fake)
        # With this set, `torch.tensor(numbers, device=gpu)` makes a CPU tensor and copies it, which the mode sees.
        self._open.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        self._open.enter_context(pretended(self._pinned, self._event_awaited, self.kind == "cuda"))
        super().__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        super().__exit__(*problem)
        self._open.close()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Watch one operation."""
        options = dict(kwargs or {})
        if operation is torch.ops.prim.device.default:
            return args[0].fake_device if isinstance(args[0], FakeTensor) else args[0].device
        tensors = [x for x in tree_leaves((args, options)) if isinstance(x, Tensor)]
        target = options.get("device")
        into = target is not None and torch.device(target).type == self.kind
        if not into and not any(map(self._is_here, tensors)):
            return self._on_the_host(operation, args, options)
        if _is_composed(operation):
            with self._again():  # inference mode hands over compositions whole
                return operation.decompose(*args, **options)
        if operation in _COPIES:
            copied = self._copied(operation, args, options, into)
            if copied is not NotImplemented:
                return copied
        if operation is aten._local_scalar_dense.default:
            self._waits(WAITS_FOR_A_NUMBER)
            return True if args[0].dtype == torch.bool else 1.0 if args[0].dtype.is_floating_point else 1
        if operation in _SHAPE_NEEDS_VALUES or (operation is aten.index.Tensor and any(map(_is_mask, args[1]))):
            self._waits(WAITS_FOR_A_SHAPE)
            return self._with_ones(operation, args, options)
        for x in tensors:
            if not isinstance(x, FakeTensor) and x.ndim:  # CUDA takes a CPU tensor as an index, and copies it
                self._waits(HIDDEN_COPY)
        args, options = tree_map(self._as_fake, (args, options))
        result = operation(*args, **options)
        self._count(operation, (args, options, result), result)
        return result

    @contextlib.contextmanager
    def _again(self) -> Any:
        TorchDispatchMode.__enter__(self)
        try:
            yield
        finally:
            TorchDispatchMode.__exit__(self, None, None, None)

    def _is_here(self, x: object) -> bool:
        return isinstance(x, FakeTensor) and x.fake_device.type == self.kind

    def _as_fake(self, x: object) -> object:
        return self._fake.from_tensor(x) if isinstance(x, Tensor) and not isinstance(x, FakeTensor) else x

    def _on_the_host(self, operation: Any, args: Sequence[Any], options: dict[str, Any]) -> Any:
        pinned = options.pop("pin_memory", None)
        with unset_fake_temporarily():
            result = operation(*args, **options)
        if pinned:
            self._pinned.add(result)
        return result

    def _with_ones(self, operation: Any, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """The result for tensors of ones, on the device."""
        with unset_fake_temporarily():
            real = tree_map(lambda x: torch.ones(x.shape, dtype=x.dtype) if isinstance(x, Tensor) else x, args)
            result = operation(*real, **{key: value for key, value in options.items() if key != "device"})
        return tree_map(lambda x: self._empty(x, x.dtype, None) if isinstance(x, Tensor) else x, result)

    def _empty(self, like: Tensor, dtype: torch.dtype, form: Any) -> Tensor:
        with self._fake:
            strides = like.stride()
            if form is torch.channels_last:
                strides = torch.empty(like.shape, device="meta", memory_format=form).stride()
            return torch.empty_strided(like.shape, strides, dtype=dtype, device=self.device)

    def _copied(self, operation: Any, args: Sequence[Any], options: Mapping[str, Any], into: bool) -> Any:
        """A copy between host and device; NotImplemented for one that stays where it is."""
        fresh = operation is aten._to_copy.default
        source, target = (args[0], None) if fresh else (args[1], args[0])
        waits = not (options.get("non_blocking") or (not fresh and len(args) > 2 and args[2]))
        dtype = options.get("dtype") or source.dtype
        comes = into if target is None else self._is_here(target)
        if comes and not self._is_here(source):
            self.tally.copies[Copy(self._line(), self._pinned.holds(source), not waits)] += 1
            self.tally.copied += source.numel() * source.element_size()
            return self._empty(source, dtype, options.get("memory_format")) if target is None else target
        leaves = options.get("device") is not None and not into if target is None else not self._is_here(target)
        if not (leaves and self._is_here(source)):
            return NotImplemented
        if waits:
            self._waits(WAITS_FOR_A_TENSOR)
        else:
            self.tally.late[self._line()] += 1
        with unset_fake_temporarily():
            ones = torch.ones(source.shape, dtype=dtype) if dtype.is_floating_point else torch.zeros(source.shape)
            return ones.to(dtype) if target is None else target.copy_(ones)

    def _count(self, operation: Any, touched: Any, result: Any) -> None:
        returns = operation._schema.returns
        is_view = returns and all(x.alias_info is not None and not x.alias_info.is_write for x in returns)
        if is_view or operation in _LAUNCHES_NOTHING:
            return
        tally = self.tally
        tally.kernels[operation.__name__] += 1
        tally.lines[self._line()] += 1
        size = sum(x.numel() * x.element_size() for x in tree_leaves(touched) if isinstance(x, Tensor))
        tally.traffic[operation.__name__] += size
        for x in tree_leaves(result)[:1]:
            if isinstance(x, Tensor):
                tally.types[operation.__name__, str(x.dtype).removeprefix("torch.")] += 1

    def _waits(self, what: str) -> None:
        self.tally.waits[what, self._line()] += 1

    def _event_awaited(self) -> None:
        self._waits(WAITS_FOR_AN_EVENT)

    def _line(self) -> str:
        """The innermost line of the product."""
        frame = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(_PRODUCT):
                return f"{Path(file).name}:{frame.f_lineno}"
            frame = frame.f_back  # type: ignore[assignment]
        return "backward" if threading.current_thread() is not threading.main_thread() else "elsewhere"


def _is_composed(operation: Any) -> bool:
    """Whether CUDA has no kernel of its own for it."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return has(operation.name(), "CompositeImplicitAutograd") and not has(operation.name(), "CUDA")


def _is_mask(x: object) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.bool


def moved(clip: Any, gpu: FakeGpu, copy: Callable[[Any], Any], changed: Callable[..., Any]) -> Any:
    """A loaded CLIP with its weights on the fake GPU; the given one stays where it is.

    Args:
        copy: `copy.deepcopy`.
        changed: `dataclasses.replace`.
    """
    return changed(clip, model=copy(clip.model).to(gpu.device).requires_grad_(False), device=gpu.device)
