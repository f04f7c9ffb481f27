"""The part of `train` that loads the student: rows, start, steps, checkpoints and measurements, up to the result."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path

from teachonce import __version__
from teachonce.core.devices import device_explained, pick_device
from teachonce.core.files import atomic_write_bytes
from teachonce.core.machine import choose_threads, package_versions
from teachonce.core.progress import Reporter, deferred_signals
from teachonce.errors import DataError, UsageError
from teachonce.labels.ledger import require_behaviour
from teachonce.labels.metadata import features_group
from teachonce.labels.selection import Selection
from teachonce.labels.store import LabelStore
from teachonce.models.clip import LoadedClip, allow_tf32, load_clip, resolved_precision, tune_process
from teachonce.models.prompt_files import LoadedPrompts, load_prompts
from teachonce.phrases import option, phrase, setting
from teachonce.recipe.config import TrainConfig
from teachonce.recipe.config_file import config_text
from teachonce.recipe.requirements import requirements
from teachonce.rows.images import ViewImages
from teachonce.rows.pairing import prove_pairing
from teachonce.rows.working_set import WorkingSet, open_working_set
from teachonce.runs import folder as run_folder
from teachonce.runs.checkpoint import ALL_ROWS, OWN_START, Identity, load_checkpoint, save_checkpoint
from teachonce.runs.folder import RunFolder
from teachonce.runs.log import RunLog
from teachonce.runs.tensorboard import open_sinks
from teachonce.stages.train.outcome import finish, left_at, recorded
from teachonce.stages.train.request import TrainRequest, TrainResult
from teachonce.training.held_out import measure
from teachonce.training.objective import StepReport
from teachonce.training.trainer import Trainer

SMALLER = phrase(
    "a smaller {class_chunk=256} (names), {micro_batch=64} (rows) or {batch_size=64}; `nvidia-smi` shows others"
)


def take_steps(
    request: TrainRequest,
    store: LabelStore,
    selection: Selection | None,
    own_folder: Callable[[], AbstractContextManager[None]],
    began: float,
    reporter: Reporter,
) -> TrainResult:
    """Train on rows of an open store that has what the config needs; `train` says what is raised.

    Args:
        own_folder: Makes this process the only writer of the run folder; entered before anything is written there.
        began: When the command began, of `time.monotonic()`.
    """
    threads, device = choose_threads(request.threads), pick_device(request.device)
    request = replace(request, config=_settled(request.config, device))
    tune_process(threads.count)
    allow_tf32(request.config.loop.tf32)
    reporter.note(f"computing on {device} in {request.config.loop.precision}; threads: {threads.count} ({threads.why})")
    clip = load_clip(request.student, device)
    config, needs = request.config, requirements(request.config)
    group = features_group(store.groups, clip.digest)
    if needs.features and group is not None:
        require_behaviour(store.path, group, store.groups[group].fingerprint, clip.image_behaviour)
    rows = open_working_set(store, clip.digest if needs.features else None, reporter, selection, needs.embeddings)
    with contextlib.ExitStack() as stack:
        stack.callback(rows.close)
        proved = prove_pairing(rows, config.loop.seed, reporter, request.root)
        images = None
        if needs.images and request.root is not None:
            images = stack.enter_context(contextlib.closing(ViewImages(store, request.root, clip, threads.count)))
        with device_explained(SMALLER):
            trainer, identity = _build(request, rows, clip, images, selection, reporter)
        stack.enter_context(own_folder())
        log = RunFolder(request.folder).log(open_sinks(request.log, request.folder))
        stack.callback(log.close)
        first = _start(request, trainer, identity, log, reporter)
        last = _last_step(request, trainer, first)
        earlier = recorded(request.folder, trainer) if first == trainer.steps else None
        if earlier is not None:
            reporter.note(f"{request.folder} is finished: nothing is left to do")
            return earlier
        if request.resume:
            log.rewind(first)
            reporter.note(f"resuming {request.folder} after step {first}")
        log.write("pairing", step=first, rows_proved=proved, images_compared=request.root is not None)
        with device_explained(SMALLER):
            _loop(request, trainer, identity, log, range(first, last), reporter, began)
        return _left(request, trainer, identity, log, reporter)


def _left(request: TrainRequest, trainer: Trainer, identity: Identity, log: RunLog, reporter: Reporter) -> TrainResult:
    """What the run leaves behind at its end, or at a pause."""
    if request.pause is not None:
        return left_at(request.pause, trainer, identity)
    return finish(request.folder, trainer, identity, log, request.shared, reporter)


def _last_step(request: TrainRequest, trainer: Trainer, first: int) -> int:
    """The step after which the run ends or pauses."""
    last = trainer.steps if request.pause is None else request.pause.step
    if not first <= last <= trainer.steps:
        raise UsageError(
            f"{request.folder} cannot be paused after step {last}: it has {trainer.steps} steps, and {first} are made",
            hint="pause a run before it is past that step, or begin it in another folder",
        )
    return last


def _settled(config: TrainConfig, device: str) -> TrainConfig:
    """The config with the number format that `auto` becomes here: what is written down is what was computed."""
    return config.changed(precision=resolved_precision(config.loop.precision, device))


def _build(
    request: TrainRequest,
    rows: WorkingSet,
    clip: LoadedClip,
    images: ViewImages | None,
    selection: Selection | None,
    reporter: Reporter,
) -> tuple[Trainer, Identity]:
    vocabulary = rows.vocabulary
    require_labels(request.config, rows)
    trainer = Trainer(request.config, clip, rows, images)
    start = OWN_START if request.init is None else _start_from(request.init, trainer, reporter)
    frozen = None if request.config.prompts.in_text else trainer.student.frozen_classes
    if not trainer.student.is_sound() or (frozen is not None and not bool(frozen.isfinite().all())):
        whose = request.student if request.init is None else f"{request.student} with the prompts in {request.init}"
        raise DataError(
            f"the start gives no numbers: features of {whose} are NaN or infinite",
            hint="give another student, or prompts that are sound",
        )
    for nothing in (*request.config.without_effect(), *trainer.warnings()):
        reporter.note(f"note: {nothing}")
    reporter.note(
        f"{trainer.student.trainable_parameters()} trainable parameters, {len(rows)} rows "
        f"({len(trainer.order.held_out)} held out), {trainer.steps} steps of {trainer.order.steps_per_epoch} an epoch, "
        f"{len(vocabulary)} classes ({vocabulary.tied()} share a name)"
    )
    if trainer.source.whereabouts:
        reporter.note(trainer.source.whereabouts)
    chosen = ALL_ROWS if selection is None else selection.digest
    return trainer, Identity(request.config.digest(), rows.store_id, clip.digest, chosen, start, **clip.behaviour)


def require_labels(config: TrainConfig, rows: WorkingSet) -> None:
    """Refuse rows without a hard label where the config learns from hard labels."""
    if requirements(config).hard_labels and not rows.has_labels:
        raise DataError(
            f"no row of {rows.store.path} has a class that is in its vocabulary: there are no hard labels to train on",
            hint=phrase("train with {supervision} soft, or teach with a vocabulary that holds the data's classes"),
        )


def _start_from(folder: Path, trainer: Trainer, reporter: Reporter) -> str:
    """Put saved prompts in as the start; returns their digest."""
    student = trainer.student
    loaded = load_prompts(folder).bound_to(student.clip)
    for tower, prompts in (("text", loaded.text), ("image", loaded.image)):
        learner = student.learner(tower)
        if learner is not None and prompts is not None:
            try:
                learner.load_start(prompts)
            except UsageError as problem:
                raise problem.reworded(f"the prompts in {folder}, {tower} tower: " + problem.message) from None
        elif (learner is None) != (prompts is None):
            raise UsageError(
                f"the prompts in {folder} are of tower = '{loaded.meta.tower}', and this run's is "
                f"'{trainer.config.prompts.tower}'",
                hint=setting("tower", loaded.meta.tower),
            )
    carried = loaded.text is not None and not loaded.text.replace
    if carried and trainer.config.prompts.replaces and trainer.config.prompts.position != "before":
        raise UsageError(
            f"the prompts in {folder} are carried; slots {trainer.config.prompts.position} the name have other "
            f"states for every name: {trainer.config.prompts.structure} cannot start as them",
            hint=phrase("{position=before} with prompts of that position, or another structure"),
        )
    if loaded.text is not None and loaded.meta.position != trainer.config.prompts.position:
        raise UsageError(
            f"the prompts in {folder} stand {loaded.meta.position} the name, and this run's "
            f"{trainer.config.prompts.position}",
            hint=setting("position", loaded.meta.position),
        )
    _start_head(folder, loaded, trainer, reporter)
    return loaded.tensors_digest


def _start_head(folder: Path, loaded: LoadedPrompts, trainer: Trainer, reporter: Reporter) -> None:
    """Put a saved head in as the start, where this run has the same one of the same classes; else say what begins anew.

    Raises:
        UsageError: the folder has a head, and this run has none, or one of another kind.
    """
    ours, theirs = trainer.student.head, loaded.head
    if theirs is None:
        return
    if ours is None or ours.meta.kind != theirs.meta.kind:
        raise UsageError(
            f"the prompts in {folder} have the head '{theirs.meta.kind}', and this run's is "
            f"'{trainer.config.head.head}'",
            hint=setting("head", theirs.meta.kind),
        )
    if ours.meta != theirs.meta:
        reporter.note(
            f"the head '{ours.meta.kind}' begins anew: the one in {folder} is of other classes, rows or numbers"
        )
    else:
        ours.load({name: tensor.to(trainer.device) for name, tensor in theirs.tensors().items()})


def _start(request: TrainRequest, trainer: Trainer, identity: Identity, log: RunLog, reporter: Reporter) -> int:
    """Make or reopen the run folder; returns the first step to do."""
    folder = RunFolder(request.folder)
    checkpoints = folder.checkpoints.path
    if request.resume:
        average, moved = trainer.learned.average_state(), trainer.learned.moved
        step = load_checkpoint(checkpoints, trainer.learners, trainer.optimizer, identity, average, moved)
        trainer.stand_after(step)
        if not folder.events.is_file():
            reporter.note(f"{folder.events} is gone: what happened up to step {step} is not known")
        return step
    run_folder.clear(request.folder)
    log.clear()
    save_checkpoint(checkpoints, 0, trainer.learners, trainer.optimizer, identity, trainer.learned.average_state())
    log.write(
        "start",
        step=0,
        teachonce=__version__,
        versions=package_versions(),
        labels=str(request.labels),
        student=request.student,
        **{f"{name}_digest": value for name, value in asdict(identity).items()},
        steps=trainer.steps,
        steps_per_epoch=trainer.order.steps_per_epoch,
        trainable_parameters=trainer.student.trainable_parameters(),
        no_effect=request.config.without_effect(),
    )
    # The config is written last: it marks a folder that can be resumed.
    atomic_write_bytes(folder.config, config_text(request.config).encode())
    return 0


def _loop(
    request: TrainRequest,
    trainer: Trainer,
    identity: Identity,
    log: RunLog,
    todo: range,
    reporter: Reporter,
    began: float,
) -> None:
    config, checkpoints, steps = request.config, RunFolder(request.folder).checkpoints.path, trainer.steps
    trainer.stand_after(todo.start)
    if todo.start or not steps:
        _measure(trainer, log, todo.start)  # a run that stopped right after its checkpoint has not measured this step
    before: StepReport | None = None
    with deferred_signals() as stop_requested:
        for step in todo:
            report = trainer.begin(step)
            if before is not None:
                before.read()  # it is asked while the device works on this step; bad numbers end the run here
            before, done = report, step + 1
            if done % config.loop.log_every == 0 or done == steps:
                losses = report.read()
                log.write("step", step=done, **losses)
                reporter.progress("train", done, steps, "steps", loss=round(losses["loss"], 4))
            stopping = stop_requested()
            if done % config.loop.checkpoint_every == 0 or done == todo.stop or stopping:
                report.read()
                trainer.require_sound(done)
                state = trainer.learned.average_state()
                save_checkpoint(checkpoints, done, trainer.learners, trainer.optimizer, identity, state)
                log.write("checkpoint", step=done, seconds=round(time.monotonic() - began, 3))
                began = time.monotonic()
            if stopping:  # a signal that arrives after this line is seen at the next step
                reporter.note(f"stopped after step {done}; continue with " + option("resume"))
                break
            trainer.stand_after(done)
            _measure(trainer, log, done)


def _measure(trainer: Trainer, log: RunLog, done: int) -> None:
    """Write the held-out accuracy of a step that asks for it, once."""
    config = trainer.config
    if not config.loop.held_out or (done % config.loop.evaluate_every and done != trainer.steps):
        return
    if all(event["step"] != done for event in log.read("held_out")):
        log.write("held_out", step=done, **asdict(measure(trainer)))
