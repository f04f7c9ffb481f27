"""Open the store that a `teach` describes, or make it: the same description always finds the same store.

This module computes no label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from teachonce.core.files import is_remote, neighbour
from teachonce.core.progress import Reporter
from teachonce.data.index import SampleIndex, collect_sound, unseen_remark
from teachonce.data.manifests import Manifest
from teachonce.data.reader import ImageReader
from teachonce.data.view_policy import ViewPolicy
from teachonce.data.vocabulary import Vocabulary
from teachonce.errors import DataError, IncompleteError, IntegrityError, UsageError
from teachonce.keeping.bucket import is_made
from teachonce.keeping.staging import clear_partials
from teachonce.labels.create import add_embedding, add_student, create_store, row_order
from teachonce.labels.direct import settle
from teachonce.labels.format import EMBEDDING, LABELS, new_layout
from teachonce.labels.ledger import require_fingerprint
from teachonce.labels.selection import few_shot_samples, save_shots
from teachonce.labels.store import LabelStore
from teachonce.models.spec import AskedPrecision, EmbeddingKind, Precision, Resize
from teachonce.phrases import option, phrase
from teachonce.teaching.fingerprints import (
    ORDER_SEED,
    TEMPERATURES,
    embedding_fingerprint,
    label_fingerprint,
    student_fingerprint,
    with_teacher,
)

if TYPE_CHECKING:
    from teachonce.models.clip import LoadedClip


Encode = Callable[["LoadedClip", "WantedStore"], npt.NDArray[np.float32]]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True, kw_only=True)
class WantedStore:
    """The description of a label store."""

    path: Path
    manifest: Manifest
    split: str
    root: Path
    own_classes: Vocabulary
    """The class list that the manifest's labels index."""
    vocabulary: Vocabulary
    vocabulary_spec: str | None
    top_k: int
    """Number of classes of a soft label; 0 without a teacher."""
    templates: tuple[str, ...]
    precision: AskedPrecision
    """auto until `settled` has been called."""
    embeddings: EmbeddingKind | None
    chunk_rows: int | None
    views: ViewPolicy
    shots: int | None
    """Most samples of each class; None: all samples."""
    seed: int
    """The seed with which the shots are drawn."""
    resize: Resize = "pillow"
    """Who resizes images, for all models of the store."""

    @property
    def number_format(self) -> Precision:
        """The precision, which has been settled by now: fingerprints hold no `auto`."""
        assert self.precision != "auto"  # `settled` comes before any fingerprint
        return self.precision

    def settled(self, bf16: bool) -> WantedStore:
        """The same with a precision that the device can have: in place of `auto` that of a store which is continued.

        Args:
            bf16: whether the workers' device has bfloat16 in hardware.

        Raises:
            DataError, IntegrityError: there is something at the path, and it is no store.
        """
        if self.precision != "auto":
            return self
        stored = stored_precision(self.path)
        return replace(self, precision=stored or ("bf16" if bf16 else "fp32"))


def stored_precision(path: Path) -> Precision | None:
    """The number format of the labels or features in a store; None where there is no store, or no model made it.

    Raises:
        DataError, IntegrityError: what is at the path is no store.
    """
    if not is_made(path):
        return None
    groups = LabelStore.open(path).groups
    stored = [group.fingerprint.get("precision") for group in (groups[LABELS], *groups.values())]
    return next((known for word in stored for known in PRECISIONS if word == known), None)


def open_or_create(
    wanted: WantedStore, models: Mapping[str, LoadedClip], reporter: Reporter, encode: Encode | None = None
) -> LabelStore:
    """Open the store for writing, with an empty column group for every model that is not in the store yet.

    Args:
        models: the models, by the column group that each fills.
        reporter: receives what a person should know.
        encode: the class embeddings of the teacher, where someone else than this process computes them.

    Raises:
        FingerprintError: the store at this path was made from something else.
        UsageError: the store has chunks of another size.
        IntegrityError: the store's index or class list is damaged.
        IncompleteError: a student is to be added, and the teacher has not finished.
    """
    fingerprint = fingerprint_of(wanted, models)
    if is_made(wanted.path):
        store = _continue(wanted, fingerprint, LABELS in models, reporter)
        _try_on_missing(store, wanted, models)
    else:
        store = _create(wanted, models, fingerprint, reporter, encode)
    add_groups(store, wanted, models)
    return store


