"""What the metadata of a store say, and whether its arrays are those of its layout.

A store may come from a stranger, who can compute digests as well as we can. So the metadata of every array are compared
with what the layout asks for before anything of an array's size is made. Other programs may have added to the files of
a sound store: that is passed over, and `verify` takes it out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zarr

from teachonce.core.digests import canonical_digest
from teachonce.core.files import atomic_write_bytes, is_remote
from teachonce.core.strict import decode
from teachonce.errors import DataError, IntegrityError
from teachonce.keeping.bucket import BucketKeeper
from teachonce.labels import format as store_format
from teachonce.labels.access import HEADER_FILE, METADATA, ChunkLimit, chunk_files, document_in, read_metadata
from teachonce.labels.format import EMBEDDING, INDEX_CHUNK, LABELS, ArraySpec, Layout
from teachonce.labels.ledger import BEHAVIOURS, ledger_form, ledger_path
from teachonce.phrases import phrase

NO_STORE = "give a .zarr folder that `teachonce teach`, `relabel` or `merge` has written"
RESTORE = "restore the file from a backup, or delete the store and run the command that made it again"
"""What helps where a part is damaged that no command writes a second time."""
MOST_WIDTH = 1 << 20
_STUDENT = re.compile(rf"(students/[^/]+)/{METADATA}")
_OTHERS_KEY = "consolidated_metadata"
_TYPES: dict[str, tuple[type, ...]] = {
    "about": (dict,),
    "samples": (str,),
    "derivation": (str,),
    "entropy": (float, int),
    "head": (str,),
    "kind": (str,),
    "logit_scale": (float, int),
    "prior": (dict,),
    "label_noise": (dict,),
    "prompts": (str,),
    "student_digest": (str,),
    "teacher_digest": (str,),
    "vocabulary_digest": (str,),
    **dict.fromkeys(BEHAVIOURS.values(), (dict,)),
    "templates": (list,),
    "temperatures": (list,),
    "top_k": (int,),
}
"""The fields of fingerprints whose values are computed with, and what they are."""


class Fingerprint(dict[str, Any]):
    """A fingerprint as it was read; a field that it lacks is damage of the store, and no mistake of the reader."""

    def __missing__(self, name: str) -> Any:
        raise IntegrityError(f"the store's fingerprint lacks '{name}'", hint=RESTORE)


def fingerprint_of(value: Any, where: str) -> Fingerprint:
    """The fingerprint in a metadata file.

    Raises:
        IntegrityError: it is no table, or a field that is computed with is of another type.
    """
    if not isinstance(value, dict):
        raise IntegrityError(f"{where}: the fingerprint is no table", hint=RESTORE)
    for name, kinds in _TYPES.items():
        if name in value and (not isinstance(value[name], kinds) or isinstance(value[name], bool)):
            raise IntegrityError(f"{where}: the fingerprint's '{name}' is a {type(value[name]).__name__}", hint=RESTORE)
    return Fingerprint(value)


def require_version(path: Path, attributes: Any, writable: bool) -> int:
    """The format version of a store, from its attributes.

    Raises:
        DataError: it is no label store, or of an older version, which is read but not written.
        IntegrityError: a newer version wrote it.
    """
    if not isinstance(attributes, dict) or attributes.get("format") != store_format.FORMAT:
        raise DataError(f"{path} is not a label store: its attributes are those of something else", hint=NO_STORE)
    version = attributes.get("version")
    if version not in store_format.READABLE_VERSIONS or isinstance(version, bool):
        raise IntegrityError(
            f"{path} has format version {str(version)[:40]}; this program reads "
            f"{' and '.join(map(str, store_format.READABLE_VERSIONS))}",
            hint="install the version of teachonce that wrote it, or a newer one",
        )
    if writable and version != store_format.FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {version}, which is read but no longer written",
            hint=phrase("use it as it is, or write a new store to another {labels} path"),
        )
    return int(version)


@dataclass(frozen=True)
class Metadata:
    """The metadata files of a store, each as the header says."""

    documents: Mapping[str, dict[str, Any]]
    """By path below the store."""
    added: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Keys that other programs have added to a file since, by its path: they are passed over."""


