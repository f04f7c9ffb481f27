"""The stored form of the teacher's unit image embeddings: only their direction, in int8 or float16.

A unit vector needs no scale: what is stored is divided by its own length when read, so the error along the vector is
nothing. With the class embeddings of a store it gives any logit of the teacher.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from teachonce.models.spec import EmbeddingKind

INT8_FILL = -128


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
