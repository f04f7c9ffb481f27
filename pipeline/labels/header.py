"""The ledger's header: digests of every metadata file and of every array that never changes after creation.

This module does not look at rows: the ledger's records hold the digests of rows. What metadata must say, `metadata`
knows.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
import zarr.errors

from teachonce.core.digests import canonical_digest
from teachonce.core.sums import is_plain
from teachonce.data.index import SampleIndex
from teachonce.data.places import UNKNOWN
from teachonce.errors import IntegrityError
from teachonce.labels.access import HEADER_FILE, METADATA, array_of, chunk_files, document_in, read_metadata
from teachonce.labels.format import INDEX_CHUNK
from teachonce.labels.metadata import RESTORE, sha256, without_additions

STATIC = ("vocabulary", "label_classes", "class_embeddings", "class_order", "gap_levels")
READ_ERRORS = (ValueError, RuntimeError, OSError, KeyError, TypeError, zarr.errors.BaseZarrError)
Header = dict[str, dict[str, str]]
"""`files`: SHA-256 of each metadata file by its path; `arrays`: digest of each array that never changes."""


def write_header(path: Path, root: zarr.Group, former: Header | None = None, added: tuple[str, ...] = ()) -> None:
    """Digest all metadata files and static arrays and put the result into the attributes of the group `ledger`.

    Args:
        path: of the store.
        root: of the same.
        former: the header that is extended: an array that was damaged since must not be blessed, nor what other
            programs have put into the store.
        added: what the names of new metadata files begin with.
    """
    names = metadata_files(path)
    if former is None:
        arrays = {name: array_digest(name, np.asarray(root[name][...])) for name in static_arrays(root)}  # type: ignore[index]
    else:
        names = [name for name in names if name in former["files"] or name.startswith(added)]
        arrays = former["arrays"]
    files = {name: sha256(without_additions(read_metadata(path, name))[0]) for name in names}
    body: Header = {"files": files, "arrays": arrays}
    root["ledger"].attrs["header"] = {**body, "digest": canonical_digest(body)}


def metadata_files(path: Path) -> list[str]:
    """Every zarr.json of the store but the header's own, as paths below it."""
    names = (file.relative_to(path).as_posix() for file in path.rglob(METADATA))
    return sorted(name for name in names if name != HEADER_FILE)


def static_arrays(root: zarr.Group) -> list[str]:
    """Arrays that never change after creation."""
    names = [name for name in STATIC if name in root]
    return names + [f"index/{name}" for name in sorted(root["index"].array_keys())]  # type: ignore[union-attr]


def read_header(path: Path) -> Header:
    """The header's `files` and `arrays`, checked against its own digest.

    Raises:
        IntegrityError: missing or damaged, or a name in it leads out of the store.
    """
    try:
        whole = document_in(read_metadata(path, HEADER_FILE))
        header = whole["attributes"]["header"]
        body = {"files": dict(header["files"]), "arrays": dict(header["arrays"])}
        stated = header["digest"]
    except (KeyError, TypeError, ValueError, OSError) as problem:
        raise IntegrityError(
            f"{path / HEADER_FILE}: the ledger's header is missing or damaged: {problem!r}", hint=RESTORE
        ) from problem
    # The digest covers the attributes; this covers the rest of the file.
    rest_is_sound = whole.get("zarr_format") == 3 and whole.get("node_type") == "group"
    if canonical_digest(body) != stated or not rest_is_sound:
        raise IntegrityError(
            f"{path / HEADER_FILE}: the ledger's header is damaged: it does not match its own digest", hint=RESTORE
        )
    for name in (*body["files"], *body["arrays"]):
        if not is_plain(name):
            raise IntegrityError(f"{path / HEADER_FILE} names {name[:200]!r}, which is no place in it", hint=RESTORE)
    return body


def static_faults(path: Path, root: zarr.Group) -> list[tuple[str, str, str]]:
    """Static arrays that are not what was written: (where, expected, found); done by verify."""
    faults = []
    for name, wanted in read_header(path)["arrays"].items():
        try:
            require_chunks(path, root, name, array_of(root, name).shape[0])
            actual = array_digest(name, np.asarray(array_of(root, name)[...]))
        except READ_ERRORS as problem:
            actual = f"unreadable: {problem}"
        if actual != wanted:
            faults.append((str(path / name), wanted, actual))
    return faults


def require_chunks(path: Path, root: zarr.Group, name: str, length: int) -> None:
    """Refuse a static array that says to be longer than the files that are there, before it is made in memory.

    Raises:
        ValueError: says how many files lack.
    """
    wanted = -(-length // INDEX_CHUNK)
    if wanted > 1 and (here := chunk_files(root, path, name)) < wanted:
        raise ValueError(f"{here} of its {wanted} files are there")


def read_static(path: Path, root: zarr.Group, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
    """Entries start..stop of an array that never changes after creation.

    Raises:
        IntegrityError: they cannot be read.
    """
    try:
        array = array_of(root, name)
        require_chunks(path, root, name, array.shape[0])
        return np.asarray(array[start:stop])
    except READ_ERRORS as problem:
        raise IntegrityError(f"{path}/{name} cannot be read: {problem}", hint=RESTORE) from problem


def proved_static(path: Path, root: zarr.Group, name: str) -> npt.NDArray[Any]:
    """A whole array that never changes after creation, checked against the header.

    Raises:
        IntegrityError: it is damaged.
    """
    data = read_static(path, root, name)
    if array_digest(name, data) != read_header(path)["arrays"].get(name):
        raise IntegrityError(f"{path}/{name} is not what was written; a lost chunk reads as zeros", hint=RESTORE)
    return data


def read_index(path: Path, root: zarr.Group, archives: tuple[str, ...], start: int, stop: int) -> SampleIndex:
    """The samples start..stop of a store's index.

    Raises:
        IntegrityError: they cannot be read, or are none.
    """
    part = {
        name: read_static(path, root, f"index/{name}", start, stop)
        for name in ("archive", "offset", "size", "label", "key_ends")
    }
    key_start = int(read_static(path, root, "index/key_ends", start - 1, start)[0]) if start else 0
    keys = read_static(path, root, "index/key_bytes", key_start, int(part["key_ends"][-1]))
    ends = (part["key_ends"] - np.uint64(key_start)).astype(np.uint64)
    index = SampleIndex(archives, part["archive"], part["offset"], part["size"], part["label"], keys, ends)
    _require_sound(path, index)
    return index


def _require_sound(path: Path, index: SampleIndex) -> None:
    """Refuse samples that lie in no archive, or whose keys do not follow each other, as a stranger may write them.

    Raises:
        IntegrityError: names the array.
    """
    ends = index.key_ends.astype(np.int64)
    wrong = {
        "index/archive": (index.archive >= len(index.archives)).any(),
        "index/label": (index.label < UNKNOWN).any(),
        "index/key_ends": (np.diff(ends, prepend=0) < 0).any() or (len(ends) and ends[-1] != len(index.key_bytes)),
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise IntegrityError(f"{path}/{name} holds what no index does", hint=RESTORE)


def array_digest(name: str, data: npt.NDArray[Any]) -> str:
    """BLAKE2b-128 over name, dtype, shape and values."""
    data = np.ascontiguousarray(data)
    head = f"{name} {data.dtype.str} {data.shape}".encode()
    return hashlib.blake2b(head + data.tobytes(), digest_size=16).hexdigest()
