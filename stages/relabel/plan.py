"""What `relabel` is going to make: the request checked, and the layout and the fingerprint of the new store.

Nothing is computed here and no model is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachonce import __version__
from teachonce.core.digests import MIDDLE, canonical_digest
from teachonce.core.machine import package_versions
from teachonce.data.vocabulary import Vocabulary, load_vocabulary, read_class_ids, require_template, take_classes
from teachonce.errors import FingerprintError, UsageError
from teachonce.labels.codec import CODEC_VERSION
from teachonce.labels.derived import content_id
from teachonce.labels.format import EMBEDDING, LABELS, Layout, new_layout
from teachonce.labels.store import LabelStore
from teachonce.models.spec import parse_spec
from teachonce.phrases import Phrase, option, phrase
from teachonce.softening.prior import BALANCED, balanced, read_prior
from teachonce.stages.relabel.request import RelabelRequest

if TYPE_CHECKING:
    from teachonce.models.prompt_files import LoadedPrompts


@dataclass(frozen=True)
class Plan:
    """The new store, as far as it is known without computing anything."""

    layout: Layout
    fingerprint: dict[str, Any]
    vocabulary: Vocabulary
    templates: tuple[str, ...]
    prompts: LoadedPrompts | None
    """Prompts and head that make the class vectors; None: the templates, or the parent's vectors, do."""
    wanted: dict[int, float]
    """Class -> share of the wanted prior; empty: the prior stays."""
    entropy: float | None

    @property
    def keeps_embeddings(self) -> bool:
        """Whether softmax(scale * embedding @ class vectors) is what the new labels are, in every row."""
        return not self.wanted and self.entropy is None and self.head is None

    @property
    def head(self) -> LoadedPrompts | None:
        """The run of a head that no class vectors stand for: it changes the images' embeddings or the logits."""
        meta = None if self.prompts is None else self.prompts.meta.head
        return None if meta is None or meta.is_class_vectors else self.prompts


def check(request: RelabelRequest) -> None:
    """Refuse what can be known to be wrong without opening a store.

    Raises:
        UsageError: names the option.
    """
    for name, value in ((option("top_k"), request.top_k), ("threads", request.threads)):
        if value is not None and value < 1:
            raise UsageError(name + f" must be at least 1, found {value}")
    for template in request.templates or ():
        require_template(template)
    if request.templates is not None and not request.templates:
        raise UsageError("at least one template is needed", hint=phrase('for example {template} "a photo of a {{}}."'))
    makers = (("template", request.templates), ("prompts", request.prompts), ("head", request.head))
    given = [option(name) for name, value in makers if value is not None]
    if len(given) > 1:
        raise UsageError(
            Phrase(" and ").join(given) + " both say how names become class vectors: give one of them",
            hint=phrase("{head} RUN takes the prompts of RUN along"),
        )
    taus = request.temperatures
    if taus is not None and (not taus or taus[0] != 1 or len(set(taus)) < len(taus)):
        raise UsageError(
            option("temperatures") + f" must begin with 1 and name each once, found {_listed(taus)}",
            hint=phrase("for example {temperatures} 1,2,4"),
        )
    for tau in taus or ():
        if not (math.isfinite(tau) and tau > 0):
            raise UsageError(option("temperatures") + f" must be positive numbers, found {tau:g}")
    entropy = request.entropy
    if entropy is not None and not (math.isfinite(entropy) and entropy > 0):
        raise UsageError(option("per_sample_temperature") + f" must be a positive number of nats, found {entropy:g}")
    _check_noise(request)
    if request.teacher is not None:
        parse_spec(request.teacher)


def _check_noise(request: RelabelRequest) -> None:
    share = request.label_noise
    if share is not None and not 0 < share < 1:
        raise UsageError(option("label_noise") + f" must lie between 0 and 1, found {share:g}")
    if not 0 <= request.noise_seed < 2**64:
        raise UsageError(option("noise_seed") + f" must be between 0 and 2^64 - 1, found {request.noise_seed}")


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values) or "none"


