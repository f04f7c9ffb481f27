"""Each layout of archives, read into the places of its images by headers alone.

Nothing is extracted or decoded. Archives are opened through the `open` of their own path objects, so an archive may lie
elsewhere than on a local disk.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from teachonce.core.remote import opened
from teachonce.data.listed_images import ListedPart, listed_parts, scan_listed
from teachonce.data.manifests import Format, Manifest, Split
from teachonce.data.places import IMAGE_EXTENSIONS, UNKNOWN, ImagePlace, Part, extension
from teachonce.data.vocabulary import Vocabulary
from teachonce.errors import DataError, did_you_mean


def archive_parts(manifest: Manifest, split: Split, root: Path, classes: Vocabulary) -> Iterator[Part]:
    """Yield all parts of a split, in their order.

    Raises:
        DataError: nothing matches the split's path, or an outer archive cannot be read.
    """
    yield from LAYOUTS[split.format].parts(manifest, split, root, classes)


def scan(split: Split, part: Part, classes: Vocabulary) -> Iterator[ImagePlace]:
    """Yield the images of a part, in their order.

    Raises:
        DataError: the part cannot be read, is cut off, holds an unknown class, or holds a sample without a label.
    """
    return LAYOUTS[split.format].scan(split, part, classes)


def _class_folders(manifest: Manifest, split: Split, root: Path, classes: Vocabulary) -> Iterator[Part]:
    for number, class_id in enumerate(classes.ids):
        name = str(number) if split.label == "number" else class_id
        if (root / split.path / name).is_dir():
            yield Part(root / split.path / name, name)


def _listed_folders(manifest: Manifest, split: Split, root: Path, classes: Vocabulary) -> Iterator[Part]:
    yield from listed_parts(split, root, classes)


def _archives(manifest: Manifest, split: Split, root: Path, classes: Vocabulary) -> Iterator[Part]:
    for path in _archive_paths(manifest, split, root):
        yield Part(path, path.stem)


def _nested_archives(manifest: Manifest, split: Split, root: Path, classes: Vocabulary) -> Iterator[Part]:
    for path in _archive_paths(manifest, split, root):
        yield from _inner_tars(path)


def _archive_paths(manifest: Manifest, split: Split, root: Path) -> list[Path]:
    paths = sorted(root.glob(split.path))
    if not paths:
        raise DataError(f"no archive matches {root / split.path}", hint=manifest.get)
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} matches {split.path} but is not a file")
        if "\n" in path.name:
            raise DataError(f"{str(path)!r}: the name of an archive must not hold a line break", hint="rename it")
    return paths


def _inner_tars(path: Path) -> Iterator[Part]:
    for member in tar_members(Part(path, path.stem)):
        name = member.name.rpartition("/")[2]
        if extension(name) == "tar":
            yield Part(path, name[: -len(".tar")], member.offset_data, member.offset_data + member.size)


def _class_of(class_id: str, where: str, classes: Vocabulary) -> int:
    if class_id not in classes.index:
        ids_shown = classes.ids if len(classes) <= 20 else classes.ids[:3] + ("...",)
        raise DataError(f"{where}: '{class_id}' is not in the class list: {did_you_mean(class_id, ids_shown)}")
    return classes.index[class_id]


def _scan_folder(split: Split, part: Part, classes: Vocabulary) -> Iterator[ImagePlace]:
    label = int(part.name) if split.label == "number" else classes.index[part.name]
    for entry in sorted(_files(part.archive)):
        if extension(entry[0]) in IMAGE_EXTENSIONS:
            yield ImagePlace(f"{part.name}/{entry[0]}", 0, entry[1], label)


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield name and size of the regular files in a folder; links are followed."""
    if isinstance(folder, os.PathLike):
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file():
                    yield entry.name, entry.stat().st_size
        return
    for path in folder.iterdir():
        if path.is_file():
            yield path.name, path.stat().st_size


def tar_members(part: Part) -> Iterator[tarfile.TarInfo]:
    """Yield the regular members of a tar, one at a time; links, devices and sparse files are passed over.

    Offsets count from the start of the archive, also where the tar is only a part of the archive.

    Raises:
        DataError: the tar cannot be read, is damaged or cut off.
    """
    path = part.archive
    try:
        with opened(path) as file:
            end = path.stat().st_size if part.end is None else part.end
            file.seek(part.start)
            # tarfile's offsets count from the start of the file.
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise: gigabytes for ImageNet-21K
                    if not member.isreg() or member.sparse is not None:
                        continue
                    if member.offset_data + member.size > end:
                        raise DataError(
                            f"{part} is cut off: '{member.name}' should end at byte "
                            f"{member.offset_data + member.size}, it ends at {end}"
                        )
                    yield member
                _require_end(file, part, tar.offset)
    except (tarfile.TarError, OSError, OverflowError, MemoryError, ValueError) as problem:
        # The last three come from headers that claim absurd sizes.
        raise DataError(
            f"{part} is not a readable tar archive: {problem}",
            hint="fetch the archive again; compressed tars must be unpacked to plain .tar first",
        ) from problem


