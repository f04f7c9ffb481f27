"""What a cell needs of the label store, and how that comes about: as it is, by a selection, or by a derived store.

This module derives nothing and loads no model; it refuses what cannot be had without the teacher's image tower.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from teachonce.core.digests import SHORT, canonical_digest
from teachonce.data.vocabulary import Vocabulary, load_vocabulary
from teachonce.errors import DataError, UsageError
from teachonce.evaluation.sets import class_ids
from teachonce.labels.format import EMBEDDING, LABELS
from teachonce.labels.selection import Rule
from teachonce.labels.store import LabelStore
from teachonce.models.spec import parse_spec
from teachonce.phrases import Phrase, option, phrase
from teachonce.recipe.requirements import Holdings, requirements
from teachonce.runs.cells import Cell
from teachonce.search.splits import ClassSplit, split_classes
from teachonce.search.tables import DataKeys

LATER = ("source", "label_noise")
"""Fields of a derivation that earlier grids lack."""
AUDITED = "audit"
"""What stands in a rule for the list of an audit that is not made yet."""
CLASSES_TAKES = "takes a file of ids that the class list has, one a line; `base`, `novel` or timm:NAME"


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """A store that `relabel` makes from the grid's store; a field that is None stays as in the grid's store."""

    vocabulary: str | None = None
    vocabulary_digest: str | None = None
    templates: tuple[str, ...] | None = None
    top_k: int | None = None
    temperatures: tuple[float, ...] | None = None
    label_noise: tuple[float, int] | None = None
    """The share of wrong labels and the seed of their draw."""
    source: str | None = None
    """Content of the store that it is made from, where that is not the grid's own."""

    @property
    def digest(self) -> str:
        """The name of the derived store: a digest of what its labels depend on, without paths."""
        later = _set(source=self.source, label_noise=self.label_noise)
        fields = {key: value for key, value in asdict(self).items() if key not in ("vocabulary", *LATER)}
        return canonical_digest(fields | later, SHORT)

    def words(self) -> str:
        """What the derivation changes, in words for people."""
        said = {
            "vocabulary": self.vocabulary,
            "template": " + ".join(self.templates or ()),
            "top_k": self.top_k,
            "temperatures": ", ".join(f"{tau:g}" for tau in self.temperatures or ()),
            "label_noise": "" if self.label_noise is None else "{:g}, seed {}".format(*self.label_noise),
        }
        return "; ".join(f"{key} {value}" for key, value in said.items() if value)


@dataclass(frozen=True, kw_only=True)
class Need:
    """Where a cell's rows and targets come from."""

    derivation: Derivation | None
    """None: the grid's store itself."""
    rule: Rule | None
    """Of the selection; None: all rows and classes."""
    held: Holdings
    """What the cell's run will find there."""
    source: str | None = None
    """Content of the cell's store, where that is not the grid's own."""
    parts: ClassSplit | None = None
    """The classes of the cell's split; None: of none."""

    @property
    def selection_digest(self) -> str | None:
        """Name of the selection file."""
        if self.rule is None:
            return None
        derived = self.derivation.digest if self.derivation else None
        return canonical_digest({"store": derived, "rule": self.rule.identity()} | _set(source=self.source), SHORT)

    def identity(self) -> dict[str, Any]:
        """What decides the data of the cell, for its digest; temperatures follow from the config."""
        derived = {} if self.derivation is None else asdict(self.derivation)
        kept = {
            key: derived[key]
            for key in ("vocabulary_digest", "templates", "top_k", "label_noise")
            if derived.get(key) is not None
        }
        return {"derived": kept, "rule": None if self.rule is None else self.rule.identity()}


def _set(**later: Any) -> dict[str, Any]:
    """Later fields of a digest, where they are set: the digests of what lacks them stay as they were."""
    return {key: value for key, value in later.items() if value is not None}


