"""How an estimate compares with what a teach really took."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from teachonce.core.documents import JSON_BYTES, json_in
from teachonce.core.outside import read_plain
from teachonce.core.progress import Reporter
from teachonce.errors import DataError, UsageError
from teachonce.labels.format import LABELS
from teachonce.labels.size import bytes_per_row
from teachonce.labels.store import LabelStore
from teachonce.phrases import phrase
from teachonce.stages.plan.request import Compared, CompareResult
from teachonce.teaching.estimate import (
    ANOTHER,
    Estimate,
    differences,
    job_of,
)

KIND = "teachonce-plan"
SCHEMA = 1


def compared(plan_file: Path, labels: Path, reporter: Reporter) -> CompareResult:
    """Read a plan and a store, and set them side by side.

    Raises:
        DataError: the file is no plan.
        UsageError: the store was taught from other data, or by another teacher.
    """
    try:
        document = json_in(read_plain(plan_file, JSON_BYTES))
        planned = {item["what"]: Estimate(**item) for item in document["estimates"]}
        rows, chunks, there = (int(document[key]) for key in ("rows", "chunks", "chunks_there"))
        known = document["kind"] == KIND and document["schema"] == SCHEMA
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DataError(
            f"{plan_file} is no plan: {problem}", hint=phrase("`teachonce plan` with {out} FILE.json")
        ) from problem
    if not known:
        raise DataError(f"{plan_file} is no plan of this version", hint=phrase("`teachonce plan` with {out} FILE.json"))
    if there:
        reporter.note(f"{there} chunks were there before the plan: bytes are compared with what was to be added")
    store = LabelStore.open(labels)
    _require_same_job(document, store, plan_file, reporter)
    outcome = {"rows": float(store.layout.rows), "chunks": float(store.layout.chunks)} | _outcome(store, there)
    planned = {
        "rows": Estimate(what="rows", low=rows, high=rows, unit="rows"),
        "chunks": Estimate(what="chunks", low=chunks, high=chunks, unit="chunks"),
    } | planned
    comparisons = tuple(
        Compared(
            what=what,
            low=e.low,
            high=e.high,
            outcome=outcome[what],
            unit=e.unit,
            inside=e.low <= outcome[what] <= e.high,
        )
        for what, e in planned.items()
        if what in outcome
    )
    complete = len(store.committed(LABELS)) == store.layout.chunks
    return CompareResult(labels=str(labels), source=document["source"], complete=complete, compared=comparisons)


def _require_same_job(document: dict[str, Any], store: LabelStore, plan_file: Path, reporter: Reporter) -> None:
    """Note what differs between the plan and the store; refuse a store that the plan was not made for."""
    job = document.get("job")
    taught = job_of(store.groups[LABELS].fingerprint, store.groups)
    changes = differences(job, taught) if isinstance(job, dict) else {}
    if set(changes) & ANOTHER:
        raise UsageError(
            f"{plan_file} is the plan of another job than {store.path}: {'; '.join(changes.values())}",
            hint="give the store that was taught after this plan, or plan this one",
        )
    if document["rows"] != store.layout.rows:
        changes["rows"] = f"rows {document['rows']} planned, {store.layout.rows} taught"
    if changes:
        reporter.note(
            f"{store.path} was not taught as it was planned, so that figures may differ: {'; '.join(changes.values())}"
        )


def _outcome(store: LabelStore, there: int) -> dict[str, float]:
    committed = store.committed(LABELS)
    rows = sum(stop - start for start, stop in map(store.layout.bounds, committed))
    share = 1 - there / max(1, store.layout.chunks)
    sizes = {
        f"bytes of {part}" if part != "total" else "bytes": each * rows * share
        for part, each in bytes_per_row(store).items()
        if each
    }
    seconds = _seconds(store)
    return sizes | ({"seconds of chunks": seconds, "rows a second": rows / seconds} if seconds else {})


def _seconds(store: LabelStore) -> float:
    """Seconds from the start of the first chunk to the last commit, summed over runs."""
    runs: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for record in store.records(LABELS):
        if record is not None:
            runs[record.token].append((record.time_us / 1e6, record.seconds))
    return sum(max(commits)[0] - min(commits)[0] + min(commits)[1] for commits in runs.values())
