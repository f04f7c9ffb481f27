"""The work of `relabel`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from teachonce import __version__
from teachonce.core.locks import owned
from teachonce.core.machine import package_versions
from teachonce.core.progress import Reporter
from teachonce.data.vocabulary import Vocabulary, load_vocabulary, read_class_ids, require_template, take_classes
from teachonce.errors import FingerprintError, UsageError
from teachonce.labels.codec import CODEC_VERSION
from teachonce.labels.create import create_child
from teachonce.labels.derived import content_id, copy_groups, fill, open_child, open_parent
from teachonce.labels.format import EMBEDDING, LABELS, Layout, new_layout
from teachonce.labels.ledger import BEHAVIOURS
from teachonce.labels.size import bytes_per_row
from teachonce.labels.store import Arrays, LabelStore
from teachonce.models.spec import parse_spec, unlike
from teachonce.phrases import option, phrase
from teachonce.stages.relabel.request import RelabelRequest, RelabelResult

if TYPE_CHECKING:
    from teachonce.labels.codec import FloatArray
    from teachonce.teaching.teacher import TeacherHead

BATCH_ROWS = 512
ROW_ARRAYS = ("label", "sample", "view", "status", "image_crc", "key_digest")  # the child takes these from its parent


@dataclass(frozen=True)
class _Plan:
    """The child, as far as it is known without computing anything."""

    layout: Layout
    fingerprint: dict[str, Any]
    vocabulary: Vocabulary
    templates: tuple[str, ...]


def relabel(request: RelabelRequest, reporter: Reporter) -> RelabelResult:
    """Complete the store that the request describes. The stage's `relabel` says what is raised."""
    began = time.monotonic()
    _check(request)
    parent = open_parent(request.parent, request.labels)
    plan = _plan(request, parent)
    for remark in plan.vocabulary.remarks():
        reporter.note(remark)
    with owned(request.labels, reporter, request.force_unlock) as token:
        child = open_child(request.labels, plan.fingerprint, reporter)
        if child is None:
            features, spec = _class_embeddings(request, parent, plan, reporter)
            child_facts = plan.fingerprint["about"] | {"teacher": spec}
            made = plan.fingerprint | {"about": child_facts}
            child = create_child(request.labels, parent, plan.layout, made, plan.vocabulary, features, reporter)
        groups = list(copy_groups(child, [parent], lambda name: True))
        maker = _Maker(parent, child, request.threads)
        filled = fill(child, groups, token, maker.make, reporter)
        return RelabelResult(
            rows_ok=filled.rows_ok,
            rows_failed=filled.rows_failed,
            classes=len(plan.vocabulary),
            top_k=plan.layout.top_k,
            temperatures=plan.layout.temperatures,
            templates=plan.templates,
            chunks_written=filled.written,
            chunks_skipped=filled.skipped,
            seconds=time.monotonic() - began,
            bytes_per_row=bytes_per_row(child),
            parent=str(request.parent),
            labels=str(request.labels),
            store_id=child.store_id(),
        )


def _check(request: RelabelRequest) -> None:
    """What can be known without opening a store."""
    for name, value in ((option("top_k"), request.top_k), ("threads", request.threads)):
        if value is not None and value < 1:
            raise UsageError(name + f" must be at least 1, found {value}")
    for template in request.templates or ():
        require_template(template)
    if request.templates is not None and not request.templates:
        raise UsageError("at least one template is needed", hint=phrase('for example {template} "a photo of a {{}}."'))
    taus = request.temperatures
    if taus is not None and (not taus or taus[0] != 1 or len(set(taus)) < len(taus)):
        raise UsageError(
            option("temperatures") + f" must begin with 1 and name each once, found {_listed(taus)}",
            hint=phrase("for example {temperatures} 1,2,4"),
        )
    for tau in taus or ():
        if not (math.isfinite(tau) and tau > 0):
            raise UsageError(option("temperatures") + f" must be positive numbers, found {tau:g}")
    if request.teacher is not None:
        parse_spec(request.teacher)


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values) or "none"