def cell_digest(cell: Cell, need: Need, content: str, student: str, prompts: str | None) -> str:
    """The name of a cell's folder: equal only where the run is.

    Args:
        need: which rows and targets.
        content: digest of the store's labels and embeddings.
        student: digest of the student's weights.
        prompts: digest of the prompts that it starts from.
    """
    return canonical_digest(
        {
            "config": cell.config.to_dict(),
            "data": need.identity(),
            "store": content,
            "student": student,
            "prompts": prompts,
        },
        SHORT,
    )


def need_of(cell: Cell, store: LabelStore, root: Path | None, source: str | None = None) -> Need:
    """What a cell needs.

    Args:
        store: the cell's.
        source: its content, where it is not the grid's own store.

    Raises:
        UsageError: more classes a label than there are.
        DataError: a class list is not what it should be, or the store has no embeddings to derive from.
    """
    data = cell.data
    vocabulary = load_vocabulary(data.vocabulary, root) if data.vocabulary else store.vocabulary()
    derivation = _derivation(cell, data, vocabulary, store)
    if derivation is not None and source is not None:
        derivation = replace(derivation, source=source)
    kept = min(store.layout.top_k, len(vocabulary)) if derivation is None or not derivation.top_k else derivation.top_k
    parts = _parts(cell, store, vocabulary)
    classes = None if parts is None else parts.trained
    if data.classes:
        classes = _class_ids(data.classes, store, vocabulary, "data.classes")
    fewer = data.top_k if 0 < data.top_k < kept else None
    rule = None
    if data.shots or fewer or classes is not None or data.clean:
        rule = Rule(
            shots=data.shots or None,
            seed=int(data.shots_seed) if data.shots else 0,
            top_k=fewer,
            classes=classes,
            all_names=data.all_names,
            clean=AUDITED if data.clean else None,
        )
    taus = None if derivation is None else derivation.temperatures
    held = Holdings(
        views=store.layout.views,
        top_k=fewer or kept,
        temperatures=taus or tuple(store.layout.temperatures),
        embeddings=EMBEDDING in store.groups,
    )
    _require_top(cell, held)
    return Need(derivation=derivation, rule=rule, held=held, source=source, parts=parts)


def _class_ids(classes: str, store: LabelStore, vocabulary: Vocabulary, key: str) -> tuple[str, ...]:
    try:
        return class_ids(classes, store.label_classes(), vocabulary)
    except DataError as problem:  # the hint names the key of the grid, since a grid has no option for classes
        raise problem.reworded(hint=f"{key} {CLASSES_TAKES}") from problem


def _parts(cell: Cell, store: LabelStore, vocabulary: Vocabulary) -> ClassSplit | None:
    """The parts of the cell's split, of the classes that have photos or of those that [splits] names."""
    splits = cell.splits
    if splits is None:
        return None
    if splits.classes:
        ids = _class_ids(splits.classes, store, vocabulary, "[splits] classes")
    else:
        labelled = store.label_classes().index
        ids = tuple(class_id for class_id in vocabulary.ids if class_id in labelled)
    return split_classes(ids, splits.unseen, cell.data.split)


def _derivation(cell: Cell, data: DataKeys, vocabulary: Vocabulary, store: LabelStore) -> Derivation | None:
    layout, config = store.layout, cell.config
    stored = store.groups[LABELS].fingerprint
    renamed = vocabulary.digest != stored.get("vocabulary_digest")
    templates = data.template if data.template and list(data.template) != stored.get("templates") else None
    if data.top_k > len(vocabulary):
        raise UsageError(
            f"data.top_k = {data.top_k}: there are {len(vocabulary)} classes", hint=f"use at most {len(vocabulary)}"
        )
    more = data.top_k if data.top_k > min(layout.top_k, len(vocabulary)) else None
    taus = None
    tau = requirements(config).temperature
    if layout.top_k and tau is not None and tau not in layout.temperatures:
        taus = (*layout.temperatures, tau)
    noise = (data.label_noise, int(data.noise_seed)) if data.label_noise else None
    if not (renamed or templates or more or taus or noise):
        return None
    derivation = Derivation(
        vocabulary=data.vocabulary if renamed else None,
        vocabulary_digest=vocabulary.digest if renamed else None,
        templates=templates,
        top_k=more,
        temperatures=taus,
        label_noise=noise,
    )
    _require_source(store, derivation)
    if renamed or templates:
        _require_teacher(store, vocabulary, templates)
    return derivation


