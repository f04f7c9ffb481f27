"""How many bytes a row of a label store takes on disk, by what they are for.

This module measures files; it does not estimate.
"""

from __future__ import annotations

from teachonce.labels.format import EMBEDDING, LABELS
from teachonce.labels.store import LabelStore
from teachonce.objects.remote import tree_size


def bytes_per_row(store: LabelStore) -> dict[str, float]:
    """Bytes of all files of each part divided by the committed rows.

    Returns:
        `labels` (ids, values, residual, label, status, sample, view, checks, fidelity report), `embeddings` (the
        teacher's), `features` (students), `index` (where images lie), `fixed` (vocabulary, class embeddings, codec
        tables, metadata, ledger) and `total`.
    """
    rows = sum(stop - start for start, stop in map(store.layout.bounds, store.committed(LABELS)))
    parts = {"labels": 0, "embeddings": 0, "features": 0, "index": tree_size(store.path / "index")}
    for name, group in store.groups.items():
        part = {LABELS: "labels", EMBEDDING: "embeddings"}.get(name, "features")
        parts[part] += sum(tree_size(store.path / spec.path / "c") for spec in group.arrays)
    total = tree_size(store.path)
    parts |= {"fixed": total - sum(parts.values()), "total": total}
    return {name: size / rows if rows else 0.0 for name, size in parts.items()}
