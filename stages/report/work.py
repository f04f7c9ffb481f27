"""The work of `report`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import csv
import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from teachonce.core.documents import csv_bytes
from teachonce.core.files import atomic_write_bytes
from teachonce.core.progress import Reporter
from teachonce.errors import UsageError
from teachonce.models.spec import require_model
from teachonce.phrases import command_line, option, phrase
from teachonce.reports.folder import Folder, read_folder
from teachonce.reports.tables import best_group, measures
from teachonce.runs.reader import Run
from teachonce.stages.report.request import ReportRequest, ReportResult

if TYPE_CHECKING:
    from teachonce.reports.page import Report
    from teachonce.reports.samples import Samples

LIST = "files.csv"  # lists, with digests, the files beside a page; a later report may replace only these

T = TypeVar("T")


def report(request: ReportRequest, reporter: Reporter, spell: Callable[[str], str] = str) -> ReportResult:
    """Read the runs, count, draw and write.

    Args:
        request: what to report on, and where to.
        reporter: told about progress.
        spell: how the page spells the options of commands that it names.

    Raises:
        UsageError: --out is a folder or lies in none.
        DataError: the folder holds no finished run.
        IncompleteError, EnvironmentFault: the page cannot be written.
    """
    began = time.monotonic()
    _check(request)
    folder = read_folder(request.folder)
    for entry in folder.unusable:
        reporter.note(f"not counted: {entry.name}: {entry.kind}, {entry.why}")
    labels = request.labels or _recorded_labels(folder)

    from teachonce.reports.page import build  # brings matplotlib

    store = _spelled(_fidelity(labels, folder), spell)
    samples = _spelled(_samples(request, labels, folder, reporter), spell)
    made = build(folder, store, samples, None if labels is None else str(labels), _command(request), spell)
    beside = request.out.with_name(f"{request.out.stem}-files")
    atomic_write_bytes(request.out, made.html.encode(), reporter)
    _write_files(beside, made.files, reporter)
    return _result(request, folder, made, beside, time.monotonic() - began)


def _spelled(answer: T, spell: Callable[[str], str]) -> T | str:
    """The answer as it is; where it is a reason why there is nothing, the reason in the spelling of the page."""
    return spell(answer) if isinstance(answer, str) else answer


def _check(request: ReportRequest) -> None:
    if request.student is not None:
        require_model(request.student)
    if request.out.is_dir():
        raise UsageError(
            f"{request.out} is a folder; " + option("out") + " is the page to write",
            hint=phrase("give {out} report.html"),
        )
    if not request.out.parent.is_dir():
        raise UsageError(
            f"there is no folder {request.out.parent} to write {request.out.name} to",
            hint=phrase("make it, or {another out}"),
        )


def _labels_then(folder: Folder) -> Any:
    """Where the store that the grid, or the first run, was made from was then, as it is written there."""
    return (folder.grid.labels if folder.grid else None) or folder.base.runs[0].start.get("labels")


def _recorded_labels(folder: Folder) -> Path | None:
    """The store that the grid, or the first run, was made from: where it was then, or beside the folder."""
    recorded = _labels_then(folder)
    if not isinstance(recorded, str):
        return None
    places = (Path(recorded), folder.path / Path(recorded).name, folder.path.parent / Path(recorded).name)
    return next((place for place in places if (place / "zarr.json").is_file()), None)


def _fidelity(labels: Path | None, folder: Folder) -> Mapping[str, Any] | str:
    if labels is None:
        then = _labels_then(folder)
        return f"the label store is not where the runs had it ({then}); give " + option("labels") + " STORE"
    from teachonce.reports.samples import store_fidelity

    return store_fidelity(labels)


def _samples(request: ReportRequest, labels: Path | None, folder: Folder, reporter: Reporter) -> Samples | str:
    if request.root is None:
        return phrase("the images were not given; add {root} DIR, the folder that the store was taught from")
    if labels is None:
        return phrase("there is no label store; give {labels} STORE")
    from teachonce.reports.samples import sample_rows

    return sample_rows(labels, request.root, _shown_run(folder), request.student, reporter)


def _shown_run(folder: Folder) -> Run:
    """The first run of the best setting."""
    best, _ = best_group(folder, measures(folder))
    return next(group for group in folder.groups if group.name == best).runs[0]


def _command(request: ReportRequest) -> str:
    given = {"out": request.out, "labels": request.labels, "root": request.root, "student": request.student}
    return command_line("report", str(request.folder), **{key: str(v) for key, v in given.items() if v is not None})


def _write_files(folder: Path, files: Mapping[str, bytes], reporter: Reporter) -> None:
    """Write what lies beside the page, and take away what an earlier report wrote there and this one does not."""
    folder.mkdir(exist_ok=True)
    lines = [["file", "sha256"], *([name, hashlib.sha256(data).hexdigest()] for name, data in sorted(files.items()))]
    for name, digest in _listed(folder / LIST):
        old = folder / Path(name).name
        if name not in files and old.is_file() and hashlib.sha256(old.read_bytes()).hexdigest() == digest:
            old.unlink()
    for name, data in files.items():
        atomic_write_bytes(folder / name, data, reporter)
    atomic_write_bytes(folder / LIST, csv_bytes(lines), reporter)


def _listed(file: Path) -> list[tuple[str, str]]:
    try:
        lines = list(csv.reader(file.read_text(encoding="utf-8").splitlines()))[1:]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    return [(line[0], line[1]) for line in lines if len(line) == 2]


def _result(request: ReportRequest, folder: Folder, made: Report, beside: Path, seconds: float) -> ReportResult:
    return ReportResult(
        headline=tuple(made.words.sentences()),
        runs=len(folder.runs),
        settings=len(folder.groups),
        not_counted=len(folder.unusable),
        best=made.best,
        out=str(request.out),
        bytes=len(made.html.encode()),
        files=str(beside),
        files_written=len(made.files) + 1,
        seconds=seconds,
    )
