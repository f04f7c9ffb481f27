"""How many bytes a row of a label store takes on disk, by what they are for.

It measures files; it does not estimate.
"""

from __future__ import annotations

from pathlib import Path

from teachonce.label_store import LabelStore
from teachonce.store_format import LABELS


def bytes_per_row(store: LabelStore) -> dict[str, float]:
    """Bytes of all files of each part divided by the committed rows.

    Returns:
        `labels` (ids, values, residual, label, status, sample, view), `features` (students), `index` (where images
        lie), `fixed` (vocabulary, class embeddings, metadata, ledger) and `total`.
    """
    rows = sum(stop - start for start, stop in map(store.layout.bounds, store.committed(LABELS)))
    if not rows:
        return {"labels": 0.0, "features": 0.0, "index": 0.0, "fixed": 0.0, "total": 0.0}
    labels = sum(_size(store.path / spec.path / "c") for spec in store.groups[LABELS].arrays)
    features = sum(_size(store.path / spec.path / "c")
                   for name, group in store.groups.items() if name != LABELS for spec in group.arrays)  # fmt: skip
    index = _size(store.path / "index")
    total = _size(store.path)
    parts = {
        "labels": labels,
        "features": features,
        "index": index,
        "fixed": total - labels - features - index,
        "total": total,
    }
    return {name: size / rows for name, size in parts.items()}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