def _require_source(store: LabelStore, wanted: Derivation) -> None:
    """Refuse what needs embeddings where there are none: it would take the teacher's image tower."""
    if not store.layout.top_k:
        raise DataError(
            f"{store.path} was made without a teacher: {wanted.words()} cannot be had from it",
            hint=teach_command(store, phrase("{teacher} MODEL {embeddings} int8")),
        )
    if EMBEDDING not in store.groups:
        raise DataError(
            f"{store.path} keeps no embeddings of its teacher, from which this would be derived: {wanted.words()}",
            hint=teach_command(store, phrase("{embeddings} int8")),
        )


def _require_teacher(store: LabelStore, vocabulary: Vocabulary, templates: tuple[str, ...] | None) -> None:
    """Refuse new names or templates where the teacher, whose text tower they need, is not where it was."""
    known = set(store.vocabulary().names)
    if templates is None and all(name in known for name in vocabulary.names):
        return
    spec = store.groups[LABELS].fingerprint["about"].get("teacher")
    hint = (
        f"teachonce relabel {store.path} "
        + option("teacher")
        + " MODEL ... makes a store to run this grid on, wherever it is now"
    )
    if spec is None:
        raise DataError(
            f"{store.path} does not say which teacher made it, and new names need its text tower", hint=hint
        )
    try:
        parse_spec(spec)
    except UsageError as problem:
        raise DataError(
            "new names or templates need the text tower of the teacher: " + problem.message, hint=hint
        ) from problem


def _require_top(cell: Cell, held: Holdings) -> None:
    """Refuse more of the teacher's best classes than a soft label has: a grid can give it more."""
    if "sampled_top" in requirements(cell.config).lacking(held):
        raise UsageError(
            f"sampled_top = {cell.config.candidates.sampled_top}: soft labels have {held.top_k} classes here",
            hint=f"use sampled_top = {held.top_k}, or a larger data.top_k",
        )


def teach_command(store: LabelStore, added: str) -> str:
    """The command that would add something to a store, as far as the store knows how it was made."""
    if store.maker != "teachonce teach":
        return store.embedding_hint
    fingerprint = store.groups[LABELS].fingerprint
    parts = [
        "teachonce teach",
        fingerprint["manifest"],
        option("split") + f" {fingerprint['split']}",
        option("labels") + f" {store.path}",
    ]
    facts = fingerprint["about"]
    if facts.get("teacher"):
        parts.append(option("teacher") + f" {facts['teacher']}")
    if facts.get("vocabulary") not in (None, "manifest"):
        parts.append(option("vocabulary") + f" {facts['vocabulary']}")
    if store.layout.top_k:
        parts.append(option("top_k") + f" {store.layout.top_k}")
    if store.layout.views > 1:
        parts.append(option("views") + f" {store.layout.views}")
    return Phrase(" ").join([*parts, added]) + phrase(" (with the {root} and settings that it was made with)")


def student_command(store: LabelStore, spec: str) -> str:
    """How a store gets the image features of a student: `teach` writes them, and what derives stores copies them."""
    if store.maker == "teachonce teach":
        return teach_command(store, option("student") + f" {spec}")
    facts = store.groups[LABELS].fingerprint["about"]
    parents = [*facts.get("parents", ()), *([facts["parent"]] if "parent" in facts else [])]
    names = " or ".join(str(parent["name"]) for parent in parents) or "its parent"
    return (
        f"add them to the store that it was made from: the `teachonce teach ...` that wrote {names}, with "
        + option("student")
        + f" {spec}; then run the same `{store.maker}` again, which copies them over"
    )
