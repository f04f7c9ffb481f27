"""Selections: which samples of a label store a run uses, and how many of their classes; a small file, no second store.

Few-shot sets are nested and depend on nothing but sample keys and the seed: in each class the samples with the smallest
keyed hashes are taken, so 1 shot is part of 2 shots, in whatever order the rows lie.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from teachonce.core.digests import canonical_digest
from teachonce.core.documents import json_in, readable
from teachonce.core.files import is_remote
from teachonce.core.outside import read_plain
from teachonce.core.progress import Reporter
from teachonce.core.strict import decode
from teachonce.data.index import SampleIndex
from teachonce.data.places import name_bytes, name_of
from teachonce.data.spelling import Places
from teachonce.data.views import sample_name
from teachonce.data.vocabulary import require_classes
from teachonce.errors import DataError, FingerprintError, IntegrityError, UsageError
from teachonce.keeping.beside import read_beside, write_beside
from teachonce.labels.format import LABELS
from teachonce.labels.store import LabelStore
from teachonce.phrases import option, phrase

SCHEMA = 1
KIND = "teachonce-selection"
MOST_BYTES = 512 << 20  # some sixty million samples


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How samples are chosen; what is None does not restrict anything."""

    shots: int | None = None
    """Samples of each class at most."""
    seed: int = 0
    top_k: int | None = None
    """Classes of each soft label that are used, the most probable ones."""
    classes: tuple[str, ...] | None = None
    """Only samples of these classes; the run knows their names only."""
    all_names: bool = False
    """With `classes`: the run knows every name of the store, though it sees samples of these classes only."""
    clean: str | None = None
    """SHA-256 (hex) of the numbers of samples that an audit says to leave out."""

    def identity(self) -> dict[str, Any]:
        """The rule for the digest of a cell: `clean` only where it is set, so that earlier digests hold."""
        return {key: value for key, value in asdict(self).items() if key != "clean" or value}

    def stated(self) -> dict[str, Any]:
        """The rule as a file holds it; `all_names` too is written only when set, for the same reason."""
        return {key: value for key, value in self.identity().items() if key != "all_names" or value}


@dataclass(frozen=True, eq=False)
class Selection:
    """A loaded selection: the rows of these samples (all their views), and the first `top_k` classes of each."""

    top_k: int | None
    classes: tuple[str, ...] | None
    """The classes that the run knows; None: all of the store."""
    samples: npt.NDArray[np.uint32]
    """Chosen samples by their number in the manifest's own order, rising."""
    digest: str
    """SHA-256 (hex) of the file's content: the identity of the selection."""
    shots: int | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """The store that a selection was made on."""

    id: str
    samples: str
    vocabulary_digest: str | None


@dataclass(frozen=True, kw_only=True)
class _Head:
    """A selection file without its two long lists."""

    schema: int
    kind: str
    store: _Origin
    rule: Rule
    digest: str


@dataclass(frozen=True, eq=False)
class Chosen:
    """What a rule picks out of a store."""

    samples: npt.NDArray[np.uint32]  # [n], rising
    keys: tuple[str, ...]  # of the same samples
    classes: int
    """Classes that have at least one chosen sample."""
    short: tuple[tuple[str, int], ...]
    """Class id and number of samples of every class that has fewer than the rule's shots."""


def key_hashes(index: SampleIndex, seed: int) -> npt.NDArray[np.uint64]:
    """BLAKE2b-64 of every sample's name in bytes, keyed with the seed (8 bytes, little-endian), read as little-endian.

    The name is `data.views.sample_name` of the key: the same photo is drawn however its archives are laid out.
    """
    ends = index.key_ends.astype(np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    data, secret = index.key_bytes.tobytes(), seed.to_bytes(8, "little")
    keys = (name_of(data[start:end]) for start, end in zip(starts, ends, strict=True))
    names = (name_bytes(sample_name(key)) for key in keys)
    hashes = (hashlib.blake2b(name, digest_size=8, key=secret).digest() for name in names)
    return np.frombuffer(b"".join(hashes), dtype="<u8").astype(np.uint64)


def few_shot(hashes: npt.NDArray[np.uint64], labels: npt.NDArray[np.integer[Any]], shots: int) -> npt.NDArray[np.int64]:
    """Places of the `shots` smallest hashes of each class, rising; samples without a class (-1) are never taken."""
    order = np.lexsort((hashes, labels))
    grouped = labels[order]
    first = np.searchsorted(grouped, grouped, side="left")
    taken = (np.arange(len(order)) - first < shots) & (grouped >= 0)
    return np.sort(order[taken])


def few_shot_samples(index: SampleIndex, shots: int, seed: int) -> npt.NDArray[np.int64]:
    """Numbers of the samples that a draw of so many shots takes, rising; never of a sample without a class."""
    return few_shot(key_hashes(index, seed), index.label, shots)


def save_shots(path: Path, drawn: Mapping[str, Any], samples: npt.NDArray[np.int64], keys: Sequence[str]) -> str:
    """Write which samples a few-shot `teach` takes; returns the digest of the file. The same again is left as it is.

    Args:
        drawn: what the draw depends on: manifest, split, digest of the index, shots, seed.
        samples: numbers in the manifest's own order.
        keys: of the same samples.

    Raises:
        UsageError: another file is there.
        IncompleteError, EnvironmentFault: it cannot be written.
    """
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "teachonce-shots",
        **drawn,
        "samples": samples.tolist(),
        "keys": [readable(key) for key in keys],
    }
    return _write_once(path, document)


