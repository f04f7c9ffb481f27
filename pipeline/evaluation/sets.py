"""What is evaluated: the images of a split, and the names among which they are classified.

This module reads lists and scans archive headers; it decodes no image and runs no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from teachonce.core.progress import Reporter
from teachonce.data.index import SampleIndex, build_index, split_classes
from teachonce.data.manifests import Manifest, load_manifest, require_data, require_root
from teachonce.data.spelling import Places, spoken
from teachonce.data.vocabulary import HALVES, Vocabulary, half_of, load_vocabulary, read_class_ids, take_classes
from teachonce.errors import DataError, UsageError
from teachonce.evaluation.choice import SetChoice
from teachonce.phrases import option, phrase


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """What a label store keeps of the classified images."""

    features: npt.NDArray[np.float16]
    """[n, E] unit."""
    digest: str
    """Of the features."""


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """Images with their classes, and the names that compete."""

    manifest: Manifest
    root: Path
    split: str
    index: SampleIndex
    """The index of the whole split."""
    rows: npt.NDArray[np.int64]
    """[n] Which samples of the index are classified."""
    labels: npt.NDArray[np.int64]
    """[n] The class of each classified sample, as a place in `candidates`."""
    vocabulary: Vocabulary
    candidates: Vocabulary
    left_out: int
    """Samples of the split that are not classified: of other classes, of names taken out, or without a class."""
    in_words: str
    """A sentence part that says which classes are classified, and among which names."""
    stored: StoredFeatures | None = None
    """Features of the classified images; None: they are computed from the images."""

    @property
    def samples(self) -> SampleIndex:
        """Return the index of the classified samples alone."""
        return self.index if len(self.rows) == len(self.index) else self.index.take(self.rows)


def open_set(choice: SetChoice, reporter: Reporter) -> EvaluationSet:
    """Find the data, the classes and the names.

    Raises:
        UsageError: manifest or split is unknown, there is no root, or `among` is set without `classes`.
        DataError: data are missing or broken, classes are unknown or none, or the vocabulary lacks a class of the
            split.
    """
    everything = choice.classes is None or str(choice.classes) == "all"
    if choice.among == "all" and everything:
        raise UsageError(
            phrase("{among} all adds nothing: without {classes} all names compete as it is"),
            hint=phrase("add {classes} FILE, or leave {among} out"),
        )
    manifest = load_manifest(choice.manifest)
    root = require_root(manifest, choice.root)
    manifest.split(choice.split)
    require_data(manifest, choice.split, root)
    split_list = split_classes(manifest, choice.split, root)
    vocabulary = load_vocabulary(choice.vocabulary, root) if choice.vocabulary else split_list
    chosen = split_list.ids if everything else class_ids(choice.classes, split_list, vocabulary)
    index = build_index(manifest, choice.split, root, reporter)
    _require_names(index, split_list, chosen, vocabulary)
    names = vocabulary if everything or choice.among == "all" else take_classes(vocabulary, chosen)
    candidates = names if choice.without is None else without_classes(names, choice.without, vocabulary)
    for remark in candidates.remarks(ties=False):  # the result counts ties
        reporter.note(remark)
    labels = labels_among(index, split_list, Places(chosen), candidates)
    rows = np.flatnonzero(labels >= 0)
    if not len(rows):
        raise DataError(
            f"none of the {len(index)} images of the split '{choice.split}' is of a class that is asked for",
            hint=phrase("{classes} must name classes that have images there, and {without} must leave some"),
        )
    return EvaluationSet(
        manifest,
        root,
        choice.split,
        index,
        rows,
        labels[rows],
        vocabulary,
        candidates,
        len(index) - len(rows),
        _in_words(choice, everything, len(candidates)),
    )


def _in_words(choice: SetChoice, everything: bool, names: int) -> str:
    which = "all classes" if everything else f"classes of {Path(str(choice.classes)).name}"
    whose = "all" if everything or choice.among == "all" else "their own"
    without = "" if choice.without is None else f", without those of {choice.without.name} and homonyms"
    return f"{which} among {whose} names ({names}){without}"


def class_ids(spec: Path | str | None, split_list: Vocabulary, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Return the classes that a rule names, in the order of the vocabulary.

    Args:
        spec: the rule, as in `SetChoice.classes`.
        split_list: the split's own class list, of which `base` and `novel` are the halves.
        vocabulary: all names.

    Raises:
        DataError: the file is missing, empty, or names classes that the vocabulary lacks.
    """
    word = str(spec)
    try:
        if word.startswith("timm:"):
            ids: Sequence[str] = load_vocabulary(word).ids
        elif word in HALVES and not Path(word).is_file():
            ids = half_of(split_list, word)
        else:
            return read_class_ids(Path(word), vocabulary)
    except DataError as problem:
        raise problem.reworded(
            hint=phrase(
                "{classes} takes ids of the class list that is evaluated, one a line; `base`, `novel` or timm:NAME"
            ),
        ) from problem
    lacking = [class_id for class_id in ids if class_id not in vocabulary.index]
    if lacking:
        raise DataError(f"{len(lacking)} classes of '{word}' are not in the vocabulary, the first is '{lacking[0]}'")
    return tuple(vocabulary.ids[place] for place in sorted(map(vocabulary.index.__getitem__, ids)))


def without_classes(names: Vocabulary, file: Path, vocabulary: Vocabulary) -> Vocabulary:
    """Return the names without those of the file's classes, and without names that sound like one of them."""
    out = {spoken(vocabulary.names[vocabulary.index[class_id]]) for class_id in read_class_ids(file, vocabulary)}
    remaining = [class_id for class_id, name in zip(names.ids, names.names, strict=True) if spoken(name) not in out]
    if not remaining:
        raise DataError(option("without") + f" {file} leaves no name", hint="take out fewer classes")
    return take_classes(names, remaining)


def _require_names(index: SampleIndex, split_list: Vocabulary, chosen: Sequence[str], vocabulary: Vocabulary) -> None:
    chosen_ids = Places(chosen)
    used = [split_list.ids[i] for i in np.unique(index.label[index.label >= 0])]
    absent = [class_id for class_id in used if class_id in chosen_ids and class_id not in vocabulary.index]
    if absent:
        raise DataError(
            f"{len(absent)} classes of the split are not in the vocabulary, the first is '{absent[0]}'",
            hint=phrase("give a {vocabulary} that holds every class of the split"),
        )


def labels_among(
    index: SampleIndex, split_list: Vocabulary, chosen: Places, candidates: Vocabulary
) -> npt.NDArray[np.int64]:
    """Return the place among the candidates of every sample's class, [N]; -1 where a sample is not classified."""
    places = [candidates.index.get(class_id, -1) if class_id in chosen else -1 for class_id in split_list.ids]
    return np.array([*places, -1], np.int64)[index.label]  # the unknown label -1 takes the last place
