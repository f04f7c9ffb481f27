"""Manifests: TOML files that say what a data set must be, read strictly.

Manifests hold no data, and this module never opens an archive: `layouts` and `reader` do, as a manifest declares.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from teachonce.core.digests import canonical_digest
from teachonce.core.documents import read_toml, toml_in
from teachonce.core.strict import decode
from teachonce.data.vocabulary import require_template
from teachonce.errors import DataError, UsageError, did_you_mean, neither_file_nor_name
from teachonce.objects.remote import is_folder
from teachonce.phrases import phrase

# These keys decide the samples and labels of a split, and so its digest; keys of the second line count only where set.
_ALWAYS = ("format", "path", "label", "classes", "samples")
_WHEN_SET: dict[str, Any] = {"unlabelled": False, "images": "", "part": ""}

Format = Literal[
    "webdataset",
    "class-tars",
    "nested-tars",
    "folder-tars",
    "image-folder",
    "photo-folder",
    "parquet",
    "coop-split",
    "image-list",
]
LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes, on every system that is known
TEMPLATE = "a photo of a {}."
LINES = "lines:"
NO_CLASSES = "none"
"""What a manifest of photos without classes says for its class list."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """One part of a data set: where its archives are and how they are laid out."""

    format: Format
    """webdataset: tars of KEY.jpg + KEY.<label>. class-tars: one tar a class, named by its id. nested-tars: a tar of
    such tars. folder-tars: tars of class folders. image-folder: one folder a class, named by its id. photo-folder:
    photos at any depth, whose classes nobody states. parquet: an image and a label a row. coop-split: a JSON file of
    CoOp that lists images of train, val and test. image-list: a text file with an image and a class name a line."""
    path: str
    """Glob below the root for the archives; for image-folder the folder that holds the class folders; for photo-folder
    the folder of the photos; for coop-split and image-list the file."""
    label: str = "cls"
    """webdataset: the extension of the member that holds the label (index into the classes, or a class id),
    EXTENSION:FIELD for a field of a JSON object in it, `key` where keys begin with the class id and `_`.
    parquet: the column. image-folder: `number` where folders are named by the line of the class list, from 0."""
    images: str = ""
    """coop-split, image-list: the folder below the root that the listed images are relative to."""
    part: str = ""
    """coop-split: the part of the file, one of train, val and test."""
    unlabelled: bool = False
    """webdataset, folder-tars, parquet: nobody states the classes; labels are unknown."""
    classes: str | None = None
    """The class list of this split, where it differs from the manifest's."""
    samples: int | None = None
    """How many images the split must hold."""
    archives: int | None = None
    """How many archives (tars inside a tar, class folders) the split must have."""
    known_bad: tuple[str, ...] = ()
    """Keys of files that are known to be no images: they fail, but do not count as failures."""

    def __post_init__(self) -> None:
        """Raises ValueError for a path that leaves the root, or a listed split without what it needs."""
        if not self.path.strip():
            raise ValueError("path must not be empty")
        for name, path in (("path", self.path), ("images", self.images)):
            _require_below(name, path)
        _require_path("classes", self.classes or "")
        if not Path(self.path).parts and not self.is_folder:
            raise ValueError(f"path must name archives or a list below the root, found '{self.path}'")
        if any("**" in part and part != "**" for part in Path(self.path).parts):
            raise ValueError(f"path: '**' stands for folders, and nothing else may stand beside it: '{self.path}'")
        if self.listed != bool(self.images):
            raise ValueError("`images` goes with the formats coop-split and image-list, and these need it")
        if (self.format == "coop-split") != bool(self.part):
            raise ValueError("`part` goes with the format coop-split, which needs it: train, val or test")

    @property
    def is_folder(self) -> bool:
        """Whether the path is one folder, below which images lie as plain files."""
        return self.format in ("image-folder", "photo-folder")

    @property
    def listed(self) -> bool:
        """Whether a file lists the images one by one."""
        return self.format in ("coop-split", "image-list")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a data set must be."""

    schema: Literal[1]
    name: str
    title: str
    classes: str
    """The class list: a TSV file below the root (id, name), `timm:NAME`, `folders` (image-folder only), `schema`
    (parquet only: the class names in the first file's schema), `split` (coop-split only: the names in the file), `none`
    (photo-folder only: whoever teaches gives a vocabulary), or `lines:FILE` (a name a line; ids are line numbers from
    0)."""
    splits: dict[str, Split]
    names: str = ""
    """A file below the root with `ID NAME` lines whose names take the place of the class list's."""
    template: str = TEMPLATE
    """The hand-written sentence around a class name that `evaluate` uses where none is given."""
    about: str = ""
    """What is known of the release, for people."""
    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    """Files as they were released, below the root -> `md5:HEX` or `sha256:HEX`; checked on request where present."""
    licence: str = "not stated"
    get: str = ""
    """Where the data comes from and how to lay it out, for people."""

    def __post_init__(self) -> None:
        """Raises ValueError for a template without exactly one place for the name, or a path that nothing can have."""
        _require_path("classes", self.classes)
        for name, path in (("names", self.names), *(("digests", path) for path in self.digests)):
            _require_below(name, path)
        try:
            require_template(self.template)
        except UsageError as problem:
            raise ValueError(problem.message) from problem

    def split(self, name: str) -> Split:
        """Return the split of this name.

        Raises:
            UsageError: the manifest has no split of this name.
        """
        if name not in self.splits:
            raise UsageError(f"manifest '{self.name}' has no split '{name}': {did_you_mean(name, self.splits)}")
        return self.splits[name]

    def classes_of(self, split: str) -> str:
        """The class list that the labels of this split index."""
        return self.split(split).classes or self.classes

    def digest(self, split: str) -> str:
        """Return the SHA-256 (hex) of what decides the samples and labels of a split; prose does not count."""
        part = {
            key: value
            for key, value in dataclasses.asdict(self.split(split)).items()
            if key in _ALWAYS or (key in _WHEN_SET and value != _WHEN_SET[key])
        }
        return canonical_digest({"name": self.name, "classes": self.classes_of(split), "split": part}, spaced=True)


def _require_below(name: str, path: str) -> None:
    _require_path(name, path)
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError(f"{name} must stay below the root, found '{path}'")


def _require_path(name: str, path: str) -> None:
    """Refuse what no file system takes for a path; it would fail at the first file that is looked for."""
    parts = [len(part.encode(errors="surrogateescape")) for part in Path(path).parts if "\0" not in path]
    if "\0" in path or max(parts, default=0) > LONGEST_NAME or sum(parts) > LONGEST_PATH:
        shown = path if len(path) <= 80 else path[:80] + "..."
        raise ValueError(f"{name}: no file system takes such a name: {shown!r}")


def shipped_manifests() -> dict[str, Any]:
    """Return every manifest that ships with the package, as a readable resource by its name."""
    folder = resources.files("teachonce.data_manifests")
    return {item.name[: -len(".toml")]: item for item in folder.iterdir() if item.name.endswith(".toml")}


def load_manifest(name_or_path: str) -> Manifest:
    """Read a manifest by the name of a shipped one or by path.

    Raises:
        UsageError: the text is neither a shipped name nor the path of a file.
        DataError: the file is no TOML, has an unknown key, lacks a key, or has a value of a wrong type.
    """
    path = Path(name_or_path)
    shipped = shipped_manifests()
    if path.suffix == ".toml" or os.path.isfile(path):  # also of names that no system takes
        try:
            data, where = read_toml(path), str(path)
        except OSError as problem:
            raise UsageError(f"cannot read the manifest {path}: {problem.strerror or problem}") from problem
        except UnicodeDecodeError as problem:
            raise DataError(f"{path} is not UTF-8 text: {problem}") from problem
        except ValueError as problem:
            raise DataError(f"{path} is not valid TOML: {problem}") from problem
    elif name_or_path in shipped:
        data, where = toml_in(shipped[name_or_path].read_bytes()), f"manifest {name_or_path}"
    else:
        raise neither_file_nor_name(name_or_path, "manifest", shipped)
    return decode(Manifest, data, where, DataError)


def require_root(manifest: Manifest, root: Path | None) -> Path:
    """Return the folder that holds the data, checked.

    Raises:
        UsageError: no root was given.
        DataError: the root is not a folder; the hint says where to get the data.
    """
    if root is None:
        raise UsageError(
            f"manifest '{manifest.name}' needs the folder that holds its data",
            hint=phrase("add {root} DIR.") + f" {manifest.get}".rstrip(),
        )
    if not is_folder(root):
        raise DataError(f"{root} is not a folder: expected the data of '{manifest.title}' there", hint=manifest.get)
    return root


def absent_files(manifest: Manifest, split_name: str, root: Path) -> list[str]:
    """List the paths of a split's archives, lists and class lists that do not exist; the list is empty if all do.

    This function looks at places only; whoever reads a file finds out whether the file is whole.
    """
    split, classes = manifest.split(split_name), manifest.classes_of(split_name)
    needed = [split.images] if split.listed else []
    if classes.startswith(LINES):
        needed.append(classes[len(LINES) :])
    elif not classes.startswith("timm:") and classes not in ("folders", "schema", "split", NO_CLASSES):
        needed += [] if Path(classes).is_file() else [classes]
    needed += [manifest.names] if manifest.names else []
    there = (root / split.path).exists() if split.is_folder else any(True for _ in root.glob(split.path))
    absent = [] if there else [str(root / split.path)]
    return absent + [str(root / name) for name in needed if not (root / name).exists()]


def require_data(manifest: Manifest, split_name: str, root: Path) -> None:
    """Refuse data that are not there before anything is computed.

    Raises:
        DataError: something is missing; the message names it, and the hint says where the data come from.
    """
    absent = absent_files(manifest, split_name, root)
    if absent:
        raise DataError(f"the data of '{manifest.title}' are not there: missing {', '.join(absent)}", hint=manifest.get)
