"""What a plan is asked for, and what it and a comparison answer. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from teachonce.stages.teach.request import TeachRequest
from teachonce.teaching.estimate import Estimate

PROBE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """Which run to plan."""

    teach: TeachRequest
    rate: float | None = None
    """Images a second of all workers together, where it is known; no model is loaded and nothing is probed then."""
    seconds: float = PROBE_SECONDS
    """Seconds that the probe may take."""
    out: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """What the run would take; `estimates` hold for what is not there yet."""

    manifest: str
    labels: str
    samples: int
    counted: str
    """Where the number of samples comes from."""
    rows: int
    chunk_rows: int
    chunks: int
    chunks_there: int
    """Chunks that hold all that is asked for already; they would be skipped."""
    workers: int
    device: str
    source: str
    """The sentence that says whether rates were measured here or stated by the person."""
    bottleneck: str
    estimates: tuple[Estimate, ...]
    disk_free: int | None
    """Bytes; None where the store will lie in a bucket."""
    memory_free: int
    gpu: str
    """What a worker needs of a GPU's memory, in one sentence: which GPUs have it, and which keys make it less."""
    advice: tuple[str, ...]
    """Why the run does not fit on disk or in memory, or leaves workers idle, and which option would mend that."""
    fits: bool
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One figure of a plan beside what came of it."""

    what: str
    low: float
    high: float
    outcome: float
    unit: str
    inside: bool


@dataclass(frozen=True, kw_only=True)
class CompareResult:
    """A plan against the store that was taught after it."""

    labels: str
    source: str
    complete: bool
    compared: tuple[Compared, ...]
