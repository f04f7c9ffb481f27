"""The ledger's header: digests of every metadata file and of every array that never changes after creation.

This module does not look at rows: the ledger's records hold the digests of rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
import zarr.errors

from teachonce.core.digests import canonical_digest
from teachonce.core.documents import json_in
from teachonce.core.remote import read_bytes
from teachonce.errors import IntegrityError
from teachonce.labels import format as store_format
from teachonce.labels.format import EMBEDDING, ArraySpec, Layout

STATIC = ("vocabulary", "label_classes", "class_embeddings", "class_order", "gap_levels")
HEADER_FILE = "ledger/zarr.json"
RESTORE = "restore the file from a backup, or delete the store and run the command that made it again"
"""What helps where a part is damaged that no command writes a second time."""


def write_header(path: Path, root: zarr.Group, arrays: dict[str, str] | None = None) -> None:
    """Digest all metadata files and static arrays and put the result into the attributes of the group `ledger`.

    `arrays` are the digests that stand in the former header: an array that was damaged since must not be blessed.
    """
    files = {name: _sha256(path / name) for name in metadata_files(path)}
    if arrays is None:
        arrays = {name: _array_digest(root, name) for name in static_arrays(root)}
    body: dict[str, Any] = {"files": files, "arrays": arrays}
    root["ledger"].attrs["header"] = {**body, "digest": canonical_digest(body)}


def metadata_files(path: Path) -> list[str]:
    """Every zarr.json of the store but the header's own, as paths below it."""
    names = (file.relative_to(path).as_posix() for file in path.rglob("zarr.json"))
    return sorted(name for name in names if name != HEADER_FILE)


def static_arrays(root: zarr.Group) -> list[str]:
    """Arrays that never change after creation."""
    names = [name for name in STATIC if name in root]
    return names + [f"index/{name}" for name in sorted(root["index"].array_keys())]  # type: ignore[union-attr]


def read_header(path: Path, root: zarr.Group) -> dict[str, Any]:
    """The header, checked against its own digest.

    Raises:
        IntegrityError: missing or damaged.
    """
    try:
        header: Any = root["ledger"].attrs["header"]
        body = {"files": dict(header["files"]), "arrays": dict(header["arrays"])}
        stated = header["digest"]
    except (KeyError, TypeError, ValueError, zarr.errors.BaseZarrError) as problem:
        raise IntegrityError(
            f"{path / HEADER_FILE}: the ledger's header is missing or damaged: {problem!r}", hint=RESTORE
        ) from problem
    try:
        whole = json_in(read_bytes(path / HEADER_FILE) or b"")
    except (OSError, ValueError) as problem:
        raise IntegrityError(
            f"{path / HEADER_FILE}: the ledger's header is damaged: {problem}", hint=RESTORE
        ) from problem
    # The digest covers the attributes; this covers the rest of the file.
    rest_is_sound = whole.get("zarr_format") == 3 and whole.get("node_type") == "group"
    if canonical_digest(body) != stated or not rest_is_sound:
        raise IntegrityError(
            f"{path / HEADER_FILE}: the ledger's header is damaged: it does not match its own digest", hint=RESTORE
        )
    return body


def check_header(path: Path, root: zarr.Group) -> None:
    """Compare every metadata file with the header; cheap, done at every open.

    Raises:
        IntegrityError: names the first file that differs or is missing.
    """
    for name, wanted in read_header(path, root)["files"].items():
        data = read_bytes(path / name)
        actual = "no such file" if data is None else hashlib.sha256(data).hexdigest()
        if actual != wanted:
            raise IntegrityError(
                f"{path / name}: expected SHA-256 {wanted}, found {actual}",
                hint="restore the file from a backup; rows cannot be trusted without it",
            )


def static_faults(path: Path, root: zarr.Group) -> list[tuple[str, str, str]]:
    """Static arrays that are not what was written: (where, expected, found); done by verify."""
    faults = []
    for name, wanted in read_header(path, root)["arrays"].items():
        try:
            actual = _array_digest(root, name)
        except (ValueError, RuntimeError, OSError, KeyError, zarr.errors.BaseZarrError) as problem:
            actual = f"unreadable: {problem}"
        if actual != wanted:
            faults.append((str(path / name), wanted, actual))
    return faults


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _array_digest(root: zarr.Group, name: str) -> str:
    return array_digest(name, np.asarray(root[name][...]))  # type: ignore[index]


def array_digest(name: str, data: npt.NDArray[Any]) -> str:
    """BLAKE2b-128 over name, dtype, shape and values."""
    data = np.ascontiguousarray(data)
    head = f"{name} {data.dtype.str} {data.shape}".encode()
    return hashlib.blake2b(head + data.tobytes(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Group:
    """A column group: what is committed together, chunk by chunk."""

    name: str
    fingerprint: dict[str, Any]
    arrays: tuple[ArraySpec, ...]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the fingerprint without `about`, which is for people."""
        return canonical_digest({field: value for field, value in self.fingerprint.items() if field != "about"})

    @property
    def vectors(self) -> ArraySpec:
        """The array of the vectors, one a row: every group but `labels` holds vectors, and their array comes first."""
        return self.arrays[0]


def group_arrays(name: str, body: dict[str, Any], layout: Layout) -> tuple[ArraySpec, ...]:
    """The arrays of a column group other than `labels`, from its attributes."""
    width = int(body["width"])
    if name == EMBEDDING:
        return store_format.embedding_arrays(body["fingerprint"]["kind"], width, layout)
    return store_format.student_arrays(name, width)


def other_groups(root: zarr.Group) -> list[tuple[str, dict[str, Any]]]:
    header: Any = root["ledger"].attrs["header"]
    students = root["students"].group_keys() if "students" in root else ()  # type: ignore[union-attr]
    names = [EMBEDDING, *(f"students/{name}" for name in sorted(students))]
    # A group that the header does not list is left out: a run may have died while it made that group.
    there = [name for name in names if f"{name}/zarr.json" in header["files"]]
    return [(name, dict(root[name].attrs["teachonce"])) for name in there]  # type: ignore[arg-type]
