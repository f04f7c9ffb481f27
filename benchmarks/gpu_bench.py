"""What the parts of `gpu.py` share: sizes, a part's seconds, the made-up student, configurations."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from train_parts import made_up_clip

from teachonce.models.clip import LoadedClip
from teachonce.recipe.config import TrainConfig

Row = Sequence[str]


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    names: int = 21_000
    batch: int = 1024
    drawn: int = 1000
    width: int = 512
    layers: int = 12
    repeats: int = 5
    photos: int = 200
    copies: int = 100
    rows: int = 128
    teacher: tuple[int, int, int] = (24, 1024, 14)
    """Layers, width and patch of the teacher's image tower."""
    student: tuple[int, int, int] = (12, 768, 16)
    vocabulary: str | None = "timm:imagenet22k/first-lemma"


TINY = Sizes(60, 16, 20, 64, 1, 1, 6, 2, 4, (1, 64, 32), (1, 64, 32), None)


class Clock:
    """The seconds that a part has left."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        """Seconds until the end of the part; below zero behind it."""
        return self._end - time.perf_counter()


@dataclass(frozen=True)
class Bench:
    """What all parts share."""

    device: torch.device
    sizes: Sizes
    folder: Path
    dry: bool

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU of CUDA."""
        return self.device.type == "cuda"


def yes(holds: bool) -> str:
    """A word for a table."""
    return "yes" if holds else "NO"


def text_clip(bench: Bench) -> LoadedClip:
    """A student with a text tower of the part's size, on the device."""
    clip = made_up_clip(bench.sizes.width, bench.sizes.layers)
    clip.model.to(bench.device)
    return dataclasses.replace(clip, device=bench.device)


def config_of(bench: Bench, kind: str, **keys: Any) -> TrainConfig:
    """A run with these candidates, and other keys if any."""
    sizes = bench.sizes
    return TrainConfig.of(
        batch_size=sizes.batch,
        candidates=kind,
        sampled_fill=sizes.drawn,
        sampled_backward=sizes.drawn,
        sampled_top=0,
        **keys,
    )


@contextmanager
def products(config: TrainConfig) -> Iterator[None]:
    """Take products in TF32 where the configuration allows it."""
    torch.set_float32_matmul_precision("high" if config.loop.tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def emptied(bench: Bench) -> None:
    """Give back memory that PyTorch holds and does not use."""
    if bench.cuda:
        torch.cuda.empty_cache()
