"""The shape of a label store on disk: which arrays there are, how they are typed, filled, chunked and compressed.

This module does not read or write rows; `store` does. docs/label-store.md specifies the same format for other readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
import zarr.errors
from zarr.codecs import BloscCodec, Crc32cCodec

from teachonce.data.views import NO_VIEW
from teachonce.labels.codec import GAP_FILL, class_dtype
from teachonce.models.spec import EmbeddingKind

FORMAT = "teachonce-label-store"
FORMAT_VERSION = 3
READABLE_VERSIONS = (1, 2, FORMAT_VERSION)  # older stores are read, not continued
LABELS = "labels"  # the column group of every store
EMBEDDING = "embedding"  # the column group of the teacher's image embeddings
LABEL_FILL = -2  # the value -1 means that the class of the sample is unknown, so it cannot mark a gap
STATUS_FILL = 255
INDEX_CHUNK = 65_536
SMALLEST_CHUNK, LARGEST_CHUNK, CHUNKS_WANTED = 512, 16_384, 64
FEWEST_MEASURED = 8  # rows of a chunk that the fidelity report looks at; one of 1,024 in large chunks

Shuffle = Literal["noshuffle", "shuffle", "bitshuffle"]

EMBEDDING_SCALES = (40.0, 100.0)  # logit scales at which embeddings are measured, besides the teacher's own
TAIL_RULES = ("ghost", "residual-uniform", "renormalise", "to-label")
FIDELITY_K = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def fidelity_columns(ks: tuple[int, ...]) -> tuple[str, ...]:
    """The columns of the array `fidelity`: `value_kl`, then for each k the mass and the KL of each tail rule."""
    return ("value_kl", *(f"{name}@{k}" for k in ks for name in ("mass", *TAIL_RULES)))


@dataclass(frozen=True)
class ArraySpec:
    """One array of a column group: `rows` first, all chunked alike."""

    path: str
    dtype: np.dtype[Any]
    tail: tuple[int, ...]  # the shape behind the rows
    fill: float | int
    shuffle: Shuffle
    level: int = 3
    """Of zstd. On class ids 7 saves 5% and codes 70,000 rows a second; 9 saves 1% more at 11,000 (measured)."""
    per_chunk: int = 0
    """0: one entry a row. Else the array has so many entries a chunk, which tell about the chunk."""

    def bounds(self, layout: Layout, chunk: int) -> tuple[int, int]:
        """First entry of a chunk in this array and the entry behind its last."""
        if self.per_chunk:
            return chunk * self.per_chunk, (chunk + 1) * self.per_chunk
        return layout.bounds(chunk)


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
    fidelity_rows: int = 0
    """Rows of each chunk on which the fidelity report is measured."""
    fidelity_k: tuple[int, ...] = ()
    """The k for which it is measured."""

    @property
    def chunks(self) -> int:
        """Number of chunks, the last one possibly short."""
        return -(-self.rows // self.chunk_rows)

    def bounds(self, chunk: int) -> tuple[int, int]:
        """First row of a chunk and the row behind its last."""
        return chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.rows)


def new_layout(
    rows: int, classes: int, top_k: int, temperatures: tuple[float, ...], chunk_rows: int | None = None, views: int = 1
) -> Layout:
    """The layout of a new store; `chunk_rows` is some 64 chunks' worth unless given, and temperatures need a top k.

    Args:
        rows: samples times views; all views of a sample lie in one chunk.
    """
    size = -(-(chunk_rows or default_chunk_rows(rows)) // views) * views
    measured = min(size, max(FEWEST_MEASURED, size // 1024)) if top_k else 0
    grid = (*(k for k in FIDELITY_K if k < top_k), top_k) if top_k else ()
    return Layout(
        rows=rows,
        chunk_rows=size,
        classes=classes,
        top_k=top_k,
        temperatures=temperatures if top_k else (),
        views=views,
        fidelity_rows=measured,
        fidelity_k=grid,
    )


def default_chunk_rows(rows: int) -> int:
    """Rows of a chunk: some 64 chunks, as a power of two between 512 and 16,384."""
    size = SMALLEST_CHUNK
    while size < LARGEST_CHUNK and size * CHUNKS_WANTED < rows:
        size *= 2
    return size


def label_arrays(layout: Layout, version: int = FORMAT_VERSION) -> tuple[ArraySpec, ...]:
    """The arrays of the column group `labels`."""
    rows: tuple[ArraySpec, ...] = (
        ArraySpec("label", np.dtype(np.int32), (), LABEL_FILL, "shuffle"),
        ArraySpec("sample", np.dtype(np.uint32), (), np.iinfo(np.uint32).max, "shuffle"),
        ArraySpec("view", np.dtype(np.uint8), (), 255, "noshuffle"),
        ArraySpec("status", np.dtype(np.uint8), (), STATUS_FILL, "noshuffle"),
    )
    if version > 1:
        rows += (
            ArraySpec("image_crc", np.dtype(np.uint32), (), 0, "noshuffle"),
            ArraySpec("key_digest", np.dtype(np.uint64), (2,), 0, "noshuffle", per_chunk=1),
        )
    if layout.views > 1:
        # Left, top, right, bottom in 1/65535 of the image, and 1 if mirrored. View 0 is the whole image.
        rows += (ArraySpec("view_params", np.dtype(np.uint16), (5,), NO_VIEW, "shuffle"),)
    if layout.top_k == 0:
        return rows
    ids = class_dtype(layout.classes)
    k, t = (layout.top_k,), (len(layout.temperatures),)
    report = (len(fidelity_columns(layout.fidelity_k)),)
    nan = float("nan")
    return (
        ArraySpec("class_ids", ids, k, int(np.iinfo(ids).max), "shuffle", level=7),
        ArraySpec("gaps", np.dtype(np.uint8), k, GAP_FILL, "noshuffle"),  # bit-shuffling hurts them (measured)
        ArraySpec("top_log_prob", np.dtype(np.float16), (), nan, "shuffle"),
        ArraySpec("log_residual", np.dtype(np.float16), t, nan, "shuffle"),
        *rows,
        *(
            [ArraySpec("fidelity", np.dtype(np.float16), report, nan, "shuffle", per_chunk=layout.fidelity_rows)]
            if version > 1
            else []
        ),
    )


def embedding_arrays(kind: EmbeddingKind, width: int, layout: Layout) -> tuple[ArraySpec, ...]:
    """The arrays of the column group `embedding`: the direction of the teacher's image embedding."""
    fill = -128 if kind == "int8" else float("nan")  # int8 uses -127 to 127
    return (
        ArraySpec(f"{EMBEDDING}/values", np.dtype(kind), (width,), fill, "noshuffle" if kind == "int8" else "shuffle"),
        ArraySpec(
            f"{EMBEDDING}/fidelity",
            np.dtype(np.float16),
            (len(EMBEDDING_SCALES) + 1,),
            float("nan"),
            "shuffle",
            per_chunk=layout.fidelity_rows,
        ),
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
        shape=(layout.chunks * spec.per_chunk or layout.rows, *spec.tail),
        dtype=spec.dtype,
        chunks=(spec.per_chunk or layout.chunk_rows, *(max(1, n) for n in spec.tail)),
        compressors=codecs(spec.dtype.itemsize, spec.shuffle, spec.level),
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


def codecs(itemsize: int, shuffle: Shuffle, level: int = 3) -> tuple[BloscCodec, Crc32cCodec]:
    """Compression, then a checksum: without it nine of ten flipped bits pass in silence."""
    return BloscCodec(typesize=itemsize, cname="zstd", clevel=level, shuffle=shuffle), Crc32cCodec()


def chunk_file(store: Path, spec: ArraySpec, chunk: int) -> Path:
    """The file that holds a chunk of an array."""
    return store / spec.path / "c" / "/".join([str(chunk)] + ["0"] * len(spec.tail))
