"""What `train` would need of a GPU, estimated before anything is written; the student is loaded on the CPU for it."""

from __future__ import annotations

import contextlib

from teachonce.core.devices import pick_device
from teachonce.core.machine import choose_threads
from teachonce.core.progress import Reporter
from teachonce.errors import EnvironmentFault
from teachonce.labels.ledger import require_behaviour
from teachonce.labels.metadata import features_group
from teachonce.labels.selection import Selection
from teachonce.labels.store import LabelStore
from teachonce.memory.gpus import AUTO_SHARE, BESIDE, free_of, in_gib, on_a_gpu, smallest_gpu
from teachonce.memory.step import Smaller, StepNeed, smaller_needs, step_need
from teachonce.models.clip import load_clip, tune_process
from teachonce.phrases import Phrase, phrase, setting
from teachonce.recipe.config import TrainConfig
from teachonce.recipe.requirements import requirements
from teachonce.rows.working_set import open_working_set
from teachonce.stages.train.request import SmallerStep, TrainDryRun, TrainRequest
from teachonce.stages.train.steps import require_labels


def estimated(request: TrainRequest, store: LabelStore, selection: Selection | None, reporter: Reporter) -> TrainDryRun:
    """Estimate a run on rows of an open store; the stage's `dry_run` says what is raised."""
    device = pick_device(request.device)
    tune_process(choose_threads(request.threads).count)
    config = request.config
    if config.loop.precision == "auto":
        config = config.changed(precision="bf16")
    reporter.note(f"loading {request.student} for an estimate")
    clip, needs = load_clip(request.student), requirements(config)
    group = features_group(store.groups, clip.digest)
    if needs.features and group is not None:
        require_behaviour(store.path, group, store.groups[group].fingerprint, clip.image_behaviour)
    rows = open_working_set(store, clip.digest if needs.features else None, reporter, selection, needs.embeddings)
    with contextlib.closing(rows):
        require_labels(config, rows)
        need = step_need(config, clip, rows)
        smaller = smaller_needs(config, clip, rows, need)
        needed, free = _needed(config, need), free_of(device)
        may_shrink = config.loop.class_chunk == "auto" and any(way.key == "class_chunk" for way in smaller)
        least = min([need.peak, *(way.peak for way in smaller if may_shrink and way.key == "class_chunk")])
        fits = free is None or on_a_gpu(least) <= free
        return TrainDryRun(
            out=None if request.out is None else str(request.out),
            rows=len(rows),
            steps=need.steps,
            trainable_parameters=need.parameters,
            classes=len(rows.vocabulary),
            precision=config.loop.precision,
            names=need.names,
            names_at_once=need.chunk,
            gpu_bytes=on_a_gpu(need.peak),
            smallest_gpu=smallest_gpu(needed),
            gpu_free=free,
            smaller=tuple(SmallerStep(key=s.key, value=s.value, gpu_bytes=on_a_gpu(s.peak)) for s in smaller),
            memory=_sentence(config, need, smaller, free, fits),
            fits=fits,
            exit_code=0 if fits else EnvironmentFault.exit_code,
        )


def _needed(config: TrainConfig, need: StepNeed) -> int:
    """Bytes that a GPU must have for the run as it is: `auto` gives the names a share of what is free."""
    if config.loop.class_chunk != "auto" or not need.names:
        return on_a_gpu(need.peak)
    return max(on_a_gpu(need.peak), round((need.peak - need.weights) / AUTO_SHARE) + need.weights + BESIDE)


def _sentence(config: TrainConfig, need: StepNeed, smaller: list[Smaller], free: int | None, fits: bool) -> Phrase:
    size, names = smallest_gpu(_needed(config, need)), ""
    if need.names:
        chunk = config.loop.class_chunk
        once = f"all {need.names:,} names in one pass"
        part = once if need.chunk == need.names else f"{need.chunk:,} of {need.names:,} names at a time"
        names = f" (class_chunk {chunk}: {part})" if chunk == "auto" else f" ({part})"
    where = "no usual GPU has room for that" if size is None else f"it fits on GPUs of {size} GiB and more"
    said = phrase("on a GPU a step in ") + f"{config.loop.precision} needs about {in_gib(on_a_gpu(need.peak))} at its "
    said += f"peak{names}; {where}"
    if smaller:
        ways = [setting(way.key, way.value) + f" needs {in_gib(on_a_gpu(way.peak))}" for way in smaller]
        said += "; with less, " + Phrase(", or ").join(ways)
    if free is not None:
        said += f"; the GPU here has {in_gib(free)} free, so it " + ("fits" if fits else "does not fit")
    return said
