"""Each layout of archives, read into the places of its images by headers alone.

Nothing is extracted or decoded. Whatever lies in a split and is no sample is counted in the tally of the scan.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from teachonce.core.documents import json_in
from teachonce.core.files import is_remote
from teachonce.core.outside import Entry, files_below, first_bytes, listing
from teachonce.data.formats import (
    HEAD,
    PLAIN_ENDINGS,
    extension,
    image_endings,
    is_leftover,
    looks_like_image,
)
from teachonce.data.listed_images import ListedPart, listed_parts, scan_listed
from teachonce.data.manifests import Format, Manifest, Split
from teachonce.data.places import UNKNOWN, ImagePlace, Part, Tally, as_on_disk, name_bytes, name_of, printable
from teachonce.data.spelling import one_form
from teachonce.data.tars import Member, Sample, shard_samples, tar_members
from teachonce.data.vocabulary import Vocabulary
from teachonce.errors import DataError, did_you_mean
from teachonce.objects.remote import is_folder, opened

# Endings of archives that a manifest's path may miss: the same archives compressed, or half fetched.
ARCHIVES = frozenset({"tar", "tgz", "tbz", "txz", "gz", "xz", "bz2", "zst", "zip", "7z", "rar", "parquet", "part"})
MOST_LABEL_BYTES = 16 << 20  # of a member that holds a label: a class id, a number, or a JSON object


def archive_parts(manifest: Manifest, split: Split, root: Path, classes: Vocabulary, tally: Tally) -> Iterator[Part]:
    """Yield all parts of a split, in their order.

    Raises:
        DataError: nothing matches the split's path, or an outer archive cannot be read.
    """
    yield from LAYOUTS[split.format].parts(manifest, split, root, classes, tally)


def scan(split: Split, part: Part, classes: Vocabulary, tally: Tally) -> Iterator[ImagePlace]:
    """Yield the images of a part, in their order.

    Raises:
        DataError: the part cannot be read, is cut off, holds an unknown class, or holds a sample without a label.
    """
    return LAYOUTS[split.format].scan(split, part, classes, tally)


def _class_folders(manifest: Manifest, split: Split, root: Path, classes: Vocabulary, tally: Tally) -> Iterator[Part]:
    folder = root / split.path
    names = [str(number) for number in range(len(classes))] if split.label == "number" else classes.ids
    if folder.is_dir():
        _count_strangers(folder, frozenset(map(one_form, names)), tally)
    for name in names:
        class_folder = as_on_disk(folder / name)
        if class_folder.is_dir():
            yield Part(class_folder, name)


def _photo_folders(manifest: Manifest, split: Split, root: Path, classes: Vocabulary, tally: Tally) -> Iterator[Part]:
    """Yield the folder of the photos and every folder below it that holds files, each by its path from there."""
    top = root / split.path
    if not is_folder(top):
        raise DataError(f"{top} is not a folder: expected photos there", hint=manifest.get)
    places = {path.rpartition("/")[0] for path in files_below(top)}
    for place in sorted(places, key=name_bytes):
        if not any(is_leftover(part) for part in place.split("/") if part):
            yield Part(top / place if place else top, place)


def _scan_photos(split: Split, part: Part, classes: Vocabulary, tally: Tally) -> Iterator[ImagePlace]:
    """Scan one folder of photos; the folders in it are parts of their own."""
    endings = image_endings()
    for entry in _entries(part.archive):
        key = f"{part.name}/{entry.name}" if part.name else entry.name
        if entry.kind == "file" and extension(entry.name) in endings and not is_leftover(entry.name):
            if tally.look_inside and entry.size:
                tally.look(key, first_bytes(part.archive / entry.name, HEAD))
            yield ImagePlace(key, 0, entry.size, UNKNOWN)
        elif entry.kind != "folder" or entry.link:
            _count_in_folder(part.archive, entry, key, tally)


def _count_strangers(folder: Path, class_names: frozenset[str], tally: Tally) -> None:
    """Count what lies beside the class folders: folders of no class, and images."""
    for entry in _entries(folder):
        if is_leftover(entry.name):
            tally.pass_over("leftovers", entry.name)
        elif entry.kind == "folder" and one_form(entry.name) not in class_names:
            tally.pass_over("no_class", entry.name)
        elif entry.kind == "other":
            tally.pass_over("links" if entry.link else "devices", entry.name)
        elif entry.kind == "file" and looks_like_image(entry.name):
            tally.pass_over("outside_classes", entry.name)


def _entries(folder: Path) -> list[Entry]:
    try:
        return sorted(listing(folder))
    except OSError as problem:
        raise DataError(
            f"cannot list {folder}: {problem}", hint="restore the folder, or the right to read it"
        ) from problem


def _listed_folders(manifest: Manifest, split: Split, root: Path, classes: Vocabulary, tally: Tally) -> Iterator[Part]:
    yield from listed_parts(manifest, split, root, classes, tally)


def _archives(manifest: Manifest, split: Split, root: Path, classes: Vocabulary, tally: Tally) -> Iterator[Part]:
    for path in _archive_paths(manifest, split, root, tally):
        yield Part(path, path.stem)


def _parquet_files(manifest: Manifest, split: Split, root: Path, classes: Vocabulary, tally: Tally) -> Iterator[Part]:
    """Yield the files; files of one name in several folders are told apart by their folders, as keys need it."""
    names: set[str] = set()
    for path in _archive_paths(manifest, split, root, tally):
        name = path.stem if path.stem not in names else path.relative_to(root).with_suffix("").as_posix()
        names.add(name)
        yield Part(path, name)


def _nested_archives(manifest: Manifest, split: Split, root: Path, classes: Vocabulary, tally: Tally) -> Iterator[Part]:
    for path in _archive_paths(manifest, split, root, tally):
        yield from _inner_tars(path, tally)


def _archive_paths(manifest: Manifest, split: Split, root: Path, tally: Tally) -> list[Path]:
    paths = []
    for path in sorted(root.glob(split.path)):
        if is_leftover(path.name):
            tally.pass_over("leftovers", path.name)
            continue
        if not path.is_file():
            raise DataError(f"{path} matches {split.path} but is not a file")
        if "\n" in path.name:
            raise DataError(f"{str(path)!r}: the name of an archive must not hold a line break", hint="rename it")
        paths.append(path)
    if not paths:
        raise DataError(f"no archive matches {root / split.path}", hint=manifest.get)
    _count_other_archives(manifest, split, root, paths, tally)
    return paths


def _count_other_archives(manifest: Manifest, split: Split, root: Path, paths: list[Path], tally: Tally) -> None:
    """Count archives beside those of a split that are called like them but for the ending, or lie one folder deeper."""
    last = split.path.rpartition("/")[2]
    pattern = last.rpartition(".")[0].lower()
    if "*" not in pattern or is_remote(root):
        return
    taken = {path for other in manifest.splits.values() for path in root.glob(other.path)}
    for folder in sorted({path.parent for path in paths}):
        for deeper in sorted(set(folder.glob(f"*/{last}")) - taken):
            tally.pass_over("sub_folders", deeper.relative_to(folder).as_posix())
        for entry in _entries(folder):
            alike = fnmatch.fnmatchcase(entry.name.lower(), f"{pattern}.*") and extension(entry.name) in ARCHIVES
            if entry.kind == "file" and alike and folder / entry.name not in taken and not is_leftover(entry.name):
                tally.pass_over("other_archives", entry.name)


def _inner_tars(path: Path, tally: Tally) -> Iterator[Part]:
    for member in tar_members(Part(path, path.stem), tally):
        name = member.name.rpartition("/")[2]
        if extension(name) == "tar":
            yield Part(path, name[: -len(".tar")], member.offset, member.offset + member.size)
        elif looks_like_image(name):
            tally.pass_over("outside_classes", member.name)
        else:
            tally.pass_over_ending(member.name)


def _class_of(class_id: str, where: str, classes: Vocabulary) -> int:
    if class_id not in classes.index:
        ids_shown = classes.ids if len(classes) <= 20 else classes.ids[:3] + ("...",)
        raise DataError(f"{where}: '{class_id}' is not in the class list: {did_you_mean(class_id, ids_shown)}")
    return classes.index[class_id]


def _scan_folder(split: Split, part: Part, classes: Vocabulary, tally: Tally) -> Iterator[ImagePlace]:
    label = int(part.name) if split.label == "number" else classes.index[part.name]
    endings = image_endings()
    for entry in _entries(part.archive):
        key = f"{part.name}/{entry.name}"
        if entry.kind == "file" and extension(entry.name) in endings and not is_leftover(entry.name):
            if tally.look_inside and entry.size:
                tally.look(key, first_bytes(part.archive / entry.name, HEAD))
            yield ImagePlace(key, 0, entry.size, label)
        else:
            _count_in_folder(part.archive, entry, key, tally)


def _count_in_folder(folder: Path, entry: Entry, key: str, tally: Tally) -> None:
    """Count what lies in a class folder and is no sample."""
    if is_leftover(entry.name):
        tally.pass_over("leftovers", key)
    elif entry.kind == "file":
        tally.pass_over_ending(key)
    elif entry.link:
        tally.pass_over("links", key)
    elif entry.kind == "folder":
        images = [path for path in files_below(folder / entry.name) if looks_like_image(path) and not is_leftover(path)]
        tally.pass_over("sub_folders", f"{key}/{images[0]}" if images else key, len(images))
    else:
        tally.pass_over("devices", key)


def _key_name(name: str) -> str:
    """Return a file's name without its ending, where keys leave that out."""
    return name.rpartition(".")[0] if extension(name) in PLAIN_ENDINGS else name


