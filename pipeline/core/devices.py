"""On which device a process computes, what that device can do, and what its failures mean.

Nothing here loads torch before a device is asked for, so that the command line can check a name first.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from teachonce.errors import EnvironmentFault, UsageError
from teachonce.phrases import option

AUTO = "auto"
_NAME = re.compile(r"auto|cpu|mps|cuda(:\d{1,4})?")
_GIB = float(1 << 30)
_UNITS = {"bytes": 1.0, "b": 1.0, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_SIZE = r"([\d.]+) ?(bytes|[KMG]i?B)"
_taken: list[str] = []  # the device that `take_device` has taken for this process
OTHERS = "`nvidia-smi` shows who else uses it; or take another device: " + option("device", "cuda:1")
"""What helps where no part of the work can be made smaller."""
# What drivers and libraries say when a device has no memory left, though the exception's class does not say so.
_FULL = ("out of memory", "STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_NOT_INITIALIZED")
# What they say of a device that is busy, lost, broken or not there; all else that they say is a fault of a program.
_GONE = (
    "busy or unavailable",
    "No CUDA GPUs are available",
    "Found no NVIDIA driver",
    "no CUDA-capable device",
    "cudaGetDeviceCount",
    "CUDA driver version is insufficient",
    "invalid device ordinal",
    "uncorrectable",
    "unspecified launch failure",
    "launch timed out",
    "hardware",
    "GPU is lost",
    "fallen off the bus",
    "initialization error",
    "system not yet initialized",
    "context is destroyed",
    "operation not supported on global/shared address space",
    "requires reset",
)


class DeviceFault(EnvironmentFault):
    """A device has no room for the work, is taken by someone else, or failed.

    Args:
        message: what the device lacks, with the numbers that are known.
        hint: what helps.
        memory: whether memory is what it lacks.
    """

    def __init__(self, message: str, hint: str = "", memory: bool = False) -> None:
        super().__init__(message, hint)
        self.memory = memory


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What the process that runs models says of its device."""

    device: str
    """As torch names it: cpu, mps, cuda:0."""
    bf16: bool
    """Whether it multiplies bfloat16 in hardware, as fast as float16."""

    @property
    def is_gpu(self) -> bool:
        """Whether it is anything but the CPU."""
        return self.device != "cpu"


def require_device(name: str) -> str:
    """The name of a device, if it is one; whether the machine has it is only known where the work is done.

    Raises:
        UsageError: it is no such name.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            option("device") + f" {name}: expected auto, cpu, mps, cuda, or a GPU by its number such as cuda:1",
            hint="auto takes a GPU where there is one",
        )
    return name


def pick_device(asked: str = AUTO, index: int | None = None) -> str:
    """The device to compute on, as torch names it.

    Args:
        asked: `auto` or `cuda`: the GPU of the `index`-th worker of this machine; `auto` is the CPU where there is no
            GPU. Anything else is meant as it is.
        index: None: what `take_device` has taken for this process, else the first GPU.

    Raises:
        UsageError: it is no name of a device.
        DeviceFault: this machine has no such device.
    """
    import torch

    require_device(asked)
    kind, _, number = asked.partition(":")
    if index is None and _taken and not number and (asked == AUTO or _taken[-1].startswith(kind)):
        return _taken[-1]
    if asked == "cpu":
        return asked
    if asked == "mps":
        if torch.backends.mps.is_available():
            return asked
        raise DeviceFault(
            "this machine has no GPU of Apple (mps)", hint=option("device", AUTO) + " takes what there is"
        )
    count = visible_gpus()
    if number and int(number) < count:
        return f"{kind}:{int(number)}"
    if count and not number:
        return f"cuda:{(index or 0) % count}"
    if asked == AUTO:
        return "cpu"
    there = f"torch sees {count} GPUs, cuda:0 to cuda:{count - 1}" if count else "torch sees no GPU"
    raise DeviceFault(
        f"there is no device {asked} here: {there}",
        hint="CUDA_VISIBLE_DEVICES may hide some, `nvidia-smi` shows all; "
        + option("device", AUTO)
        + " takes what there is",
    )


def take_device(asked: str = AUTO, index: int = 0) -> str:
    """Make a device the one that `auto` means in this process from now on; returns its name.

    Args:
        asked: as `pick_device` takes it.
        index: the number of this worker among those of the machine.

    Raises:
        UsageError, DeviceFault: as `pick_device`.
    """
    import torch

    _taken[:] = [pick_device(asked, index)]
    if _taken[0].startswith("cuda"):
        with device_explained():
            torch.cuda.set_device(_taken[0])
    return _taken[0]


def device_facts(asked: str = AUTO, index: int | None = None) -> DeviceFacts:
    """What the device is that the calling process would take, and what it can do; nothing is put on it.

    Raises:
        UsageError, DeviceFault: as `pick_device`.
    """
    device = pick_device(asked, index)
    return DeviceFacts(device=device, bf16=has_bf16(device))


def device_words(device: str) -> str:
    """A device as a person tells it from others of its machine: `cpu`, `cuda:0 NVIDIA H200, CUDA_VISIBLE_DEVICES 3`."""
    if not device.startswith("cuda"):
        return device
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = f", CUDA_VISIBLE_DEVICES {visible}" if visible else ""
    return f"{device} {torch.cuda.get_device_name(device)}{chosen}"


def has_bf16(device: str) -> bool:
    """Whether a device multiplies bfloat16 as fast as float16: GPUs of compute capability 8 and above.

    On a CPU it would cost digits and often time, and on mps it may be missing.
    """
    import torch

    if not device.startswith("cuda") or not torch.cuda.is_available():
        return False
    with device_explained():
        return bool(torch.cuda.get_device_capability(device)[0] >= 8)


def visible_gpus() -> int:
    """How many GPUs of NVIDIA or AMD torch sees in this process."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@contextmanager
