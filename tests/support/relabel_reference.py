"""What relabelled labels should be, the plain way: one softmax in float64 from stored embeddings and class vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teachonce.labels.codec import TopK, max_error
from teachonce.labels.format import LABELS
from teachonce.labels.store import LabelStore

Doubles = np.ndarray[Any, np.dtype[np.float64]]


def logits_of(path: Path, vectors: Doubles | None = None) -> Doubles:
    """At the teacher's own temperature, from stored embeddings and class vectors, in float64."""
    store = LabelStore.open(path)
    images = np.concatenate([store.embeddings(chunk) for chunk in range(store.layout.chunks)]).astype(np.float64)
    classes = store.class_embeddings().astype(np.float64) if vectors is None else vectors
    products: Doubles = float(store.groups[LABELS].fingerprint["logit_scale"]) * images @ classes.T
    return products


def log_softmax(logits: Doubles) -> Doubles:
    """In float64."""
    shifted = logits - logits.max(1, keepdims=True)
    result: Doubles = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def decoded(path: Path) -> TopK:
    """All soft labels of a store."""
    store = LabelStore.open(path)
    parts = [store.decode_labels(store.read_chunk(LABELS, chunk)) for chunk in range(store.layout.chunks)]
    names = ("class_ids", "log_probs", "log_residual")
    return TopK(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def check_exact(path: Path, truth: Doubles) -> None:
    """Values, order and tail sums of every temperature against the full softmax."""
    store, labels = LabelStore.open(path), decoded(path)
    for row, ids in enumerate(labels.class_ids):
        wanted = truth[row, ids].astype(np.float32)
        assert (np.abs(labels.log_probs[row] - wanted) <= max_error(wanted[None], store.tables)[0] + 2e-4).all()
        outside = np.delete(truth[row], ids)
        assert outside.size == 0 or outside.max() <= wanted.min() + 1e-5
        for column, tau in enumerate(store.layout.temperatures):
            mass = np.log(np.exp(outside / tau).sum()) if outside.size else -np.inf
            assert labels.log_residual[row, column] == pytest.approx(mass, rel=1e-3, abs=2e-3)


def at_entropy(log_p: Doubles, entropy: float) -> Doubles:
    """Each row at the temperature that gives it the entropy, by halving in float64."""
    rows = []
    for row in log_p:
        low, high = np.log(1 / 30), np.log(30)
        for _ in range(100):
            middle = (low + high) / 2
            at = log_softmax(row[None] / np.exp(middle))[0]
            low, high = (low, middle) if -(np.exp(at) * at).sum() > entropy else (middle, high)
        rows.append(log_softmax(row[None] / np.exp((low + high) / 2))[0])
    return np.array(rows)
