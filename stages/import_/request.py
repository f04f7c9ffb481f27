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
    """Where the slots stand relative to the name: CoOp's end, middle and front. The file does not say; in MaPLe and
    PromptSRC they stand before it."""


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """What was imported, and which prompts were written."""

    method: str
    """Whose checkpoint it is: CoOp (or POMP, ProGrad), KgCoOp, MaPLe or PromptSRC."""
    slots: int
    width: int
    depth: int
    """Blocks of the text tower that have prompts of their own; 1: at the input only."""
    image_slots: int
    image_depth: int
    position: str
    epoch: int | None
    """The epoch of the checkpoint, where the file says it."""
    student_proved: bool
    """Whether the checkpoint holds the student's own start token or weights; otherwise only the width fits."""
    checkpoint: str
    checkpoint_digest: str
    """SHA-256 of the file."""
    out: str
    prompts_digest: str
    """SHA-256 of prompts.safetensors."""
