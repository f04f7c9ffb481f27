"""The coded form of a row's top-k soft label and of its image embedding: NumPy arrays in, small integers out, and back.

This module does not know Zarr or models; docs/label-store.md specifies the same bytes for other readers.

Coding of a row with classes c and log-probabilities l at the teacher's own temperature:
- classes are renumbered by `class_order`, in which classes of like names are neighbours, and sorted; the first is kept,
  then the differences (uint16, or uint32 above 65,535 classes), most of which are small;
- values, in the same order, are the distance to the row's best as the number of the nearest of `gap_levels` (uint8);
- the best log-probability and, for each declared temperature tau, ln of sum_{c outside the top k} p_c^(1/tau)
  (float16; -inf when nothing is outside).
A row without an image holds fill values only: a class no vocabulary has, 255, NaN.

Of the teacher's unit image embeddings only the direction is kept, in int8 or float16. A unit vector needs no scale:
what is stored is divided by its own length when read, so the error along the vector is nothing. With the class
embeddings of a store it gives any logit of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from teachonce.core.streams import CLASS_ORDER
from teachonce.errors import IntegrityError, UsageError
from teachonce.models.spec import EmbeddingKind

LEAF = 4
POWER_STEPS = 10

CODEC_VERSION = 2
GAP_FILL = 255
INT8_FILL = -128
# An error e of log p costs a KL of about p e^2 / 2, so steps may grow as p falls. They start at 1/28 nat and grow
# by 15% a nat: some 8e-5 nats on the real teacher, and no worse at temperature 4 than uniform steps of 1/17 (measured).
FIRST_STEP = 1.0 / 28.0
STEP_GROWTH = 0.15

IdArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TopK:
    """Soft labels of R rows, by falling probability, ties by class index.

    A row without an image has class -1 and NaN everywhere.
    """

    class_ids: IdArray  # [R, k]
    log_probs: FloatArray  # [R, k]
    log_residual: FloatArray  # [R, T]: ln sum over the other classes of p^(1/tau), one column a temperature


@dataclass(frozen=True)
class CodedTopK:
    """What the store holds of R rows."""

    class_ids: npt.NDArray[np.unsignedinteger]  # [R, k]
    gaps: npt.NDArray[np.uint8]  # [R, k]
    top_log_prob: npt.NDArray[np.float16]  # [R]
    log_residual: npt.NDArray[np.float16]  # [R, T]


@dataclass(frozen=True, eq=False)
class CodecTables:
    """What a store's rows are coded with; written into the store, so that old stores decode with their own."""

    class_order: IdArray
    """[C] the class at each coded position: a permutation."""
    gap_levels: FloatArray
    """[L] nats below the best, rising from 0; a coded value is an index into it."""

    def __post_init__(self) -> None:
        """Raises IntegrityError for tables that code nothing."""
        levels = self.gap_levels
        if not np.array_equal(np.sort(self.class_order), np.arange(len(self.class_order))):
            raise IntegrityError("class_order does not name every class once")
        rising = len(levels) and levels[0] == 0 and np.isfinite(levels).all() and (np.diff(levels) > 0).all()
        if not rising or len(levels) > 256:
            raise IntegrityError("gap_levels do not rise from 0")


def default_gap_levels() -> FloatArray:
    """The levels of new stores, [L] float32: steps that grow with the distance, up to some 37 nats."""
    position = np.arange(GAP_FILL) * FIRST_STEP * STEP_GROWTH
    levels: FloatArray = (-np.log1p(-position[position < 1 - 1e-9]) / STEP_GROWTH).astype(np.float32)
    return levels


def first_version_tables(classes: int) -> CodecTables:
    """The tables of stores of format version 1, which did not hold them: no renumbering, steps of 1/17 nat."""
    return CodecTables(np.arange(classes), np.arange(GAP_FILL, dtype=np.float32) * np.float32(1 / 17))


def class_dtype(classes: int) -> np.dtype[np.unsignedinteger]:
    """uint16 while its largest value is free as filler, else uint32."""
    return np.dtype(np.uint16) if classes <= np.iinfo(np.uint16).max else np.dtype(np.uint32)


def encode(labels: TopK, tables: CodecTables) -> CodedTopK:
    """Code R rows.

    Args:
        labels: rows by falling probability.
        tables: of the store.

    Raises:
        UsageError: a NaN or infinite best log-probability in a row that has classes.
    """
    dtype = class_dtype(len(tables.class_order))
    empty = labels.class_ids[:, 0] < 0
    broken = ~empty & ~np.isfinite(labels.log_probs[:, 0])
    if broken.any():
        raise UsageError(f"{int(broken.sum())} rows have no finite best log-probability: the teacher gave NaN or inf")
    place = np.argsort(tables.class_order)[labels.class_ids]
    order = np.argsort(place, axis=1, kind="stable")
    place = np.take_along_axis(place, order, axis=1)
    best = labels.log_probs[:, :1]
    with np.errstate(invalid="ignore"):  # rows of NaN are overwritten below
        distance = best - np.take_along_axis(labels.log_probs, order, axis=1)
    levels = tables.gap_levels
    gaps = np.searchsorted((levels[1:] + levels[:-1]) / 2, distance)
    gaps = np.where((distance > 0) & (gaps == 0), 1, gaps)  # only a true tie of the best class may get its code, 0
    coded_ids = np.concatenate([place[:, :1], np.diff(place, axis=1)], axis=1)
    coded_ids[empty] = np.iinfo(dtype).max
    gaps[empty] = GAP_FILL
    return CodedTopK(
        coded_ids.astype(dtype),
        gaps.astype(np.uint8),
        best[:, 0].astype(np.float16),
        labels.log_residual.astype(np.float16),
    )