def _scan_class_tar(split: Split, part: Part, classes: Vocabulary, tally: Tally) -> Iterator[ImagePlace]:
    label = _class_of(part.name, str(part), classes)
    endings = image_endings()
    for member in tar_members(part, tally):
        name = member.name.rpartition("/")[2]
        if extension(name) in endings:
            tally.look(member.name, member.head)
            yield ImagePlace(f"{part.name}/{_key_name(name)}", member.offset, member.size, label)
        else:
            tally.pass_over_ending(member.name)


def _scan_folder_tar(split: Split, part: Part, classes: Vocabulary, tally: Tally) -> Iterator[ImagePlace]:
    """Scan a tar of class folders, which may lie below other folders: CLASS/NAME.jpg."""
    endings = image_endings()
    for member in tar_members(part, tally):
        folder, _, name = member.name.rpartition("/")
        if extension(name) not in endings:
            tally.pass_over_ending(member.name)
            continue
        tally.look(member.name, member.head)
        class_id, stem = folder.rpartition("/")[2], _key_name(name)
        if split.unlabelled:
            yield ImagePlace(f"{part.name}/{folder}/{stem}", member.offset, member.size, UNKNOWN)
        else:
            label = _class_of(class_id, f"{part}: the folder of '{member.name}'", classes)
            yield ImagePlace(f"{class_id}/{stem}", member.offset, member.size, label)