def device_explained(hint: str = "") -> Iterator[None]:
    """Say of what a device or its driver raises inside which resource is lacking.

    Args:
        hint: what makes this piece of work need less memory; used where memory is what is lacking.

    Raises:
        DeviceFault: in place of torch's error; one that has been explained further down gets the hint.
    """
    try:
        yield
    except DeviceFault as problem:
        if problem.memory and hint and problem.hint == OTHERS:
            raise problem.reworded(hint=hint) from problem
        raise
    except Exception as problem:
        fault = device_fault(problem, hint)
        if fault is None:
            raise
        raise fault from problem


def device_fault(problem: BaseException, hint: str = "") -> DeviceFault | None:
    """The fault of a device that an exception stands for; None where it stands for something else.

    Args:
        problem: anything that was raised.
        hint: what makes the work need less memory.
    """
    if isinstance(problem, DeviceFault):
        return problem
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(problem, RuntimeError):
        return None
    text = str(problem)
    if isinstance(problem, torch.OutOfMemoryError) or ("DefaultCPUAllocator" not in text and _says(text, _FULL)):
        return DeviceFault(_no_memory(text), hint or OTHERS, memory=True)
    if _says(text, _GONE) and ("CUDA" in text or "NVIDIA" in text or "cuda" in text or "NVML" in text):
        said = text.strip().split("\n")[0]
        again = "`nvidia-smi` shows its state and who uses it; then run the same command again"
        return DeviceFault(f"a GPU is busy, lost or not usable: {said}", again)
    return None


def _says(text: str, words: tuple[str, ...]) -> bool:
    return any(word.lower() in text.lower() for word in words)


def _no_memory(text: str) -> str:
    """A sentence with the numbers of torch's message: what was asked for, what is free, who holds the rest."""
    words = " ".join(text.split())
    needed, total = _bytes(rf"[Tt]ried to allocate {_SIZE}", words), _bytes(rf"total capacity of {_SIZE}", words)
    free, ours = _bytes(rf"of which {_SIZE} is free", words), _bytes(rf"this process has {_SIZE} memory in use", words)
    number = re.search(r"\bGPU (\d+) has", words)
    where = "the device" if number is None else f"cuda:{number[1]}"
    if total is None:
        number, free, total = None, *_memory_now()
    parts = []
    if needed is not None:
        parts.append(f"{_size(needed)} more were needed")
    if free is not None and total is not None:
        parts.append(f"{_size(free)} of {_size(total)} are free")
    if ours is not None:
        parts.append(f"this process holds {_size(ours)}")
    others = [
        f"process {pid} holds {_size(float(amount) * _UNITS[unit.lower()])}"
        for pid, amount, unit in re.findall(rf"Process (\d+) has {_SIZE} memory in use", words)
    ]
    numbers = ", ".join([*parts, *others])
    return f"{where} has no memory left: {numbers or words.split('.')[0]}"


def _memory_now() -> tuple[float | None, float | None]:
    """Free and total bytes of the GPU in use, where the driver still answers."""
    torch: Any = sys.modules["torch"]
    if torch.cuda.is_initialized():
        with suppress(RuntimeError, AssertionError):
            free, total = torch.cuda.mem_get_info()
            return float(free), float(total)
    return None, None


def _bytes(pattern: str, text: str) -> float | None:
    match = re.search(pattern, text)
    return float(match[1].rstrip(".")) * _UNITS[match[2].lower()] if match else None


def _size(count: float) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= 0.1 * _GIB else f"{count / (1 << 20):.0f} MiB"
