"""index: compare the data on disk with its manifest, whole, before anything is computed from it.

It writes nothing and loads no model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from teachonce.core.progress import Reporter
from teachonce.data.manifests import load_manifest, require_root
from teachonce.data.survey import IndexFault, SplitSurvey, check_digests, survey_split
from teachonce.errors import DataError


@dataclass(frozen=True, kw_only=True)
class IndexRequest:
    """Which data to look at."""

    manifest: str
    root: Path | None
    split: str | None = None
    """None: every split of the manifest."""
    digests: bool = False
    """Read released files whole and compare their published digests."""


@dataclass(frozen=True, kw_only=True)
class IndexResult:
    """What is there, and all that is not as the manifest says."""

    manifest: str
    title: str
    licence: str
    about: str
    root: str
    splits: tuple[SplitSurvey, ...]
    faults: tuple[IndexFault, ...]
    seconds: float
    images_per_second: float
    exit_code: int
    """0, or that of a data error when there are faults."""


def index(request: IndexRequest, reporter: Reporter) -> IndexResult:
    """Look at the data.

    Raises:
        UsageError: no such manifest or split, or no root.
        DataError: the root is no folder, or the manifest is malformed.
    """
    began = time.monotonic()
    manifest = load_manifest(request.manifest)
    root = require_root(manifest, request.root)
    names = [request.split] if request.split is not None else sorted(manifest.splits)
    surveys: list[SplitSurvey] = []
    faults: list[IndexFault] = []
    for name in names:
        survey, wrong = survey_split(manifest, name, root, reporter)
        surveys += [survey] if survey is not None else []
        faults += wrong
    if request.digests:
        faults += check_digests(manifest, root, reporter)
    if faults:
        reporter.note(f"where to get it: {manifest.get}")
    seconds = time.monotonic() - began
    images = sum(survey.images for survey in surveys)
    return IndexResult(
        manifest=manifest.name,
        title=manifest.title,
        licence=manifest.licence,
        about=manifest.about,
        root=str(root),
        splits=tuple(surveys),
        faults=tuple(faults),
        seconds=seconds,
        images_per_second=images / seconds if seconds else 0.0,
        exit_code=DataError.exit_code if faults else 0,
    )
