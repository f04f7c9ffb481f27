"""Splits that a file lists image by image, as CoOp's data sets do: JSON splits, and text files for the aircraft data.

This module reads lists and looks for the listed files; it opens no image.

Sources: the layout below one root is that of DATASETS.md of KaiyangZhou/CoOp (Zhou et al., arXiv 2109.01134).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from teachonce.core.documents import json_in
from teachonce.core.outside import files_below, first_bytes
from teachonce.data.formats import HEAD, extension, image_endings, is_leftover, looks_like_image
from teachonce.data.manifests import Manifest, Split
from teachonce.data.places import ImagePlace, Part, Tally, as_on_disk
from teachonce.data.spelling import Places, one_form
from teachonce.data.vocabulary import Vocabulary, checked, list_text, refuse_header
from teachonce.errors import DataError, did_you_mean

PARTS = ("train", "val", "test")
MOST_BYTES = 512 << 20  # of a list: some five million images


@dataclass(frozen=True)
class ListedPart(Part):
    """A folder of images, with those of its files that the split lists."""

    files: tuple[tuple[str, int], ...] = ()
    """Each file's path, relative to the split's folder of images, and its class index."""


def split_vocabulary(file: Path) -> Vocabulary:
    """Read the classes of a JSON split in the order of their numbers.

    Class ids are the numbers; underscores in names become spaces.

    Raises:
        DataError: the file is no such split, or a number goes with two names.
    """
    names: dict[int, str] = {}
    for part in PARTS:
        for _, label, name in _entries(file, part):
            if names.setdefault(label, name) != name:
                raise DataError(f"{file}: the class {label} is called '{names[label]}' and '{name}'")
    if not names:
        raise DataError(f"{file} lists no image")
    return checked([*map(str, sorted(names))], [names[label] for label in sorted(names)], str(file))


def lines_vocabulary(file: Path) -> Vocabulary:
    """Read a file with a class name a line. Class ids are line numbers from 0; underscores in names become spaces.

    Raises:
        DataError: the file cannot be read, is empty, or has a name twice (images are listed by name).
    """
    text = _text(file)
    refuse_header(text, str(file))
    names = [_spaced(line) for line in text.splitlines() if line.strip()]
    if not names:
        raise DataError(f"{file} names no class")
    counts = Counter(map(one_form, names))
    twice = next((name for name in names if counts[one_form(name)] > 1), None)
    if twice is not None:
        raise DataError(f"{file}: the class '{twice}' comes {counts[one_form(twice)]} times")
    return checked([*map(str, range(len(names)))], names, str(file))


def renamed(vocabulary: Vocabulary, file: Path) -> Vocabulary:
    """Return the same classes with the names from a file of `ID NAME` lines, such as CoOp's classnames.txt.

    Raises:
        DataError: the file cannot be read, or has no name for a class.
    """
    names = {}
    for line in _text(file).splitlines():
        class_id, _, name = line.strip().replace("\t", " ").partition(" ")
        names[one_form(class_id)] = " ".join(name.split())
    listed = [names.get(one_form(class_id), "") for class_id in vocabulary.ids]
    lacking = [class_id for class_id, name in zip(vocabulary.ids, listed, strict=True) if not name]
    if lacking:
        raise DataError(
            f"{file} has no name for {len(lacking)} classes, the first is '{lacking[0]}'",
            hint="expected lines such as `n01440764 tench`",
        )
    return checked(vocabulary.ids, listed, str(file))


def listed_parts(
    manifest: Manifest, split: Split, root: Path, classes: Vocabulary, tally: Tally
) -> Iterator[ListedPart]:
    """Yield the folders that hold listed images, in the order in which the list first mentions them.

    Images that lie there and stand in no list of the manifest are counted in the tally.

    Raises:
        DataError: the list is missing or malformed, names an unknown class, or holds a path outside its folder.
    """
    file = root / split.path
    listed = _of_json(file, split, classes) if split.format == "coop-split" else _of_lines(file, classes)
    folders: dict[str, list[tuple[str, int]]] = {}
    for path, label in listed:
        place = PurePosixPath(path)
        if place.is_absolute() or ".." in place.parts or "\n" in path or not place.name:
            raise DataError(f"{file}: the image {path!r} does not lie below {root / split.images}")
        folders.setdefault(str(place.parent), []).append((str(place), label))
    if not folders:
        raise DataError(f"{file} lists no image{f' under {split.part!r}' if split.part else ''}")
    _count_unlisted(manifest, split, root, tally)
    for folder, files in folders.items():
        yield ListedPart(_folder(root / split.images, folder), folder, files=tuple(files))


def _folder(images: Path, folder: str) -> Path:
    """Return where a listed folder lies; each name of its path may have another Unicode form on the disk."""
    place = images
    for name in PurePosixPath(folder).parts:
        place = as_on_disk(place / name)
    return place


def _count_unlisted(manifest: Manifest, split: Split, root: Path, tally: Tally) -> None:
    """Count the images below the folder of a split that no split of the manifest lists, in no part of its list."""
    listed: set[str] = set()
    for other in manifest.splits.values():
        if other.images == split.images:
            for part in PARTS if other.format == "coop-split" else ("",):
                with suppress(DataError):  # a list of another split may be missing
                    listed.update(_listed_paths(root / other.path, part))
    for path in files_below(root / split.images):
        if is_leftover(path):
            tally.pass_over("leftovers", path)
        elif looks_like_image(path) and one_form(path) not in listed:
            tally.pass_over("not_listed", path)


def _listed_paths(file: Path, part: str) -> Iterator[str]:
    """Yield the path, in one Unicode form, of each image that a list names; of a JSON split only those of one part."""
    if part:
        yield from (one_form(str(PurePosixPath(path))) for path, _, _ in _entries(file, part))
    else:
        yield from (one_form(str(PurePosixPath(image))) for _, image, _ in _lines(file))


def scan_listed(part: ListedPart, tally: Tally) -> Iterator[ImagePlace]:
    """Yield the listed images of a folder, in the order of the list.

    Raises:
        DataError: a listed image does not exist.
    """
    on_disk: dict[str, str] = {}
    for key, label in part.files:
        path = part.archive / PurePosixPath(key).name
        try:
            if not key.isascii() and not path.exists():
                on_disk = on_disk or {one_form(other.name): other.name for other in part.archive.iterdir()}
                path = path.with_name(on_disk.get(one_form(path.name), path.name))
            size = path.stat().st_size
        except OSError as problem:
            raise DataError(
                f"the split lists {path}, which cannot be read: {problem.strerror or problem}",
                hint="fetch the images again; `teachonce index` lists all that is missing",
            ) from problem
        if tally.look_inside and size:
            tally.look(key, first_bytes(path, HEAD))
        yield ImagePlace(str(PurePosixPath(key).with_name(path.name)), 0, size, label)


def _of_json(file: Path, split: Split, classes: Vocabulary) -> Iterator[tuple[str, int]]:
    for path, label, name in _entries(file, split.part):
        index = classes.index.get(str(label))
        if index is None:
            raise DataError(f"{file}: the class {label} ('{name}') of '{path}' is not in the class list")
        yield path, index


def _of_lines(file: Path, classes: Vocabulary) -> Iterator[tuple[str, int]]:
    place = Places(classes.names)
    for number, image, name in _lines(file):
        if _spaced(name) not in place:
            raise DataError(f"{file}, line {number}: '{name}' is not in the class list: {did_you_mean(name, place)}")
        yield image, place[_spaced(name)]


def _lines(file: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, path and class name of every image of a text list."""
    for number, line in enumerate(_text(file).splitlines(), 1):
        image, _, name = line.strip().partition(" ")
        if image:
            yield number, image if extension(image) in image_endings() else f"{image}.jpg", name


def _entries(file: Path, part: str) -> Iterator[tuple[str, int, str]]:
    """Yield image, class number and class name of every image of a part."""
    document = _json(file)
    if not isinstance(document, dict) or not isinstance(document.get(part), list):
        raise DataError(f"{file} is not a split of CoOp: expected an object with the list '{part}'")
    for number, entry in enumerate(document[part]):
        try:
            path, label, name = entry
            yield str(path), int(label), _spaced(str(name))
        except (TypeError, ValueError) as problem:
            raise DataError(
                f"{file}: entry {number} of '{part}' is {entry!r}: expected [image, class number, class name]"
            ) from problem


def _json(file: Path) -> Any:
    try:
        return json_in(_text(file), MOST_BYTES)
    except ValueError as problem:
        raise DataError(f"{file} is not valid JSON: {problem}", hint="fetch the file again") from problem


def _spaced(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _text(file: Path) -> str:
    try:
        return list_text(file)
    except OSError as problem:
        raise DataError(f"cannot read {file}: {problem}", hint="`teachonce index` says what must be where") from problem
