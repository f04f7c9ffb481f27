"""What a `teach` is asked for and what it answers; `plan` and rehearsals are asked the same. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from teachonce.cluster.description import ClusterSpec
from teachonce.core.devices import AUTO
from teachonce.data.view_policy import ViewPolicy
from teachonce.models.spec import AskedPrecision, EmbeddingKind, Resize
from teachonce.watching.workers import WorkerPace

Half = Literal["images", "models"]


@dataclass(frozen=True, kw_only=True)
class TaughtData:
    """Which images are taught, among which names."""

    manifest: str
    root: Path | None = None
    split: str = "train"
    vocabulary: str | None = None
    """None: the manifest's own class list."""
    shots: int | None = None
    """Samples of each class at most; None: all."""
    seed: int = 0
    """The seed of the draw of shots; the views' policy has a seed of its own."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What the store keeps of each image."""

    templates: tuple[str, ...] = ("a photo of a {}.",)
    top_k: int | None = None
    embeddings: EmbeddingKind | None = None
    views: ViewPolicy = ViewPolicy()
    chunk_rows: int | None = None
    """Rows of one task and one commit; fixed by the first run."""
    resize: Resize = "pillow"
    """Who resizes images: pillow, bit for bit as open_clip's transforms do, or torchvision with tensors, faster."""


@dataclass(frozen=True, kw_only=True)
class Computing:
    """How a worker computes."""

    batch_size: int = 128
    threads: int | None = None
    precision: AskedPrecision = "auto"
    """auto: that of a store which is continued; else bf16 on a GPU that has it, fp32 elsewhere."""
    device: str = AUTO
    """What models run on, as `core.devices.pick_device` takes it."""
    compiled: bool = False
    """Run image towers under `torch.compile`."""
    class_tile: int | None = None
    """Classes whose logits are computed at a time; None: as many as fit."""


@dataclass(frozen=True, kw_only=True)
class TeachRequest:
    """What to teach; see `teachonce teach --help`."""

    labels: Path
    data: TaughtData
    teacher: str | None = None
    students: tuple[str, ...] = ()
    kept: Kept = Kept()
    cluster: ClusterSpec = ClusterSpec()
    """Where the workers come from."""
    computing: Computing = Computing()
    retry_failed: bool = False
    """Compute the chunks again in which images failed."""
    features_only: bool = False
    """Keep the features of students that can carry prompts in neither tower, too."""
    max_failed_share: float = 0.01
    force_unlock: bool = False


@dataclass(frozen=True, kw_only=True)
class TeachResult:
    """What the run did; `rows_ok + rows_failed` is every row of the store."""

    rows_ok: int
    rows_failed: int
    rows_per_second: float
    chunks_written: int
    chunks_skipped: int
    seconds: float
    phases: dict[str, float]
    """Seconds of `ledger.PHASES`, summed over workers; reading and decoding over their threads too."""
    bottleneck: str
    """The phase that took most of the time, and what would shorten it."""
    bytes_per_row: dict[str, float]
    workers: tuple[WorkerPace, ...]
    """Who computed what in this run."""
    labels: str
    store_id: str


@dataclass(frozen=True, kw_only=True)
class RehearseResult:
    """Rates of one worker of this machine."""

    half: Half
    images: int
    images_per_second: float
    rates: dict[str, float]
    """The images a second that each phase would reach if it ran alone."""
    threads: int
    device: str
    failed: int
    seconds: float
    bottleneck: str
