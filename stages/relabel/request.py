"""What `relabel` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teachonce.core.devices import AUTO


@dataclass(frozen=True, kw_only=True)
class RelabelRequest:
    """What to make of which store; what is None stays as in the parent. See `teachonce relabel --help`."""

    parent: Path
    labels: Path
    vocabulary: str | None = None
    templates: tuple[str, ...] | None = None
    prompts: Path | None = None
    """A run, or an export, whose student is the teacher of the store: its prompts make the class vectors."""
    head: Path | None = None
    """The same with a head: class vectors as the run's prompts, if it has any, and its head make them."""
    entropy: float | None = None
    """Of each row's soft label, in nats; each row gets the temperature that gives it."""
    prior: str | None = None
    """`balanced`, or a file of wanted shares, a class a line."""
    label_noise: float | None = None
    """Share of labels that are made wrong, to try what that does."""
    noise_seed: int = 0
    top_k: int | None = None
    temperatures: tuple[float, ...] | None = None
    classes: Path | None = None
    teacher: str | None = None
    root: Path | None = None
    threads: int | None = None
    device: str = AUTO
    """What is computed on, as `core.devices.pick_device` takes it."""
    force_unlock: bool = False


@dataclass(frozen=True, kw_only=True)
class RelabelResult:
    """What the run did; `rows_ok + rows_failed` is every row of the store."""

    rows_ok: int
    rows_failed: int
    classes: int
    top_k: int
    temperatures: tuple[float, ...]
    templates: tuple[str, ...]
    chunks_written: int
    chunks_skipped: int
    seconds: float
    bytes_per_row: dict[str, float]
    parent: str
    labels: str
    store_id: str
    prompts: str | None = None
    """The run whose prompts made the class vectors."""
    head: str | None = None
    """The run whose head made them, with its prompts."""
    row_temperatures: dict[str, Any] = field(default_factory=dict)
    """Of the rows that this call labelled: the entropy asked for, how many rows, the 5 %, 50 % and 95 % quantiles of
    their temperatures relative to the teacher's own, and how many rows cannot have that entropy: `too_flat`,
    `too_sharp`. Empty where no entropy was asked for."""
    prior: dict[str, Any] = field(default_factory=dict)
    """How many classes the wanted prior speaks of, the mass that the teacher gives them, and which it names most above
    and most below what is wanted, as (id, predicted, wanted). Empty where none was asked for, or nothing was left to
    do."""
    labels_changed: int = 0
    """Samples whose label was made wrong on purpose."""
    embeddings_kept: bool = True
    """Whether the store keeps the teacher's embeddings: not where its labels are more than a function of these."""