def _scan_webdataset(split: Split, part: Part, classes: Vocabulary, tally: Tally) -> Iterator[ImagePlace]:
    suffix, _, field = split.label.partition(":")
    in_members = not split.unlabelled and split.label != "key"
    with opened(part.archive) as file:
        for sample in shard_samples(part, suffix if in_members else "", tally):
            key, image = sample.key, sample.image
            if split.unlabelled:
                label = UNKNOWN
            elif not in_members:
                label = _class_of(key.rpartition("/")[2].partition("_")[0], f"{part}: the key '{key}'", classes)
            elif sample.label is None:
                raise _no_label(part, sample, split)
            else:
                text = _whole(sample.label, file, part)
                label = _parse_label(text, field, f"{part}: the label of '{key}'", classes)
            tally.look(image.name, image.head)
            ending = "" if extension(image.name) in PLAIN_ENDINGS else f".{image.name.rpartition('.')[2]}"
            yield ImagePlace(key + ending, image.offset, image.size, label)


def _whole(label: Member, file: IO[bytes], part: Part) -> bytes:
    if label.size <= len(label.head):
        return label.head
    if label.size > MOST_LABEL_BYTES:
        raise DataError(f"{part}: the label '{label.name}' has {label.size:,} bytes; labels have {MOST_LABEL_BYTES:,}")
    file.seek(label.offset)
    return file.read(label.size)


