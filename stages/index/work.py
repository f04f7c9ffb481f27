"""The work of `index`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import time

from teachonce.core.progress import Reporter
from teachonce.data.manifests import load_manifest, require_root
from teachonce.errors import DataError
from teachonce.stages.index.request import IndexRequest, IndexResult
from teachonce.stages.index.survey import IndexFault, SplitSurvey, check_digests, survey_split


def index(request: IndexRequest, reporter: Reporter) -> IndexResult:
    """Look at the data. The stage's `index` says what is raised."""
    began = time.monotonic()
    manifest = load_manifest(request.manifest)
    root = require_root(manifest, request.root)
    names = [request.split] if request.split is not None else sorted(manifest.splits)
    surveys: list[SplitSurvey] = []
    faults: list[IndexFault] = []
    for name in names:
        survey, wrong = survey_split(manifest, name, root, reporter)
        surveys += [survey] if survey is not None else []
        for remark in () if survey is None else survey.remarks:
            reporter.note(f"{name}: {remark}")
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
