"""What a grid is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachonce.cluster.description import ClusterSpec
from teachonce.core.devices import AUTO
from teachonce.errors import IncompleteError, IntegrityError
from teachonce.runs.grid_documents import GridOutcome


@dataclass(frozen=True, kw_only=True)
class AblateRequest:
    """What to run; see `teachonce ablate --help`."""

    grid: Path
    labels: Path
    student: str
    out: Path
    dry_run: bool = False
    retry_failed: bool = False
    cluster: ClusterSpec = ClusterSpec()
    device: str = AUTO
    """What cells run on, as `core.devices.pick_device` takes it."""
    root: Path | None = None
    """Folder of the data, for evaluations that name none and for prompts in the image tower."""
    force_unlock: bool = False


@dataclass(frozen=True, kw_only=True)
class AblateResult(GridOutcome):
    """How the cells of a grid ended, and which setting was chosen."""

    @property
    def exit_code(self) -> int:
        """4 while a cell is damaged, 5 while a cell or an evaluation is left to do."""
        if self.cells["damaged"]:
            return IntegrityError.exit_code
        return IncompleteError.exit_code if self.cells["failed"] or self.cells["missing"] or self._final_lacks() else 0

    def _final_lacks(self) -> bool:
        return any(entry.top1 is None for entry in self.final)


@dataclass(frozen=True, kw_only=True)
class AblatePlan:
    """What a grid would do."""

    title: str
    cells: dict[str, int]
    """How many are `finished`, `failed`, `missing` and `damaged`."""
    to_run: int
    """Cells that the same command without --dry-run runs."""
    derived: tuple[str, ...]
    """Stores and selections that would be made from the label store."""
    evaluations: tuple[str, ...]
    seconds: float | None
    """Estimated, for all cells to run on all workers; None where nothing could be measured."""
    measured: str
    """What the estimate comes from, and what is not in it."""
    workers: int | None
    """Cells that run at once; None where only the cluster knows that number, and `seconds` then assumes one."""
    plan: tuple[dict[str, Any], ...]
    """name, digest, changes, state and newest checkpoint's step of each cell."""
    out: str
