"""What a training run is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from teachonce.core.devices import AUTO
from teachonce.errors import UsageError
from teachonce.phrases import phrase
from teachonce.recipe.config import TrainConfig
from teachonce.runs.tensorboard import LogTo


@dataclass(frozen=True)
class Pause:
    """Where a run stops before its end: its checkpoint stays, and what it has learned is left to be measured."""

    step: int
    out: Path
    """Folder for the prompts and results as they are after this step; not the run folder."""


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to train; see `teachonce train --help`."""

    labels: Path
    student: str
    out: Path | None
    """The run folder; None: of a dry run that is about no folder."""
    config: TrainConfig
    resume: bool = False
    threads: int | None = None
    device: str = AUTO
    """What the student runs on, as `core.devices.pick_device` takes it."""
    selection: Path | None = None
    """File of `subset`: the rows and classes to use; all by default."""
    manifest: str | None = None
    """What the store must have been made from, like `split` and `vocabulary`; None: anything."""
    split: str | None = None
    vocabulary: str | None = None
    root: Path | None = None
    """Folder of the data: the bytes of some images are compared with what was taught; image prompts read all."""
    init: Path | None = None
    """Run or export whose prompts this run starts from; None: as the config says."""
    shared: Path | None = None
    """Folder in which runs on the same rows keep their linear reference for each other; None: nowhere."""
    pause: Pause | None = None
    """None: the run goes on to its end. A run that was paused and resumed ends with the same bytes."""
    log: tuple[LogTo, ...] = ()
    """Where figures are written besides events.jsonl; it is not a part of the run's identity."""

    @property
    def folder(self) -> Path:
        """The run folder.

        Raises:
            UsageError: the request names none.
        """
        if self.out is None:
            raise UsageError(phrase("a run needs a folder: give {out}"))
        return self.out


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training run came to."""

    steps: int
    trainable_parameters: int
    seconds: float
    """Seconds of all calls that worked on the run, without what a killed one did after its last checkpoint."""
    final_loss: float | None
    """Mean loss of the last 5 logged steps; None where the log holds none."""
    held_out_top1: float | None
    """Top-1 of the result on the samples that were kept apart; None where none were."""
    out: str
    prompts_digest: str
    """SHA-256 of prompts.safetensors."""
    linear_held_out_top1: float | None = None
    """Top-1 of the linear reference on the samples that were kept apart; None where there is no such figure."""
    template_held_out_top1: float | None = None
    """The hand-written template's on the same samples."""


@dataclass(frozen=True, kw_only=True)
class SmallerStep:
    """A key with which a step needs less memory; results stay what they are."""

    key: str
    value: int
    gpu_bytes: int


@dataclass(frozen=True, kw_only=True)
class TrainDryRun:
    """What a training run would be, and what it would need of a GPU."""

    out: str | None
    rows: int
    steps: int
    trainable_parameters: int
    classes: int
    precision: str
    """The number format that the estimate is for; `auto` counts as bf16, which it is on GPUs that have it."""
    names: int
    """Distinct names of a step; 0 where no text prompts need features."""
    names_at_once: int
    gpu_bytes: int
    """Peak memory of a GPU in a step."""
    smallest_gpu: int | None
    """GiB of the smallest usual GPU on which the run fits as it is; None: none."""
    gpu_free: int | None
    """Free bytes of the GPU that the run would take here; None where there is none."""
    smaller: tuple[SmallerStep, ...]
    memory: str
    """The same in one sentence."""
    fits: bool
    """False only where there is a GPU here that has too little free memory."""
    exit_code: int
