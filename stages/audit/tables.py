"""The tables beside the page of an audit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from teachonce.audit.classes import ByClass
from teachonce.audit.confusions import Confusion
from teachonce.audit.evidence import Evidence
from teachonce.core.documents import csv_bytes
from teachonce.core.files import atomic_write_bytes
from teachonce.core.progress import Reporter


def write_tables(
    folder: Path,
    evidence: Evidence,
    figures: ByClass | None,
    wrong: Sequence[float],
    pairs: Sequence[Confusion],
    reporter: Reporter,
) -> None:
    """Write `classes.csv`, `confusions.csv`, and `prior.tsv`, which `relabel` takes as the wanted prior."""
    folder.mkdir(exist_ok=True)
    vocabulary, places = evidence.vocabulary, evidence.photographed.tolist()
    counts = evidence.counts().tolist()
    names = ["predicted", "prior", "recall", "precision", "confidence", "temperature"]
    columns = [getattr(figures, name).tolist() for name in names] if figures is not None else []
    head = ["class", "name", "photos", "wrong_labels", *(names if columns else [])]
    lines = [
        [vocabulary.ids[place], vocabulary.names[place], counts[i], _cell(wrong[i]), *(_cell(c[i]) for c in columns)]
        for i, place in enumerate(places)
    ]
    atomic_write_bytes(folder / "classes.csv", csv_bytes([head, *lines]), reporter)
    ends = [[vocabulary.ids[end] for end in (pair.label, pair.predicted)] for pair in pairs]
    confused = [
        [*end, vocabulary.names[p.label], vocabulary.names[p.predicted], p.photos, p.taken, p.back, p.kind]
        for end, p in zip(ends, pairs, strict=True)
    ]
    head = ["label", "predicted", "label_name", "predicted_name", "photos", "taken", "back", "kind"]
    atomic_write_bytes(folder / "confusions.csv", csv_bytes([head, *confused]), reporter)
    total = max(sum(counts), 1)
    shares = "".join(f"{vocabulary.ids[place]}\t{counts[i] / total:.8g}\n" for i, place in enumerate(places))
    atomic_write_bytes(folder / "prior.tsv", shares.encode(), reporter)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}" if value == value else None
    return value
