"""The work of `import`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teachonce.core.documents import sealed
from teachonce.core.files import atomic_write_bytes, whole_folder, write_failed
from teachonce.core.progress import Reporter
from teachonce.errors import DataError, UsageError
from teachonce.foreign.prompts import ForeignPrompts
from teachonce.foreign.proof import prove_student
from teachonce.foreign.reading import read_foreign
from teachonce.foreign.slots import image_slots, text_slots
from teachonce.models.classifier import prompted_features
from teachonce.models.clip import load_clip
from teachonce.models.prompt_files import save_prompts
from teachonce.models.prompt_names import TENSORS_FILE
from teachonce.models.prompts import PromptMeta, Prompts
from teachonce.phrases import another, phrase
from teachonce.runs.folder import RESULTS
from teachonce.stages.import_.request import ImportRequest, ImportResult
from teachonce.towers.image_tower import ImageTower
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.text_tower import TextTower

PROBES = ("fox", "cup", "map")  # prompts are tried out on these names, which are one token each
SUFFIX = "."  # all of these projects end every prompt with a full stop


@dataclass(frozen=True, eq=False)
class _Towers:
    """The student's towers; the image tower where there are prompts for it."""

    text: TextTower
    image: ImageTower | None


def import_(request: ImportRequest, reporter: Reporter) -> ImportResult:
    """Write the folder of prompts. Nothing in the checkpoint is run. The stage's `import_` says what is raised."""
    prompts = read_foreign(request.checkpoint)
    if prompts.replaces and request.position != "before":
        raise UsageError(
            f"{request.checkpoint} is of {prompts.method}, whose slots stand before the name: position = "
            f"{request.position!r} would be another model",
            hint=phrase("leave {position} out"),
        )
    clip = load_clip(request.student)
    towers = _Towers(
        TextTower.from_clip(clip.model, clip.tokenizer), ImageTower.from_clip(clip.model) if prompts.image else None
    )
    proved = prove_student(prompts, towers.text, request.checkpoint, clip.model, towers.image)
    if not proved:
        reporter.note(
            f"{request.checkpoint} does not hold the start token that it was trained with: "
            f"only the width ({towers.text.width}) shows that this student fits"
        )
    visual: Any = clip.model.visual
    text = text_slots(prompts, towers.text)
    image = None if towers.image is None else image_slots(prompts, visual, towers.image.layers)
    _require_sound(request, text, image, towers)
    with _filled(request.out, reporter) as folder:
        made = _asked(request, prompts, image)
        save_prompts(folder, text, image, PromptMeta.of(made, clip, SUFFIX, towers.text, text, towers.image, image))
        digest = hashlib.sha256((folder / TENSORS_FILE).read_bytes()).hexdigest()
        result = _result(request, prompts, proved, digest, image)
        document = sealed({"schema": 1, **asdict(result)})
        atomic_write_bytes(folder / RESULTS, (json.dumps(document, indent=1) + "\n").encode())
    return result


def _asked(request: ImportRequest, prompts: ForeignPrompts, image: SlotPrompts | None) -> Prompts:
    """The prompts as a run of ours asks for them; the words that they began as are not in the checkpoint."""
    if not prompts.replaces:
        return Prompts(structure="shared", context="", init="normal", position=request.position)
    return Prompts(
        tower="text" if image is None else "both",
        structure="shared-replace",
        context="",
        init="normal",
        depth=1 + len(prompts.deeper),
        image_depth=len(prompts.image),
    )


def _result(
    request: ImportRequest, prompts: ForeignPrompts, proved: bool, digest: str, image: SlotPrompts | None
) -> ImportResult:
    slots, width = prompts.context.shape
    return ImportResult(
        method=prompts.method,
        slots=slots,
        width=width,
        depth=1 + len(prompts.deeper),
        image_slots=0 if image is None else image.slots,
        image_depth=len(prompts.image),
        position=request.position,
        epoch=prompts.epoch,
        student_proved=proved,
        checkpoint=str(request.checkpoint),
        checkpoint_digest=prompts.digest,
        out=str(request.out),
        prompts_digest=digest,
    )


def _require_sound(request: ImportRequest, text: SlotPrompts, image: SlotPrompts | None, towers: _Towers) -> None:
    """Refuse prompts whose numbers are finite but with which the student's features are not."""
    try:
        names = towers.text.tokenise(PROBES, SUFFIX, text.slots, request.position)
    except UsageError as problem:
        raise DataError(
            f"{request.checkpoint}: {text.slots} slots leave no room for a name: " + problem.message,
            hint="give a run with fewer slots (TRAINER.COOP.N_CTX)",
        ) from problem
    _require_numbers(request, text, "class", prompted_features(towers.text, text, names))
    if image is not None and towers.image is not None:
        grey = torch.zeros(1, 3, *towers.image.image_size, device=towers.image.device)
        placed = image.apply(lambda x: x.to(grey))
        with torch.no_grad():
            _require_numbers(request, image, "image", towers.image.features(placed, grey))


def _require_numbers(request: ImportRequest, prompts: SlotPrompts, what: str, features: Tensor) -> None:
    if not bool(features.isfinite().all()):
        largest = max(float(x.abs().max()) for x in prompts.tensors().values())
        raise DataError(
            f"{request.checkpoint}: with its prompts, {what} features of {request.student} are not numbers; the "
            f"largest entry is {largest:.3g}",
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