def fingerprint_of(wanted: WantedStore, models: Mapping[str, LoadedClip]) -> dict[str, Any]:
    """Return the fingerprint of the store's labels, without the samples."""
    fingerprint = label_fingerprint(
        wanted.manifest,
        wanted.split,
        wanted.vocabulary,
        wanted.vocabulary_spec,
        wanted.top_k,
        wanted.views,
        wanted.resize,
    )
    if wanted.shots is not None:
        fingerprint["shots"] = {"shots": wanted.shots, "seed": wanted.seed}
    if LABELS in models:
        fingerprint = with_teacher(fingerprint, models[LABELS], wanted.templates, wanted.number_format)
    return fingerprint


def _continue(wanted: WantedStore, fingerprint: dict[str, Any], taught: bool, reporter: Reporter) -> LabelStore:
    store = LabelStore.open(wanted.path, writable=True)
    _require_sound(store)
    stored = store.groups[LABELS].fingerprint
    if not taught and store.layout.top_k:
        fingerprint = _only_students(store, stored, fingerprint)
    # The store keeps the index with which it was made; archives are not scanned again.
    require_fingerprint(wanted.path, LABELS, stored, fingerprint | {"samples": stored.get("samples")})
    if (
        wanted.chunk_rows is not None
        and store.layout.chunk_rows
        != new_layout(store.layout.rows, 1, 0, (), wanted.chunk_rows, wanted.views.views).chunk_rows
    ):
        raise UsageError(
            f"{wanted.path} has chunks of {store.layout.chunk_rows} rows; "
            + option("chunk_rows")
            + " is fixed at creation"
        )
    if not is_remote(wanted.path):
        clear_partials(wanted.path, reporter)
    elif entered := settle(store):
        chunks = "a chunk" if entered == 1 else f"{entered} chunks"
        reporter.note(f"entered {chunks} that an earlier run had handed over")
    reporter.note(f"continuing {wanted.path}: {len(store.committed(LABELS))} of {store.layout.chunks} chunks are there")
    return store


def _try_on_missing(store: LabelStore, wanted: WantedStore, models: Mapping[str, LoadedClip]) -> None:
    """Try the models that have something left to compute on images of the first chunk that they lack."""
    from teachonce.teaching.trial import try_models

    done = {group: set(store.committed(group)) if group in store.groups else set() for group in models}
    for chunk in range(store.layout.chunks):
        lacking = [clip for group, clip in models.items() if chunk not in done[group]]
        if lacking:
            try_models(lacking, store.index_of_chunk(chunk), wanted.root, wanted.number_format)
            return


def _only_students(store: LabelStore, stored: dict[str, Any], planned: dict[str, Any]) -> dict[str, Any]:
    """Take from the store what its teacher decided: a student is added to a store with a teacher's labels."""
    if len(store.committed(LABELS)) < store.layout.chunks:
        raise IncompleteError(
            f"{store.path} does not hold all labels of its teacher yet",
            hint=phrase("give the {teacher} it was made with: the same command completes it and adds the student"),
        )
    absent = ("shots", "resize")  # a fingerprint that lacks them says: all samples, by Pillow
    required = ("manifest_digest", "split", "vocabulary_digest", "views", *absent)
    return {field: value for field, value in stored.items() if field not in absent} | {
        field: planned[field] for field in required if field in planned
    }


def _require_sound(store: LabelStore) -> None:
    """Refuse a store whose index or class list is lost: both would read as zeros, and wrong labels would be taught."""
    faults = store.static_faults()
    if faults:
        where, expected, digest_here = faults[0]
        raise IntegrityError(
            f"{where}: expected digest {expected}, found {digest_here}",
            hint="restore the file from a backup; nothing can be added to the store without it",
        )