def _no_label(part: Part, sample: Sample, split: Split) -> DataError:
    wanted = f"{sample.key}.{split.label.partition(':')[0]}"
    beside = f"; beside the image lie {', '.join(map(printable, sample.beside))}" if sample.beside else ""
    return DataError(
        f"{part}: the sample '{sample.key}' has no label member beside its image, nor elsewhere in the archive: "
        f"no '{wanted}'{beside}",
        hint=f'the manifest\'s split says label = "{split.label}"',
    )


def _parse_label(text: bytes, field: str, where: str, classes: Vocabulary) -> int:
    """Return the class that a label states.

    A label is a class id or a number, by itself or in a field of a JSON object; a class id may also be the start of a
    file name.
    """
    word = name_of(text).strip()
    if field:
        try:
            field_value = json_in(word)[field]
        except (ValueError, KeyError, TypeError) as problem:
            raise DataError(f"{where}: expected a JSON object with '{field}', found {word[:80]!r}") from problem
        word = str(field_value).rpartition("/")[2]
        if word not in classes.index and word.partition("_")[0] in classes.index:
            word = word.partition("_")[0]
    if word.isdecimal() and word.isascii():  # a number is the line of the class list, also where ids are numbers
        if int(word) < len(classes):
            return int(word)
    elif word in classes.index:
        return classes.index[word]
    raise DataError(
        f"{where} is {word!r}: expected a class id or a number below {len(classes)}",
        hint="numbers are lines of the class list, counted from 0",
    )


def _scan_listed(split: Split, part: Part, classes: Vocabulary, tally: Tally) -> Iterator[ImagePlace]:
    return scan_listed(cast(ListedPart, part), tally)


def _scan_parquet(split: Split, part: Part, classes: Vocabulary, tally: Tally) -> Iterator[ImagePlace]:
    from teachonce.data.parquet import scan_parquet  # pyarrow is an optional dependency

    return scan_parquet(part, split, classes, tally)


@dataclass(frozen=True)
class Layout:
    """How the images of one format are met: one function yields the parts of a split, one the images of a part."""

    parts: Callable[[Manifest, Split, Path, Vocabulary, Tally], Iterator[Part]]
    scan: Callable[[Split, Part, Vocabulary, Tally], Iterator[ImagePlace]]


LAYOUTS: Mapping[Format, Layout] = {
    "image-folder": Layout(_class_folders, _scan_folder),
    "photo-folder": Layout(_photo_folders, _scan_photos),
    "class-tars": Layout(_archives, _scan_class_tar),
    "nested-tars": Layout(_nested_archives, _scan_class_tar),
    "folder-tars": Layout(_archives, _scan_folder_tar),
    "webdataset": Layout(_archives, _scan_webdataset),
    "parquet": Layout(_parquet_files, _scan_parquet),
    "coop-split": Layout(_listed_folders, _scan_listed),
    "image-list": Layout(_listed_folders, _scan_listed),
}
"""Every format that a manifest may name. A new layout needs a line here and its name in `manifests.Format`."""
