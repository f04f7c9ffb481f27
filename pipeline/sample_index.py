"""The sample index: where every image of a split lies, as columns; built by one pass over archive headers.

It keeps no Python object a sample, never extracts a member and never decodes an image.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from teachonce.errors import DataError, did_you_mean
from teachonce.manifests import Manifest, Split, require_root
from teachonce.progress import Reporter
from teachonce.vocabulary import Vocabulary, folder_vocabulary, load_vocabulary

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})


@dataclass(frozen=True)
class SampleIndex:
    """N samples as columns. `label` indexes the class list of the manifest's split; -1 is unknown.

    A sample's bytes are `size` bytes at `offset` of the archive; for image folders the archive is the class folder
    and the key's last part is the file.
    """

    archives: tuple[str, ...]
    """Paths below the data's root, with forward slashes."""
    archive: npt.NDArray[np.uint32]
    offset: npt.NDArray[np.uint64]
    size: npt.NDArray[np.uint64]
    label: npt.NDArray[np.int32]
    key_bytes: npt.NDArray[np.uint8]
    """All keys, UTF-8, one after the other."""
    key_ends: npt.NDArray[np.uint64]
    """Where each key ends in `key_bytes`."""

    def __len__(self) -> int:
        return len(self.label)

    def key(self, sample: int) -> str:
        """The key of one sample."""
        start = int(self.key_ends[sample - 1]) if sample else 0
        return self.key_bytes[start : int(self.key_ends[sample])].tobytes().decode()

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over archives and all columns: equal means the same samples at the same places."""
        sha = hashlib.sha256("\n".join(self.archives).encode())
        for column in (self.archive, self.offset, self.size, self.label, self.key_bytes, self.key_ends):
            sha.update(np.ascontiguousarray(column).tobytes())
        return sha.hexdigest()

    def take(self, samples: npt.NDArray[np.int64]) -> SampleIndex:
        """The index of the given samples, in the given order."""
        ends = self.key_ends.astype(np.int64)
        starts = np.concatenate([[0], ends[:-1]])
        lengths = (ends - starts)[samples]
        new_ends = np.cumsum(lengths)
        # Position j of the new key bytes comes from its key's old start plus the distance to its new start.
        shift = np.repeat(starts[samples] - (new_ends - lengths), lengths)
        key_bytes = self.key_bytes[np.arange(int(lengths.sum())) + shift]
        return SampleIndex(
            self.archives, self.archive[samples], self.offset[samples], self.size[samples], self.label[samples],
            key_bytes, new_ends.astype(np.uint64),
        )  # fmt: skip


class _Found(NamedTuple):
    """One image as the scan meets it; turned into columns at once."""

    key: str
    offset: int
    size: int
    label: int


class _Columns:
    """Growing columns in flat buffers: about 40 bytes a sample while the scan runs."""

    def __init__(self) -> None:
        self.numbers = bytearray()
        self.keys = bytearray()

    def add(self, archive: int, found: _Found) -> None:
        self.keys += found.key.encode(errors="backslashreplace")  # names in archives may be no UTF-8
        row = (archive, found.offset, found.size, found.label, len(self.keys))
        self.numbers += np.array(row, dtype=np.int64).tobytes()

    def finish(self, archives: tuple[str, ...]) -> SampleIndex:
        rows = np.frombuffer(bytes(self.numbers), dtype=np.int64).reshape(-1, 5)
        return SampleIndex(
            archives,
            rows[:, 0].astype(np.uint32),
            rows[:, 1].astype(np.uint64),
            rows[:, 2].astype(np.uint64),
            rows[:, 3].astype(np.int32),
            np.frombuffer(bytes(self.keys), dtype=np.uint8),
            rows[:, 4].astype(np.uint64),
        )


def split_classes(manifest: Manifest, split_name: str, root: Path) -> Vocabulary:
    """The class list that the labels of a split index.

    Raises:
        DataError: it is missing or malformed.
    """
    spec = manifest.classes_of(split_name)
    split = manifest.split(split_name)
    if spec != "folders":
        return load_vocabulary(spec, root)
    if split.format != "image-folder":
        raise DataError(f"manifest '{manifest.name}': classes = \"folders\" needs the format image-folder")
    return folder_vocabulary(root / split.path)


def build_index(manifest: Manifest, split_name: str, root: Path | None, reporter: Reporter) -> SampleIndex:
    """Scan the headers of a split's archives.

    Args:
        manifest: what the data must be.
        split_name: one of its splits.
        root: the folder that holds the data.
        reporter: told about progress.

    Raises:
        DataError: no archive, an unreadable or cut-off one, an archive of an unknown class, a sample without a label,
            a key that comes twice, a number of samples other than declared.
    """
    root = require_root(manifest, root)
    split = manifest.split(split_name)
    classes = split_classes(manifest, split_name, root)
    paths = _archive_paths(split, root, classes, manifest)
    columns = _Columns()
    for number, path in enumerate(paths):
        for found in _scan(split, path, classes):
            columns.add(number, found)
        reporter.progress("index", number + 1, len(paths), "archives")
    index = columns.finish(tuple(path.relative_to(root).as_posix() for path in paths))
    _check_count(index, split, split_name, root)
    _check_keys(index)
    return index


def _archive_paths(split: Split, root: Path, classes: Vocabulary, manifest: Manifest) -> list[Path]:
    if split.format == "image-folder":
        return [root / split.path / class_id for class_id in classes.ids if (root / split.path / class_id).is_dir()]
    paths = sorted(root.glob(split.path))
    if not paths:
        raise DataError(f"no archive matches {root / split.path}", hint=manifest.get)
    folders = [path for path in paths if not path.is_file()]
    if folders:
        raise DataError(f"{folders[0]} matches {split.path} but is not a file")
    return paths


def _scan(split: Split, path: Path, classes: Vocabulary) -> Iterator[_Found]:
    if split.format == "image-folder":
        return _scan_folder(path, classes.index[path.name])
    if split.format == "webdataset":
        return _scan_webdataset(path, split.label, classes)
    if path.stem not in classes.index:
        raise DataError(f"{path}: '{path.stem}' is not in the class list: {_nearest(path.stem, classes)}")
    return _scan_class_tar(path, classes.index[path.stem])


def _nearest(class_id: str, classes: Vocabulary) -> str:
    return did_you_mean(class_id, classes.ids if len(classes) <= 20 else classes.ids[:3] + ("...",))


def _scan_folder(path: Path, label: int) -> Iterator[_Found]:
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if entry.is_file() and _extension(entry.name) in IMAGE_EXTENSIONS:
            yield _Found(f"{path.name}/{entry.name}", 0, entry.stat().st_size, label)


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Regular members of a tar, one at a time; links, devices and sparse files are passed over."""
    end = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise: gigabytes for ImageNet-21K
                if not member.isreg() or member.sparse is not None:
                    continue
                if member.offset_data + member.size > end:
                    raise DataError(f"{path} is cut off: '{member.name}' should end at byte "
                                    f"{member.offset_data + member.size}, the file has {end}")  # fmt: skip
                yield member
            _require_end(path, tar.offset)
    except (tarfile.TarError, OSError, OverflowError, MemoryError, ValueError) as problem:
        # The last three come from headers that claim absurd sizes.
        raise DataError(
            f"{path} is not a readable tar archive: {problem}",
            hint="fetch the archive again; compressed tars must be unpacked to plain .tar first",
        ) from problem


