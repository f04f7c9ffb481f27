"""What `export` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from teachonce.core.devices import AUTO


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export; see `teachonce export --help`."""

    run: Path
    out: Path
    classes: str | None = None
    """Class list of the weights; None: no weights. The run records a digest of its names, not the names."""
    student: str | None = None
    """Where the student is, if not where it was in training."""
    licence: str | None = None
    """The licence of the prompts."""
    push: str | None = None
    """Repository on the Hugging Face hub to upload to."""
    threads: int | None = None
    device: str = AUTO
    """What is computed on, as `core.devices.pick_device` takes it."""


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What came out."""

    out: str
    files: tuple[str, ...]
    prompts_digest: str
    """SHA-256 of prompts.safetensors."""
    classes: int | None
    """Rows of the class weights; None without."""
    width: int | None
    tied_names: int | None
    """Classes that share their name with another: their rows are equal."""
    reloaded: bool
    """Whether the folder was loaded again and gave the same class features, bit for bit; without weights, loaded."""
    pushed: str | None
    """Address on the hub."""
