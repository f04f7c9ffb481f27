"""What `import` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from teachonce.towers.structures import Position


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """What to import; see `teachonce import --help`."""

    checkpoint: Path
    student: str
    out: Path
    position: Position = "before"
    """Where the slots stand relative to the name: CoOp's end, middle and front. The file does not say."""


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """What was imported, and which prompts were written."""

    slots: int
    width: int
    position: str
    epoch: int | None
    """The epoch of the checkpoint, where the file says it."""
    student_proved: bool
    """Whether the checkpoint holds the student's own start token; otherwise only the width shows that they fit."""
    checkpoint: str
    checkpoint_digest: str
    """SHA-256 of the file."""
    out: str
    prompts_digest: str
    """SHA-256 of prompts.safetensors."""