def decode_codes(coded: CodedTopK, tables: CodecTables) -> tuple[IdArray, npt.NDArray[np.uint8]]:
    """Classes by falling probability, ties by class, and the value codes in the same order, [R, k] each.

    Rows without an image have class -1 and code 255.

    Raises:
        IntegrityError: a class beyond the vocabulary.
    """
    empty = coded.class_ids[:, 0] == np.iinfo(coded.class_ids.dtype).max
    place = np.cumsum(coded.class_ids, axis=1, dtype=np.int64)
    place[empty] = 0
    if place.size and int(place.max()) >= len(tables.class_order):  # the digest holds, so the writer erred
        raise IntegrityError(
            f"a coded class is {int(place.max())}, beyond the {len(tables.class_order)} of the vocabulary"
        )
    ids = tables.class_order[place]
    order = np.argsort((coded.gaps.astype(np.int64) << 32) + ids, axis=1)
    ids = np.take_along_axis(ids, order, axis=1)
    ids[empty] = -1
    return ids, np.take_along_axis(coded.gaps, order, axis=1)


def decode(coded: CodedTopK, tables: CodecTables) -> TopK:
    """The inverse of `encode`, within the error that `max_error` states."""
    ids, gaps = decode_codes(coded, tables)
    levels = np.append(tables.gap_levels, np.full(256 - len(tables.gap_levels), np.nan, np.float32))
    log_probs = coded.top_log_prob.astype(np.float32)[:, None] - levels[gaps]
    return TopK(ids, log_probs, coded.log_residual.astype(np.float32))


def max_error(log_probs: FloatArray, tables: CodecTables) -> FloatArray:
    """The stated error of each decoded log-probability, in nats; infinite beyond the last level.

    Half the step between the two levels around the value, or the first whole step for a class that is nearer than half
    of it to the best and is kept apart from it, plus the rounding of the best to float16.
    """
    levels = tables.gap_levels
    distance = log_probs[:, :1] - log_probs
    steps = np.append(np.diff(levels), np.float32(np.inf))
    step = steps[np.clip(np.searchsorted(levels, distance, side="right") - 1, 0, len(levels) - 1)]
    near = distance < steps[0] / 2
    best = np.abs(log_probs[:, :1])
    return np.where(near, steps[0], step / 2) + best * np.float32(2.0**-11) + np.float32(1e-5)


def class_order(embeddings: npt.NDArray[np.float32] | None, classes: int) -> npt.NDArray[np.int64]:
    """Halve the classes at the median of their first principal direction, again and again, and read off the leaves.

    Args:
        embeddings: [C, E] unit text features; None leaves the vocabulary's own order.
        classes: C.

    Returns:
        [C], a permutation: the class at each place.
    """
    if embeddings is None or not np.isfinite(embeddings).all():
        return np.arange(classes)
    order: list[int] = []
    waiting = [np.arange(classes)]
    while waiting:
        part = waiting.pop()
        if len(part) <= LEAF:
            order.extend(part.tolist())
            continue
        halves = _halves(embeddings, part)
        if order:  # the half that is nearer to the class just placed comes first
            before = embeddings[order[-1]]
            near = [float(embeddings[half].mean(axis=0) @ before) for half in halves]
            if near[1] > near[0]:
                halves = halves[::-1]
        waiting += [halves[1], halves[0]]
    return np.array(order, dtype=np.int64)


def _halves(
    embeddings: npt.NDArray[np.float32], part: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    centred = embeddings[part] - embeddings[part].mean(axis=0)
    direction = CLASS_ORDER.at(0).normal(size=centred.shape[1]).astype(np.float32)
    for _ in range(POWER_STEPS):
        direction = centred.T @ (centred @ direction)
        length = float(np.linalg.norm(direction))
        if length == 0:  # all embeddings of the part are equal
            break
        direction /= np.float32(length)
    ranked = part[np.argsort(centred @ direction, kind="stable")]
    middle = len(part) // 2
    return ranked[:middle], ranked[middle:]


def encode_embeddings(embeddings: npt.NDArray[np.float32], kind: EmbeddingKind) -> npt.NDArray[Any]:
    """Code unit vectors [R, D]; a row with a NaN becomes fill values.

    int8: each row is stretched so that its largest entry is 127. The error is half of that step at most, which
    costs about (s^2 / 2) (D step^2 / 12) nats of KL at logit scale s, spread over D entries.
    """
    empty: npt.NDArray[np.bool_] = np.asarray(~np.isfinite(embeddings).all(axis=1))
    if kind == "float16":
        coded: npt.NDArray[Any] = embeddings.astype(np.float16)
        coded[empty] = np.nan
        return coded
    largest = np.abs(np.where(empty[:, None], 1, embeddings)).max(axis=1, keepdims=True)
    stretched = np.rint(np.where(empty[:, None], 0, embeddings) / np.maximum(largest, 1e-30) * 127)
    stretched[empty] = INT8_FILL
    directions: npt.NDArray[Any] = stretched.astype(np.int8)
    return directions


def decode_embeddings(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Unit vectors [R, D] float32; NaN where nothing was stored."""
    vectors = values.astype(np.float32)
    if values.dtype == np.int8:
        vectors[values[:, 0] == INT8_FILL] = np.nan
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length == 0, np.float32(np.nan), length), dtype=np.float32)
