"""The shape of a label store on disk: which arrays there are, how they are typed, filled, chunked and compressed.

This module does not read or write rows; `store` does. docs/label-store.md specifies the same format for other readers.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
import zarr.errors
from zarr.codecs import BloscCodec, Crc32cCodec

from teachonce.data.views import NO_VIEW
from teachonce.labels.access import ChunkLimit
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

MOST_ROWS = 1 << 48
MOST_CHUNK_BYTES = (1 << 31) - 1  # Blosc packs no more at once

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

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that no store can have: a layout is read from stores of strangers."""
        for name, least, most in (
            ("rows", 1, MOST_ROWS),
            ("chunk_rows", 1, MOST_ROWS),
            ("classes", 1, MOST_ROWS),
            ("top_k", 0, self.classes),
            ("views", 1, 255),
            ("fidelity_rows", 0, self.chunk_rows),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from {least} to {most}, found {getattr(self, name)}")
        if self.rows % self.views or self.chunk_rows % self.views:
            raise ValueError(f"the {self.views} views of an image must lie in one chunk")
        if not all(0 < tau < float("inf") for tau in self.temperatures) or bool(self.temperatures) != bool(self.top_k):
            raise ValueError("temperatures must be above 0 and finite, and there where labels are soft")
        if sorted({k for k in self.fidelity_k if 0 < k <= self.top_k}) != list(self.fidelity_k):
            raise ValueError("fidelity_k must rise, from 1 to top_k")

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


@dataclass(frozen=True)
class ArrayForm:
    """What the metadata of an array say in every sound store."""

    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    """None: as long as what is in it, which no layout fixes."""
    chunks: tuple[int, ...] = ()
    """Empty: those of an array that never changes, some 65,536 entries of its first axis."""
    fill: float | int = 0
    packed: bool = True
    """Whether its chunks are compressed."""
    required: bool = True
    """Whether a chunk without a file is a fault."""


def rows_form(spec: ArraySpec, layout: Layout) -> ArrayForm:
    """The form of an array of a column group."""
    shape = (layout.chunks * spec.per_chunk or layout.rows, *spec.tail)
    chunks = (spec.per_chunk or layout.chunk_rows, *(max(1, n) for n in spec.tail))
    return ArrayForm(spec.dtype, shape, chunks, spec.fill)


def static_forms(layout: Layout, version: int) -> dict[str, ArrayForm]:
    """The forms of the arrays that never change after creation, by path. `class_embeddings` is not in every store."""
    samples, text = layout.rows // layout.views, ArrayForm(np.dtype(np.uint8), (None,))
    columns = {"archive": np.uint32, "offset": np.uint64, "size": np.uint64, "label": np.int32, "key_ends": np.uint64}
    forms = {f"index/{name}": ArrayForm(np.dtype(kind), (samples,)) for name, kind in columns.items()}
    forms["index/sample"] = ArrayForm(np.dtype(np.uint32), (samples,))
    forms |= dict.fromkeys(("index/archives", "index/key_bytes", "vocabulary", "label_classes"), text)
    forms["class_embeddings"] = ArrayForm(np.dtype(np.float32), (layout.classes, None))
    if layout.top_k and version > 1:
        forms["class_order"] = ArrayForm(class_dtype(layout.classes), (layout.classes,))
        forms["gap_levels"] = ArrayForm(np.dtype(np.float32), (None,))
    return forms


def require_form(document: Mapping[str, Any], form: ArrayForm) -> ChunkLimit:
    """Compare the metadata of an array with what they must say, field by field.

    Returns:
        What each of its chunk files may hold.

    Raises:
        ValueError: names the field that differs, or the chunk that is larger than any can be.
    """
    shape = document.get("shape")
    if not isinstance(shape, list) or len(shape) != len(form.shape) or not all(map(_is_length, shape)):
        raise ValueError(f"the shape is {_brief(shape)}, where the layout has {len(form.shape)} axes")
    wanted = [there if length is None else length for length, there in zip(form.shape, shape, strict=True)]
    chunks = list(form.chunks) or [max(1, min(INDEX_CHUNK, wanted[0])), *wanted[1:]]
    fields = {
        "node_type": "array",
        "zarr_format": 3,
        "shape": wanted,
        "data_type": form.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if form.fill != form.fill else form.fill,
    }
    for name, value in fields.items():
        if document.get(name) != value or isinstance(document.get(name), bool):
            raise ValueError(f"{name} is {_brief(document.get(name))}, where the layout asks for {value}")
    _require_codecs(document.get("codecs"), form)
    more = set(document) - {*fields, "codecs", "attributes", "storage_transformers", "dimension_names"}
    if more or document.get("storage_transformers") or any(document.get("dimension_names") or ()):
        raise ValueError(f"it has further fields: {_brief(sorted(more) or document)}")
    size = math.prod(chunks) * form.dtype.itemsize
    if size > MOST_CHUNK_BYTES:
        raise ValueError(f"a chunk would have {size:,} bytes, and none has more than {MOST_CHUNK_BYTES:,}")
    return ChunkLimit(size, form.packed, form.required)


def _require_codecs(stated: Any, form: ArrayForm) -> None:
    """Refuse all codecs but those that stores are written with, in their order; levels may differ."""
    codecs = stated if isinstance(stated, list) else []
    settings = [codec.get("configuration") or {} if isinstance(codec, dict) else None for codec in codecs]
    names = [codec["name"] if isinstance(codec, dict) and "name" in codec else None for codec in codecs]
    wanted = ["bytes", "blosc", "crc32c"] if form.packed else ["bytes", "crc32c"]
    sound = names == wanted and settings[0] in ({}, {"endian": "little"}) and settings[-1] == {}
    if sound and form.packed:
        blosc = settings[1]
        sound = (
            isinstance(blosc, dict)
            and set(blosc) <= {"typesize", "cname", "clevel", "shuffle", "blocksize"}
            and (blosc.get("typesize"), blosc.get("cname"), blosc.get("blocksize", 0))
            == (form.dtype.itemsize, "zstd", 0)
            and blosc.get("shuffle") in typing.get_args(Shuffle)
            and blosc.get("clevel") in range(10)
        )
    if not sound:
        raise ValueError(f"the codecs are {_brief(stated)}, where a store has {', '.join(wanted)}")


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_ROWS


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:80] + "..."


def create_rows_array(root: zarr.Group, spec: ArraySpec, layout: Layout) -> None:
    """Create an empty array of the store: core codecs only, checksummed, never a shard."""
    form = rows_form(spec, layout)
    root.create_array(
        spec.path,
        shape=form.shape,  # type: ignore[arg-type]  # the layout fixes every length
        dtype=spec.dtype,
        chunks=form.chunks,
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
    return store / chunk_key(spec, chunk)


def chunk_key(spec: ArraySpec, chunk: int) -> str:
    """The path below a store of the file that holds a chunk of an array."""
    return "/".join([spec.path, "c", str(chunk)] + ["0"] * len(spec.tail))


def chunk_folder(store: Path, spec: ArraySpec) -> Path:
    """The folder below which all chunks of an array lie."""
    return store / spec.path / "c"
