"""What a label store knows of its samples, gathered once: labels, vectors, the teacher's word; no model runs.

One row a sample is looked at, its first view, where it has an image. Vectors are the teacher's image embeddings, or the
features of a student where the store keeps no embeddings.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from teachonce.core.progress import Reporter
from teachonce.data.spelling import spoken
from teachonce.data.vocabulary import Vocabulary
from teachonce.errors import DataError, IncompleteError
from teachonce.labels.format import EMBEDDING, LABELS
from teachonce.labels.store import LabelStore
from teachonce.phrases import phrase

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

IN_MEMORY = 1 << 30  # bytes of vectors; more of them lie in a file without a name, which ends with the process
BLOCK_NUMBERS = 1 << 24  # of a block of rows times classes: 64 MiB of float32


@dataclass(frozen=True, eq=False)
class Evidence:
    """The n samples of a store that have an image, in row order."""

    store: LabelStore
    vocabulary: Vocabulary
    row: Ids
    """[n] the row of the sample's first view."""
    sample: Ids
    """[n] the number of the sample in the manifest's own order."""
    label: Ids
    """[n] the place of the sample's class in `photographed`, -1 where the vocabulary lacks it or it is unknown."""
    photographed: Ids
    """[K] the classes of the vocabulary that are the label of at least one sample, rising."""
    crc: npt.NDArray[np.uint32]
    """[n] the checksum of each image file's bytes."""
    vectors: npt.NDArray[np.float16]
    """[n, D] unit vectors."""
    source: str
    """What the vectors are, in words."""
    model: str
    """Digest of the model that made the vectors."""
    best_class: Ids
    """[n] the teacher's most probable class of the vocabulary; -1 where the store has no soft labels."""
    best_p: Floats
    """[n] its probability; NaN where the store has no soft labels."""

    def __len__(self) -> int:
        return len(self.row)

    def counts(self) -> Ids:
        """Samples of each photographed class, [K]."""
        return np.bincount(self.label[self.label >= 0], minlength=len(self.photographed))

    def names(self) -> list[str]:
        """The names of the photographed classes, in the form in which equal names give equal tokens."""
        return [spoken(self.vocabulary.names[place]) for place in self.photographed.tolist()]

    @cached_property
    def class_vectors(self) -> Floats | None:
        """The teacher's unit class vectors, [C, D]; None where the store keeps none: merged stores have none."""
        kept = any(name.split("/")[0] == "class_embeddings" for name in self.store.metadata.documents)
        return self.store.class_embeddings() if kept else None

    def scaled_class_vectors(self) -> Floats | None:
        """Whose products with the vectors are the teacher's logits, [C, D]; None where the vectors are a student's."""
        if EMBEDDING not in self.store.groups or self.class_vectors is None:
            return None
        return np.float32(self.store.groups[LABELS].fingerprint["logit_scale"]) * self.class_vectors

    @cached_property
    def _exact(self) -> Floats | None:
        scaled = self.scaled_class_vectors()
        return None if scaled is None else scaled[self.photographed]

    def keys(self, places: Ids) -> dict[int, str]:
        """The keys of some of the samples, by their places in this evidence."""
        keys: dict[int, str] = {}
        layout = self.store.layout
        for chunk in np.unique(self.row[places] // layout.chunk_rows).tolist():
            start, stop = layout.bounds(chunk)
            index = self.store.index_of_chunk(chunk)
            for place in places[(self.row[places] >= start) & (self.row[places] < stop)].tolist():
                keys[place] = index.key((int(self.row[place]) - start) // layout.views)
        return keys

    def blocks(self, width: int) -> Iterator[slice]:
        """Ranges of samples whose rows of so many numbers fit into a block; each lies within one chunk."""
        most = max(1, BLOCK_NUMBERS // max(width, 1))
        edges = np.flatnonzero(np.diff(self.row // self.store.layout.chunk_rows)) + 1
        for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(self)], strict=True):
            for first in range(start, stop, most):
                yield slice(first, min(stop, first + most))

    def teacher_log_p(self, rows: slice) -> Floats:
        """ln p of the teacher over the photographed classes, at its own temperature, [b, K]; rows of one chunk.

        From embeddings the values are exact. From a top k alone, a class outside it gets an equal share of what is
        left over, and the sum over the photographed classes is 1 again.
        """
        store, exact = self.store, self._exact
        if exact is not None:
            return log_softmax(self.vectors[rows].astype(np.float32) @ exact.T)
        chunk = int(self.row[rows.start]) // store.layout.chunk_rows
        data = store.read_chunk(LABELS, chunk, ("class_ids", "gaps", "top_log_prob", "log_residual"))
        soft = store.decode_labels(data)
        inside = self.row[rows] - store.layout.bounds(chunk)[0]
        ids, log_p = soft.class_ids[inside], soft.log_probs[inside]
        outside = max(len(self.vocabulary) - store.layout.top_k, 1)
        spread = np.maximum(soft.log_residual[inside, :1] - np.log(np.float32(outside)), np.float32(-30))
        places = np.full(len(self.vocabulary) + 1, -1)
        places[self.photographed] = np.arange(len(self.photographed))
        table = np.repeat(spread, len(self.photographed) + 1, axis=1)
        np.put_along_axis(table, places[ids], log_p, axis=1)  # classes without photos go to the last column
        return log_softmax(table[:, :-1])


def log_softmax(logits: Floats) -> Floats:
    """Logarithms of the probabilities, [b, K]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def gather(store: LabelStore, reporter: Reporter) -> Evidence:
    """Read labels and vectors of a store, chunk by chunk.

    Raises:
        DataError: it keeps neither embeddings nor features of a student, or no sample has an image.
        IncompleteError: it is not complete.
        IntegrityError: a chunk is damaged.
    """
    group = _vectors_of(store)
    missing = store.layout.chunks - min(len(store.committed(name)) for name in (LABELS, group))
    if missing:
        raise IncompleteError(
            f"{store.path}: {missing} of {store.layout.chunks} chunks are not committed",
            hint=f"run the same `{store.maker}` again to complete the store",
        )
    samples, width = store.layout.rows // store.layout.views, store.groups[group].vectors.tail[0]
    vectors = _room(samples, width)
    parts: list[tuple[Any, ...]] = []
    count = 0
    for chunk in range(store.layout.chunks):
        part, rows = _chunk(store, group, chunk)
        vectors[count : count + len(rows)] = rows
        count += len(rows)
        parts.append(part)
        reporter.progress("read", chunk + 1, store.layout.chunks, "chunks")
    if not count:
        raise DataError(f"{store.path}: no sample has an image", hint=f"teachonce inspect {store.path}")
    row, sample, label, crc, best, best_p = (np.concatenate(column) for column in zip(*parts, strict=True))
    photographed = np.unique(label[label >= 0])
    placed = np.where(label >= 0, np.searchsorted(photographed, np.maximum(label, 0)), -1)
    teacher = group == EMBEDDING
    return Evidence(
        store=store,
        vocabulary=store.vocabulary(),
        row=row,
        sample=sample.astype(np.int64),
        label=placed,
        photographed=photographed,
        crc=crc,
        vectors=vectors[:count],
        source="the teacher's image embeddings" if teacher else "a student's image features",
        model=str(
            store.groups[LABELS].fingerprint["teacher_digest"]
            if teacher
            else store.groups[group].fingerprint["student_digest"]
        ),
        best_class=best,
        best_p=best_p,
    )


def _vectors_of(store: LabelStore) -> str:
    """The column group whose vectors are compared."""
    students = sorted(name for name in store.groups if name not in (LABELS, EMBEDDING))
    if EMBEDDING in store.groups or students:
        return EMBEDDING if EMBEDDING in store.groups else students[0]
    raise DataError(
        f"{store.path} keeps neither embeddings of its teacher nor features of a student: there is nothing to compare "
        "photos by",
        hint=phrase("run the command that made it again with {embeddings} int8, or with {student} MODEL"),
    )


def _room(samples: int, width: int) -> npt.NDArray[np.float16]:
    """An array for the vectors of a store; a large one lies on the disk."""
    if samples * width * 2 <= IN_MEMORY:
        return np.zeros((samples, width), np.float16)
    with tempfile.TemporaryFile(prefix="teachonce-") as file:
        return np.memmap(file, np.float16, "w+", shape=(samples, width))


def _chunk(store: LabelStore, group: str, chunk: int) -> tuple[tuple[Any, ...], npt.NDArray[np.float16]]:
    """Row, sample, label in the vocabulary, checksum, best class and its probability; and the vectors."""
    start, stop = store.layout.bounds(chunk)
    names = ("status", "sample", "label", "image_crc")
    soft = ("class_ids", "gaps", "top_log_prob", "log_residual") if store.layout.top_k else ()
    data = store.read_chunk(LABELS, chunk, names + soft)
    if group == EMBEDDING:
        vectors = store.embeddings(chunk)
    else:
        vectors = store.read_chunk(group, chunk)[store.groups[group].vectors.path].astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    first = np.arange(stop - start) % store.layout.views == 0
    kept = np.flatnonzero(first & (data["status"] == 0) & np.isfinite(vectors).all(axis=1))
    best, best_p = np.full(len(kept), -1, np.int64), np.full(len(kept), np.nan, np.float32)
    if soft:
        labels = store.decode_labels({name: data[name][kept] for name in soft})
        best, best_p = labels.class_ids[:, 0], np.exp(labels.log_probs[:, 0])
    label = store.in_vocabulary(data["label"])[kept]
    crc = data.get("image_crc", np.zeros(stop - start, np.uint32))[kept]
    return (start + kept, data["sample"][kept], label, crc, best, best_p), vectors[kept].astype(np.float16)
