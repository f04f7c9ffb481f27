"""Containers of top-k soft labels behind one interface, for `label_store.py`.

All containers hold the same rows; each reads ids, log-probabilities and labels, as int64 or int32 and float32, ready
for a loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from teachonce.core.progress import Silent
from teachonce.data.index import SampleIndex
from teachonce.labels.codec import TopK, encode
from teachonce.labels.create import create_store
from teachonce.labels.format import LABELS, new_layout
from teachonce.labels.ledger import key_digest
from teachonce.labels.store import LabelStore
from teachonce.rows.working_set import open_working_set

CHUNK = 16_384


@dataclass(frozen=True)
class Columns:
    """The stored rows: [N, k] ids, [N, k] log-probabilities, [N] labels."""

    ids: np.ndarray
    values: np.ndarray
    label: np.ndarray


class Container:
    """Writes columns once; then reads whole chunks or batches of rows. Reads return how many rows they gave."""

    quick = True

    def __init__(self, path: Path, source: LabelStore, soft: TopK) -> None:
        self.path, self.source, self.soft = path, source, soft

    def write(self, columns: Columns) -> None:
        """Write all rows. Our store syncs them to the disk, reads them back and keeps a ledger; the others do not."""
        raise NotImplementedError

    def open(self) -> None:
        """Get ready to read."""

    def chunk(self, number: int) -> int:
        """Read one chunk."""
        return self.batch(np.arange(number * CHUNK, min((number + 1) * CHUNK, len(self.soft.class_ids))))

    def batch(self, rows: np.ndarray) -> int:
        """Read these rows."""
        raise NotImplementedError


class Ours(Container):
    """The store for writing and for chunks, its working set for random rows. Creating the empty store is not timed."""

    def __init__(self, path: Path, source: LabelStore, soft: TopK) -> None:
        super().__init__(path, source, soft)
        rows, classes = len(soft.class_ids), self.source.layout.classes
        label = (np.arange(rows) % classes).astype(np.int32)
        keys = np.frombuffer(b"".join(b"%08d" % i for i in range(rows)), np.uint8)
        zeros = np.zeros(rows, np.uint64)
        index = SampleIndex(
            ("a.tar",),
            zeros.astype(np.uint32),
            zeros,
            zeros,
            label,
            keys,
            np.arange(8, 8 * rows + 8, 8, dtype=np.uint64),
        )
        layout = new_layout(rows, classes, soft.class_ids.shape[1], self.source.layout.temperatures, CHUNK)
        vocabulary = self.source.vocabulary()
        self.store = create_store(
            self.path,
            layout,
            {"samples": index.digest, "about": {}},
            vocabulary,
            vocabulary,
            index,
            np.arange(rows),
            self.source.class_embeddings(),
        )

    def write(self, columns: Columns) -> None:
        store, layout = self.store, self.store.layout
        nothing = np.full((layout.fidelity_rows, 1 + 5 * len(layout.fidelity_k)), np.nan, np.float16)
        for chunk in range(layout.chunks):
            start, stop = layout.bounds(chunk)
            part = TopK(*(getattr(self.soft, name)[start:stop] for name in TopK.__dataclass_fields__))
            of_chunk = store.index_of_chunk(chunk)
            data = {
                **vars(encode(part, store.tables)),
                "label": of_chunk.label,
                "sample": store.samples(start, stop),
                "view": np.zeros(stop - start, np.uint8),
                "status": np.zeros(stop - start, np.uint8),
                "image_crc": np.arange(start, stop, dtype=np.uint32),
                "key_digest": key_digest(of_chunk),
                "fidelity": nothing,
            }
            store.commit(LABELS, chunk, 1, stop - start, 0, store.write_chunk(LABELS, chunk, data))

    def open(self) -> None:
        self.store = LabelStore.open(self.path)
        self.rows = open_working_set(self.store, None, Silent())

    def chunk(self, number: int) -> int:
        return len(self.store.decode_labels(self.store.read_chunk(LABELS, number)).class_ids)

    def batch(self, rows: np.ndarray) -> int:
        return len(self.rows.batch(rows).log_probs)


class Memmap(Container):
    """One record a row in a .npy file."""

    def write(self, columns: Columns) -> None:
        k = columns.ids.shape[1]
        kind = np.dtype([("ids", np.uint16, (k,)), ("values", np.float16, (k,)), ("label", np.int32)])
        data = np.lib.format.open_memmap(self.path, "w+", kind, (len(columns.label),))
        data["ids"], data["values"], data["label"] = columns.ids, columns.values, columns.label
        data.flush()
        self.data = np.load(self.path, mmap_mode="r")

    def batch(self, rows: np.ndarray) -> int:
        rows_read = self.data.take(rows)
        return len(ready(rows_read["ids"], rows_read["values"], rows_read["label"]))


class Parquet(Container):
    """List columns, zstd, one row group a chunk; random rows read the row groups they lie in."""

    quick = False

    def write(self, columns: Columns) -> None:
        k = columns.ids.shape[1]
        table = pa.table(
            {
                "ids": pa.FixedSizeListArray.from_arrays(pa.array(columns.ids.ravel()), k),
                "values": pa.FixedSizeListArray.from_arrays(pa.array(columns.values.ravel()), k),
                "label": pa.array(columns.label),
            }
        )
        pq.write_table(table, self.path, row_group_size=CHUNK, compression="zstd")
        self.file = pq.ParquetFile(self.path)
        self.k = k

    def _columns(self, groups: list[int]) -> tuple[np.ndarray, ...]:
        table = self.file.read_row_groups(groups).combine_chunks()
        ids, values = (table[name].chunk(0).flatten().to_numpy().reshape(-1, self.k) for name in ("ids", "values"))
        return ids, values, table["label"].to_numpy()

    def chunk(self, number: int) -> int:
        return len(ready(*self._columns([number])))

    def batch(self, rows: np.ndarray) -> int:
        groups, place = np.unique(rows // CHUNK, return_inverse=True)
        at = place * CHUNK + rows % CHUNK
        return len(ready(*(column[at] for column in self._columns(groups.tolist()))))


class Hdf5(Container):
    """Chunked datasets of 1,024 rows with lzf; random rows by sorted index, as h5py asks for."""

    quick = False

    def write(self, columns: Columns) -> None:
        with h5py.File(self.path, "w") as file:
            for name, data in vars(columns).items():
                file.create_dataset(name, data=data, chunks=(1024, *data.shape[1:]), compression="lzf")
        self.file = h5py.File(self.path, "r")

    def chunk(self, number: int) -> int:
        part = slice(number * CHUNK, (number + 1) * CHUNK)
        return len(ready(*(self.file[name][part] for name in ("ids", "values", "label"))))

    def batch(self, rows: np.ndarray) -> int:
        unique, place = np.unique(rows, return_inverse=True)
        return len(ready(*(self.file[name][unique][place] for name in ("ids", "values", "label"))))


class Lmdb(Container):
    """One value a row, the row number as key."""

    def write(self, columns: Columns) -> None:
        self.k = columns.ids.shape[1]
        self.path.mkdir()
        environment = lmdb.open(str(self.path), map_size=2**32)
        with environment.begin(write=True) as transaction:
            for row in range(len(columns.label)):
                record = columns.ids[row].tobytes() + columns.values[row].tobytes() + columns.label[row].tobytes()
                transaction.put(b"%08d" % row, record, append=True)
        environment.sync(True)
        self.transaction = environment.begin(buffers=True)
        self.environment = environment

    def batch(self, rows: np.ndarray) -> int:
        joined = b"".join(self.transaction.get(b"%08d" % row) for row in rows.tolist())
        kind = np.dtype([("ids", np.uint16, (self.k,)), ("values", np.float16, (self.k,)), ("label", np.int32)])
        data = np.frombuffer(joined, kind)
        return len(ready(data["ids"], data["values"], data["label"]))


def ready(ids: Any, values: Any, label: Any) -> tuple[np.ndarray, ...]:
    """Return what a loss takes, as the working set gives it."""
    done = ids.astype(np.int32), values.astype(np.float32), label.astype(np.int64)
    assert len(done[0]) == len(done[1]) == len(done[2])
    return Rows(done)


class Rows(tuple):  # type: ignore[type-arg]
    """Three columns whose length is that of the rows."""

    def __len__(self) -> int:
        return len(self[0])


CONTAINERS: dict[str, Any] = {
    "teachonce": Ours,
    "NumPy memmap": Memmap,
    "Parquet zstd": Parquet,
    "HDF5 lzf": Hdf5,
    "LMDB": Lmdb,
}
