"""The teacher's class vectors for a relabelled store: from the parent, from templates, or from prompts."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import TYPE_CHECKING

from teachonce.core.devices import pick_device
from teachonce.core.progress import Reporter
from teachonce.errors import FingerprintError, TeachOnceError, UsageError
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


class TeacherText:
    """The text side of the teacher of one run of `relabel`; a model is loaded when it is first needed, once."""

    def __init__(self, request: RelabelRequest, parent: LabelStore, plan: Plan, reporter: Reporter) -> None:
        self._request, self._parent, self._plan, self._reporter = request, parent, plan, reporter

    def class_vectors(self) -> tuple[FloatArray, str | None]:
        """The teacher's unit text features of the child's classes, [C, D], and the model spec of the teacher.

        The parent's rows serve where it has all names, letter for letter, and its vectors were made in the same way:
        not every tokenizer ignores case. A head that no class vectors stand for is not in them.

        Raises:
            UsageError: new names need a model or prompts that were not given.
            FingerprintError: the model is not the teacher.
        """
        plan, parent = self._plan, self._parent
        stored = parent.groups[LABELS].fingerprint
        known = {name: row for row, name in enumerate(parent.vocabulary().names)}
        names = plan.vocabulary.names
        alike = list(plan.templates) == stored["templates"] and plan.fingerprint.get("prompts") == stored.get("prompts")
        if alike and all(name in known for name in names):
            if self._request.teacher is not None:
                self._reporter.note("every name is in the store already: the teacher is not needed")
            features: FloatArray = parent.class_embeddings()[[known[name] for name in names]]
            return features, stored["about"].get("teacher")
        if plan.prompts is None and plan.fingerprint.get("prompts") is not None:
            raise UsageError(
                f"the class vectors of {parent.path} come from prompts, and new names need them again",
                hint=phrase("give {prompts} or {head} RUN, the one that the store was relabelled with"),
            )
        encoded: FloatArray
        clip = self._clip
        if plan.prompts is not None:
            folder = self._request.prompts or self._request.head
            self._reporter.note(f"encoding {len(names)} class names with the teacher and {folder}")
            bound = plan.prompts.bound_to(clip)
            if plan.head is not None:
                bound = dataclasses.replace(bound, head=None, meta=dataclasses.replace(bound.meta, head=None))
            encoded = bound.classifier(names).cpu().numpy()
            return encoded, clip.spec
        from teachonce.models.classifier import ensemble_features

        self._reporter.note(f"encoding {len(names)} class names with the teacher")
        encoded = ensemble_features(clip, names, plan.templates).cpu().numpy()
        return encoded, clip.spec

    def scoring_vectors(self) -> FloatArray:
        """What images are compared with under a head that no class vectors stand for, [C, S].

        Raises:
            UsageError, FingerprintError: as `class_vectors`.
        """
        if self._plan.head is None:
            raise TeachOnceError("there is no head that needs vectors of its own")
        names = self._plan.vocabulary.names
        vectors: FloatArray = self._plan.head.bound_to(self._clip).scoring_classes(names).cpu().numpy()
        return vectors

    @cached_property
    def _clip(self) -> LoadedClip:
        named = self._parent.groups[LABELS].fingerprint["about"].get("teacher")
        prompts = self._plan.prompts
        spec = self._request.teacher or named or (None if prompts is None else prompts.model)
        if spec is None:
            raise UsageError(phrase("new names or templates need the teacher's text tower: give {teacher} MODEL"))
        return _teacher(spec, self._request, self._parent, self._reporter)


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
