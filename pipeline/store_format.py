"""The shape of a label store on disk: which arrays there are, how they are typed, filled, chunked and compressed.

It does not read or write rows; `label_store` does. docs/label-store.md tells the same to other readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from teachonce.label_codec import GAP_FILL, class_dtype

FORMAT = "teachonce-label-store"
FORMAT_VERSION = 1
LABELS = "labels"  # the column group of every store
LABEL_FILL = -2  # -1 is data: a sample whose class is unknown
STATUS_FILL = 255
INDEX_CHUNK = 65_536

Shuffle = Literal["noshuffle", "shuffle", "bitshuffle"]


@dataclass(frozen=True)
class ArraySpec:
    """One array of a column group: `rows` first, all chunked alike."""

    path: str
    dtype: np.dtype[Any]
    tail: tuple[int, ...]  # the shape behind the rows
    fill: float | int
    shuffle: Shuffle


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What fixes every array of a store; written into the root attributes and read back from there."""

    rows: int
    chunk_rows: int
    classes: int
    top_k: int
    """0: a store of hard labels, without a teacher."""
    temperatures: tuple[float, ...]
    views: int = 1

    @property
    def chunks(self) -> int:
        """Number of chunks, the last one possibly short."""
        return -(-self.rows // self.chunk_rows)

    def bounds(self, chunk: int) -> tuple[int, int]:
        """First row of a chunk and the row behind its last."""
        return chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.rows)


def label_arrays(layout: Layout) -> tuple[ArraySpec, ...]:
    """The arrays of the column group `labels`."""
    rows = (
        ArraySpec("label", np.dtype(np.int32), (), LABEL_FILL, "shuffle"),
        ArraySpec("sample", np.dtype(np.uint32), (), np.iinfo(np.uint32).max, "shuffle"),
        ArraySpec("view", np.dtype(np.uint8), (), 255, "noshuffle"),
        ArraySpec("status", np.dtype(np.uint8), (), STATUS_FILL, "noshuffle"),
    )
    if layout.top_k == 0:
        return rows
    ids = class_dtype(layout.classes)
    k, t = (layout.top_k,), (len(layout.temperatures),)
    return (
        ArraySpec("class_ids", ids, k, int(np.iinfo(ids).max), "shuffle"),
        ArraySpec("gaps", np.dtype(np.uint8), k, GAP_FILL, "noshuffle"),  # bit-shuffling hurts them (measured)
        ArraySpec("top_log_prob", np.dtype(np.float16), (), float("nan"), "shuffle"),
        ArraySpec("log_residual", np.dtype(np.float16), t, float("nan"), "shuffle"),
        *rows,
    )


def student_group(digest: str) -> str:
    """Name of the column group that holds the image features of the student with this weights digest."""
    return f"students/{digest[:16]}"


def student_arrays(group: str, width: int) -> tuple[ArraySpec, ...]:
    """The arrays of a student's column group: its unit image features, float16 (costs 1e-7 of KL)."""
    return (ArraySpec(f"{group}/features", np.dtype(np.float16), (width,), float("nan"), "shuffle"),)


def create_rows_array(root: zarr.Group, spec: ArraySpec, layout: Layout) -> None:
    """Create an empty array of the store: core codecs only, checksummed, never a shard."""
    root.create_array(
        spec.path,
        shape=(layout.rows, *spec.tail),
        dtype=spec.dtype,
        chunks=(layout.chunk_rows, *(max(1, n) for n in spec.tail)),
        compressors=codecs(spec.dtype.itemsize, spec.shuffle),
        fill_value=spec.fill,
        # Otherwise Zarr drops a chunk that equals the fill value, and a hole would look like a whole chunk of failures.
        config={"write_empty_chunks": True},
    )


def create_static_array(root: zarr.Group, path: str, data: np.ndarray[Any, np.dtype[Any]]) -> None:
    """Write a whole array that never changes afterwards, such as the vocabulary."""
    array = root.create_array(
        path,
        shape=data.shape,
        dtype=data.dtype,
        chunks=(max(1, min(INDEX_CHUNK, data.shape[0])), *data.shape[1:]),
        compressors=codecs(data.dtype.itemsize, "shuffle"),
        config={"write_empty_chunks": True},
    )
    array[...] = data


def codecs(itemsize: int, shuffle: Shuffle) -> tuple[BloscCodec, Crc32cCodec]:
    """Compression, then a checksum: without it nine of ten flipped bits pass in silence."""
    return BloscCodec(typesize=itemsize, cname="zstd", clevel=3, shuffle=shuffle), Crc32cCodec()
