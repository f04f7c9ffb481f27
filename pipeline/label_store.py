"""The label store: create it, commit one chunk of one column group, read what the ledger vouches for.

It is the only module that opens the Zarr hierarchy; it knows neither models nor images, and never touches torch.
Order of a commit: arrays written -> fsync -> read back and compared -> ledger record -> fsync.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
import zarr.errors

from teachonce import store_format
from teachonce.errors import DataError, IncompleteError, IntegrityError
from teachonce.ledger import (
    Record,
    chunk_digest,
    create_ledger,
    fingerprint_digest,
    from_row,
    ledger_path,
    require_fingerprint,
    to_row,
)
from teachonce.sample_index import SampleIndex
from teachonce.store_format import LABELS, ArraySpec, Layout
from teachonce.store_header import array_digest, check_header, read_header, static_faults, write_header
from teachonce.store_sync import sync, sync_tree, sync_up, write_failed
from teachonce.strict import decode
from teachonce.vocabulary import Vocabulary, parse_tsv

Arrays = dict[str, npt.NDArray[Any]]
READ_ERRORS = (ValueError, RuntimeError, OSError, KeyError, TypeError, zarr.errors.BaseZarrError)


@dataclass(frozen=True)
class Group:
    """A column group: what is committed together, chunk by chunk."""

    name: str
    fingerprint: dict[str, Any]
    arrays: tuple[ArraySpec, ...]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the fingerprint without `about`, which is for people."""
        return fingerprint_digest({field: value for field, value in self.fingerprint.items() if field != "about"})


