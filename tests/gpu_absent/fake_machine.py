"""What has to answer otherwise so that a machine without a GPU passes for one that has a GPU."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

_open: list[object] = []  # guards that are entered
_kernels = torch.library.Library("aten", "IMPL")
_OF_CUDA = ("silu_backward",)
"""Operations that have a kernel of CUDA's, and that a new backend would put together from several."""
FREE, TOTAL = 70 * 2**30, 80 * 2**30  # bytes of the GPU that is not there


class Pinned:
    """Which CPU memory counts as pinned."""

    def __init__(self) -> None:
        self._storages: weakref.WeakSet[Any] = weakref.WeakSet()

    def add(self, x: Tensor) -> None:
        """Take the memory of a CPU tensor for pinned from now on."""
        self._storages.add(x.untyped_storage())

    def holds(self, x: Tensor) -> bool:
        """Whether a CPU tensor lies in such memory."""
        storage = x.untyped_storage()
        return any(storage is other for other in self._storages)


def register(name: str) -> None:
    """Make a device of this name, once in a process: it has no kernels, and the engine runs on it."""
    if torch._C._get_privateuse1_backend_name() == name:
        return
    from torch.utils import backend_registration

    class Module(backend_registration._DummyBackendModule):
        def device_count(self) -> int:
            return len(_open)  # none outside, so that later tests of the process have none

        def is_available(self) -> bool:
            return bool(_open)

        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16]  # asked for even where autocast is off

    backend_registration._setup_privateuseone_for_python_backend(name, backend_module=Module())
    for operation in _OF_CUDA:  # never called: the mode answers in its place
        _kernels.impl(operation, lambda *args: NotImplemented, "PrivateUse1")


@contextlib.contextmanager
def pretended(pinned: Pinned, event_awaited: Callable[[], None], cuda: bool) -> Iterator[None]:
    """Replace what needs a driver.

    Args:
        pinned: told about pinned memory.
        event_awaited: called when the host waits for an event.
        cuda: whether `torch.cuda` answers as on a machine with one GPU, and no gradient is computed.
    """
    with contextlib.ExitStack() as stack:
        for where, name, value in _changes(pinned, event_awaited, cuda):
            stack.enter_context(patch.object(where, name, value))
        if cuda:
            torch._C._ensureCUDADeviceGuardSet()
        else:
            _open.append(pinned)
            stack.callback(_open.remove, pinned)
        yield


def _changes(pinned: Pinned, event_awaited: Callable[[], None], cuda: bool) -> list[tuple[Any, str, Any]]:
    really_empty = torch.empty

    def empty(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        """As `torch.empty`; dispatch modes do not reach into other threads, a patch does."""
        made = really_empty(*size, **options)
        if pin_memory:
            pinned.add(made)
        return made

    def pin_memory(x: Tensor, device: object = None) -> Tensor:
        copied = x.clone(memory_format=torch.contiguous_format)
        pinned.add(copied)
        return copied

    changes: list[tuple[Any, str, Any]] = [
        (torch, "empty", empty),
        (Tensor, "pin_memory", pin_memory),
        (nn.Module, "to", _module_to),
    ]
    return changes + (_cuda_changes(event_awaited) if cuda else [])


def _cuda_changes(event_awaited: Callable[[], None]) -> list[tuple[Any, str, Any]]:
    class Event:
        def __init__(self, enable_timing: bool = False, **options: Any) -> None: ...

        def record(self, stream: object = None) -> None: ...

        def wait(self, stream: object = None) -> None: ...

        def query(self) -> bool:
            return True

        def elapsed_time(self, other: object) -> float:
            return 1.0

        def synchronize(self) -> None:
            event_awaited()

    def says(value: Any) -> Callable[..., Any]:
        return lambda *args, **options: value

    answers = {
        "is_available": True,
        "device_count": 1,
        "is_bf16_supported": True,
        "set_device": None,
        "current_device": 0,
        "current_stream": None,
        "synchronize": None,
        "max_memory_allocated": 0,
        "memory_allocated": 0,
        "memory_reserved": 0,
        "mem_get_info": (FREE, TOTAL),
        "get_device_name": "a GPU that is not there",
        "get_device_capability": (9, 0),
        "is_current_stream_capturing": False,
    }
    amp = sys.modules["torch.cuda.amp.common"]
    return [
        *((torch.cuda, name, says(value)) for name, value in answers.items()),
        (torch.cuda, "Event", Event),
        (amp, "amp_definitely_not_available", says(False)),
        (torch.autograd, "grad", _empty_gradients),
    ]


def _empty_gradients(outputs: Any, inputs: Any, grad_outputs: Any = None, **options: Any) -> tuple[Tensor, ...]:
    """Gradients of the right place, shape and type, and of no value."""
    return tuple(torch.empty_like(x) for x in ([inputs] if isinstance(inputs, Tensor) else inputs))


def _module_to(module: nn.Module, *args: Any, **options: Any) -> nn.Module:
    """As `Module.to`, which PyTorch does by swapping tensors in place, and that it refuses for fake ones."""
    device, dtype, _, _ = torch._C._nn._parse_to(*args, **options)
    for part in module.modules():
        for name, weight in list(part._parameters.items()):
            if weight is not None:
                changed = weight.detach().to(device or weight.device, dtype if weight.is_floating_point() else None)
                part._parameters[name] = nn.Parameter(changed, weight.requires_grad)
        for name, value in list(part._buffers.items()):
            if value is not None:
                part._buffers[name] = value.to(device or value.device, dtype if value.is_floating_point() else None)
    return module
