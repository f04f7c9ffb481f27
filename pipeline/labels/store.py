"""The label store: commit one chunk of one column group, read what the ledger vouches for.

`create` makes stores and column groups. Neither module knows models or images, and neither imports torch.
Order of a commit: arrays written -> fsync -> read back and compared -> ledger record -> fsync.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from teachonce.core.digests import MIDDLE, canonical_digest
from teachonce.core.files import is_remote, sync, sync_up, write_failed
from teachonce.data.index import SampleIndex
from teachonce.data.places import name_of
from teachonce.data.vocabulary import Vocabulary, parse_tsv
from teachonce.errors import DataError, IncompleteError, IntegrityError
from teachonce.keeping.bucket import BucketKeeper
from teachonce.keeping.staging import ChunkFolders, stage_array
from teachonce.labels import codec as label_codec
from teachonce.labels.access import allow, array_of, open_group, whole_chunks
from teachonce.labels.codec import CodecTables, CodedTopK, FloatArray, IdArray, TopK, decode_embeddings
from teachonce.labels.format import EMBEDDING, LABELS, ArraySpec, Layout, chunk_file, chunk_folder
from teachonce.labels.header import READ_ERRORS, proved_static, read_header, read_index, read_static, static_faults
from teachonce.labels.ledger import Record, chunk_digest, from_row, ledger_path, record_file, to_row
from teachonce.labels.metadata import (
    NO_STORE,
    Group,
    Metadata,
    checked_metadata,
    described,
    require_arrays,
    require_rows,
    require_version,
)
from teachonce.phrases import option, phrase

Arrays = dict[str, npt.NDArray[Any]]


class LabelStore:
    """An open store: `create.create_store` makes one, `open` opens one, and both check it before they return."""

    def __init__(self, path: Path, root: zarr.Group, version: int, layout: Layout, groups: dict[str, Group]) -> None:
        self.path = path
        self.version = version
        self.layout = layout
        self.groups = groups
        self.root = root
        self._folders = ChunkFolders()

    @classmethod
    def open(cls, path: Path, writable: bool = False) -> LabelStore:
        """Open a store and check its header.

        Raises:
            DataError: no such folder, or it is no label store.
            EnvironmentFault: the path is a URL, and the network or a permission is missing.
            IntegrityError: a metadata file is not what the header says, or a newer version wrote the store.
            DataError: the store is of an older version, which is read but not written.
        """
        try:
            root = open_group(path, writable)
            attrs: Any = root.attrs["teachonce"]
        except READ_ERRORS as problem:
            raise DataError(f"{path} is not a label store: {problem}", hint=NO_STORE) from problem
        version = require_version(path, attrs, writable)
        metadata = checked_metadata(path, read_header(path)["files"])
        layout, groups = described(path, metadata, version)
        require_rows(path, root, layout)
        store = cls(path, root, version, layout, groups)
        store.admit(metadata)
        return store

    def admit(self, metadata: Metadata | None = None) -> None:
        """Let the arrays be read whose metadata agree with the layout.

        Args:
            metadata: as the files say; read anew where a column group was added.

        Raises:
            IntegrityError: the metadata of an array do not agree.
        """
        self.metadata = metadata or checked_metadata(self.path, read_header(self.path)["files"])
        limits = require_arrays(self.path, self.metadata.documents, self.layout, self.version, self.groups)
        allow(self.root, limits)

    @property
    def maker(self) -> str:
        """The command that made the store, and makes its lost chunks again."""
        return f"teachonce {self.groups[LABELS].fingerprint.get('derivation', 'teach')}"

    @property
    def embedding_hint(self) -> str:
        """How to come by embeddings that this store lacks."""
        if self.maker == "teachonce merge":
            return "a merged store has none: relabel its parents, then merge again"
        if self.maker == "teachonce relabel":
            return "its labels are no function of embeddings alone: relabel its parent, with all that is wanted at once"
        added = phrase("{embeddings} int8: only the teacher's image tower runs")
        added = added if self.layout.top_k else phrase("{teacher} MODEL ") + added
        return "run the command that made it again with " + added

    @property
    def _mend(self) -> str:
        return f"teachonce verify {self.path} " + option("repair") + f", then run the same `{self.maker}` again"

    def vocabulary(self) -> Vocabulary:
        """The classes that stored labels index."""
        classes = parse_tsv(name_of(self.static("vocabulary").tobytes()), f"{self.path}/vocabulary", exact=True)
        if len(classes) != self.layout.classes:
            raise IntegrityError(f"{self.path}/vocabulary has {len(classes)} classes, not {self.layout.classes}")
        return classes

    def class_embeddings(self) -> npt.NDArray[np.float32]:
        """The teacher's unit text features, [classes, D]."""
        return np.asarray(self.static("class_embeddings"), dtype=np.float32)

    @cached_property
    def label_to_vocabulary(self) -> IdArray:
        """Class index in the vocabulary for each index into `label_classes`, and -1 behind them, for the label -1."""
        index = self.vocabulary().index
        return np.array([index.get(class_id, -1) for class_id in self.label_classes().ids] + [-1])

    def in_vocabulary(self, label: npt.NDArray[Any]) -> IdArray:
        """Class index in the vocabulary of each label of a chunk, -1 where it has none.

        Raises:
            IntegrityError: a label is none of `label_classes`.
        """
        places = self.label_to_vocabulary
        if label.size and not -1 <= int(label.min()) <= int(label.max()) < len(places) - 1:
            raise IntegrityError(f"{self.path}: a label is none of the {len(places) - 1} of label_classes")
        in_vocabulary: IdArray = places[label]
        return in_vocabulary

    @cached_property
    def tables(self) -> CodecTables:
        """What soft labels are coded with."""
        if self.version == 1:
            return label_codec.first_version_tables(self.layout.classes)
        return CodecTables(self.static("class_order").astype(np.int64), self.gap_levels)

    @cached_property
    def gap_levels(self) -> FloatArray:
        """Nats below the best class for each value code, [L]."""
        if self.version == 1:
            return label_codec.first_version_tables(1).gap_levels
        return np.asarray(self.static("gap_levels"), dtype=np.float32)

    def decode_labels(self, data: Arrays) -> TopK:
        """The soft labels in the arrays of one chunk of the column group `labels`."""
        return label_codec.decode(_coded(data), self.tables)

    def decode_codes(self, data: Arrays) -> tuple[IdArray, npt.NDArray[np.uint8]]:
        """Classes by falling probability and their value codes, [R, k] each; -1 and 255 in rows without an image."""
        return label_codec.decode_codes(_coded(data), self.tables)

    def embeddings(self, chunk: int) -> FloatArray:
        """The teacher's unit image embeddings of a chunk, [R, D] float32; NaN in rows without an image.

        Raises:
            DataError: the store holds none.
            IncompleteError: this chunk's are not committed.
            IntegrityError: they are damaged.
        """
        if EMBEDDING not in self.groups:
            raise DataError(
                f"{self.path} holds no image embeddings of its teacher",
                hint=self.embedding_hint,
            )
        return decode_embeddings(self.read_chunk(EMBEDDING, chunk)[f"{EMBEDDING}/values"])

    def label_classes(self) -> Vocabulary:
        """The manifest's own class list, which `label` indexes."""
        text = name_of(self.static("label_classes").tobytes())
        return parse_tsv(text, f"{self.path}/label_classes", exact=True) if text else Vocabulary((), ())

    def samples(self, start: int, stop: int) -> npt.NDArray[np.uint32]:
        """Place of the samples of rows start..stop in the manifest's own order."""
        views = self.layout.views
        return np.repeat(read_static(self.path, self.root, "index/sample", start // views, stop // views), views)

    def static(self, name: str) -> npt.NDArray[Any]:
        """A whole array that never changes after creation, checked against the header.

        Raises:
            IntegrityError: it is damaged.
        """
        return proved_static(self.path, self.root, name)

    def static_faults(self) -> list[tuple[str, str, str]]:
        """Arrays outside the chunks that are not what was written: (where, expected, found)."""
        return static_faults(self.path, self.root)

    def index_of_chunk(self, chunk: int) -> SampleIndex:
        """The samples of one chunk, in row order."""
        start, stop = (edge // self.layout.views for edge in self.layout.bounds(chunk))
        return read_index(self.path, self.root, self._archives, start, stop)

    @cached_property
    def _archives(self) -> tuple[str, ...]:
        return tuple(name_of(self.static("index/archives").tobytes()).split("\n"))

    def write_chunk(self, group: str, chunk: int, data: Arrays, staging: Path | None = None) -> tuple[bytes, ...]:
        """Write and prove one chunk of one group; it does not exist before `commit`.

        Args:
            data: every array of the group, keyed by path, [rows of the chunk, ...].
            staging: a folder of the same file system to write to instead of the store, for `publish`.

        Returns:
            The digests that `commit` records.

        Raises:
            IncompleteError, EnvironmentFault: a write failed (disk full, no permission); nothing committed is touched.
            IntegrityError: what was read back is not what was written.
        """
        specs = self.groups[group].arrays
        place = staging or self.path
        arrays: dict[str, zarr.Array[Any]] = {}
        try:
            for spec in specs:
                if staging is not None:
                    stage_array(self.path, staging, spec.path)
                array = arrays[spec.path] = zarr.open_array(str(place / spec.path), mode="r+", zarr_format=3)
                start, stop = spec.bounds(self.layout, chunk)
                whole_chunks(array)[start:stop] = data[spec.path].astype(spec.dtype, copy=False)
            for spec in specs:  # what is staged is moved out of its folder `c`, whose names need not last
                top = place / spec.path if staging is None else chunk_folder(place, spec) / str(chunk)
                sync_up(chunk_file(place, spec, chunk), top)
        except OSError as problem:
            raise write_failed(place, problem) from problem
        wanted = tuple(self.digest_of(group, spec, chunk, data[spec.path]) for spec in specs)
        proved = (self._read(spec, chunk, arrays[spec.path], place) for spec in specs)
        if tuple(self.digest_of(group, spec, chunk, part) for spec, part in zip(specs, proved, strict=True)) != wanted:
            raise IntegrityError(
                f"{place}: chunk {chunk} of {group} reads back different from what was written",
                hint="the disk or its memory is faulty",
            )
        return wanted

    def publish(self, chunk: int, groups: Iterable[str], staging: Path) -> None:
        """Move what `write_chunk` left in a staging folder into its place, on the disk; `commit` makes it exist.

        Raises:
            IncompleteError: the files are not there, or cannot be moved.
        """
        specs = [spec for group in groups for spec in self.groups[group].arrays]
        try:
            for spec in specs:
                self._folders.move_in(chunk_folder(staging, spec), chunk_folder(self.path, spec), chunk)
            self._folders.sync(chunk_folder(self.path, spec) for spec in specs)
        except OSError as problem:
            raise write_failed(self.path, problem) from problem

    def commit(
        self,
        group: str,
        chunk: int,
        token: int,
        rows_ok: int,
        rows_failed: int,
        digests: tuple[bytes, ...],
        phases: Mapping[str, float] | None = None,
    ) -> None:
        """Enter a written chunk into the ledger: from here on it exists."""
        path = ledger_path(group)
        row = to_row(token, rows_ok, rows_failed, digests, phases)
        try:
            array_of(self.root, path)[chunk : chunk + 1] = row[None]
            record = record_file(self.path, group, chunk)
            sync_up(record, record.parent)
            self._folders.sync([record.parents[1]])
        except OSError as problem:
            raise write_failed(self.path, problem) from problem

    def drop(self, group: str, chunk: int) -> None:
        """Take a chunk out of the ledger, so that the command that made the store writes it anew.

        Raises:
            IncompleteError, EnvironmentFault: the folder cannot be written.
        """
        path = ledger_path(group)
        if is_remote(self.path):
            BucketKeeper(self.path).remove(f"{path}/c/{chunk}/0")
            return
        try:
            with suppress(FileNotFoundError):
                shutil.rmtree(self.path / path / "c" / str(chunk))
            sync(self.path / path / "c")
        except OSError as problem:
            raise write_failed(self.path, problem) from problem

    def record(self, group: str, chunk: int) -> Record | None:
        """The ledger's record of a chunk; None when it is not committed.

        Raises:
            IntegrityError: the record itself is damaged.
        """
        if not is_remote(self.path) and not os.path.lexists(record_file(self.path, group, chunk)):
            return None  # Zarr would say so in several milliseconds, three times a delivery
        try:
            row = np.asarray(array_of(self.root, ledger_path(group))[chunk])
        except READ_ERRORS as problem:
            raise IntegrityError(
                f"{self.path}/{ledger_path(group)}/c/{chunk}/0: damaged ledger record: {problem}",
                hint=self._mend,
            ) from problem
        return from_row(row, self.version)

    def committed(self, group: str) -> list[int]:
        """Chunks that exist, in order."""
        return [chunk for chunk, record in enumerate(self.records(group)) if record is not None]

    def records(self, group: str) -> list[Record | None]:
        """The record of every chunk, None where nothing is committed.

        Raises:
            IntegrityError: a record is damaged; names it.
        """
        whole = self._ledger(group)
        if whole is None:  # read one by one, the damaged one says so
            return [self.record(group, chunk) for chunk in range(self.layout.chunks)]
        return [from_row(row, self.version) for row in whole]

    def _ledger(self, group: str) -> npt.NDArray[np.uint64] | None:
        """All rows of a ledger, read at once because one by one is slow; None if any of them cannot be read."""
        try:
            return np.asarray(array_of(self.root, ledger_path(group))[...], dtype=np.uint64)
        except READ_ERRORS:
            return None

    def read_chunk(self, group: str, chunk: int, only: tuple[str, ...] = ()) -> Arrays:
        """Arrays of one committed chunk, keyed by path, checked against the ledger.

        Args:
            only: paths of the arrays that are wanted; all by default.

        Raises:
            IncompleteError: the chunk is not committed.
            IntegrityError: a file is missing, damaged, swapped or stale; names it.
        """
        record = self.record(group, chunk)
        if record is None:
            raise IncompleteError(
                f"{self.path}: chunk {chunk} of {group} is not committed",
                hint=f"run the same `{self.maker}` again to complete the store",
            )
        specs = self.groups[group].arrays
        data: Arrays = {}
        for spec, wanted in zip(specs, record.digests, strict=True):
            if only and spec.path not in only:
                continue
            data[spec.path] = self._read(spec, chunk)
            digest = self.digest_of(group, spec, chunk, data[spec.path])
            if digest != wanted:
                raise IntegrityError(
                    f"{chunk_file(self.path, spec, chunk)}: expected digest {wanted.hex()}, found {digest.hex()}",
                    hint=self._mend,
                )
        return data

    def _read(
        self, spec: ArraySpec, chunk: int, array: zarr.Array[Any] | None = None, place: Path | None = None
    ) -> npt.NDArray[Any]:
        """Decode a chunk of this store's own array, or of one that was just written to another place."""
        start, stop = spec.bounds(self.layout, chunk)
        try:
            array = array_of(self.root, spec.path) if array is None else array
            return np.asarray(array[start:stop])
        except READ_ERRORS as problem:
            file = chunk_file(place or self.path, spec, chunk)
            raise IntegrityError(f"{file}: damaged: {problem}", hint=self._mend) from problem

    def digest_of(self, group: str, spec: ArraySpec, chunk: int, data: npt.NDArray[Any]) -> bytes:
        """The digest that a record holds of a chunk of an array of a group."""
        return chunk_digest(self.groups[group].digest, spec.path, chunk, data.astype(spec.dtype, copy=False))

    def store_id(self) -> str:
        """Digest of the fingerprints and of every committed chunk: equal ids mean equal content."""
        parts = [
            [name, group.digest, [record.digests for record in self.records(name) if record]]
            for name, group in sorted(self.groups.items())
        ]
        return canonical_digest({"parts": str(parts)}, MIDDLE)


def _coded(data: Arrays) -> CodedTopK:
    return CodedTopK(data["class_ids"], data["gaps"], data["top_log_prob"], data["log_residual"])