def _plan(request: RelabelRequest, parent: LabelStore) -> _Plan:
    stored = parent.groups[LABELS].fingerprint
    vocabulary = load_vocabulary(request.vocabulary, request.root) if request.vocabulary else parent.vocabulary()
    if request.classes is not None:
        vocabulary = take_classes(vocabulary, read_class_ids(request.classes, vocabulary))
    top_k = min(parent.layout.top_k, len(vocabulary)) if request.top_k is None else request.top_k
    if top_k > len(vocabulary):
        raise UsageError(option("top_k") + f" {top_k} is larger than the vocabulary of {len(vocabulary)} classes")
    temperatures = request.temperatures or parent.layout.temperatures
    templates = request.templates or tuple(stored["templates"])
    present = (parent.vocabulary().digest, tuple(stored["templates"]), parent.layout.top_k, parent.layout.temperatures)
    if present == (vocabulary.digest, templates, top_k, temperatures):
        raise UsageError(
            f"nothing to change: {parent.path} has these classes, templates, top k and temperatures already",
            hint=phrase("give {vocabulary}, {template}, {top_k}, {temperatures} or {classes}"),
        )
    layout = new_layout(parent.layout.rows, len(vocabulary), top_k, temperatures, parent.layout.chunk_rows)
    fingerprint = stored | {
        "vocabulary_digest": vocabulary.digest,
        "templates": list(templates),
        "top_k": top_k,
        "temperatures": list(temperatures),
        "codec_version": CODEC_VERSION,
        "derivation": "relabel",
        "parent": content_id(parent),
        "embedding_kind": parent.groups[EMBEDDING].fingerprint["kind"],
        "about": {
            "teachonce": __version__,
            "versions": package_versions(),
            "vocabulary": request.vocabulary or stored["about"].get("vocabulary"),
            "teacher": stored["about"].get("teacher"),
            **{key: stored["about"][key] for key in ("logit_bias",) if key in stored["about"]},
            "parent": {"name": parent.path.name, "store_id": parent.store_id()},
        },
    }
    return _Plan(replace(layout, views=parent.layout.views), fingerprint, vocabulary, templates)


def _class_embeddings(
    request: RelabelRequest, parent: LabelStore, plan: _Plan, reporter: Reporter
) -> tuple[FloatArray, str | None]:
    """The teacher's unit text features of the child's classes, [C, D], and the model spec of the teacher.

    The parent's rows serve where it has all names, letter for letter: not every tokenizer ignores case. The request's
    model is believed to be the teacher only after its weights were compared.
    """
    known = {name: row for row, name in enumerate(parent.vocabulary().names)}
    names = plan.vocabulary.names
    named = parent.groups[LABELS].fingerprint["about"].get("teacher")
    same_templates = list(plan.templates) == parent.groups[LABELS].fingerprint["templates"]
    if same_templates and all(name in known for name in names):
        if request.teacher is not None:
            reporter.note("every name is in the store already: the teacher is not needed")
        features: FloatArray = parent.class_embeddings()[[known[name] for name in names]]
        return features, named
    from teachonce.models.classifier import ensemble_features
    from teachonce.models.clip import load_clip, pick_device

    spec = request.teacher or named
    if spec is None:
        raise UsageError(phrase("new names or templates need the teacher's text tower: give {teacher} MODEL"))
    reporter.note(f"loading the teacher {spec}")
    parse_spec(spec)
    clip = load_clip(spec, pick_device())
    wanted = parent.groups[LABELS].fingerprint["teacher_digest"]
    if clip.digest != wanted:
        raise FingerprintError(
            f"'{spec}' is not the teacher of {parent.path}:\n  teacher_digest: stored {wanted!r}, asked for "
            f"{clip.digest!r}",
            hint=phrase("name the model that the store was taught with: {teacher} MODEL"),
        )
    parts = unlike(parent.groups[LABELS].fingerprint.get(BEHAVIOURS["teacher"], {}), clip.behaviour)
    if parts:
        raise FingerprintError(
            f"'{spec}' has the weights of the teacher of {parent.path} and another {parts}",
            hint=phrase("name the model as it was when the store was taught: {teacher} MODEL"),
        )
    reporter.note(f"encoding {len(names)} class names with the teacher")
    encoded: FloatArray = ensemble_features(clip, names, plan.templates).cpu().numpy()
    return encoded, spec


class _Maker:
    """Makes the chunks of the child: labels from embeddings, everything else as in the parent."""

    def __init__(self, parent: LabelStore, child: LabelStore, threads: int | None) -> None:
        self._parent, self._child, self._threads = parent, child, threads
        self._loaded: TeacherHead | None = None

    def make(self, group: str, chunk: int) -> Arrays:
        """The arrays of one chunk of a column group."""
        if group != LABELS:
            return self._parent.read_chunk(group, chunk)
        views = ("view_params",) if self._parent.layout.views > 1 else ()
        data = self._parent.read_chunk(group, chunk, ROW_ARRAYS + views)
        return data | self._labels(chunk, data)

    def _labels(self, chunk: int, data: Arrays) -> Arrays:
        import torch

        from teachonce.teaching.soft_chunk import SoftChunk

        head = self._head()
        embeddings = torch.from_numpy(self._parent.embeddings(chunk))
        embeddings[torch.from_numpy(data["status"] != 0)] = 0  # `finish` writes fill values into these rows
        soft = SoftChunk(self._child, chunk)
        for batch in torch.split(embeddings, BATCH_ROWS):
            soft.add(head.logits(batch.to(head.features_UE.device)))
        return soft.finish(data["status"], data["label"])

    def _head(self) -> TeacherHead:
        """Load the teacher's head for the first missing chunk: a store that is complete needs no torch."""
        if self._loaded is None:
            from teachonce.models.clip import pick_device, tune_process
            from teachonce.teaching.teacher import head_of

            if self._threads:
                tune_process(self._threads)
            scale = float(self._parent.groups[LABELS].fingerprint["logit_scale"])
            self._loaded = head_of(self._child.class_embeddings(), scale, pick_device())
        return self._loaded