def _create(
    wanted: WantedStore,
    models: Mapping[str, LoadedClip],
    fingerprint: dict[str, Any],
    reporter: Reporter,
    encode: Encode | None,
) -> LabelStore:
    from teachonce.teaching.trial import try_models

    collected = collect_sound(wanted.manifest, wanted.split, wanted.root, reporter)
    for remark in unseen_remark(wanted.manifest.split(wanted.split), wanted.own_classes, collected.index):
        reporter.note(remark)
    index = _chosen(wanted, collected.index, reporter)
    rows = len(index) * wanted.views.views
    layout = new_layout(rows, len(wanted.vocabulary), wanted.top_k, TEMPERATURES, wanted.chunk_rows, wanted.views.views)
    with ImageReader(index, wanted.root) as reader:  # a wrong root should fail here and not in a worker
        try:
            reader.read(0)
        except OSError as problem:
            raise DataError(
                f"the first image cannot be read: {problem}", hint="look at the disk or network that holds the data"
            ) from problem
    try_models(models.values(), index, wanted.root, wanted.number_format)
    embeddings = None if LABELS not in models else _class_embeddings(models[LABELS], wanted, reporter, encode)
    reporter.note(f"creating {wanted.path}: {layout.rows} rows in {layout.chunks} chunks of {layout.chunk_rows}")
    order = row_order(len(index), ORDER_SEED)
    fingerprint = fingerprint | {"samples": index.digest}
    if collected.passed_over:
        facts = fingerprint["about"] | {"passed_over": collected.passed_over.facts()}
        fingerprint = fingerprint | {"about": facts}
    return create_store(
        wanted.path, layout, fingerprint, wanted.vocabulary, wanted.own_classes, index, order, embeddings, reporter
    )


def _class_embeddings(
    teacher: LoadedClip, wanted: WantedStore, reporter: Reporter, encode: Encode | None
) -> npt.NDArray[np.float32]:
    """The teacher's features of all class names, [C, E].

    Raises:
        DataError: they are NaN or infinite.
    """
    from teachonce.models.classifier import ensemble_features

    reporter.note(f"encoding {len(wanted.vocabulary)} class names with the teacher")
    if encode is None:
        embeddings = ensemble_features(teacher, wanted.vocabulary.names, wanted.templates).cpu().numpy()
    else:
        embeddings = encode(teacher, wanted)
    _require_numbers(teacher, wanted, embeddings)
    return embeddings


def _require_numbers(teacher: LoadedClip, wanted: WantedStore, embeddings: npt.NDArray[np.float32]) -> None:
    """Refuse class embeddings that are NaN or infinite, [C, E]: no image could be labelled by them."""
    wrong = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(wrong):
        raise DataError(
            f"the teacher '{teacher.spec}' gives text features that are NaN or infinite: {len(wrong)} of "
            f"{len(embeddings)} classes, the first '{wanted.vocabulary.names[int(wrong[0])]}'",
            hint="its weights are damaged: fetch them again, or take another teacher",
        )


def _chosen(wanted: WantedStore, index: SampleIndex, reporter: Reporter) -> SampleIndex:
    """Return the samples that are taught: all, or so many shots of each class, which are then listed in a file."""
    if wanted.shots is None:
        return index
    samples = few_shot_samples(index, wanted.shots, wanted.seed)
    chosen = index.take(samples)
    path = neighbour(wanted.path, ".shots.json")
    keys = tuple(chosen.key(place) for place in range(len(chosen)))
    drawn = {
        "manifest": wanted.manifest.name,
        "split": wanted.split,
        "samples_digest": index.digest,
        "shots": wanted.shots,
        "seed": wanted.seed,
    }
    save_shots(path, drawn, samples, keys)
    reporter.note(f"{len(chosen)} of {len(index)} samples are taught; {path} lists them")
    return chosen


def add_groups(store: LabelStore, wanted: WantedStore, models: Mapping[str, LoadedClip]) -> None:
    """Add the empty column group of every model that is not in the store yet."""
    from teachonce.models.clip import embedding_width

    samples = store.groups[LABELS].fingerprint["samples"]
    for group, clip in models.items():
        if group == EMBEDDING:
            assert wanted.embeddings is not None  # a caller that asks for this group names its kind
            fingerprint = embedding_fingerprint(clip, wanted.number_format, samples, wanted.views)
            add_embedding(store, wanted.embeddings, embedding_width(clip), fingerprint)
        elif group != LABELS:
            fingerprint = student_fingerprint(clip, wanted.number_format, samples, wanted.views)
            add_student(store, clip.digest, embedding_width(clip), fingerprint)
