"""What `verify` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from teachonce.core.devices import AUTO
from teachonce.errors import IncompleteError, IntegrityError


@dataclass(frozen=True, kw_only=True)
class VerifyRequest:
    """Which store to check, and whether to take bad chunks out of its ledger."""

    labels: Path
    repair: bool = False
    teacher: str | None = None
    """Run this model again on `sample` random rows; needs `root`."""
    sample: int | None = None
    seed: int = 0
    root: Path | None = None
    device: str = AUTO
    """What the teacher runs on."""


@dataclass(frozen=True)
class Fault:
    """One place of a store that is not as the ledger says."""

    where: str
    expected: str
    found: str


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """`ok` only when every chunk of every column group is there and sound."""

    ok: bool
    chunks_checked: int
    chunks_missing: int
    """Chunks that are not committed: the store is incomplete rather than damaged."""
    chunks_dropped: int
    """Chunks that `repair` took out of the ledger."""
    faults: tuple[Fault, ...]
    labels: str
    teacher: dict[str, float] = field(default_factory=dict)
    """With --teacher: rows run again, how many agree, and the largest deviations."""

    @property
    def exit_code(self) -> int:
        """0 sound, 4 damaged, 5 when chunks are missing or were dropped and nothing else is wrong."""
        if self.ok:
            return 0
        resumable = self.chunks_missing + self.chunks_dropped >= len(self.faults)
        return IncompleteError.exit_code if resumable else IntegrityError.exit_code
