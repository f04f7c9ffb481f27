"""export: a folder that others can use: prompts, class weights, model card, digests; proved by loading it again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from teachonce import __version__
from teachonce.core.folders import new_folder, require_new
from teachonce.core.hub import parse_hub_id
from teachonce.core.progress import Reporter
from teachonce.core.sums import CARD_FILE, SUMS_FILE, require_unchanged, write_sums
from teachonce.data.vocabulary import Vocabulary, load_vocabulary, shown
from teachonce.errors import DataError, IntegrityError, UsageError
from teachonce.models.prompt_names import CONFIG_FILE, EXPORTED, META_FILE, TENSORS_FILE
from teachonce.models.spec import parse_spec
from teachonce.phrases import phrase
from teachonce.stages.export.request import ExportRequest, ExportResult

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from teachonce.models.prompt_files import LoadedPrompts
    from teachonce.sharing.facts import ExportFacts


def export(request: ExportRequest, reporter: Reporter) -> ExportResult:
    """Write the folder beside its place, load it again, compare, and only then give it its name.

    Raises:
        UsageError: RUN holds no prompts; --out is not empty; a bad repository id.
        DataError: a broken class list, or a name in it that is too long for the tower.
        IntegrityError: the run, its config, or an evaluation in it, was damaged or changed; the reload gives other
            features.
        FingerprintError: the student, a result or an evaluation belongs to other prompts.
        IncompleteError: the disk is full.
        EnvironmentFault: the hub cannot be reached (the folder stays).
    """
    if request.push is not None and parse_hub_id(request.push).revision is not None:
        raise UsageError(f"'{request.push}': what is pushed has no revision yet", hint="leave out what follows the @")
    if request.student is not None:
        parse_spec(request.student)
    require_new(request.out)
    classes = None if request.classes is None else load_vocabulary(request.classes)

    from teachonce.models.prompt_files import load_prompts
    from teachonce.sharing.facts import gather  # heavy: only when the request is in order

    prompts = load_prompts(request.run, request.student)
    facts = gather(request.run, prompts, request.licence, __version__)
    if classes is not None:
        prompts = _with_student(prompts, request)
    else:
        reporter.note(
            phrase(
                "no {classes}: the run records no names, so that class weights are left out; add {classes} FILE for "
                "a weight matrix"
            )
        )
    with new_folder(request.out) as folder:
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


def _pushed(folder: Path, repository: str, prompts_digest: str, reporter: Reporter) -> str:
    """Upload the folder; returns where it lies now."""
    from teachonce.core.hub import push

    message = f"Prompts {prompts_digest[:12]}, exported by teachonce {__version__}"
    pushed = push(folder, parse_hub_id(repository).repo, message)
    reporter.note(f"pushed to {pushed}; a repository that was new is private until you publish it there")
    return pushed


def _with_student(prompts: LoadedPrompts, request: ExportRequest) -> LoadedPrompts:
    from teachonce.core.machine import default_threads
    from teachonce.models.clip import load_clip, pick_device, tune_process

    tune_process(request.threads or default_threads(1))
    return prompts.bound_to(load_clip(prompts.model, pick_device()))


def _write(
    folder: Path, request: ExportRequest, prompts: LoadedPrompts, facts: ExportFacts, classes: Vocabulary | None
) -> tuple[ExportFacts, tuple[str, ...]]:
    """Fill the folder; returns the facts with those of the weights, and the names of all files."""
    import hashlib

    from teachonce.sharing.class_weights import write_weights
    from teachonce.sharing.facts import FACTS_FILE
    from teachonce.sharing.model_card import model_card

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
    (folder / CARD_FILE).write_text(model_card(facts, place), encoding="utf-8")
    names += [FACTS_FILE, CARD_FILE]
    write_sums(folder, names)
    return facts, tuple(sorted([*names, SUMS_FILE]))


def _weights(prompts: LoadedPrompts, classes: Vocabulary, where: str) -> npt.NDArray[np.float32]:
    """Features of the names; a name that the text tower cannot take is a fault of its list."""
    from teachonce.models.tokens import NameRefused, NameTooLong  # torch

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
    import numpy as np

    from teachonce.models.prompt_files import load_prompts
    from teachonce.sharing.class_weights import ARRAY_FILE

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