def _require_end(path: Path, offset: int) -> None:
    """tarfile takes a damaged header, or the end of the file, for the end of the archive: that is a block of zeros."""
    with open(path, "rb") as file:
        if os.pread(file.fileno(), tarfile.BLOCKSIZE, offset) != bytes(tarfile.BLOCKSIZE):
            raise DataError(f"{path} is cut off or damaged at byte {offset}: expected a header or the end mark there",
                            hint="fetch the archive again")  # fmt: skip


def _scan_class_tar(path: Path, label: int) -> Iterator[_Found]:
    for member in _members(path):
        name = member.name.rpartition("/")[2]
        if _extension(name) in IMAGE_EXTENSIONS:
            yield _Found(f"{path.stem}/{name.rpartition('.')[0]}", member.offset_data, member.size, label)


def _scan_webdataset(path: Path, label_extension: str, classes: Vocabulary) -> Iterator[_Found]:
    """Members of one sample are adjacent and share the name up to the first dot (the WebDataset convention)."""
    key, image, label = "", None, None
    with open(path, "rb") as file:
        for member in _members(path):
            folder, slash, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            if folder + slash + stem != key:
                if image is not None:
                    yield _labelled(path, key, image, label)
                key, image, label = folder + slash + stem, None, None
            if extension.lower() in IMAGE_EXTENSIONS:
                if image is not None:
                    raise DataError(f"{path}: the sample '{key}' has two images; keys must be unique")
                image = member
            elif extension == label_extension:
                text = os.pread(file.fileno(), member.size, member.offset_data)
                label = _parse_label(text, path, key, classes)
    if image is not None:
        yield _labelled(path, key, image, label)


def _labelled(path: Path, key: str, image: tarfile.TarInfo, label: int | None) -> _Found:
    if label is None:
        raise DataError(f"{path}: the sample '{key}' has no label member beside its image")
    return _Found(key, image.offset_data, image.size, label)


def _parse_label(text: bytes, path: Path, key: str, classes: Vocabulary) -> int:
    word = text.decode("utf-8", errors="replace").strip()
    if word.isdecimal() and word.isascii():  # a number is the line of the class list, also where ids are numbers
        if int(word) < len(classes):
            return int(word)
    elif word in classes.index:
        return classes.index[word]
    raise DataError(f"{path}: the label of '{key}' is {word!r}: expected a class id or a number below {len(classes)}")


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _check_count(index: SampleIndex, split: Split, split_name: str, root: Path) -> None:
    if not len(index):
        raise DataError(f"the split '{split_name}' below {root} holds no image ({', '.join(sorted(IMAGE_EXTENSIONS))})")
    if split.samples is not None and split.samples != len(index):
        raise DataError(
            f"the split '{split_name}' below {root} holds {len(index)} images; its manifest says {split.samples}",
            hint="look for missing or additional archives",
        )


def _check_keys(index: SampleIndex) -> None:
    """Every key once: rows are paired with images by key, so a doubled key could pair wrongly."""
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
    twice = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    for i in twice:
        first, second = sorted((int(order[i]), int(order[i + 1])))
        if index.key(first) == index.key(second):
            raise DataError(
                f"the sample key '{index.key(first)}' comes twice: in {index.archives[index.archive[first]]} and "
                f"{index.archives[index.archive[second]]}; keys must be unique"
            )
