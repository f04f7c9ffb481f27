"""What `inspect` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class InspectRequest:
    """Which store to look at, and how many sample rows to show."""

    labels: Path
    samples: int = 3


@dataclass(frozen=True, kw_only=True)
class InspectResult:
    """What a store holds."""

    rows: int
    chunks: int
    chunks_committed: int
    rows_failed: int
    top_k: int
    vocabulary_size: int
    tied_names: int
    """Classes that share their name with another."""
    bytes_per_row: dict[str, float]
    fingerprint: dict[str, Any]
    passed_over: dict[str, Any]
    """What lay beside the samples when the store was made and is none, in numbers by reason and by ending; empty if
    nothing did, and for stores that were made before this was counted."""
    students: tuple[dict[str, Any], ...]
    embeddings: dict[str, Any]
    """The embeddings of the teacher's images: kind, width, committed chunks; empty if the store has none."""
    fidelity: dict[str, Any]
    """What the store loses, measured while it was written; see `fidelity.fidelity_report`."""
    statistics: dict[str, float]
    """Means over rows: mass kept by the top k, probability of the best class, agreement of the best with the label."""
    examples: tuple[dict[str, Any], ...]
    store_id: str
