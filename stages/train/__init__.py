"""train: learn prompts of a frozen student from a label store; no teacher runs, only image prompts read images.

A run folder holds config.toml, events.jsonl, checkpoints/, prompts.safetensors + prompts.json and results.json.
"""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.train.request import Pause, SmallerStep, TrainDryRun, TrainRequest, TrainResult

__all__ = ["Pause", "SmallerStep", "TrainDryRun", "TrainRequest", "TrainResult", "dry_run", "train"]


def train(request: TrainRequest, reporter: Reporter) -> TrainResult:
    """Train until the configured number of steps; SIGTERM and Ctrl-C checkpoint first.

    Raises:
        UsageError: the run folder exists and --resume was not given, or there is nothing to resume.
        FingerprintError: the run folder, the store or the selection belongs to something else.
        IntegrityError: rows of the working set, the store, its index and the images do not belong together.
        DataError: the store lacks what the config needs.
        UsageError: the loss became NaN or infinite (a smaller learning rate helps); the last checkpoint is kept.
    """
    from teachonce.stages.train import work

    return work.train(request, reporter)


def dry_run(request: TrainRequest, reporter: Reporter) -> TrainDryRun:
    """Check what `train` checks before its first step, and estimate the GPU memory of a step. Writes nothing.

    Raises:
        TeachOnceError: what `train` raises before its first step, but for images, whose bytes are not compared.
    """
    from teachonce.stages.train import work

    return work.dry_run(request, reporter)
