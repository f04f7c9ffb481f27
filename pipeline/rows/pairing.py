"""Prove, on random rows, that a working set pairs the right image, label and teacher row; refuse another data set.

The chain is: record of the working set - row of a checked chunk - sample index - bytes of the image, if they exist. The
proof changes nothing.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from teachonce.core.progress import Reporter
from teachonce.core.streams import PAIRING
from teachonce.data.index import SampleIndex, split_classes
from teachonce.data.manifests import load_manifest
from teachonce.data.reader import ImageReader
from teachonce.data.vocabulary import load_vocabulary
from teachonce.errors import FingerprintError, ImageChangedError, IntegrityError
from teachonce.labels.format import LABELS
from teachonce.labels.ledger import key_digest
from teachonce.labels.store import Arrays, LabelStore
from teachonce.rows.build import EMBEDDINGS, FEATURES, RECORDS, rows_of_chunk
from teachonce.rows.working_set import WorkingSet

PROVED = 64  # number of rows that are proved
FIELDS = ("row", "label", "class_ids", "codes", "top_log_prob", "log_residual")


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The data set that a store must have been made from; a field that is None allows anything."""

    manifest: str | None = None
    split: str | None = None
    vocabulary: str | None = None


@dataclass(frozen=True)
class _Row:
    """One row that the proof looks at."""

    place: int  # place in the working set
    row: int  # row of the store
    local: int  # place in its chunk


def require_origin(store: LabelStore, expected: Expected, root: Path | None) -> None:
    """Refuse a store that was made from something else; `root` is where relative class lists lie.

    Raises:
        FingerprintError: some fields differ; the message names each with both values.
        UsageError: the manifest does not exist, or has no such split.
        DataError: the vocabulary cannot be read.
    """
    expected_fields: dict[str, Any] = {}
    if expected.manifest is not None:
        manifest, split = load_manifest(expected.manifest), expected.split or "train"
        expected_fields |= {"manifest": manifest.name, "manifest_digest": manifest.digest(split)}
        expected_fields["split"] = split
    elif expected.split is not None:
        expected_fields["split"] = expected.split
    if expected.vocabulary is not None:
        expected_fields["vocabulary_digest"] = load_vocabulary(expected.vocabulary, root).digest
    stored = dict(store.groups[LABELS].fingerprint)
    if expected.manifest is not None and root is not None:  # the class list that the manifest names may have changed
        stored["label_classes"] = store.label_classes().digest
        expected_fields["label_classes"] = split_classes(manifest, split, root).digest
    different = [
        f"{f}: stored {stored.get(f)!r}, expected {v!r}" for f, v in expected_fields.items() if stored.get(f) != v
    ]
    if different:
        raise FingerprintError(
            f"{store.path} was made from something else:\n  " + "\n  ".join(different),
            hint=f"give the store of this data set, or drop the expectation (teachonce inspect {store.path} shows it)",
        )


def prove_pairing(rows: WorkingSet, seed: int, reporter: Reporter, root: Path | None = None) -> int:
    """Compare random rows of a working set with the store, its index and, if they exist, the images.

    Args:
        rows: the open set.
        seed: the seed that decides which rows are compared.
        reporter: receives what was proved and what a store cannot prove.
        root: folder of the images; None: their bytes are not compared.

    Returns:
        The number of rows compared.

    Raises:
        IntegrityError: a row differs; the message names the row and its key, the expected and the actual value.
        ImageChangedError: an image is not the one that was taught.
        DataError: an image cannot be read.
    """
    store = rows.store
    random = PAIRING.at(seed)
    places = np.sort(random.choice(len(rows), min(PROVED, len(rows)), replace=False))
    numbers = rows.records.take(places)["row"].astype(np.int64)
    beyond = numbers >= store.layout.rows
    if beyond.any():
        raise _wrong_set(rows, int(numbers[beyond][0]), "?", f"a row below {store.layout.rows}", "this number")
    chunks = numbers // store.layout.chunk_rows
    for chunk in np.unique(chunks):
        first, _ = store.layout.bounds(int(chunk))
        here = np.flatnonzero(chunks == chunk)
        picked = [_Row(int(places[i]), int(numbers[i]), int(numbers[i]) - first) for i in here]
        _prove_chunk(rows, int(chunk), picked, root)
    proved = "with the store and its sample index"
    if store.version == 1:
        reporter.note(f"{store.path} has format version 1: it cannot prove keys and the bytes of images")
    elif root is not None:
        proved += " and the bytes of the images"
    reporter.note(f"{len(places)} random rows agree {proved}")
    return len(places)


