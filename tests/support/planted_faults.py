"""Label stores with faults that a test knows: wrong labels, duplicates, shifted photos. It tests nothing.

Photos are unit vectors around the class vectors of their true class; no image exists.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from worlds import synthetic_index

SCALE = 20.0


@dataclass(frozen=True)
class Planted:
    """A store and the truth about it, all by sample number."""

    store: Any
    truth: np.ndarray[Any, Any]
    label: np.ndarray[Any, Any]
    vectors: np.ndarray[Any, Any]
    names: np.ndarray[Any, Any]
    """The teacher's class vectors."""

    @property
    def wrong(self) -> set[int]:
        """Samples whose label is wrong."""
        return set(np.flatnonzero(self.truth != self.label).tolist())


def planted_store(
    path: Path,
    rows: int = 600,
    classes: int = 10,
    noise: float = 0.0,
    copies: int = 0,
    shift: float = 0.0,
    some: int | None = None,
    unseen: int = 2,
    seed: int = 0,
    teacher: bool = True,
) -> Planted:
    """Make a committed store.

    Args:
        path: of the store.
        rows: samples, `copies` of them near-duplicates of the first ones.
        classes: with photos.
        noise: share of wrong labels.
        copies: the last samples are nearly the first ones, under the true label.
        shift: how far all photos are moved in one direction.
        some: true classes come from the first so many only.
        unseen: further names, without photos.
        seed: of the photos; class vectors are always the same.
        teacher: whether the store has soft labels, or features of a student alone.
    """
    import torch

    from teachonce.data.vocabulary import Vocabulary
    from teachonce.labels.create import add_embedding, add_student, create_store, row_order
    from teachonce.labels.format import LABELS, new_layout
    from teachonce.labels.ledger import key_digest
    from teachonce.teaching.soft_chunk import SoftChunk

    width, every = 32, classes + unseen
    names = unit(np.random.default_rng(99).normal(size=(every, width)))
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, some or classes, rows)
    vectors = names[truth] + 0.14 * rng.normal(size=(rows, width)) + shift * unit(np.ones((1, width)))
    for copy in range(copies):
        vectors[rows - 1 - copy] = vectors[copy] + 0.01 * rng.normal(size=width)
        truth[rows - 1 - copy] = truth[copy]
    vectors = unit(vectors)
    flipped = rng.random(rows) < noise
    label = np.where(flipped, (truth + rng.integers(1, classes, rows)) % classes, truth)

    vocabulary = Vocabulary(tuple(f"c{i:05d}" for i in range(every)), tuple(f"kind {i:02d}" for i in range(every)))
    index = dataclasses.replace(synthetic_index(rows, every, seed), label=label.astype(np.int32))
    layout = new_layout(rows, every, every if teacher else 0, (1.0,) if teacher else (), 100)
    fingerprint = {
        "samples": index.digest,
        "vocabulary_digest": vocabulary.digest,
        "templates": ["a photo of a {}."],
        "teacher_digest": "t" * 64,
        "logit_scale": SCALE,
        "about": {},
    }
    order = row_order(rows, seed)
    store = create_store(
        path, layout, fingerprint, vocabulary, vocabulary, index, order, names.astype(np.float32) if teacher else None
    )
    group = (
        add_embedding(store, "float16", width, {"teacher_digest": "t" * 64})
        if teacher
        else add_student(store, "5" * 64, width, {"student_digest": "5" * 64, "about": {}})
    )
    for chunk in range(layout.chunks):
        start, stop = layout.bounds(chunk)
        sample, status = store.samples(start, stop), np.zeros(stop - start, np.uint8)
        here, part = vectors[sample], store.index_of_chunk(chunk)
        soft = SoftChunk(store, chunk)
        if teacher:
            soft.add(torch.from_numpy((SCALE * here @ names.T).astype(np.float32)))
        data = {
            **(soft.finish(status, part.label) if teacher else {}),
            "label": part.label,
            "sample": sample,
            "view": np.zeros(stop - start, np.uint8),
            "status": status,
            "image_crc": 1 + sample.astype(np.uint32),
            "key_digest": key_digest(part),
        }
        store.commit(LABELS, chunk, 7, stop - start, 0, store.write_chunk(LABELS, chunk, data))
        arrays = {spec.path: column(spec, here) for spec in store.groups[group].arrays}
        store.commit(group, chunk, 7, stop - start, 0, store.write_chunk(group, chunk, arrays))
    return Planted(store, truth, label, vectors, names)


def unit(vectors: Any) -> Any:
    """The vectors at length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def column(spec: Any, vectors: Any) -> Any:
    """An array of a column group: the vectors, or measures that nobody took."""
    if not spec.per_chunk:
        return vectors.astype(spec.dtype)
    return np.full((spec.per_chunk, *spec.tail), np.nan, np.float32)