def checked_metadata(path: Path, names: Mapping[str, str]) -> Metadata:
    """Read metadata files and compare them with the header; cheap, done at every open.

    Args:
        path: of the store.
        names: SHA-256 by path below the store.

    Raises:
        IntegrityError: names the first file that differs or is missing.
    """
    documents: dict[str, dict[str, Any]] = {}
    added: dict[str, tuple[str, ...]] = {}
    for name, wanted in names.items():
        keys: tuple[str, ...] = ()
        try:
            data = read_metadata(path, name)
            actual = sha256(data)
            if actual != wanted:
                data, keys = without_additions(data)
                actual = actual if sha256(data) != wanted else wanted
            documents[name] = document_in(data)
        except FileNotFoundError:
            actual = "no such file"
        except (OSError, ValueError) as problem:
            actual = f"unreadable: {problem}"
        if actual != wanted:
            others = f"; other programs have added {', '.join(map(repr, keys))} to it" if keys else ""
            raise IntegrityError(
                f"{path / name}: expected SHA-256 {wanted}, found {actual}{others}",
                hint="restore the file from a backup; rows cannot be trusted without it",
            )
        added |= {name: keys} if keys else {}
    return Metadata(documents, added)


def sha256(data: bytes) -> str:
    """Hex."""
    return hashlib.sha256(data).hexdigest()


