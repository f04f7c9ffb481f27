"""From bytes that are alive to GPUs that have room: what a process holds beside them, and the usual sizes."""

from __future__ import annotations

import torch

GIB = 1 << 30
SIZES = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192, 288)
"""GiB of usual GPUs."""
BESIDE = GIB * 6 // 10
"""Bytes of the driver's context, of kernels and of the libraries' workspaces."""
LOST = 0.1
"""Share that the allocator rounds up and cannot use again."""
AUTO_SHARE = 0.6
"""Share of the free memory that `class_chunk = "auto"` gives to the names' graphs."""


def on_a_gpu(alive: int) -> int:
    """Bytes of a GPU that a process takes whose tensors hold `alive` bytes at most."""
    return round(alive * (1 + LOST)) + BESIDE


def smallest_gpu(needed: int) -> int | None:
    """The GiB of the smallest usual GPU that has as many bytes; None where none has."""
    return next((size for size in SIZES if needed <= size * GIB), None)


def in_gib(size: float) -> str:
    """Bytes in words."""
    return f"{size / GIB:.1f} GiB"


def free_of(device: str) -> int | None:
    """Free bytes of a GPU; None of anything else."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.startswith("cuda") else None


def total_of(device: str) -> int | None:
    """All bytes of a GPU, which the calling process may be using itself; None of anything else."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.startswith("cuda") else None
