"""train: learn prompts of a frozen student from a label store; no image is read and no teacher runs.

A run folder holds config.toml, events.jsonl, checkpoints/, prompts.safetensors + prompts.json and results.json.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from teachonce import __version__
from teachonce.config import TrainConfig
from teachonce.errors import DataError, FingerprintError, IntegrityError, UsageError
from teachonce.files import atomic_write_bytes
from teachonce.label_store import LabelStore
from teachonce.model_spec import parse_spec
from teachonce.pairing import Expected, prove_pairing, require_origin
from teachonce.progress import Reporter
from teachonce.runlog import RunLog
from teachonce.selection import Selection, load_selection
from teachonce.versions import package_versions
from teachonce.working_set import WorkingSet, open_working_set

if TYPE_CHECKING:
    from teachonce.checkpoint import Identity
    from teachonce.clip_models import LoadedClip
    from teachonce.training import Trainer

BEFORE_MARKER = {"checkpoints", "events.jsonl"}  # what a run has written before config.toml marks it


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to train; see `teachonce train --help`."""

    labels: Path
    student: str
    out: Path
    config: TrainConfig
    resume: bool = False
    threads: int | None = None
    selection: Path | None = None
    """File of `subset`: the rows and classes to use; all by default."""
    manifest: str | None = None
    """What the store must have been made from, like `split` and `vocabulary`; None: anything."""
    split: str | None = None
    vocabulary: str | None = None
    root: Path | None = None
    """Folder of the data: the bytes of some images are compared with what was taught."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What came out."""

    steps: int
    trainable_parameters: int
    seconds: float
    """Of this call; a resumed run's earlier part is not in it."""
    final_loss: float
    """Mean loss of the last logged steps."""
    out: str
    prompts_digest: str
    """SHA-256 of prompts.safetensors."""


def train(request: TrainRequest, reporter: Reporter) -> TrainResult:
    """Train until the configured number of steps; SIGTERM and Ctrl-C checkpoint first.

    Raises:
        UsageError: the run folder exists and --resume was not given, or there is nothing to resume.
        FingerprintError: the run folder, the store or the selection belongs to something else.
        IntegrityError: rows of the working set, the store, its index and the images do not belong together.
        DataError: the store lacks what the config needs.
        UsageError: the loss became NaN or infinite (a smaller learning rate helps); the last checkpoint is kept.
    """
    began = time.monotonic()
    parse_spec(request.student)
    _check_folder(request)
    store = LabelStore.open(request.labels)
    check_store(store, request.config)
    expected = Expected(manifest=request.manifest, split=request.split, vocabulary=request.vocabulary)
    require_origin(store, expected, request.root)
    selection = None if request.selection is None else load_selection(request.selection, store)

    from teachonce.clip_models import load_clip, pick_device, tune_process  # heavy: only when all is in order
    from teachonce.cluster import default_threads

    tune_process(request.threads or default_threads(1))
    clip = load_clip(request.student, pick_device())
    rows = open_working_set(store, clip.digest, reporter, selection)
    try:
        proved = prove_pairing(rows, request.config.seed, reporter, request.root)
        trainer, identity = _build(request, rows, clip, selection, reporter)
        log = RunLog(request.out / "events.jsonl")
        first = _start(request, trainer, identity, log, reporter)
        log.write("pairing", step=first, rows_proved=proved, images_compared=request.root is not None)
        _loop(request, trainer, identity, log, first, reporter)
        return _finish(request, trainer, clip, identity, time.monotonic() - began)
    finally:
        rows.close()


def check_store(store: LabelStore, config: TrainConfig) -> None:
    """Refuse a config that the store cannot serve, before anything heavy is loaded.

    Raises:
        UsageError: soft labels from a store without a teacher, or at a temperature it has no tail for.
    """
    if config.supervision == "hard":
        return
    if not store.layout.top_k:
        raise UsageError(
            f"{store.path} was made without a teacher: it has no soft labels for supervision = '{config.supervision}'",
            hint="train with --supervision hard, or make a store with `teachonce teach ... --teacher MODEL`",
        )
    if config.temperature not in store.layout.temperatures:
        raise UsageError(
            f"temperature = {config.temperature}: {store.path} holds the mass outside the top "
            f"{store.layout.top_k} for the temperatures {', '.join(map(str, store.layout.temperatures))} only",
            hint="use one of these",
        )


