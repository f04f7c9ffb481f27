"""The sample index: where every image of a split lies, as columns; one pass over archive headers builds it.

The index keeps no Python object for a sample. Building it extracts no member and decodes no image.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from teachonce.core.progress import Reporter
from teachonce.data.formats import image_endings
from teachonce.data.layouts import archive_parts, scan
from teachonce.data.manifests import LINES, NO_CLASSES, Manifest, Split, require_root
from teachonce.data.places import ImagePlace, Part, PassedOver, Tally, name_bytes, name_of
from teachonce.data.vocabulary import Vocabulary, folder_vocabulary, load_vocabulary, unlisted
from teachonce.errors import DataError

FEW_PARTS = 16
_CLASSES_OF = {"schema": "parquet", "folders": "image-folder", "split": "coop-split", NO_CLASSES: "photo-folder"}


@dataclass(frozen=True)
class SampleIndex:
    """N samples as columns. `label` indexes the class list of the manifest's split; -1 is unknown.

    A sample's bytes are `size` bytes at `offset` of the archive. For image folders the archive is the class folder and
    the key's last part is the file. In parquet files `offset` is the number of the row and `size` is 0.
    """

    archives: tuple[str, ...]
    """Paths of the archives below the data's root, with forward slashes."""
    archive: npt.NDArray[np.uint32]
    offset: npt.NDArray[np.uint64]
    size: npt.NDArray[np.uint64]
    label: npt.NDArray[np.int32]
    key_bytes: npt.NDArray[np.uint8]
    """All keys as `name_bytes`, one after the other: UTF-8, unless a file or member is named otherwise."""
    key_ends: npt.NDArray[np.uint64]
    """The byte of `key_bytes` before which each key ends."""

    def __len__(self) -> int:
        return len(self.label)

    def key(self, sample: int) -> str:
        """Return the key of one sample."""
        start = int(self.key_ends[sample - 1]) if sample else 0
        return name_of(self.key_bytes[start : int(self.key_ends[sample])].tobytes())

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over archives and all columns. Equal digests mean the same samples at the same places."""
        sha = hashlib.sha256(name_bytes("\n".join(self.archives)))
        for column in (self.archive, self.offset, self.size, self.label, self.key_bytes, self.key_ends):
            sha.update(np.ascontiguousarray(column).tobytes())
        return sha.hexdigest()

    def take(self, samples: npt.NDArray[np.int64]) -> SampleIndex:
        """Return the index of these samples, in this order."""
        ends = self.key_ends.astype(np.int64)
        starts = np.concatenate([[0], ends[:-1]])
        lengths = (ends - starts)[samples]
        new_ends = np.cumsum(lengths)
        # Position j of the new key bytes comes from its key's old start plus the distance to its new start.
        shift = np.repeat(starts[samples] - (new_ends - lengths), lengths)
        key_bytes = self.key_bytes[np.arange(int(lengths.sum())) + shift]
        return SampleIndex(
            self.archives,
            self.archive[samples],
            self.offset[samples],
            self.size[samples],
            self.label[samples],
            key_bytes,
            new_ends.astype(np.uint64),
        )


def joined(parts: Sequence[SampleIndex]) -> SampleIndex:
    """Return one index of parts that have the same archives, in their order."""
    ends, before = [], 0
    for part in parts:
        ends.append(part.key_ends + np.uint64(before))
        before += len(part.key_bytes)
    return SampleIndex(
        parts[0].archives,
        np.concatenate([part.archive for part in parts]),
        np.concatenate([part.offset for part in parts]),
        np.concatenate([part.size for part in parts]),
        np.concatenate([part.label for part in parts]),
        np.concatenate([part.key_bytes for part in parts]),
        np.concatenate(ends),
    )


class _Columns:
    """The columns of an index as they grow, in flat buffers: about 40 bytes a sample while the scan runs."""

    def __init__(self) -> None:
        self.numbers = array("q")
        self.keys = bytearray()

    def __len__(self) -> int:
        return len(self.numbers) // 5

    def add(self, archive: int, place: ImagePlace) -> None:
        self.keys += name_bytes(place.key)
        self.numbers.extend((archive, place.offset, place.size, place.label, len(self.keys)))

    def finish(self, archives: tuple[str, ...]) -> SampleIndex:
        rows = np.frombuffer(self.numbers, dtype=np.int64).reshape(-1, 5)
        return SampleIndex(
            archives,
            rows[:, 0].astype(np.uint32),
            rows[:, 1].astype(np.uint64),
            rows[:, 2].astype(np.uint64),
            rows[:, 3].astype(np.int32),
            np.frombuffer(self.keys, dtype=np.uint8),
            rows[:, 4].astype(np.uint64),
        )


def split_classes(manifest: Manifest, split_name: str, root: Path) -> Vocabulary:
    """Return the class list that the labels of a split index, with the names of the manifest's `names` file if any.

    Raises:
        DataError: the class list is missing or malformed.
    """
    from teachonce.data.listed_images import renamed  # listed_images builds on `layouts`

    classes = _class_list(manifest, manifest.split(split_name), manifest.classes_of(split_name), root)
    return renamed(classes, root / manifest.names) if manifest.names else classes


def _class_list(manifest: Manifest, split: Split, spec: str, root: Path) -> Vocabulary:
    from teachonce.data.listed_images import lines_vocabulary, split_vocabulary

    if spec in _CLASSES_OF and split.format != _CLASSES_OF[spec]:
        raise DataError(f"manifest '{manifest.name}': classes = \"{spec}\" needs the format {_CLASSES_OF[spec]}")
    if spec == NO_CLASSES:
        return Vocabulary((), ())
    if spec == "schema":
        return _schema_classes(manifest, split, root)
    if spec == "folders":
        return folder_vocabulary(root / split.path)
    if spec == "split":
        return split_vocabulary(root / split.path)
    if spec.startswith(LINES):
        return lines_vocabulary(root / spec[len(LINES) :])
    return load_vocabulary(spec, root)


def _schema_classes(manifest: Manifest, split: Split, root: Path) -> Vocabulary:
    files = sorted(root.glob(split.path))
    if not files:
        raise DataError(f"no archive matches {root / split.path}", hint=manifest.get)
    from teachonce.data.parquet import class_names  # pyarrow is an optional dependency

    names = class_names(files[0], split.label)
    return unlisted(names, [" ".join(name.replace("_", " ").split()) for name in names], str(files[0]))


def build_index(manifest: Manifest, split_name: str, root: Path | None, reporter: Reporter) -> SampleIndex:
    """Scan the headers of a split's archives and check what they hold against the manifest.

    Args:
        manifest: what the data must be.
        split_name: one of the manifest's splits.
        root: the folder that holds the data.
        reporter: receives the progress, and one line about what lies there and is no sample.

    Raises:
        DataError: there is no archive, an archive is unreadable, cut off or of an unknown class, a sample has no label,
            a key comes twice, or the number of samples is not the declared one.
    """
    return collect_sound(manifest, split_name, root, reporter).index


def collect_sound(manifest: Manifest, split_name: str, root: Path | None, reporter: Reporter) -> Collected:
    """Return what `build_index` does, together with what the scan passed over; it raises the same."""
    root = require_root(manifest, root)
    split = manifest.split(split_name)
    collected = collect(manifest, split_name, root, reporter, stop=True)
    index = collected.index
    _check_count(index, split, f"the split '{split_name}' below {root}", collected.passed_over)
    twice = doubled_keys(index, most=1)
    if twice:
        raise DataError(
            f"the sample key '{twice[0].key}' comes twice: in {twice[0].first} and {twice[0].second}; "
            "keys must be unique"
        )
    return collected


def unseen_remark(split: Split, classes: Vocabulary, index: SampleIndex) -> tuple[str, ...]:
    """Return a sentence about classes without an image, where labels may be numbers: their list may be another one.

    A header line, a missing line or another order of the classes makes every number mean a wrong class.
    """
    by_number = split.label == "number" if split.format == "image-folder" else split.label != "key"
    if split.format not in ("image-folder", "webdataset", "parquet") or not by_number or split.unlabelled:
        return ()
    unseen = np.setdiff1d(np.arange(len(classes)), index.label)
    if not len(unseen):
        return ()
    return (
        f"{len(unseen):,} of {len(classes):,} classes have no image, the first is '{classes.ids[unseen[0]]}': where "
        "labels are numbers, they count the lines of the class list from 0: this must be the list they were made with",
    )


@dataclass(frozen=True, eq=False)
class Collected:
    """What a scan met."""

    index: SampleIndex
    parts: tuple[Part, ...]
    faults: tuple[DataError, ...]
    passed_over: PassedOver
    """What lies there and is no sample."""
    foreign: dict[str, int]
    """How many images begin with bytes of no image format, by what the bytes are; empty where nobody looked."""
    foreign_examples: dict[str, tuple[str, ...]]
    empty_parts: tuple[str, ...]
    """Names of the archives and class folders that were read whole and hold no image."""


def collect(manifest: Manifest, split_name: str, root: Path, reporter: Reporter, stop: bool) -> Collected:
    """Scan what lies in a split, whether or not it is what the manifest declares.

    Args:
        stop: raise the first problem; otherwise the scan goes on with the next part, looks at the first bytes of
            images too, and all problems are returned.

    Raises:
        DataError: there is nothing to scan, or something is wrong and `stop` is set.
    """
    split = manifest.split(split_name)
    classes = split_classes(manifest, split_name, root)
    tally = Tally(look_inside=not stop)
    parts = list(archive_parts(manifest, split, root, classes, tally))
    archives: dict[Path, int] = {}
    columns, faults, empty_parts = _Columns(), list[DataError](), list[str]()
    for done, part in enumerate(parts):
        number, before = archives.setdefault(part.archive, len(archives)), len(columns)
        try:
            for place in scan(split, part, classes, tally):
                columns.add(number, place)
            if len(columns) == before:
                empty_parts.append(part.name)
        except DataError as problem:
            if stop:
                raise
            faults.append(problem)
        reporter.progress("index", done + 1, len(parts), "archives", images=len(columns))
    index = columns.finish(tuple(path.relative_to(root).as_posix() for path in archives))
    passed_over = tally.passed_over()
    if passed_over:
        reporter.note(f"{manifest.name}, {split_name}: {passed_over}")
    foreign = dict(tally.foreign.most_common())
    return Collected(
        index,
        tuple(parts),
        tuple(faults),
        passed_over,
        foreign,
        {kind: tuple(tally.foreign_examples[kind]) for kind in foreign},
        tuple(empty_parts),
    )


def _check_count(index: SampleIndex, split: Split, where: str, passed_over: PassedOver) -> None:
    beside = f"; {passed_over}" if passed_over else ""
    if not len(index):
        raise DataError(f"{where} holds no image ({', '.join(sorted(image_endings()))}){beside}")
    if split.samples is not None and split.samples != len(index):
        raise DataError(
            f"{where} holds {len(index)} images; its manifest says {split.samples}{beside}",
            hint="`teachonce index` lists what is missing; for a part of the data change `samples` in a copy of it",
        )


def few_samples(manifest: Manifest, split_name: str, root: Path, most: int) -> SampleIndex:
    """Index some samples of a split from a few of its archives: enough to try things on, in seconds.

    Raises:
        DataError: there is no image, or an archive that was scanned is damaged.
    """
    split = manifest.split(split_name)
    classes, tally = split_classes(manifest, split_name, root), Tally()
    parts = list(archive_parts(manifest, split, root, classes, tally))
    chosen = [parts[i] for i in np.unique(np.linspace(0, len(parts) - 1, min(len(parts), FEW_PARTS)).astype(int))]
    archives: dict[Path, int] = {}
    columns = _Columns()
    for part in chosen:
        number = archives.setdefault(part.archive, len(archives))
        for place in islice(scan(split, part, classes, tally), -(-most // len(chosen))):
            columns.add(number, place)
    index = columns.finish(tuple(path.relative_to(root).as_posix() for path in archives))
    if not len(index):
        _check_count(index, split, f"the split '{split_name}' below {root}", tally.passed_over())
    return index


class Doubled(NamedTuple):
    """A key that two samples share, and the archives that hold the two samples."""

    key: str
    first: str
    second: str


def doubled_keys(index: SampleIndex, most: int) -> list[Doubled]:
    """List keys that come twice: rows are paired with images by key, so a doubled key could pair wrongly."""
    ends = index.key_ends.astype(np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    data = index.key_bytes.tobytes()
    hashes = np.fromiter(
        (
            int.from_bytes(hashlib.blake2b(data[a:b], digest_size=8).digest(), "little")
            for a, b in zip(starts, ends, strict=True)
        ),
        dtype=np.uint64,
        count=len(index),
    )
    order = np.argsort(hashes, kind="stable")
    doubled: list[Doubled] = []
    for i in np.flatnonzero(hashes[order][1:] == hashes[order][:-1]):
        first, second = sorted((int(order[i]), int(order[i + 1])))
        if index.key(first) == index.key(second) and len(doubled) < most:
            archives = (index.archives[index.archive[first]], index.archives[index.archive[second]])
            doubled.append(Doubled(index.key(first), *archives))
    return doubled