def choose(store: LabelStore, rule: Rule, reporter: Reporter, left_out: Sequence[int] = ()) -> Chosen:
    """Apply a rule to a store. Only samples with at least one good row take part.

    Args:
        store: what is chosen from.
        rule: how.
        reporter: told about progress.
        left_out: numbers of samples that take no part, of which `rule.clean` is the digest.

    Raises:
        UsageError: the rule restricts nothing, or asks for less than one shot or more classes than are stored.
        DataError: a class is not in the vocabulary, or no sample is left.
        IncompleteError: the store is not complete.
    """
    _check_rule(rule, store)
    label_ids = store.label_classes().ids
    chosen_ids = None if rule.classes is None else Places(rule.classes)
    wanted = None if chosen_ids is None else np.array([class_id in chosen_ids for class_id in label_ids], np.bool_)
    parts = []
    for chunk in range(store.layout.chunks):
        parts.append(_candidates(store, chunk, rule.seed, wanted))
        reporter.progress("choose", chunk + 1, store.layout.chunks, "chunks")
    samples, labels, hashes = (np.concatenate(column) for column in zip(*parts, strict=True))
    if left_out:
        stay = ~np.isin(samples, np.array(left_out))
        samples, labels, hashes = samples[stay], labels[stay], hashes[stay]
    allowed_classes = np.flatnonzero(np.ones(len(label_ids), np.bool_) if wanted is None else wanted)
    counts = np.bincount(labels[labels >= 0], minlength=len(label_ids))
    short: list[tuple[str, int]] = []
    if rule.shots is not None:
        short = [(label_ids[c], int(counts[c])) for c in allowed_classes if counts[c] < rule.shots]
        labelled = store.label_classes().index
        short += [(class_id, 0) for class_id in sorted(rule.classes or ()) if class_id not in labelled]
        taken = few_shot(hashes, labels, rule.shots)
        samples, labels = samples[taken], labels[taken]
    if not len(samples):
        raise DataError(
            f"{store.path}: no sample with an image is left after the selection",
            hint=f"teachonce inspect {store.path} shows what there is",
        )
    samples = np.sort(samples)
    used = len(np.unique(labels[labels >= 0]))
    return Chosen(samples, _keys(store, samples), used, tuple(short))


def _check_rule(rule: Rule, store: LabelStore) -> None:
    if rule.shots is None and rule.top_k is None and rule.classes is None and rule.clean is None:
        raise UsageError(phrase("nothing to select: give {shots}, {classes}, {top_k} or {clean}"))
    if rule.all_names and rule.classes is None:
        raise UsageError(
            phrase("{all_names} keeps the names of classes that {classes} leaves out, and there is no {classes}"),
            hint=phrase("add {classes} FILE, or leave {all_names} out"),
        )
    if rule.shots is not None and rule.shots < 1:
        raise UsageError(option("shots") + f" must be at least 1, found {rule.shots}")
    if not 0 <= rule.seed < 2**64:
        raise UsageError(option("seed") + f" must be between 0 and 2^64 - 1, found {rule.seed}")
    if rule.top_k is not None and rule.top_k < 1:
        raise UsageError(option("top_k") + f" must be at least 1, found {rule.top_k}")
    if rule.top_k is not None and rule.top_k > store.layout.top_k:
        raise UsageError(
            option("top_k")
            + f" {rule.top_k} is more than the {store.layout.top_k} classes of each soft label in {store.path}",
            hint="teachonce relabel makes a store with more, from embeddings",
        )
    if rule.classes is not None:
        require_classes(rule.classes, store.vocabulary(), "the selection")


def _candidates(
    store: LabelStore, chunk: int, seed: int, wanted: npt.NDArray[np.bool_] | None
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int32], npt.NDArray[np.uint64]]:
    """Sample number, label and hash of the samples of a chunk that may be taken."""
    data = store.read_chunk(LABELS, chunk, ("status", "sample"))
    index = store.index_of_chunk(chunk)
    views = store.layout.views
    may = (data["status"].reshape(-1, views) == 0).any(axis=1)
    if wanted is not None:
        may &= (index.label >= 0) & wanted[index.label]
    return data["sample"][::views][may], index.label[may], key_hashes(index, seed)[may]


def _keys(store: LabelStore, samples: npt.NDArray[np.uint32]) -> tuple[str, ...]:
    """The keys of the given samples, in their order."""
    key_of: dict[int, str] = {}
    for chunk in range(store.layout.chunks):
        numbers = store.samples(*store.layout.bounds(chunk))[:: store.layout.views]
        here = np.flatnonzero(np.isin(numbers, samples))
        if len(here):
            index = store.index_of_chunk(chunk)
            key_of |= {int(numbers[place]): index.key(place) for place in here.tolist()}
    return tuple(key_of[sample] for sample in samples.tolist())


