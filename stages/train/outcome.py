"""What a run leaves behind when it ends: its prompts, and results.json, which a later call reads back."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from teachonce.core.documents import LogSeal
from teachonce.core.progress import Reporter
from teachonce.errors import TeachOnceError
from teachonce.models.prompt_files import load_prompts, save_prompts
from teachonce.runs.checkpoint import Identity
from teachonce.runs.folder import RunFolder
from teachonce.runs.log import RunLog
from teachonce.runs.results import RunResults
from teachonce.stages.train.reference import write_reference
from teachonce.stages.train.request import Pause, TrainResult
from teachonce.training.held_out import measure
from teachonce.training.trainer import Trainer


def finish(
    out: Path, trainer: Trainer, identity: Identity, log: RunLog, shared: Path | None, reporter: Reporter
) -> TrainResult:
    """Write the prompts, the linear reference and the results of a run that has made its last step.

    Args:
        shared: where runs on the same rows keep their linear reference for each other; None: nowhere.
    """
    _save(out, trainer)
    losses = [event["loss"] for event in log.read("step")][-5:]
    held_out = [event["top1"] for event in log.read("held_out")]
    reference = write_reference(out, shared, trainer, identity)
    if reference.linear_why:
        reporter.note(f"no linear reference: {reference.linear_why}")
    results = replace(
        _results(out, trainer, identity, trainer.steps),
        **asdict(reference),
        seconds=round(sum(event["seconds"] for event in log.read("checkpoint")), 3),
        final_loss=sum(losses) / len(losses) if losses else None,
        held_out_top1=held_out[-1] if held_out else None,
        log=LogSeal.of(RunFolder(out).events),
    )
    RunFolder(out).write_results(results)
    return _answer(results, out)


def left_at(pause: Pause, trainer: Trainer, identity: Identity) -> TrainResult:
    """Write what a run that is paused would be, were this its end: its prompts, and its held-out accuracy with them."""
    pause.out.mkdir(parents=True, exist_ok=True)
    _save(pause.out, trainer)
    score = measure(trainer).top1 if trainer.config.loop.held_out else None
    results = replace(_results(pause.out, trainer, identity, pause.step), held_out_top1=score)
    RunFolder(pause.out).write_results(results)
    return _answer(results, pause.out)


def _save(out: Path, trainer: Trainer) -> None:
    with torch.no_grad(), trainer.result() as student:
        save_prompts(out, student.prompts("text"), student.prompts("image"), student.meta(), student.acting_head)


def _results(out: Path, trainer: Trainer, identity: Identity, steps: int) -> RunResults:
    """What the results of a run say of prompts that lie in a folder, without what its log tells."""
    return RunResults(
        steps=steps,
        trainable_parameters=trainer.student.trainable_parameters(),
        seconds=0.0,
        out=str(out),
        prompts_digest=RunFolder(out).prompts_digest() or "",
        store_id=identity.store,
        student_digest=identity.student,
        student_tokenizer=identity.tokenizer or None,
        student_preprocess=identity.preprocess or None,
        student_structure=identity.structure or None,
        selection_digest=identity.selection,
        vocabulary_digest=trainer.rows.vocabulary.digest,
        start=identity.start,
    )


def recorded(out: Path, trainer: Trainer) -> TrainResult | None:
    """The result that a finished run has written; None where it does not belong to the prompts in the folder."""
    results = RunFolder(out).read_results()
    if results is None or results.steps != trainer.steps:
        return None
    try:
        sound = load_prompts(out).tensors_digest == results.prompts_digest
    except TeachOnceError:
        sound = False  # prompts that are lost or damaged are written again
    return _answer(results, out) if sound else None


def _answer(results: RunResults, out: Path) -> TrainResult:
    """What `train` answers; the folder may have been moved since its results were written."""
    return TrainResult(
        steps=results.steps,
        trainable_parameters=results.trainable_parameters,
        seconds=results.seconds,
        final_loss=results.final_loss,
        held_out_top1=results.held_out_top1,
        out=str(out),
        prompts_digest=results.prompts_digest,
        linear_held_out_top1=results.linear_held_out_top1,
        template_held_out_top1=results.template_held_out_top1,
    )
