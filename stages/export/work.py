"""The work of `export`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from teachonce import __version__
from teachonce.core.devices import pick_device
from teachonce.core.documents import SHOWN
from teachonce.core.files import new_folder
from teachonce.core.hub import parse_hub_id, push
from teachonce.core.machine import default_threads
from teachonce.core.progress import Reporter
from teachonce.core.sums import CARD_FILE, SUMS_FILE, require_unchanged, write_sums
from teachonce.data.vocabulary import Vocabulary, shown
from teachonce.errors import DataError, IntegrityError, UsageError
from teachonce.models.clip import load_clip, tune_process
from teachonce.models.prompt_files import LoadedPrompts, load_prompts
from teachonce.models.prompt_names import CONFIG_FILE, EXPORTED, META_FILE, TENSORS_FILE
from teachonce.phrases import phrase
from teachonce.sharing.class_weights import ARRAY_FILE, write_weights
from teachonce.sharing.facts import FACTS_FILE, ExportFacts, gather
from teachonce.sharing.model_card import model_card
from teachonce.stages.export.request import ExportRequest, ExportResult
from teachonce.towers.tokens import NameRefused, NameTooLong


def export(request: ExportRequest, classes: Vocabulary | None, reporter: Reporter) -> ExportResult:
    """Export what a request in order asks for; `classes` is its class list. The stage says what is raised."""
    prompts = load_prompts(request.run, request.student)
    facts = gather(request.run, prompts, request.licence, __version__)
    if classes is not None:
        _require_class_vectors(prompts)
        prompts = _with_student(prompts, request)
    else:
        reporter.note(
            phrase(
                "no {classes}: the run records no names, so that class weights are left out; add {classes} FILE for "
                "a weight matrix"
            )
        )
    with new_folder(request.out, reporter) as folder:
        facts, names = _write(folder, request, prompts, facts, classes)
        _prove(folder, prompts, classes)
    pushed = None if request.push is None else _pushed(request.out, request.push, facts.prompts_digest, reporter)
    weight_facts = facts.class_weights or {}
    return ExportResult(
        out=str(request.out),
        files=names,
        prompts_digest=facts.prompts_digest,
        classes=weight_facts.get("classes"),
        width=weight_facts.get("width"),
        tied_names=weight_facts.get("tied_names"),
        reloaded=True,
        pushed=pushed,
    )


def _require_class_vectors(prompts: LoadedPrompts) -> None:
    """Refuse class weights of prompts with a head that changes images or logits: they would leave the head out.

    Raises:
        UsageError: such a head.
    """
    head = prompts.meta.head
    if head is not None and not head.is_class_vectors:
        raise UsageError(
            f"the head '{head.kind}' of these prompts is no class vectors: class weights would leave it out",
            hint=phrase("leave {classes} out; load_prompts(...).logits(image_features, names) gives its logits"),
        )


def _pushed(folder: Path, repository: str, prompts_digest: str, reporter: Reporter) -> str:
    """Upload the folder; returns where it lies now."""
    message = f"Prompts {prompts_digest[:12]}, exported by teachonce {__version__}"
    pushed = push(folder, parse_hub_id(repository).repo, message)
    reporter.note(f"pushed to {pushed}; a repository that was new is private until you publish it there")
    return pushed


def _with_student(prompts: LoadedPrompts, request: ExportRequest) -> LoadedPrompts:
    tune_process(request.threads or default_threads(1))
    return prompts.bound_to(load_clip(prompts.model, pick_device(request.device)))


def _write(
    folder: Path, request: ExportRequest, prompts: LoadedPrompts, facts: ExportFacts, classes: Vocabulary | None
) -> tuple[ExportFacts, tuple[str, ...]]:
    """Fill the folder; returns the facts with those of the weights, and the names of all files."""
    names = [TENSORS_FILE, META_FILE]
    if (request.run / CONFIG_FILE).is_file():  # an imported checkpoint has none
        names.append(CONFIG_FILE)
    for name in names:
        (folder / name).write_bytes((request.run / name).read_bytes())
    if classes is not None:
        weights = _weights(prompts, classes, str(request.classes))
        names += write_weights(folder, weights, classes)
        digest = hashlib.sha256(classes.to_tsv()).hexdigest()
        weight_facts = {
            "classes": len(classes),
            "width": weights.shape[1],
            "tied_names": classes.tied(),
            "digest": digest,
        }
        facts = dataclasses.replace(facts, class_weights=weight_facts)
    (folder / FACTS_FILE).write_text(facts.to_json(), encoding="utf-8")
    place = request.out.name if request.push is None else parse_hub_id(request.push).repo
    (folder / CARD_FILE).write_text(model_card(facts, place), encoding="utf-8", errors=SHOWN)
    names += [FACTS_FILE, CARD_FILE]
    write_sums(folder, names)
    return facts, tuple(sorted([*names, SUMS_FILE]))


def _weights(prompts: LoadedPrompts, classes: Vocabulary, where: str) -> npt.NDArray[np.float32]:
    """Features of the names; a name that the text tower cannot take is a fault of its list."""
    try:
        weights: npt.NDArray[np.float32] = prompts.classifier(classes.names).cpu().numpy()
        return weights
    except NameRefused as problem:
        too_long = "is too long: it " if isinstance(problem, NameTooLong) else ""
        class_id = classes.ids[problem.index]
        raise DataError(
            f"{where}: the name of class '{class_id}', {shown(problem.name)}, {too_long}{problem.why}",
            hint="write the name as one would say it, in few words",
        ) from problem


def _prove(folder: Path, prompts: LoadedPrompts, classes: Vocabulary | None) -> None:
    """Load what was written as others will: the same prompts, and the same class features to the bit."""
    require_unchanged(folder, EXPORTED, whole=True)
    again = load_prompts(folder)
    same = again.tensors_digest == prompts.tensors_digest and again.meta == prompts.meta
    if same and classes is not None and prompts.student is not None:
        stored = np.load(folder / ARRAY_FILE, allow_pickle=False)
        features = again.bound_to(prompts.student).classifier(classes.names).cpu().numpy()
        same = stored.dtype == np.float32 and stored.tobytes() == features.tobytes()
    if not same:
        raise IntegrityError(
            "the exported folder, loaded again, gives other prompts or other class features",
            hint="export again; if it comes again, the disk or its memory is faulty",
        )
