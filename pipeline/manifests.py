"""Manifests: TOML files that say what a data set must be, read strictly.

They never hold data and this module never opens an archive: `images` does, from what is declared here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from teachonce.errors import DataError, UsageError, did_you_mean
from teachonce.remote import is_folder
from teachonce.strict import decode

# What decides the samples and labels of a split, and so its digest; keys of the second line count where they are used.
_ALWAYS = ("format", "path", "label", "classes", "samples")
_WHEN_SET: dict[str, Any] = {"unlabelled": False}

Format = Literal["webdataset", "class-tars", "nested-tars", "folder-tars", "image-folder", "parquet"]


@dataclass(frozen=True, kw_only=True)
class Split:
    """One part of a data set: where its archives are and how they are laid out."""

    format: Format
    """webdataset: tars of KEY.jpg + KEY.<label>. class-tars: one tar a class, named by its id. nested-tars: a tar of
    such tars. folder-tars: tars of class folders. image-folder: one folder a class, named by its id. parquet: an image
    and a label a row."""
    path: str
    """Glob below the root for the archives; for image-folder the folder that holds the class folders."""
    label: str = "cls"
    """webdataset: the extension of the member that holds the label (index into the classes, or a class id),
    EXTENSION:FIELD for a field of a JSON object in it, `key` where keys begin with the class id and `_`.
    parquet: the column."""
    unlabelled: bool = False
    """webdataset, folder-tars, parquet: nobody states the classes; labels are unknown."""
    classes: str | None = None
    """Class list of this split, when it is not the manifest's."""
    samples: int | None = None
    """How many images the split must hold."""
    archives: int | None = None
    """How many archives (tars inside a tar, class folders) the split must have."""
    known_bad: tuple[str, ...] = ()
    """Keys of images that are known to be no images: they fail, and do not count as failures."""

    def __post_init__(self) -> None:
        """Raises ValueError for a path that leaves the root."""
        if not self.path.strip():
            raise ValueError("path must not be empty")
        if Path(self.path).is_absolute() or ".." in Path(self.path).parts:
            raise ValueError(f"path must stay below the root, found '{self.path}'")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a data set must be."""

    schema: Literal[1]
    name: str
    title: str
    classes: str
    """The class list: a TSV file below the root (id, name), `timm:NAME`, `folders` (image-folder only), or `schema`
    (parquet only: the class names in the first file's schema)."""
    splits: dict[str, Split]
    about: str = ""
    """What is known of the release, for people."""
    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    """Files as they were released, below the root -> `md5:HEX` or `sha256:HEX`; checked on request where present."""
    licence: str = "not stated"
    get: str = ""
    """Where the data comes from and how to lay it out, for people."""

    def split(self, name: str) -> Split:
        """The named split.

        Raises:
            UsageError: there is none of this name.
        """
        if name not in self.splits:
            raise UsageError(f"manifest '{self.name}' has no split '{name}': {did_you_mean(name, self.splits)}")
        return self.splits[name]

    def classes_of(self, split: str) -> str:
        """The class list that the labels of this split index."""
        return self.split(split).classes or self.classes

    def digest(self, split: str) -> str:
        """SHA-256 (hex) of what decides the samples and labels of a split; prose does not count."""
        part = {key: value for key, value in dataclasses.asdict(self.split(split)).items()
                if key in _ALWAYS or (key in _WHEN_SET and value != _WHEN_SET[key])}  # fmt: skip
        text = json.dumps({"name": self.name, "classes": self.classes_of(split), "split": part}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def shipped_manifests() -> dict[str, Any]:
    """Name -> readable resource of every manifest that ships with the package."""
    folder = resources.files("teachonce.data_manifests")
    return {item.name[: -len(".toml")]: item for item in folder.iterdir() if item.name.endswith(".toml")}


def load_manifest(name_or_path: str) -> Manifest:
    """Read a manifest by the name of a shipped one or by path.

    Raises:
        UsageError: neither a shipped name nor a file.
        DataError: not TOML, unknown or missing key, wrong type.
    """
    path = Path(name_or_path)
    shipped = shipped_manifests()
    if path.suffix == ".toml" or path.is_file():
        try:
            text, where = path.read_text(encoding="utf-8"), str(path)
        except OSError as problem:
            raise UsageError(f"cannot read the manifest {path}: {problem.strerror or problem}") from problem
        except UnicodeDecodeError as problem:
            raise DataError(f"{path} is not UTF-8 text: {problem}") from problem
    elif name_or_path in shipped:
        text, where = shipped[name_or_path].read_text(encoding="utf-8"), f"manifest {name_or_path}"
    else:
        raise UsageError(
            f"'{name_or_path}' is neither a manifest file nor the name of one: {did_you_mean(name_or_path, shipped)}",
            hint="give the path of a .toml file, or one of: " + ", ".join(sorted(shipped)),
        )
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise DataError(f"{where} is not valid TOML: {problem}") from problem
    return decode(Manifest, data, where, DataError)


def require_root(manifest: Manifest, root: Path | None) -> Path:
    """The folder that holds the data.

    Raises:
        UsageError: no root was given.
        DataError: it is not a folder; says where to get the data.
    """
    if root is None:
        raise UsageError(
            f"manifest '{manifest.name}' needs the folder that holds its data",
            hint=f"add --root DIR. {manifest.get}".strip(),
        )
    if not is_folder(root):
        raise DataError(f"{root} is not a folder: expected the data of '{manifest.title}' there", hint=manifest.get)
    return root