def _prove_chunk(rows: WorkingSet, chunk: int, picked: list[_Row], root: Path | None) -> None:
    store = rows.store
    index = store.index_of_chunk(chunk)
    data = store.read_chunk(LABELS, chunk)
    _prove_index(store, chunk, data, index, picked)
    expected = rows_of_chunk(rows.plan, chunk, np.array([row.local for row in picked]), data)
    of_row = {int(number): place for place, number in enumerate(expected[RECORDS]["row"])}
    for row in picked:
        key = index.key(row.local // store.layout.views)
        if row.row not in of_row:
            raise _wrong_set(rows, row.row, key, "no such row, by status and selection", "a row")
        _prove_record(rows, row, key, {name: part[of_row[row.row]] for name, part in expected.items()})
    if root is not None and "image_crc" in data:
        _prove_images(store, data["image_crc"], index, picked, root)


def _prove_index(store: LabelStore, chunk: int, data: Arrays, index: SampleIndex, picked: list[_Row]) -> None:
    """Check that the chunk's own samples, labels and keys are those of the index."""
    views = store.layout.views
    columns = {
        "sample": (data["sample"], store.samples(*store.layout.bounds(chunk))),
        "label": (data["label"], np.repeat(index.label, views)),
    }
    for name, (in_chunk, indexed) in columns.items():
        for row in picked:
            if in_chunk[row.local] != indexed[row.local]:
                raise IntegrityError(
                    f"{store.path}: row {row.row} (key '{index.key(row.local // views)}'): expected the {name} "
                    f"{int(in_chunk[row.local])} of its chunk, found {int(indexed[row.local])} in the sample index",
                    hint="restore the folder `index` of the store from a backup",
                )
    if "key_digest" in data and (data["key_digest"] != key_digest(index)).any():
        row = picked[0]
        raise IntegrityError(
            f"{store.path}: chunk {chunk}, which holds row {row.row} (key '{index.key(row.local // views)}'): expected "
            f"keys of digest {data['key_digest'].tobytes().hex()}, found {key_digest(index).tobytes().hex()} in the "
            "sample index",
            hint="restore the folder `index` of the store from a backup",
        )


def _prove_record(rows: WorkingSet, row: _Row, key: str, expected: dict[str, npt.NDArray[Any]]) -> None:
    record = rows.records[row.place]
    for name in FIELDS:
        if name in (rows.records.dtype.names or ()) and record[name].tobytes() != expected[RECORDS][name].tobytes():
            raise _wrong_set(
                rows, row.row, key, f"{name} {expected[RECORDS][name].tolist()}", f"{record[name].tolist()}"
            )
    for file, column, what in ((FEATURES, rows.features, "features"), (EMBEDDINGS, rows.embeddings, "embedding")):
        if column is not None and column[row.place].tobytes() != expected[file].tobytes():
            raise _wrong_set(rows, row.row, key, f"the image {what} of this row", "others")


def _wrong_set(rows: WorkingSet, row: int, key: str, expected: str, actual: str) -> IntegrityError:
    return IntegrityError(
        f"{rows.path}: row {row} (key '{key}'): expected {expected}, found {actual}",
        hint=f"teachonce cache clear {rows.store.path}, then run the same command again",
    )


def _prove_images(
    store: LabelStore, crcs: npt.NDArray[np.uint32], index: SampleIndex, picked: list[_Row], root: Path
) -> None:
    with ImageReader(index, root) as reader:
        for row in picked:
            sample = row.local // store.layout.views
            crc_here = zlib.crc32(reader.read(sample))
            archive = root / index.archives[int(index.archive[sample])]
            if crc_here != int(crcs[row.local]):
                raise ImageChangedError(
                    f"{archive}: the image '{index.key(sample)}' of row {row.row}",
                    str(store.path),
                    crc_here,
                    int(crcs[row.local]),
                    hint=", or teach a new store",
                )