class LabelStore:
    """An open store. Create with `create`, open with `open`; both check before they return."""

    def __init__(self, path: Path, root: zarr.Group, layout: Layout, groups: dict[str, Group]) -> None:
        self.path = path
        self.layout = layout
        self.groups = groups
        self._root = root

    @classmethod
    def create(
        cls,
        path: Path,
        layout: Layout,
        fingerprint: Mapping[str, Any],
        vocabulary: Vocabulary,
        label_classes: Vocabulary,
        index: SampleIndex,
        order: npt.NDArray[np.int64],
        class_embeddings: npt.NDArray[np.float32] | None,
    ) -> LabelStore:
        """Make an empty store; it appears under its name only when it is whole.

        Args:
            path: must not exist.
            layout: fixes every array.
            fingerprint: of the column group `labels`.
            vocabulary: the classes that labels index.
            label_classes: the manifest's own class list.
            index: the samples in the manifest's order.
            order: the samples in row order.
            class_embeddings: [classes, D], the teacher's unit text features; None without a teacher.
        """
        draft = path.with_name(f"{path.name}.creating-{os.getpid()}")
        for left in path.parent.glob(f"{path.name}.creating-*"):  # of killed runs; the lock keeps living ones out
            shutil.rmtree(left, ignore_errors=True)
        try:
            root = zarr.create_group(str(draft), zarr_format=3)
            root.attrs["teachonce"] = {
                "format": store_format.FORMAT,
                "version": store_format.FORMAT_VERSION,
                "layout": dataclasses.asdict(layout),
                "fingerprint": dict(fingerprint),
            }
            static = _static_arrays(vocabulary, label_classes, class_embeddings, index, order)
            for name, data in static.items():
                store_format.create_static_array(root, name, data)
            _create_group(root, LABELS, store_format.label_arrays(layout), layout)
            write_header(draft, root)
            sync_tree(draft)
            os.rename(draft, path)
            sync(path.parent)
        except OSError as problem:
            raise write_failed(path, problem) from problem
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: Path, writable: bool = False) -> LabelStore:
        """Open a store and check its header.

        Raises:
            DataError: no such folder, or it is no label store.
            IntegrityError: a metadata file is not what the header says, or a newer version wrote the store.
        """
        if not path.exists():
            raise DataError(f"{path} does not exist", hint=f"teachonce teach MANIFEST --teacher MODEL --labels {path}")
        try:
            root = zarr.open_group(str(path), mode="r+" if writable else "r", zarr_format=3)
            about: Any = root.attrs["teachonce"]
        except READ_ERRORS as problem:
            raise DataError(f"{path} is not a label store: {problem}") from problem
        if not isinstance(about, dict) or about.get("format") != store_format.FORMAT:
            raise DataError(f"{path} is not a label store: its attributes are those of something else")
        if about.get("version") != store_format.FORMAT_VERSION:
            raise IntegrityError(
                f"{path} has format version {about.get('version')}; this program reads {store_format.FORMAT_VERSION}",
                hint="install the version of teachonce that wrote it, or a newer one",
            )
        check_header(path, root)
        layout = decode(Layout, about["layout"], f"{path}: layout", IntegrityError)
        groups = {LABELS: Group(LABELS, dict(about["fingerprint"]), store_format.label_arrays(layout))}
        for name, width, fingerprint in _student_groups(root):
            groups[name] = Group(name, fingerprint, store_format.student_arrays(name, width))
        return cls(path, root, layout, groups)

    def add_student(self, digest: str, width: int, fingerprint: Mapping[str, Any]) -> str:
        """Add the empty column group of a student's features (driver only); returns its name.

        Raises:
            FingerprintError: the group is there with another fingerprint.
        """
        name = store_format.student_group(digest)
        if name in self.groups:
            require_fingerprint(self.path, name, self.groups[name].fingerprint, fingerprint)
            return name
        # What a run left that died before its header was written:
        shutil.rmtree(self.path / name, ignore_errors=True)
        shutil.rmtree(self.path / ledger_path(name), ignore_errors=True)
        arrays = read_header(self.path, self._root)["arrays"]
        try:
            specs = store_format.student_arrays(name, width)
            self._root.require_group("students")
            group = self._root.create_group(name)
            group.attrs["teachonce"] = {"width": width, "fingerprint": dict(fingerprint)}
            _create_group(self._root, name, specs, self.layout)
            write_header(self.path, self._root, arrays)
            sync_tree(self.path / "students")
            sync_tree(self.path / ledger_path(name))
            sync_up(self.path / "ledger" / "zarr.json", self.path)
        except OSError as problem:
            raise write_failed(self.path, problem) from problem
        self.groups[name] = Group(name, dict(fingerprint), specs)
        return name

    def vocabulary(self) -> Vocabulary:
        """The classes that stored labels index."""
        return parse_tsv(self._static("vocabulary").tobytes().decode(), f"{self.path}/vocabulary")

    def class_embeddings(self) -> npt.NDArray[np.float32]:
        """The teacher's unit text features, [classes, D]."""
        return np.asarray(self._static("class_embeddings"), dtype=np.float32)

    def label_classes(self) -> Vocabulary:
        """The manifest's own class list, which `label` indexes."""
        return parse_tsv(self._static("label_classes").tobytes().decode(), f"{self.path}/label_classes")

    def samples(self, start: int, stop: int) -> npt.NDArray[np.uint32]:
        """Place of the samples of rows start..stop in the manifest's own order."""
        views = self.layout.views
        try:
            part = np.asarray(self._root["index/sample"][start // views : stop // views])  # type: ignore[index]
        except READ_ERRORS as problem:
            raise IntegrityError(f"{self.path}/index/sample cannot be read: {problem}") from problem
        return np.repeat(part, views)

    def _static(self, name: str) -> npt.NDArray[Any]:
        try:
            data = np.asarray(self._root[name][...])  # type: ignore[index]
        except READ_ERRORS as problem:
            raise IntegrityError(f"{self.path}/{name} cannot be read: {problem}") from problem
        if array_digest(name, data) != read_header(self.path, self._root)["arrays"].get(name):
            raise IntegrityError(f"{self.path}/{name} is not what was written; a lost chunk reads as zeros",
                                 hint="restore the store from a backup")  # fmt: skip
        return data

    def static_faults(self) -> list[tuple[str, str, str]]:
        """Arrays outside the chunks that are not what was written: (where, expected, found)."""
        return static_faults(self.path, self._root)

    def index_of_chunk(self, chunk: int) -> SampleIndex:
        """The samples of one chunk, in row order."""
        start, stop = (edge // self.layout.views for edge in self.layout.bounds(chunk))
        try:
            part = {n: np.asarray(self._root[f"index/{n}"][start:stop])  # type: ignore[index]
                    for n in ("archive", "offset", "size", "label", "key_ends")}  # fmt: skip
            key_start = int(self._root["index/key_ends"][start - 1]) if start else 0  # type: ignore[index,arg-type]
            keys = np.asarray(self._root["index/key_bytes"][key_start : int(part["key_ends"][-1])])  # type: ignore[index]
        except READ_ERRORS as problem:
            raise IntegrityError(f"{self.path}/index cannot be read: {problem}") from problem
        archives = tuple(self._static("index/archives").tobytes().decode().split("\n"))
        ends = (part["key_ends"] - np.uint64(key_start)).astype(np.uint64)
        return SampleIndex(archives, part["archive"], part["offset"], part["size"], part["label"], keys, ends)

    def write_chunk(self, group: str, chunk: int, data: Arrays) -> tuple[bytes, ...]:
        """Write and prove one chunk of one group; it does not exist before `commit`.

        Args:
            data: every array of the group, keyed by path, [rows of the chunk, ...].

        Returns:
            The digests that `commit` records.

        Raises:
            IncompleteError: a write failed (disk full, no permission); nothing committed is touched.
            IntegrityError: what was read back is not what was written.
        """
        start, stop = self.layout.bounds(chunk)
        specs = self.groups[group].arrays
        try:
            for spec in specs:
                array: Any = self._root[spec.path]
                # Not stored with the array: without it a chunk that equals the fill value (only failures) is dropped.
                array.with_config({"write_empty_chunks": True})[start:stop] = data[spec.path].astype(
                    spec.dtype, copy=False
                )
            for spec in specs:
                sync_up(chunk_file(self.path, spec, chunk), self.path / spec.path)
        except OSError as problem:
            raise write_failed(self.path, problem) from problem
        wanted = self._digests(group, chunk, data)
        if self._digests(group, chunk, self._read(group, chunk)) != wanted:
            raise IntegrityError(f"{self.path}: chunk {chunk} of {group} reads back different from what was written",
                                 hint="the disk or its memory is faulty")  # fmt: skip
        return wanted

    def commit(
        self, group: str, chunk: int, token: int, rows_ok: int, rows_failed: int, digests: tuple[bytes, ...]
    ) -> None:
        """Enter a written chunk into the ledger: from here on it exists."""
        path = ledger_path(group)
        try:
            self._root[path][chunk : chunk + 1] = to_row(token, rows_ok, rows_failed, digests)[None]  # type: ignore[index]
            sync_up(self.path / path / "c" / str(chunk) / "0", self.path / path)
        except OSError as problem:
            raise write_failed(self.path, problem) from problem

    def drop(self, group: str, chunk: int) -> None:
        """Take a chunk out of the ledger, so that `teach` writes it anew."""
        path = ledger_path(group)
        shutil.rmtree(self.path / path / "c" / str(chunk), ignore_errors=True)
        sync(self.path / path / "c")

    def record(self, group: str, chunk: int) -> Record | None:
        """The ledger's record of a chunk; None when it is not committed.

        Raises:
            IntegrityError: the record itself is damaged.
        """
        try:
            row = np.asarray(self._root[ledger_path(group)][chunk])  # type: ignore[index]
        except READ_ERRORS as problem:
            raise IntegrityError(
                f"{self.path}/{ledger_path(group)}/c/{chunk}/0: damaged ledger record: {problem}",
                hint=f"teachonce verify {self.path} --repair, then run `teachonce teach` again",
            ) from problem
        return from_row(row)

    def committed(self, group: str) -> list[int]:
        """Chunks that exist, in order."""
        folder = self.path / ledger_path(group) / "c"
        present = (
            {int(entry.name) for entry in os.scandir(folder) if entry.name.isdigit()} if folder.is_dir() else set()
        )
        return [c for c in sorted(present) if c < self.layout.chunks and self.record(group, c) is not None]

    def read_chunk(self, group: str, chunk: int) -> Arrays:
        """All arrays of one committed chunk, keyed by path, checked against the ledger.

        Raises:
            IncompleteError: the chunk is not committed.
            IntegrityError: a file is missing, damaged, swapped or stale; names it.
        """
        record = self.record(group, chunk)
        if record is None:
            raise IncompleteError(f"{self.path}: chunk {chunk} of {group} is not committed",
                                  hint="run the same `teachonce teach` again to complete the store")  # fmt: skip
        data = self._read(group, chunk)
        for spec, found, wanted in zip(
            self.groups[group].arrays, self._digests(group, chunk, data), record.digests, strict=True
        ):
            if found != wanted:
                raise IntegrityError(
                    f"{chunk_file(self.path, spec, chunk)}: expected digest {wanted.hex()}, found {found.hex()}",
                    hint=f"teachonce verify {self.path} --repair, then run `teachonce teach` again",
                )
        return data

    def _read(self, group: str, chunk: int) -> Arrays:
        start, stop = self.layout.bounds(chunk)
        data: Arrays = {}
        for spec in self.groups[group].arrays:
            try:
                data[spec.path] = np.asarray(self._root[spec.path][start:stop])  # type: ignore[index]
            except READ_ERRORS as problem:
                raise IntegrityError(
                    f"{chunk_file(self.path, spec, chunk)}: damaged: {problem}",
                    hint=f"teachonce verify {self.path} --repair, then run `teachonce teach` again",
                ) from problem
        return data

    def _digests(self, group: str, chunk: int, data: Arrays) -> tuple[bytes, ...]:
        own = self.groups[group]
        return tuple(chunk_digest(own.digest, spec.path, chunk, data[spec.path].astype(spec.dtype, copy=False))
                     for spec in own.arrays)  # fmt: skip

    def store_id(self) -> str:
        """Digest of the fingerprints and of every committed chunk: equal ids mean equal content."""
        parts = [
            [
                name,
                group.digest,
                [record.digests for c in range(self.layout.chunks) if (record := self.record(name, c))],
            ]
            for name, group in sorted(self.groups.items())
        ]
        return fingerprint_digest({"parts": str(parts)})[:32]


def chunk_file(store: Path, spec: ArraySpec, chunk: int) -> Path:
    """The file that holds a chunk of an array."""
    return store / spec.path / "c" / "/".join([str(chunk)] + ["0"] * len(spec.tail))


def _static_arrays(
    vocabulary: Vocabulary,
    label_classes: Vocabulary,
    class_embeddings: npt.NDArray[np.float32] | None,
    index: SampleIndex,
    order: npt.NDArray[np.int64],
) -> Arrays:
    """Everything that is written once, at creation."""
    ordered = index.take(order)
    static: Arrays = {
        "vocabulary": np.frombuffer(vocabulary.to_tsv(), np.uint8),
        "label_classes": np.frombuffer(label_classes.to_tsv(), np.uint8),
        "index/archives": np.frombuffer("\n".join(index.archives).encode(), np.uint8),
        "index/sample": order.astype(np.uint32),
    }
    for name in ("archive", "offset", "size", "label", "key_bytes", "key_ends"):
        static[f"index/{name}"] = getattr(ordered, name)
    if class_embeddings is not None:
        static["class_embeddings"] = class_embeddings
    return static


def _create_group(root: zarr.Group, name: str, specs: tuple[ArraySpec, ...], layout: Layout) -> None:
    for spec in specs:
        store_format.create_rows_array(root, spec, layout)
    root.require_group("ledger")
    create_ledger(root, name, layout.chunks, len(specs))


def _student_groups(root: zarr.Group) -> list[tuple[str, int, dict[str, Any]]]:
    if "students" not in root:
        return []
    header: Any = root["ledger"].attrs["header"]
    found = []
    for name in sorted(root["students"].group_keys()):  # type: ignore[union-attr]
        if f"students/{name}/zarr.json" in header["files"]:  # else a run died while it made the group
            about: Any = root[f"students/{name}"].attrs["teachonce"]
            found.append((f"students/{name}", int(about["width"]), dict(about["fingerprint"])))
    return found