def save_selection(path: Path, store: LabelStore, rule: Rule, chosen: Chosen, reporter: Reporter | None = None) -> str:
    """Write a selection file, whole or not at all; returns its digest. The same file again is left as it is.

    Raises:
        UsageError: another file is there: runs may depend on it.
        IncompleteError, EnvironmentFault: the file cannot be written.
    """
    fingerprint = store.groups[LABELS].fingerprint
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": KIND,
        "store": {
            "id": store.store_id(),
            "samples": fingerprint["samples"],
            "vocabulary_digest": fingerprint.get("vocabulary_digest"),
        },
        "rule": rule.stated(),
        "samples": chosen.samples.tolist(),
        "keys": [readable(key) for key in chosen.keys],
    }
    return _write_once(path, document, reporter)


def _write_once(path: Path, document: dict[str, Any], reporter: Reporter | None = None) -> str:
    document = json.loads(json.dumps(document))  # the document as a reader gets it, in which tuples are lists
    document["digest"] = canonical_digest(document)
    content = (json.dumps(document, indent=1) + "\n").encode()
    former = read_beside(path) if is_remote(path) else None
    if former is None and (is_remote(path) or not path.exists()):
        write_beside(path, content, reporter)
    elif former != content and (is_remote(path) or not path.is_file() or path.read_bytes() != content):
        raise UsageError(
            f"{path} exists and is not what this command would write; runs may depend on it",
            hint=phrase("{another out}, or delete that file first"),
        )
    return str(document["digest"])


def load_selection(path: Path, store: LabelStore) -> Selection:
    """Read a selection file and check that it belongs to a store.

    A store derived from the one it was made on is fine: it has the same samples.

    Raises:
        DataError: the file is missing, no selection, or names classes that this store lacks.
        IntegrityError: it was changed after it was written, or a newer version wrote it.
        FingerprintError: it was made on other samples.
        UsageError: it asks for more classes of each soft label than the store holds.
    """
    document = _document(path)
    lists = {name: document.pop(name, None) for name in ("samples", "keys")}
    head = decode(_Head, document, str(path), IntegrityError)
    rule, store_samples = head.rule, store.groups[LABELS].fingerprint.get("samples")
    if head.store.samples != store_samples:
        raise FingerprintError(
            f"{path} was made on other samples than {store.path} holds: "
            f"samples: stored {head.store.samples!r}, asked for {store_samples!r}",
            hint=f"teachonce subset {store.path} "
            + option("out")
            + " FILE.json with the same options makes one for this store",
        )
    if rule.classes is not None:
        require_classes(rule.classes, store.vocabulary(), str(path))
    if rule.top_k is not None and rule.top_k > store.layout.top_k:
        raise UsageError(
            f"{path} uses {rule.top_k} classes of each soft label; {store.path} holds {store.layout.top_k}",
            hint=f"teachonce subset {store.path} " + option("out") + " FILE.json with a smaller " + option("top_k"),
        )
    samples = _samples(lists["samples"], store.layout.rows // store.layout.views, path)
    known = None if rule.all_names else rule.classes
    return Selection(rule.top_k, known, samples, head.digest, rule.shots, rule.seed)


def _samples(listed: Any, count: int, path: Path) -> npt.NDArray[np.uint32]:
    """The chosen samples of a file, checked: rising numbers of samples that the store has."""
    whole = isinstance(listed, list) and all(isinstance(number, int) for number in listed)
    numbers = np.array(listed if whole else [])
    sound = numbers.ndim == 1 and numbers.size > 0 and numbers.dtype.kind == "i"
    if not sound or int(numbers.min()) < 0 or int(numbers.max()) >= count or (np.diff(numbers) <= 0).any():
        raise IntegrityError(
            f"{path}: samples: expected rising whole numbers below {count}, at least one",
            hint="write it again with `teachonce subset`",
        )
    return numbers.astype(np.uint32)


def _document(path: Path) -> dict[str, Any]:
    """The content of a selection file, proved by its digest."""
    try:
        document = json_in(read_plain(path, MOST_BYTES), MOST_BYTES)
    except (OSError, ValueError) as problem:
        raise DataError(
            f"cannot read the selection {path}: {problem}",
            hint=phrase("teachonce subset LABELS.zarr {out} FILE.json writes one"),
        ) from problem
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise DataError(
            f"{path} is no selection: expected kind {KIND!r}",
            hint=phrase("teachonce subset LABELS.zarr {out} FILE.json writes one"),
        )
    if document.get("schema") != SCHEMA:
        raise IntegrityError(
            f"{path} has schema {document.get('schema')!r}; this program reads {SCHEMA}",
            hint="install the version of teachonce that wrote it, or a newer one",
        )
    digest = canonical_digest({key: value for key, value in document.items() if key != "digest"})
    if digest != document.get("digest"):
        raise IntegrityError(
            f"{path} was changed after it was written: expected digest {document.get('digest')}, found {digest}",
            hint="write it again with the same `teachonce subset`; a selection is never edited by hand",
        )
    return document
