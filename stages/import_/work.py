"""The work of `import`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from teachonce.core.documents import sealed
from teachonce.core.files import atomic_write_bytes, whole_folder, write_failed
from teachonce.core.progress import Reporter
from teachonce.errors import DataError, UsageError
from teachonce.models.classifier import prompted_features
from teachonce.models.clip import load_clip
from teachonce.models.foreign_prompts import ForeignPrompts, prove_student, read_foreign
from teachonce.models.prompt_files import save_prompts
from teachonce.models.prompt_names import TENSORS_FILE
from teachonce.models.prompts import PromptMeta, Prompts
from teachonce.phrases import another
from teachonce.runs.folder import RESULTS
from teachonce.stages.import_.request import ImportRequest, ImportResult
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.text_tower import TextTower

PROBES = ("fox", "cup", "map")  # a context is tried out on these names, which are one token each
SUFFIX = "."  # CoOp and POMP end every prompt with a full stop


def import_(request: ImportRequest, reporter: Reporter) -> ImportResult:
    """Write the folder of prompts. Nothing in the checkpoint is run. The stage's `import_` says what is raised."""

    prompts = read_foreign(request.checkpoint)
    clip = load_clip(request.student)
    tower = TextTower.from_clip(clip.model, clip.tokenizer)
    proved = prove_student(prompts, tower, request.checkpoint)
    if not proved:
        reporter.note(
            f"{request.checkpoint} does not hold the start token that it was trained with: "
            f"only the width ({tower.width}) shows that this student fits"
        )
    learnt = SlotPrompts(context=prompts.context)
    _require_sound(request, learnt, tower)
    with _filled(request.out, reporter) as folder:
        # The words that the prompts began as are not in the checkpoint.
        made = Prompts(structure="shared", context="", init="normal", position=request.position)
        save_prompts(folder, learnt, None, PromptMeta.of(made, clip, SUFFIX, tower, learnt))
        digest = hashlib.sha256((folder / TENSORS_FILE).read_bytes()).hexdigest()
        result = _result(request, prompts, proved, digest)
        document = sealed({"schema": 1, **asdict(result)})
        atomic_write_bytes(folder / RESULTS, (json.dumps(document, indent=1) + "\n").encode())
    return result


def _result(request: ImportRequest, prompts: ForeignPrompts, proved: bool, digest: str) -> ImportResult:
    slots, width = prompts.context.shape
    return ImportResult(
        slots=slots,
        width=width,
        position=request.position,
        epoch=prompts.epoch,
        student_proved=proved,
        checkpoint=str(request.checkpoint),
        checkpoint_digest=prompts.digest,
        out=str(request.out),
        prompts_digest=digest,
    )


def _require_sound(request: ImportRequest, prompts: SlotPrompts, tower: TextTower) -> None:
    """Refuse a context whose numbers are finite but with which the student's class features are not."""
    try:
        names = tower.tokenise(PROBES, SUFFIX, prompts.slots, request.position)
    except UsageError as problem:
        raise DataError(
            f"{request.checkpoint}: {prompts.slots} slots leave no room for a name: " + problem.message,
            hint="give a run with fewer slots (TRAINER.COOP.N_CTX)",
        ) from problem
    if not bool(prompted_features(tower, prompts, names).isfinite().all()):
        raise DataError(
            f"{request.checkpoint}: with its context, class features of {request.student} are not numbers; the largest "
            f"entry is {float(prompts.tensors()['context'].abs().max()):.3g}",
            hint="its training has diverged: give an earlier checkpoint",
        )


@contextlib.contextmanager
def _filled(out: Path, reporter: Reporter) -> Iterator[Path]:
    """`whole_folder`, which leaves neither a half-made folder nor the folders above it that were made for it."""
    made = [folder for folder in out.parents if not folder.exists()]
    try:
        with whole_folder(out, reporter=reporter) as folder:
            yield folder
    except OSError as problem:
        raise write_failed(out, problem, hint=another("out")) from problem
    finally:
        if not out.exists():
            with contextlib.suppress(OSError):
                for folder in made:
                    folder.rmdir()