def make_plan(request: RelabelRequest, parent: LabelStore) -> Plan:
    """Say what the new store is.

    Raises:
        UsageError: an option does not go with the store, or nothing is to be changed.
        DataError: a class list, a prior or a folder of prompts is not what it should be.
        FingerprintError: the prompts belong to another model than the teacher.
    """
    stored = parent.groups[LABELS].fingerprint
    vocabulary = _vocabulary(request, parent)
    top_k = min(parent.layout.top_k, len(vocabulary)) if request.top_k is None else request.top_k
    temperatures = request.temperatures or parent.layout.temperatures
    prompts = _trained(request, parent)
    templates = request.templates or tuple(stored["templates"])
    made_by = _made_by(request, stored, prompts)
    present = (parent.vocabulary().digest, tuple(stored["templates"]), parent.layout.top_k, parent.layout.temperatures)
    asked = (vocabulary.digest, templates, top_k, temperatures)
    wanted = {} if request.prior is None else _wanted(request.prior, vocabulary, parent)
    same_vectors = made_by.get("prompts") == stored.get("prompts")
    adjusted = _adjusted(request, wanted, vocabulary) | _noise(request, parent)
    if present == asked and same_vectors and not adjusted:
        raise _nothing_to_change(parent)
    layout = new_layout(parent.layout.rows, len(vocabulary), top_k, temperatures, parent.layout.chunk_rows)
    kept = {key: value for key, value in stored.items() if key != "prompts"}
    facts = _facts(request, parent, kept.pop("about"))
    fingerprint = (
        kept
        | {
            "vocabulary_digest": vocabulary.digest,
            "templates": list(templates),
            "top_k": top_k,
            "temperatures": list(temperatures),
            "codec_version": CODEC_VERSION,
            "derivation": "relabel",
            "parent": content_id(parent),
            "embedding_kind": parent.groups[EMBEDDING].fingerprint["kind"],
        }
        | made_by
        | adjusted
        | {"about": facts}
    )
    layout = replace(layout, views=parent.layout.views)
    return Plan(layout, fingerprint, vocabulary, templates, prompts, wanted, request.entropy)


def _vocabulary(request: RelabelRequest, parent: LabelStore) -> Vocabulary:
    """The classes of the new store.

    Raises:
        UsageError: they are too few for the top k or for the entropy that is asked for.
        DataError: a class list is not what it should be.
    """
    vocabulary = load_vocabulary(request.vocabulary, request.root) if request.vocabulary else parent.vocabulary()
    if request.classes is not None:
        vocabulary = take_classes(vocabulary, read_class_ids(request.classes, vocabulary))
    classes = len(vocabulary)
    if request.top_k is not None and request.top_k > classes:
        raise UsageError(option("top_k") + f" {request.top_k} is larger than the vocabulary of {classes} classes")
    if request.entropy is not None and request.entropy >= math.log(classes):
        raise UsageError(
            option("per_sample_temperature") + f" {request.entropy:g} nats cannot be had: the largest entropy over "
            f"{classes} classes is {math.log(classes):.4g}"
        )
    return vocabulary


def _nothing_to_change(parent: LabelStore) -> UsageError:
    return UsageError(
        f"nothing to change: {parent.path} has these classes, templates, top k and temperatures already",
        hint=phrase(
            "give {vocabulary}, {template}, {prompts}, {head}, {per_sample_temperature}, {prior}, {label_noise}, "
            "{top_k}, {temperatures} or {classes}"
        ),
    )


def _facts(request: RelabelRequest, parent: LabelStore, stored: dict[str, Any]) -> dict[str, Any]:
    """What people may want to know of the new store; nothing is compared with it."""
    given = {
        "prompts": None if request.prompts is None else str(request.prompts),
        "head": None if request.head is None else str(request.head),
        "prior": request.prior,
    }
    return {
        "teachonce": __version__,
        "versions": package_versions(),
        "vocabulary": request.vocabulary or stored.get("vocabulary"),
        "teacher": stored.get("teacher"),
        **{key: stored[key] for key in ("logit_bias",) if key in stored},
        "parent": {"name": parent.path.name, "store_id": parent.store_id()},
        **{key: value for key, value in given.items() if value is not None},
    }