def without_additions(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """A metadata file as it was written, and what other programs have added to it since: metadata of the whole store in
    one place, as `zarr.consolidate_metadata` does it, or attributes of their own.
    """
    document = document_in(data)
    keys = [_OTHERS_KEY] if document.get(_OTHERS_KEY) is not None else []
    attributes = document.get("attributes")
    if isinstance(attributes, dict):
        keys += [key for key in attributes if key not in ("teachonce", "header")]
        document["attributes"] = {key: value for key, value in attributes.items() if key not in keys}
    if not keys and _OTHERS_KEY not in document:  # Zarr 3.1.3 writes the key with null
        return data, ()
    document.pop(_OTHERS_KEY, None)
    return json.dumps(document, indent=2).encode(), tuple(key[:80] for key in keys)


def take_out_additions(path: Path, metadata: Metadata) -> None:
    """Write the metadata files to which other programs have added something as they were.

    Raises:
        IncompleteError, EnvironmentFault: a file cannot be written.
    """
    for name in metadata.added:
        mended = without_additions(read_metadata(path, name))[0]
        if is_remote(path):
            BucketKeeper(path).write(name, mended)
        else:
            atomic_write_bytes(path / name, mended)


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


def features_group(groups: Mapping[str, Group], digest: str) -> str | None:
    """The column group with the image features of the model that has these weights; None where there is none.

    The teacher may be a student: its float16 embeddings are the features that `teach` would write of it, bit for bit.
    """
    group = store_format.student_group(digest)
    if group in groups:
        return group
    embedding = groups.get(EMBEDDING)
    of_it = embedding is not None and embedding.fingerprint.get("teacher_digest") == digest
    return EMBEDDING if of_it and embedding is not None and embedding.fingerprint["kind"] == "float16" else None


def group_arrays(name: str, body: dict[str, Any], layout: Layout) -> tuple[ArraySpec, ...]:
    """The arrays of a column group other than `labels`, from its attributes."""
    width = int(body["width"])
    if name == EMBEDDING:
        return store_format.embedding_arrays(body["fingerprint"]["kind"], width, layout)
    return store_format.student_arrays(name, width)


def other_groups(path: Path, documents: Mapping[str, dict[str, Any]], layout: Layout) -> dict[str, Group]:
    """The column groups besides `labels`, from their attributes.

    A group that the header does not list is left out: a run may have died while it made that group.

    Raises:
        IntegrityError: the attributes are not those of a column group.
    """
    names = [EMBEDDING] if f"{EMBEDDING}/{METADATA}" in documents else []
    names += sorted(match[1] for name in documents if (match := _STUDENT.fullmatch(name)))
    groups = {}
    for name in names:
        where = f"{path / name / METADATA}"
        try:
            body = dict(documents[f"{name}/{METADATA}"]["attributes"]["teachonce"])
            width = body["width"]
        except (KeyError, TypeError, ValueError) as problem:
            raise IntegrityError(f"{where} is not that of a column group: {problem!r}", hint=RESTORE) from problem
        fingerprint = fingerprint_of(body.get("fingerprint"), where)
        kind = fingerprint["kind"] if name == EMBEDDING else "int8"
        if not isinstance(width, int) or not 1 <= width <= MOST_WIDTH or kind not in ("int8", "float16"):
            raise IntegrityError(f"{where}: no group has the width {str(width)[:40]} and the kind {kind!r}")
        groups[name] = Group(name, fingerprint, group_arrays(name, {**body, "fingerprint": fingerprint}, layout))
    return groups


def require_arrays(
    path: Path, documents: Mapping[str, dict[str, Any]], layout: Layout, version: int, groups: Mapping[str, Group]
) -> dict[str, ChunkLimit]:
    """Compare the metadata of every array with the layout, before anything of an array's size is made.

    Returns:
        What the chunks of each array may hold, by its path.

    Raises:
        IntegrityError: names the first array that differs or is missing, and the field.
    """
    forms = store_format.static_forms(layout, version)
    if f"class_embeddings/{METADATA}" not in documents:
        del forms["class_embeddings"]
    for name, group in groups.items():
        forms |= {spec.path: store_format.rows_form(spec, layout) for spec in group.arrays}
        forms[ledger_path(name)] = ledger_form(layout.chunks, len(group.arrays), version)
    limits = {}
    for name, form in forms.items():
        try:
            limits[name] = store_format.require_form(documents[f"{name}/{METADATA}"], form)
        except KeyError:
            raise IntegrityError(f"{path / HEADER_FILE} lists no array {name}", hint=RESTORE) from None
        except ValueError as problem:
            raise IntegrityError(f"{path / name / METADATA}: {problem}", hint=RESTORE) from problem
    return limits


def require_rows(path: Path, root: zarr.Group, layout: Layout) -> None:
    """Refuse a store of more samples than the files of its index can hold.

    A lost file or two are not looked for here: `static_faults` names them.

    Raises:
        IntegrityError: says how many there can be.
    """
    samples, most = layout.rows // layout.views, INDEX_CHUNK
    for name in ("label", "sample", "archive", "offset", "size", "key_ends"):
        if samples <= most:
            return
        most = max(most, INDEX_CHUNK * chunk_files(root, path, f"index/{name}"))
    if samples > most:
        raise IntegrityError(
            f"{path}: layout: rows is {layout.rows}, and the files of its index hold no more than {most} samples",
            hint=RESTORE,
        )


def described(path: Path, metadata: Metadata, version: int) -> tuple[Layout, dict[str, Group]]:
    """The layout of a store and its column groups, from its attributes.

    Raises:
        IntegrityError: they are not those of a store, or no store could have such a layout.
    """
    attributes: Any = metadata.documents[METADATA]["attributes"]["teachonce"]
    if not isinstance(attributes.get("layout"), dict):
        raise IntegrityError(f"{path / METADATA}: the layout is missing or no table", hint=RESTORE)
    layout = decode(Layout, attributes["layout"], f"{path}: layout", IntegrityError, hint=RESTORE)
    fingerprint = fingerprint_of(attributes.get("fingerprint"), str(path / METADATA))
    labels = Group(LABELS, fingerprint, store_format.label_arrays(layout, version))
    return layout, {LABELS: labels, **other_groups(path, metadata.documents, layout)}
