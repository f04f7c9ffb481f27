"""What a run leaves behind when it ends: its prompts, and results.json, which a later call reads back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachonce.core.files import atomic_write_bytes
from teachonce.errors import TeachOnceError
from teachonce.runs import folder as run_folder
from teachonce.runs.log import RunLog
from teachonce.stages.train.request import TrainResult

if TYPE_CHECKING:
    from teachonce.runs.checkpoint import Identity
    from teachonce.training.trainer import Trainer


def finish(out: Path, trainer: Trainer, identity: Identity, log: RunLog) -> TrainResult:
    """Write the prompts of a run that has made its last step, and what it came to."""
    import torch

    from teachonce.models.prompt_files import TENSORS_FILE, save_prompts

    with torch.no_grad(), trainer.result() as student:
        text, image = student.learner("text"), student.learner("image")
        save_prompts(out, None if text is None else text(), None if image is None else image(), student.meta())
    losses = [event["loss"] for event in log.read("step")][-5:]
    held_out = [event["top1"] for event in log.read("held_out")]
    result = TrainResult(
        steps=trainer.steps,
        trainable_parameters=trainer.student.trainable_parameters(),
        seconds=round(sum(event["seconds"] for event in log.read("checkpoint")), 3),
        final_loss=sum(losses) / len(losses) if losses else None,
        held_out_top1=held_out[-1] if held_out else None,
        out=str(out),
        prompts_digest=hashlib.sha256((out / TENSORS_FILE).read_bytes()).hexdigest(),
    )
    about: dict[str, Any] = {
        "schema": 1,
        **asdict(result),
        "store_id": identity.store,
        "student_digest": identity.student,
        "selection_digest": identity.selection,
        "vocabulary_digest": trainer.rows.vocabulary.digest,
        "start": identity.start,
    }
    text_of = json.dumps(about, indent=1, allow_nan=False)
    atomic_write_bytes(out / run_folder.RESULTS, (text_of + "\n").encode())
    return result


def recorded(out: Path, trainer: Trainer) -> TrainResult | None:
    """What a finished run has written of itself; None where it does not agree with the prompts that lie there."""
    from teachonce.models.prompt_files import load_prompts

    found = run_folder.read_results(out)
    names = [field.name for field in fields(TrainResult)]
    if found is None or not set(names) <= found.keys() or found["steps"] != trainer.steps:
        return None
    try:
        sound = load_prompts(out).tensors_digest == found["prompts_digest"]
    except TeachOnceError:
        sound = False  # what is lost or damaged is written again
    if not sound:
        return None
    return replace(TrainResult(**{name: found[name] for name in names}), out=str(out))