def _made_by(request: RelabelRequest, stored: dict[str, Any], prompts: LoadedPrompts | None) -> dict[str, Any]:
    """What of the class vectors is not said by templates: the digest of the prompts and the head that made them."""
    if prompts is not None:
        head = prompts.meta.head
        kind = {} if head is None or head.is_class_vectors else {"head": head.kind}
        return {"prompts": prompts.tensors_digest} | kind
    return {"prompts": stored["prompts"]} if "prompts" in stored and request.templates is None else {}


def _adjusted(request: RelabelRequest, wanted: dict[int, float], vocabulary: Vocabulary) -> dict[str, Any]:
    """The fields for what was done to the logits; none where nothing was."""
    fields: dict[str, Any] = {}
    if wanted:
        shares = sorted((vocabulary.ids[place], share) for place, share in wanted.items())
        fields["prior"] = {
            "wanted": BALANCED if request.prior == BALANCED else "file",
            "classes": len(shares),
            "digest": canonical_digest({"shares": shares}, MIDDLE),
        }
    if request.entropy is not None:
        fields["entropy"] = request.entropy
    return fields


def _noise(request: RelabelRequest, parent: LabelStore) -> dict[str, Any]:
    """The field for labels that are made wrong; a store that is derived later keeps it.

    Raises:
        UsageError: the parent has wrong labels already, so that nobody would know the share.
    """
    if request.label_noise is None:
        return {}
    before = parent.groups[LABELS].fingerprint.get("label_noise")
    if before is not None:
        raise UsageError(
            f"{parent.path} has wrong labels already ({before['share']:g} of them, seed {before['seed']})",
            hint=phrase("give {label_noise} with the store that it was made from"),
        )
    return {"label_noise": {"share": request.label_noise, "seed": request.noise_seed}}


def _trained(request: RelabelRequest, parent: LabelStore) -> LoadedPrompts | None:
    """The prompts or the head of a run that was trained on the teacher of the store; None where none was asked for.

    Raises:
        UsageError: image prompts, under which stored embeddings do not hold; a run without what was asked for.
        FingerprintError: they belong to another model.
    """
    folder = request.prompts or request.head
    if folder is None:
        return None
    from teachonce.models.prompt_files import load_prompts

    loaded = load_prompts(folder, request.teacher)
    stored = parent.groups[LABELS].fingerprint
    if loaded.meta.student_digest != stored["teacher_digest"]:
        raise FingerprintError(
            f"the prompts in {folder} belong to another model than the teacher of {parent.path}:\n  teacher_digest: "
            f"stored {stored['teacher_digest']!r}, the prompts' model has {loaded.meta.student_digest!r} "
            f"({loaded.meta.student})",
            hint=phrase("train prompts for the teacher itself: `teachonce train ... ")
            + option("student")
            + f" {stored['about'].get('teacher') or 'TEACHER'}`",
        )
    if loaded.image is not None:
        raise UsageError(
            f"the prompts in {folder} are of tower = '{loaded.meta.tower}': with image prompts the teacher would see "
            "other images than those whose embeddings are stored",
            hint="train prompts of the text tower: tower = 'text'",
        )
    kind = None if loaded.meta.head is None else loaded.meta.head.kind
    if request.head is not None and kind is None:
        raise UsageError(f"{folder} has no head", hint=phrase("{prompts} RUN takes the prompts of a run"))
    if request.prompts is not None and (kind is not None or loaded.text is None):
        raise UsageError(
            f"{folder} has a {kind} head" + ("" if loaded.text is None else " beside its prompts"),
            hint=phrase("{head} RUN takes the head, and the prompts where there are any"),
        )
    return loaded


def _wanted(prior: str, vocabulary: Vocabulary, parent: LabelStore) -> dict[int, float]:
    if prior != BALANCED:
        return read_prior(Path(prior), vocabulary)
    places = [vocabulary.index.get(class_id, -1) for class_id in parent.label_classes().ids]
    labels = parent.static("index/label")
    return balanced([places[label] for label in set(labels.tolist()) if label >= 0], len(vocabulary))
