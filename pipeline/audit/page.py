"""The page of an audit: one HTML file that needs nothing else, with photos of what was found where they are at hand.

Figures come from the other modules; the template lays them out and escapes every text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from teachonce.audit.classes import ByClass, Calibration
from teachonce.audit.confusions import Confusion
from teachonce.audit.drift import Drift
from teachonce.audit.evidence import Evidence
from teachonce.audit.findings import MEANINGS, Finding
from teachonce.core.documents import visible
from teachonce.data.reader import ImageFault, ImageReader, decode
from teachonce.errors import TeachOnceError
from teachonce.reports.samples import data_uri

SHOWN = {"label": 60, "duplicate": 24, "across": 24, "outside": 24, "far": 24}
"""Findings of each kind on the page; the list has all."""
CLASSES = 12


@dataclass(frozen=True, kw_only=True)
class ClassLine:
    """A class on the page."""

    name: str
    photos: int
    predicted: int
    recall: float
    precision: float
    confidence: float
    wrong: float
    """Labels of the class that are expected to be wrong, as a share."""


@dataclass(frozen=True, kw_only=True)
class Audited:
    """All that an audit found, for the page and the files beside it."""

    evidence: Evidence
    new: Evidence | None
    findings: Sequence[Finding]
    sentences: Sequence[str]
    classes: ByClass | None
    wrong_by_class: Sequence[float]
    calibration: Calibration | None
    confusions: Sequence[Confusion]
    drift: Drift | None
    without_photos: Sequence[str]
    """Ids of classes of the class list that no sample carries."""
    facts: Mapping[str, str] = field(default_factory=dict)


def build(audited: Audited, roots: tuple[Path | None, Path | None], command: str) -> str:
    """The page.

    Args:
        audited: what was found.
        roots: folders of the photos of the store and of the new photos; None where they are not at hand.
        command: the command that made this page.
    """
    shown = {
        kind: [finding for finding in audited.findings if finding.finding == kind][:most]
        for kind, most in SHOWN.items()
    }
    counts = {kind: sum(finding.finding == kind for finding in audited.findings) for kind in SHOWN}
    photos = _photos(audited.evidence, roots[0], [f for kind, some in shown.items() if kind != "far" for f in some])
    if audited.new is not None:
        photos |= _photos(audited.new, roots[1], shown["far"], "new")
    names = audited.evidence.vocabulary.names
    return _rendered(
        {
            "audited": audited,
            "shown": {kind: some for kind, some in shown.items() if some},
            "counts": counts,
            "meanings": MEANINGS,
            "photos": photos,
            "over": _lines(audited, over=True),
            "under": _lines(audited, over=False),
            "confusions": [
                {"pair": pair, "label": names[pair.label], "predicted": names[pair.predicted]}
                for pair in audited.confusions
            ],
            "shifts": [
                {"shift": shift, "name": names[shift.predicted]}
                for shift in (audited.drift.classes[:CLASSES] if audited.drift else ())
            ],
            "without_photos": list(audited.without_photos),
            "command": command,
        }
    )


def _lines(audited: Audited, over: bool) -> list[ClassLine]:
    """The classes that the teacher names most above, or most below, the number of their photos."""
    figures = audited.classes
    if figures is None:
        return []
    ratio = figures.predicted / np.maximum(figures.photos, 1)
    order = np.argsort(-ratio if over else ratio, kind="stable")[:CLASSES].tolist()
    names = audited.evidence.vocabulary.names
    return [
        ClassLine(
            name=names[int(audited.evidence.photographed[place])],
            photos=int(figures.photos[place]),
            predicted=int(figures.predicted[place]),
            recall=float(figures.recall[place]),
            precision=float(figures.precision[place]),
            confidence=float(figures.confidence[place]),
            wrong=float(audited.wrong_by_class[place]),
        )
        for place in order
        if (ratio[place] > 1) == over
    ]


def _photos(evidence: Evidence, root: Path | None, findings: Sequence[Finding], side: str = "") -> dict[str, str]:
    """Key -> the photo as a data URI; a photo that cannot be read is left out."""
    if root is None:
        return {}
    store, images = evidence.store, dict[str, str]()
    for finding in findings:
        row = int(evidence.row[finding.place])
        chunk = row // store.layout.chunk_rows
        inside = (row - store.layout.bounds(chunk)[0]) // store.layout.views
        try:
            with ImageReader(store.index_of_chunk(chunk), root) as reader:
                image = decode(reader.read(inside))
        except (TeachOnceError, OSError):
            continue
        if not isinstance(image, ImageFault):
            images[side + finding.key] = data_uri(image)
    return images


def _in_sight(value: Any) -> Any:
    return visible(value) if type(value) is str else value


def _rendered(context: Mapping[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_in_sight
    )
    environment.filters["percent"] = lambda value: "–" if value is None or value != value else f"{100 * value:.1f}"
    environment.filters["figure"] = lambda value: "–" if value is None or value != value else f"{value:.3g}"
    style = Markup((resources.files("teachonce.reports") / "assets" / "report.css").read_text(encoding="utf-8"))
    template = (resources.files("teachonce.audit") / "assets" / "audit.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(**context, style=style)