def _check_folder(request: TrainRequest) -> None:
    marker = request.out / "config.toml"
    if request.resume:
        if not marker.is_file():
            raise UsageError(f"{request.out} holds no run: there is nothing to resume", hint="start without --resume")
        try:
            stored = tomllib.loads(marker.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
            raise IntegrityError(f"{marker} is damaged: {problem}", hint="restore it, or start a new run") from problem
        wanted = request.config.to_dict()
        different = [
            f"{key}: there {stored.get(key)!r}, here {wanted.get(key)!r}"
            for key in sorted(stored.keys() | wanted.keys())
            if stored.get(key) != wanted.get(key)
        ]
        if different:
            raise FingerprintError(
                f"{request.out} was started with another config:\n  " + "\n  ".join(different),
                hint=f"resume with --config {marker}",
            )
        return
    if request.out.exists() and not request.out.is_dir():
        raise UsageError(f"{request.out} is a file; --out is a folder", hint="give another --out")
    held = {item.name for item in request.out.iterdir()} if request.out.exists() else set()
    if marker.is_file():
        raise UsageError(f"{request.out} holds a run", hint="continue it with --resume, or give another --out")
    if held - BEFORE_MARKER:
        raise UsageError(f"{request.out} is not empty and holds no run", hint="give another --out; nothing was changed")


def _build(
    request: TrainRequest, rows: WorkingSet, clip: LoadedClip, selection: Selection | None, reporter: Reporter
) -> tuple[Trainer, Identity]:
    from teachonce.checkpoint import ALL_ROWS, Identity
    from teachonce.text_tower import TextTower
    from teachonce.training import Trainer

    tower = TextTower.from_clip(clip.model, clip.tokenizer)
    store, vocabulary = rows.plan.store, rows.vocabulary
    if request.config.supervision != "soft" and not rows.has_labels:
        raise DataError(
            f"no row of {store.path} has a class that is in its vocabulary: there are no hard labels to train on",
            hint="train with --supervision soft, or teach with a vocabulary that holds the data's classes",
        )
    trainer = Trainer(request.config, tower, vocabulary.names, rows, clip.logit_scale)
    reporter.note(
        f"{trainer.learner.trainable_parameters()} trainable parameters, {len(rows)} rows, "
        f"{len(vocabulary)} classes ({vocabulary.tied()} share a name)"
    )
    chosen = ALL_ROWS if selection is None else selection.digest
    return trainer, Identity(request.config.digest(), rows.store_id, clip.digest, chosen)


def _start(request: TrainRequest, trainer: Trainer, identity: Identity, log: RunLog, reporter: Reporter) -> int:
    """Make or reopen the run folder; returns the first step to do."""
    from teachonce.checkpoint import load_checkpoint, save_checkpoint

    checkpoints = request.out / "checkpoints"
    if request.resume:
        step = load_checkpoint(checkpoints, trainer.learner, trainer.optimizer, identity)
        log.rewind(step)
        reporter.note(f"resuming {request.out} after step {step}")
        return step
    request.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(checkpoints, ignore_errors=True)  # of a run that was killed before its config marked it
    log.clear()
    save_checkpoint(checkpoints, 0, trainer.learner, trainer.optimizer, identity)
    log.write("start", step=0, teachonce=__version__, versions=package_versions(), labels=str(request.labels),
              student=request.student, **{f"{name}_digest": value for name, value in asdict(identity).items()},
              trainable_parameters=trainer.learner.trainable_parameters())  # fmt: skip
    # The config is written last: it marks a folder that can be resumed.
    atomic_write_bytes(request.out / "config.toml", tomli_w.dumps(request.config.to_dict()).encode())
    return 0


def _loop(
    request: TrainRequest, trainer: Trainer, identity: Identity, log: RunLog, first: int, reporter: Reporter
) -> None:
    from teachonce.checkpoint import save_checkpoint
    from teachonce.signals import deferred_signals

    config, checkpoints = request.config, request.out / "checkpoints"
    with deferred_signals() as stop_requested:
        for step in range(first, config.steps):
            losses = trainer.step(step)
            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                log.write("step", step=done, **losses)
                reporter.progress("train", done, config.steps, "steps", loss=round(losses["loss"], 4))
            if done % config.checkpoint_every == 0 or done == config.steps or stop_requested():
                save_checkpoint(checkpoints, done, trainer.learner, trainer.optimizer, identity)
            if stop_requested():
                reporter.note(f"stopped after step {done}; continue with --resume")
                break


def _finish(
    request: TrainRequest, trainer: Trainer, clip: LoadedClip, identity: Identity, seconds: float
) -> TrainResult:
    import torch

    from teachonce.prompts import TENSORS_FILE, save_prompts

    with torch.no_grad():
        save_prompts(request.out, trainer.learner(), trainer.meta(clip.spec, clip.digest))
    digest = hashlib.sha256((request.out / TENSORS_FILE).read_bytes()).hexdigest()
    losses = [e["loss"] for e in _logged(request.out)][-5:]
    final = sum(losses) / len(losses) if losses else float("nan")
    result = TrainResult(
        steps=request.config.steps, trainable_parameters=trainer.learner.trainable_parameters(), seconds=seconds,
        final_loss=final, out=str(request.out), prompts_digest=digest,
    )  # fmt: skip
    about: dict[str, Any] = {
        "schema": 1, **asdict(result), "store_id": identity.store, "student_digest": clip.digest,
        "selection_digest": identity.selection, "vocabulary_digest": trainer.rows.vocabulary.digest,
    }  # fmt: skip
    atomic_write_bytes(request.out / "results.json", (json.dumps(about, indent=1) + "\n").encode())
    return result


def _logged(out: Path) -> list[dict[str, Any]]:
    from teachonce.runlog import read_events

    file = out / "events.jsonl"
    return [event for event in read_events(file) if event["event"] == "step"] if file.is_file() else []
