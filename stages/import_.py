"""import: make prompts of this project out of a CoOp or POMP checkpoint, to start from or to compare with.

The folder holds prompts.safetensors + prompts.json and results.json; `evaluate` and `train --init` take it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from teachonce import __version__
from teachonce.errors import UsageError
from teachonce.files import atomic_write_bytes
from teachonce.model_spec import parse_spec
from teachonce.progress import Reporter
from teachonce.structures import Position

SUFFIX = "."  # CoOp and POMP end every prompt with a full stop


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """What to import; see `teachonce import --help`."""

    checkpoint: Path
    student: str
    out: Path
    position: Position = "before"
    """Of the slots, relative to the name: CoOp's end, middle and front. The file does not say."""


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """What came out."""

    slots: int
    width: int
    position: str
    epoch: int | None
    """Of the checkpoint, where it says so."""
    student_proved: bool
    """Whether the checkpoint holds the student's own start token; otherwise only the width shows that they fit."""
    checkpoint: str
    checkpoint_digest: str
    """SHA-256 of the file."""
    out: str
    prompts_digest: str
    """SHA-256 of prompts.safetensors."""


def import_(request: ImportRequest, reporter: Reporter) -> ImportResult:
    """Write the folder of prompts. Nothing in the checkpoint is run.

    Raises:
        UsageError: no such file, or the folder is not empty.
        IntegrityError: the file is damaged, or holds objects that would have to be run.
        DataError: it holds no context that any name can use.
        FingerprintError: it was trained on another student.
        UnsupportedModelError: the student's text tower cannot carry prompts.
    """
    parse_spec(request.student)
    if request.out.exists() and (not request.out.is_dir() or any(request.out.iterdir())):
        raise UsageError(f"{request.out} is not empty", hint="give another --out; nothing was changed")

    from teachonce.clip_models import load_clip  # heavy: only when all is in order
    from teachonce.foreign_prompts import prove_student, read_foreign
    from teachonce.prompt_files import TENSORS_FILE, PromptMeta, save_prompts
    from teachonce.slot_prompts import SlotPrompts
    from teachonce.text_tower import TextTower

    prompts = read_foreign(request.checkpoint)
    clip = load_clip(request.student)
    tower = TextTower.from_clip(clip.model, clip.tokenizer)
    proved = prove_student(prompts, tower, request.checkpoint)
    if not proved:
        reporter.note(f"{request.checkpoint} does not hold the start token that it was trained with: "
                      f"only the width ({tower.width}) shows that this student fits")  # fmt: skip
    slots, width = prompts.context.shape
    # The words it began as are not in the file.
    meta = PromptMeta(structure="shared", context="", init="normal", position=request.position, slots=slots, depth=0,
                      width=width, layers=tower.layers, student=clip.spec, student_digest=clip.digest, suffix=SUFFIX,
                      version=__version__)  # fmt: skip
    request.out.mkdir(parents=True, exist_ok=True)
    save_prompts(request.out, SlotPrompts(context=prompts.context), None, meta)
    result = ImportResult(
        slots=slots, width=width, position=request.position, epoch=prompts.epoch, student_proved=proved,
        checkpoint=str(request.checkpoint), checkpoint_digest=prompts.digest, out=str(request.out),
        prompts_digest=hashlib.sha256((request.out / TENSORS_FILE).read_bytes()).hexdigest(),
    )  # fmt: skip
    document = {"schema": 1, **asdict(result)}
    atomic_write_bytes(request.out / "results.json", (json.dumps(document, indent=1) + "\n").encode())
    return result