def _require_end(file: IO[bytes], part: Part, offset: int) -> None:
    """Refuse an archive without its end mark, a block of zeros.

    tarfile takes a damaged header, or the end of the file, for the end of the archive.
    """
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError(
            f"{part} is cut off or damaged at byte {offset}: expected a header or the end mark there",
            hint="fetch the archive again",
        )


def _scan_class_tar(split: Split, part: Part, classes: Vocabulary) -> Iterator[ImagePlace]:
    label = _class_of(part.name, str(part), classes)
    for member in tar_members(part):
        name = member.name.rpartition("/")[2]
        if extension(name) in IMAGE_EXTENSIONS:
            yield ImagePlace(f"{part.name}/{name.rpartition('.')[0]}", member.offset_data, member.size, label)


def _scan_folder_tar(split: Split, part: Part, classes: Vocabulary) -> Iterator[ImagePlace]:
    """Scan a tar of class folders, which may lie below other folders: CLASS/NAME.jpg."""
    for member in tar_members(part):
        folder, _, name = member.name.rpartition("/")
        if extension(name) not in IMAGE_EXTENSIONS:
            continue
        class_id, stem = folder.rpartition("/")[2], name.rpartition(".")[0]
        if split.unlabelled:
            yield ImagePlace(f"{part.name}/{folder}/{stem}", member.offset_data, member.size, UNKNOWN)
        else:
            label = _class_of(class_id, f"{part}: the folder of '{member.name}'", classes)
            yield ImagePlace(f"{class_id}/{stem}", member.offset_data, member.size, label)


def _scan_webdataset(split: Split, part: Part, classes: Vocabulary) -> Iterator[ImagePlace]:
    """Scan a WebDataset tar: members of one sample are adjacent and share the name up to the first dot."""
    key, image, label = "", None, None
    suffix, _, field = split.label.partition(":")
    with part.archive.open("rb") as file:
        for member in tar_members(part):
            folder, slash, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            if folder + slash + stem != key:
                if image is not None:
                    yield _labelled(part, key, image, label, split, classes)
                key, image, label = folder + slash + stem, None, None
            if ending.lower() in IMAGE_EXTENSIONS:
                if image is not None:
                    raise DataError(f"{part}: the sample '{key}' has two images; keys must be unique")
                image = member
            elif ending == suffix and not split.unlabelled:
                file.seek(member.offset_data)
                label = _parse_label(file.read(member.size), field, f"{part}: the label of '{key}'", classes)
    if image is not None:
        yield _labelled(part, key, image, label, split, classes)


def _labelled(
    part: Part, key: str, image: tarfile.TarInfo, label: int | None, split: Split, classes: Vocabulary
) -> ImagePlace:
    if split.unlabelled:
        label = UNKNOWN
    elif split.label == "key":
        label = _class_of(key.rpartition("/")[2].partition("_")[0], f"{part}: the key '{key}'", classes)
    elif label is None:
        raise DataError(
            f"{part}: the sample '{key}' has no label member beside its image",
            hint=f'the manifest\'s split says label = "{split.label}"',
        )
    return ImagePlace(key, image.offset_data, image.size, label)


def _parse_label(text: bytes, field: str, where: str, classes: Vocabulary) -> int:
    """Return the class that a label states.

    A label is a class id or a number, by itself or in a field of a JSON object; a class id may also be the start of a
    file name.
    """
    word = text.decode("utf-8", errors="replace").strip()
    if field:
        try:
            field_value = json.loads(word)[field]
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
    raise DataError(f"{where} is {word!r}: expected a class id or a number below {len(classes)}")


def _scan_listed(split: Split, part: Part, classes: Vocabulary) -> Iterator[ImagePlace]:
    return scan_listed(cast(ListedPart, part))


def _scan_parquet(split: Split, part: Part, classes: Vocabulary) -> Iterator[ImagePlace]:
    from teachonce.data.parquet import scan_parquet  # pyarrow is an optional dependency

    return scan_parquet(part, split, classes)


@dataclass(frozen=True)
class Layout:
    """How the images of one format are met: one function yields the parts of a split, one the images of a part."""

    parts: Callable[[Manifest, Split, Path, Vocabulary], Iterator[Part]]
    scan: Callable[[Split, Part, Vocabulary], Iterator[ImagePlace]]


LAYOUTS: Mapping[Format, Layout] = {
    "image-folder": Layout(_class_folders, _scan_folder),
    "class-tars": Layout(_archives, _scan_class_tar),
    "nested-tars": Layout(_nested_archives, _scan_class_tar),
    "folder-tars": Layout(_archives, _scan_folder_tar),
    "webdataset": Layout(_archives, _scan_webdataset),
    "parquet": Layout(_archives, _scan_parquet),
    "coop-split": Layout(_listed_folders, _scan_listed),
    "image-list": Layout(_listed_folders, _scan_listed),
}
"""Every format that a manifest may name. A new layout needs a line here and its name in `manifests.Format`."""
