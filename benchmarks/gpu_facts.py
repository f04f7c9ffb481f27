"""What `gpu.py` says of the machine, and how it counts kernels."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import Any

import open_clip
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import teachonce


def facts(device: torch.device) -> list[tuple[str, str]]:
    """Return facts about device, driver, versions and cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    known = {
        "teachonce": teachonce.__version__,
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "Python": platform.python_version(),
        "cores": str(cores),
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        known |= {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": str(properties.multi_processor_count),
            "memory, free of total GB": f"{free / 1e9:.1f} of {total / 1e9:.1f}",
            "CUDA of torch": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),
            "bf16": str(torch.cuda.is_bf16_supported(including_emulation=False)),
            "GPUs that this process sees": str(torch.cuda.device_count()),
        }
    return list(known.items())


def kernels_of(work: Callable[[], object], device: torch.device) -> int:
    """Count the kernels that a piece of work starts on a GPU; elsewhere the operations, without views."""
    if device.type != "cuda":
        with _Operations() as counted:
            work()
        return counted.count
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        work()
        torch.cuda.synchronize(device)
    return sum(1 for event in watched.events() or () if event.device_type == torch.autograd.DeviceType.CUDA)


class _Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))
