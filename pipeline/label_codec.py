"""The coded form of a row's top-k soft label: NumPy arrays in, small integers out, and back.

It does not know Zarr or models; docs/label-store.md specifies the same bytes for other readers.

Coding of a row with classes c and log-probabilities l at the teacher's own temperature:
- classes are sorted by index; the first is kept, then the differences (uint16, or uint32 above 65,535 classes);
- values, in the same order, are the distance to the row's best in steps of `GAP_STEP` nats (uint8);
- the best log-probability and, for each declared temperature tau, ln of sum_{c outside the top k} p_c^(1/tau)
  (float16; -inf when nothing is outside).
A row without an image holds fill values only: a class no vocabulary has, 255, NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from teachonce.errors import UsageError

CODEC_VERSION = 1
# A uniform step D on log-probabilities costs a KL of about D^2/24 after renormalising; measured on the real teacher
# 1/16 gives 1.02e-4 nats, so 1/17 is the first that keeps the promised 1e-4.
GAP_STEP = 1.0 / 17.0
MAX_GAP = 254  # 255 is the fill value; 14.9 nats below the best is 3e-7 of its probability
GAP_FILL = 255

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


def class_dtype(classes: int) -> np.dtype[np.unsignedinteger]:
    """uint16 while its largest value is free as filler, else uint32."""
    return np.dtype(np.uint16) if classes <= np.iinfo(np.uint16).max else np.dtype(np.uint32)


def encode(labels: TopK, classes: int) -> CodedTopK:
    """Code R rows.

    Args:
        labels: rows by falling probability.
        classes: size of the vocabulary.

    Raises:
        UsageError: a NaN or infinite best log-probability in a row that has classes.
    """
    dtype = class_dtype(classes)
    fill = np.iinfo(dtype).max
    empty = labels.class_ids[:, 0] < 0
    broken = ~empty & ~np.isfinite(labels.log_probs[:, 0])
    if broken.any():
        raise UsageError(f"{int(broken.sum())} rows have no finite best log-probability: the teacher gave NaN or inf")
    order = np.argsort(labels.class_ids, axis=1, kind="stable")
    ids = np.take_along_axis(labels.class_ids, order, axis=1)
    best = labels.log_probs[:, :1]
    with np.errstate(invalid="ignore"):  # rows of NaN are overwritten below
        distance = best - np.take_along_axis(labels.log_probs, order, axis=1)
        gaps = np.clip(np.rint(distance / GAP_STEP), 0, MAX_GAP)
        gaps = np.where((distance > 0) & (gaps == 0), 1, gaps)  # only true ties of the best may look like it
    coded_ids = np.concatenate([ids[:, :1], np.diff(ids, axis=1)], axis=1)
    coded_ids[empty] = fill
    gaps[empty] = GAP_FILL
    return CodedTopK(
        coded_ids.astype(dtype),
        gaps.astype(np.uint8),
        best[:, 0].astype(np.float16),
        labels.log_residual.astype(np.float16),
    )


def decode(coded: CodedTopK) -> TopK:
    """The inverse of `encode`, within the error that `max_error` states."""
    fill = np.iinfo(coded.class_ids.dtype).max
    empty = coded.class_ids[:, 0] == fill
    order = np.argsort(coded.gaps, axis=1, kind="stable")  # stable: equal gaps stay in class order
    ids = np.take_along_axis(np.cumsum(coded.class_ids.astype(np.int64), axis=1), order, axis=1)
    gaps = np.take_along_axis(coded.gaps, order, axis=1).astype(np.float32)
    log_probs = coded.top_log_prob.astype(np.float32)[:, None] - gaps * np.float32(GAP_STEP)
    ids[empty] = -1
    log_probs[empty] = np.nan
    return TopK(ids, log_probs, coded.log_residual.astype(np.float32))


def max_error(log_probs: FloatArray) -> FloatArray:
    """The stated error of each decoded log-probability, in nats, for gaps below `MAX_GAP` steps.

    Half a step, or one step for a class that is nearer than half a step to the best and is kept apart from it, plus
    the rounding of the best to float16.
    """
    best = np.abs(log_probs[:, :1])
    near = (log_probs[:, :1] - log_probs) < GAP_STEP / 2
    return np.where(near, GAP_STEP, GAP_STEP / 2) + best * np.float32(2.0**-11) + np.float32(1e-6)
