"""An evaluation set of rows of a label store: the student's features lie there, and no image is read.

Photos that a run has trained on are never classified: of the classes that it saw, only the samples count that its seed
keeps apart, whatever its selection left out, so that all settings of one seed are measured on the same photos.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from teachonce.data.index import SampleIndex, joined
from teachonce.data.manifests import TEMPLATE, Manifest
from teachonce.data.spelling import Places
from teachonce.data.vocabulary import Vocabulary, require_classes, take_classes
from teachonce.errors import DataError, TeachOnceError
from teachonce.evaluation.choice import StoredChoice, TrainedOn
from teachonce.evaluation.sets import EvaluationSet, StoredFeatures, labels_among, without_classes
from teachonce.labels.format import LABELS
from teachonce.labels.ledger import require_behaviour
from teachonce.labels.store import LabelStore
from teachonce.models.clip import LoadedClip
from teachonce.rows.build import make_plan
from teachonce.rows.order import held_out_samples


@dataclass(frozen=True, eq=False)
class _Samples:
    """All samples of a store, in the order of its rows."""

    index: SampleIndex
    good: npt.NDArray[np.bool_]
    """Whether the whole image could be read."""
    numbers: npt.NDArray[np.uint32]
    """In the manifest's own order."""


@dataclass(frozen=True, eq=False)
class StoredRows:
    """The samples that a choice classifies, without their features."""

    store: LabelStore
    index: SampleIndex
    """Of all samples of the store."""
    samples: npt.NDArray[np.int64]
    """[n] Which of them are classified."""
    labels: npt.NDArray[np.int64]
    """[n] The class of each, as a place in `candidates`."""
    candidates: Vocabulary

    @property
    def digest(self) -> str:
        """Of the classified samples."""
        return self.index.take(self.samples).digest


def stored_rows(choice: StoredChoice) -> StoredRows:
    """Find the rows of a choice and the names that compete.

    Raises:
        DataError: the store lacks a class, or no sample is left.
        IncompleteError, IntegrityError: the store is not whole.
    """
    store = LabelStore.open(choice.store)
    vocabulary, label_classes = store.vocabulary(), store.label_classes()
    for ids in (choice.classes, choice.names):
        if ids is not None:
            require_classes(ids, vocabulary, "the evaluation")
    all_samples = _samples(store.path, store.store_id())
    classes = label_classes.ids if choice.classes is None else choice.classes
    names = vocabulary if choice.names is None else take_classes(vocabulary, choice.names)
    candidates = names if choice.without is None else without_classes(names, choice.without, vocabulary)
    labels = labels_among(all_samples.index, label_classes, Places(classes), candidates)
    counts = all_samples.good & (labels >= 0)
    if choice.trained is not None:
        counts &= ~_trained(store, all_samples, label_classes, choice.trained)
    samples = np.flatnonzero(counts)
    if not len(samples):
        raise DataError(
            f"{store.path}: no sample is of a class that is asked for and was not trained on",
            hint="of trained classes only held-out samples are counted: set held_out = 0.1 in [base]",
        )
    return StoredRows(store, all_samples.index, samples, labels[samples], candidates)


def open_stored(choice: StoredChoice, clip: LoadedClip) -> EvaluationSet:
    """Read the rows of a choice with their features.

    Args:
        clip: the student; its weights and what it does to images must be those of the stored features.

    Raises:
        DataError: the store has no features of this student, or as `stored_rows`.
        FingerprintError: the student treats images in another way now.
        IncompleteError, IntegrityError: the store is not whole.
    """
    rows = stored_rows(choice)
    store, fingerprint = rows.store, rows.store.groups[LABELS].fingerprint
    features = _features(store, features_group(store, clip), rows.samples)
    return EvaluationSet(
        manifest=Manifest(
            schema=1,
            name=f"{fingerprint['manifest']} in {store.path.name}",
            title=str(store.path),
            classes="",
            splits={},
            template=templates_of(store)[0],
        ),
        root=store.path,
        split=split_of(store),
        index=rows.index,
        rows=rows.samples,
        labels=rows.labels,
        vocabulary=store.vocabulary(),
        candidates=rows.candidates,
        left_out=len(rows.index) - len(rows.samples),
        in_words=choice.in_words or f"all classes among {len(rows.candidates)} names",
        stored=StoredFeatures(features, hashlib.sha256(features.tobytes()).hexdigest()),
    )


def templates_of(store: LabelStore) -> tuple[str, ...]:
    """The sentences around a name that the store's teacher heard; the usual one where it had no teacher."""
    return tuple(store.groups[LABELS].fingerprint.get("templates") or (TEMPLATE,))


def split_of(store: LabelStore) -> str:
    """The split of the data that the store was taught from."""
    return str(store.groups[LABELS].fingerprint["split"])


def features_group(store: LabelStore, clip: LoadedClip) -> str:
    """The column group of a student's features.

    Raises:
        DataError: there is none.
        FingerprintError: the student treats images in another way now.
    """
    group = make_plan(store, clip.digest, None, embeddings=False).group
    if group is None:
        raise TeachOnceError(f"{store.path}: the features of a student have no group")
    require_behaviour(store.path, group, store.groups[group].fingerprint, clip.image_behaviour)
    return group


@functools.lru_cache(maxsize=4)
def _samples(path: Path, store_id: str) -> _Samples:
    """All samples of the store that has this id now; those of a store that was changed are read anew."""
    store = LabelStore.open(path)
    layout = store.layout
    parts = [store.index_of_chunk(chunk) for chunk in range(layout.chunks)]
    status = [store.read_chunk(LABELS, chunk, ("status",))["status"] for chunk in range(layout.chunks)]
    good = np.concatenate(status)[:: layout.views] == 0
    return _Samples(joined(parts), good, store.samples(0, layout.rows)[:: layout.views])


def _features(store: LabelStore, group: str, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
    """The stored features of the whole image of some samples, [n, E]."""
    path, parts = store.groups[group].vectors.path, []
    rows = samples * store.layout.views
    for chunk in range(store.layout.chunks):
        start, stop = store.layout.bounds(chunk)
        here = rows[(rows >= start) & (rows < stop)] - start
        if len(here):
            parts.append(store.read_chunk(group, chunk, (path,))[path][here])
    features: npt.NDArray[np.float16] = np.concatenate(parts)
    broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(broken):
        raise DataError(f"{store.path}: row {rows[broken[0]]} has features in {group} that are not numbers")
    return features


def _trained(
    store: LabelStore, all_samples: _Samples, label_classes: Vocabulary, trained: TrainedOn
) -> npt.NDArray[np.bool_]:
    """Which samples the run may have trained on, [samples]; none of a store with other samples."""
    theirs = LabelStore.open(trained.store)
    if theirs.groups[LABELS].fingerprint["samples"] != store.groups[LABELS].fingerprint["samples"]:
        return np.zeros(len(all_samples.index), np.bool_)
    seen = np.ones(len(all_samples.index), np.bool_)
    if trained.classes is not None:
        chosen = Places(trained.classes)
        seen = np.array([*(class_id in chosen for class_id in label_classes.ids), False])[all_samples.index.label]
    numbers = _samples(theirs.path, theirs.store_id()).numbers  # rows of two stores may come in different orders
    apart = numbers[held_out_samples(trained.seed, np.arange(len(numbers)), trained.held_out)]
    return seen & ~np.isin(all_samples.numbers, apart)
