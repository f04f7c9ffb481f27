"""The teacher's class vectors for a relabelled store: from the parent, from templates, or from prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teachonce.core.devices import pick_device
from teachonce.core.progress import Reporter
from teachonce.errors import FingerprintError, UsageError
from teachonce.labels.format import LABELS
from teachonce.labels.ledger import BEHAVIOURS
from teachonce.labels.store import LabelStore
from teachonce.models.spec import parse_spec, unlike
from teachonce.phrases import phrase
from teachonce.stages.relabel.plan import Plan
from teachonce.stages.relabel.request import RelabelRequest

if TYPE_CHECKING:
    from teachonce.labels.codec import FloatArray
    from teachonce.models.clip import LoadedClip


def class_vectors(
    request: RelabelRequest, parent: LabelStore, plan: Plan, reporter: Reporter
) -> tuple[FloatArray, str | None]:
    """The teacher's unit text features of the child's classes, [C, D], and the model spec of the teacher.

    The parent's rows serve where it has all names, letter for letter, and its vectors were made in the same way: not
    every tokenizer ignores case. The request's model is believed to be the teacher only after its weights were
    compared.

    Raises:
        UsageError: new names need a model or prompts that were not given.
        FingerprintError: the model is not the teacher.
    """
    stored = parent.groups[LABELS].fingerprint
    known = {name: row for row, name in enumerate(parent.vocabulary().names)}
    names, named = plan.vocabulary.names, stored["about"].get("teacher")
    alike = list(plan.templates) == stored["templates"] and plan.fingerprint.get("prompts") == stored.get("prompts")
    if alike and all(name in known for name in names):
        if request.teacher is not None:
            reporter.note("every name is in the store already: the teacher is not needed")
        features: FloatArray = parent.class_embeddings()[[known[name] for name in names]]
        return features, named
    if plan.prompts is None and plan.fingerprint.get("prompts") is not None:
        raise UsageError(
            f"the class vectors of {parent.path} come from prompts, and new names need them again",
            hint=phrase("give {prompts} or {head} RUN, the one that the store was relabelled with"),
        )
    spec = request.teacher or named or (None if plan.prompts is None else plan.prompts.model)
    if spec is None:
        raise UsageError(phrase("new names or templates need the teacher's text tower: give {teacher} MODEL"))
    clip = _teacher(spec, request, parent, reporter)
    encoded: FloatArray
    if plan.prompts is not None:
        reporter.note(f"encoding {len(names)} class names with the teacher and {request.prompts or request.head}")
        encoded = plan.prompts.bound_to(clip).classifier(names).cpu().numpy()
        return encoded, spec
    from teachonce.models.classifier import ensemble_features

    reporter.note(f"encoding {len(names)} class names with the teacher")
    encoded = ensemble_features(clip, names, plan.templates).cpu().numpy()
    return encoded, spec


def _teacher(spec: str, request: RelabelRequest, parent: LabelStore, reporter: Reporter) -> LoadedClip:
    """The model of the name, after it was found to be the teacher of the store."""
    from teachonce.models.clip import load_clip

    stored = parent.groups[LABELS].fingerprint
    reporter.note(f"loading the teacher {spec}")
    parse_spec(spec)
    clip = load_clip(spec, pick_device(request.device))
    wanted = stored["teacher_digest"]
    if clip.digest != wanted:
        raise FingerprintError(
            f"'{spec}' is not the teacher of {parent.path}:\n  teacher_digest: stored {wanted!r}, asked for "
            f"{clip.digest!r}",
            hint=phrase("name the model that the store was taught with: {teacher} MODEL"),
        )
    parts = unlike(stored.get(BEHAVIOURS["teacher"], {}), clip.behaviour)
    if parts:
        raise FingerprintError(
            f"'{spec}' has the weights of the teacher of {parent.path} and another {parts}",
            hint=phrase("name the model as it was when the store was taught: {teacher} MODEL"),
        )
    return clip
