"""The linear reference of a run in its folder: fitted when the run ends, or taken from a run on the same rows.

It is kept as prompts are, in the folder `linear`, with one file more that says what it was fitted on and what it came
to. Where it fails, the run does not: results.json then says why there is none.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from teachonce.core.digests import MIDDLE, canonical_digest
from teachonce.core.documents import is_as_written, read_object, sealed
from teachonce.core.files import atomic_write_bytes, new_folder
from teachonce.core.strict import decode_known
from teachonce.errors import IntegrityError, TeachOnceError, UsageError
from teachonce.models.prompt_files import load_prompts, save_prompts
from teachonce.models.prompt_names import LINEAR_FOLDER, META_FILE, REFERENCE_FILE, TENSORS_FILE
from teachonce.runs.checkpoint import Identity
from teachonce.training.linear_reference import FORM, RATE, ROWS, STEPS, fit_reference, why_none
from teachonce.training.trainer import Trainer

SCHEMA = 1
_FILES = (TENSORS_FILE, META_FILE, REFERENCE_FILE)


@dataclass(frozen=True, kw_only=True)
class ReferenceFacts:
    """What results.json says of the linear reference."""

    linear_digest: str | None = None
    """SHA-256 of its prompts.safetensors; None where there is no reference."""
    linear_held_out_top1: float | None = None
    template_held_out_top1: float | None = None
    linear_why: str = ""
    """Why there is none."""


def write_reference(out: Path, shared: Path | None, trainer: Trainer, identity: Identity) -> ReferenceFacts:
    """Leave the reference of a finished run in its folder.

    Args:
        out: the run folder.
        shared: where runs keep references for others on the same rows; None: nowhere.
        trainer: of the run.
        identity: what the run belongs to.
    """
    why = why_none(trainer)
    if why:
        return ReferenceFacts(linear_why=why)
    folder, fitted_on = out / LINEAR_FOLDER, _fitted_on(trainer, identity)
    kept = None if shared is None else shared / canonical_digest(fitted_on, MIDDLE)
    try:
        facts = None if kept is None else _read(kept, fitted_on)
        if facts is not None and kept is not None:
            _copy(kept, folder)
            return facts
        facts = _fit(folder, trainer, fitted_on)
    except TeachOnceError as problem:
        return ReferenceFacts(linear_why=problem.message)
    if kept is not None:
        _share(folder, kept)
    return facts


def _fitted_on(trainer: Trainer, identity: Identity) -> dict[str, Any]:
    """All that decides the reference of a run; runs that agree in it have the same one."""
    loop = trainer.config.loop
    return {
        "form": FORM,
        "store": identity.store,
        "selection": identity.selection,
        "student": [identity.student, identity.tokenizer, identity.preprocess, identity.structure],
        "context": trainer.config.prompts.context,
        "held_out": [loop.held_out, loop.seed] if loop.held_out else [],
        "setting": {"steps": STEPS, "rows": ROWS, "rate": RATE},
    }


def _fit(folder: Path, trainer: Trainer, fitted_on: dict[str, Any]) -> ReferenceFacts:
    reference = fit_reference(trainer)
    folder.mkdir(exist_ok=True)
    save_prompts(folder, None, None, reference.meta, reference.head)
    facts = ReferenceFacts(
        linear_digest=load_prompts(folder).tensors_digest,
        linear_held_out_top1=reference.held_out_top1,
        template_held_out_top1=reference.template_held_out_top1,
    )
    document = {"schema": SCHEMA, "fitted_on": fitted_on, "rows": reference.rows, **asdict(facts)}
    atomic_write_bytes(folder / REFERENCE_FILE, (json.dumps(sealed(document), indent=1) + "\n").encode())
    return facts


def _read(folder: Path, fitted_on: dict[str, Any]) -> ReferenceFacts | None:
    """What a whole reference that was fitted on the same comes to; None where there is none in the folder."""
    document = read_object(folder / REFERENCE_FILE, SCHEMA)
    if document is None or not is_as_written(document) or document.get("fitted_on") != fitted_on:
        return None
    try:
        facts = decode_known(ReferenceFacts, document, str(folder / REFERENCE_FILE), IntegrityError)
        sound = load_prompts(folder).tensors_digest == facts.linear_digest
    except TeachOnceError:
        return None
    return facts if sound else None


def _copy(folder: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    for name in _FILES:
        atomic_write_bytes(out / name, (folder / name).read_bytes())


def _share(folder: Path, kept: Path) -> None:
    """Let runs to come take a reference over; one that is there by now, or damaged, stays as it is."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    try:
        with new_folder(kept) as draft:
            for name in _FILES:
                shutil.copyfile(folder / name, draft / name)
    except UsageError:  # another run was quicker
        return
