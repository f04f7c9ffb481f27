"""The work of `inspect`. The docstring of the package says what the stage promises."""

from __future__ import annotations

from typing import Any

import numpy as np

from teachonce.core.progress import Reporter
from teachonce.data.vocabulary import Vocabulary
from teachonce.labels.codec import TopK
from teachonce.labels.fidelity import fidelity_report
from teachonce.labels.format import EMBEDDING, LABELS
from teachonce.labels.size import bytes_per_row
from teachonce.labels.store import LabelStore
from teachonce.stages.inspect.request import InspectRequest, InspectResult

STATISTICS_CHUNKS = 8  # chunks the statistics are taken from; all of a small store
EXAMPLE_CLASSES = 3


def inspect(request: InspectRequest, reporter: Reporter) -> InspectResult:
    """Read the header, the ledger and a few chunks. The stage's `inspect` says what is raised."""
    store = LabelStore.open(request.labels)
    vocabulary = store.vocabulary()
    committed = store.committed(LABELS)
    records = [record for record in store.records(LABELS) if record]
    statistics, examples = _look(store, vocabulary, committed, request.samples)
    students = tuple(
        {
            "group": name,
            "student": group.fingerprint["about"].get("student"),
            "digest": group.fingerprint["student_digest"],
            "width": group.vectors.tail[0],
            "chunks_committed": len(store.committed(name)),
        }
        for name, group in store.groups.items()
        if name not in (LABELS, EMBEDDING)
    )
    return InspectResult(
        rows=store.layout.rows,
        chunks=store.layout.chunks,
        chunks_committed=len(committed),
        rows_failed=sum(record.rows_failed for record in records),
        top_k=store.layout.top_k,
        vocabulary_size=len(vocabulary),
        tied_names=vocabulary.tied(),
        bytes_per_row=bytes_per_row(store),
        fingerprint=store.groups[LABELS].fingerprint,
        passed_over=store.groups[LABELS].fingerprint.get("about", {}).get("passed_over", {}),
        students=students,
        embeddings=_embeddings(store),
        fidelity=fidelity_report(store),
        statistics=statistics,
        examples=examples,
        store_id=store.store_id(),
    )


def _embeddings(store: LabelStore) -> dict[str, Any]:
    group = store.groups.get(EMBEDDING)
    if group is None:
        return {}
    return {
        "kind": group.fingerprint["kind"],
        "width": group.vectors.tail[0],
        "chunks_committed": len(store.committed(EMBEDDING)),
    }


def _look(
    store: LabelStore, vocabulary: Vocabulary, committed: list[int], samples: int
) -> tuple[dict[str, float], tuple[dict[str, Any], ...]]:
    if not committed or not store.layout.top_k:
        return {}, ()
    places = np.linspace(0, len(committed) - 1, min(STATISTICS_CHUNKS, len(committed))).astype(int)
    chosen = [committed[place] for place in places]
    sums = np.zeros(5)
    examples: tuple[dict[str, Any], ...] = ()
    for chunk in chosen:
        data = store.read_chunk(LABELS, chunk)
        labels = store.decode_labels(data)
        good = data["status"] == 0
        label = store.in_vocabulary(data["label"])
        mass = 1 - np.exp(labels.log_residual[good, 0].astype(np.float64))
        agrees = (labels.class_ids[good, 0] == label[good]).sum()
        known = (label[good] >= 0).sum()
        sums += [good.sum(), mass.sum(), np.exp(labels.log_probs[good, 0]).sum(), agrees, known]
        if not examples:
            examples = _examples(store, vocabulary, chunk, labels, label, np.flatnonzero(good)[:samples])
    n = max(sums[0], 1)
    return {
        "rows_looked_at": float(sums[0]),
        "mass_kept": float(sums[1] / n),
        "top1_probability": float(sums[2] / n),
        "top1_agrees_with_label": float(sums[3] / sums[4]) if sums[4] else float("nan"),
    }, examples


def _examples(
    store: LabelStore, vocabulary: Vocabulary, chunk: int, labels: TopK, label: Any, rows: Any
) -> tuple[dict[str, Any], ...]:
    index = store.index_of_chunk(chunk)
    return tuple(
        {
            "row": store.layout.bounds(chunk)[0] + int(row),
            "key": index.key(int(row) // store.layout.views),
            "label": vocabulary.names[label[row]] if label[row] >= 0 else None,
            "teacher": [
                (vocabulary.names[class_id], round(float(np.exp(log_prob)), 4))
                for class_id, log_prob in zip(
                    labels.class_ids[row, :EXAMPLE_CLASSES], labels.log_probs[row, :EXAMPLE_CLASSES], strict=True
                )
            ],
        }
        for row in rows
    )
