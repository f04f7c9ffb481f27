"""The work of `ablate`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distributed import Client

from teachonce.cluster import client as cluster_client
from teachonce.core.documents import LogSeal, read_events
from teachonce.core.locks import owned
from teachonce.core.progress import Reporter
from teachonce.errors import IncompleteError
from teachonce.evaluation.result import EvaluateResult, read_result
from teachonce.phrases import option
from teachonce.runs.choice import choose
from teachonce.runs.grid_documents import Choice, FailedCell, FinalFigure, GridResults
from teachonce.runs.grid_folder import RETRY, GridFolder, count_states, write_document
from teachonce.stages.ablate.cell import CellJob, get_ready, run_cell
from teachonce.stages.ablate.derive import Source, derived
from teachonce.stages.ablate.prepare import Planned, Prepared, states
from teachonce.stages.ablate.request import AblateRequest, AblateResult
from teachonce.stages.ablate.search import document_of, in_words, open_cells, rung_evaluations, standing

GRACE_SECONDS = 20.0  # how long a driver that ends waits for the checkpoints of running cells
AGAIN = "run the same command again: it goes on where this one stopped"


def run_grid(prepared: Prepared, request: AblateRequest, reporter: Reporter, began: float) -> AblateResult:
    """Run the cells that are not finished, and choose; `began` is when the command began, of `time.monotonic()`.

    Raises:
        FingerprintError: the folder holds another grid.
        IncompleteError: another process runs this grid.
    """
    folder = prepared.folder
    with owned(folder.grid, reporter, request.force_unlock) as token:
        grid = prepared.description()
        folder.require_ours(grid)
        folder.stop.unlink(missing_ok=True)
        write_document(folder.grid, grid.document())
        run = _Run(prepared, request, reporter, token)
        with run:
            if run.rungs():
                run.cells()
            chosen, final = run.choose()
        return _result(run, chosen, final, time.monotonic() - began)


class _Run:
    """One call: a cluster that is opened when there is something to do, and what was finished before."""

    def __init__(self, prepared: Prepared, request: AblateRequest, reporter: Reporter, token: int) -> None:
        self.prepared, self.request, self.reporter, self.token = prepared, request, reporter, token
        self.before = states(prepared)
        self._stack = contextlib.ExitStack()
        self._client: Client | None = None
        self._tried: set[Any] = set()

    def __enter__(self) -> None:
        """Open nothing: the cluster is opened for the first task."""

    def __exit__(self, *problem: object) -> None:
        self._stack.close()

    def rungs(self) -> bool:
        """Measure settings at the rungs of the search and end the worse ones early; whether all rungs are decided."""
        prepared, search = self.prepared, self.prepared.grid.search
        for step in () if search is None else search.rungs:
            todo = open_cells(prepared, step, self.request.retry_failed)
            if todo:
                self.reporter.note(f"{len(todo)} cells go up to step {step}")
                self._run(todo, f"cells up to step {step}", step)
            self._write_search()
            if standing(prepared, step + 1).waiting:
                self.reporter.note(f"not all cells are measured after {step} steps: the search waits for them")
                return False
        return True

    def _write_search(self) -> None:
        """Write down what the rungs have decided so far; says what is new."""
        folder, search = self.prepared.folder, self.prepared.grid.search
        if search is None:
            return
        known, now = folder.read_search(), document_of(search, standing(self.prepared))
        for decision in now.decisions:
            if decision not in known.decisions:
                self.reporter.note(in_words(decision))
        if now != known:
            write_document(folder.search, now.document())

    def cells(self) -> None:
        """Run the cells that are not finished; failed ones if that was asked for."""
        states_wanted = {"unfinished", "failed"} if self.request.retry_failed else {"unfinished"}
        now, alive = states(self.prepared), standing(self.prepared).alive
        todo = [p for p in self.prepared.cells if now[p.digest] in states_wanted and p.cell.group in alive]
        finished = sum(state == "finished" for state in self.before.values())
        dropped = sum(state == "dropped" for state in now.values())
        ended = f"{dropped} ended early, " if dropped else ""
        self.reporter.note(f"{len(self.before)} cells: {finished} finished before, {ended}{len(todo)} to run")
        if todo:
            self._run(todo, "cells")

    def _run(self, todo: Sequence[Planned], what: str, pause: int | None = None) -> None:
        client = self._cluster()
        with derived(self.prepared, todo, self.request.root, self.reporter, self._tried) as sources:
            jobs = [self._job(planned, source, pause) for planned, source in zip(todo, sources, strict=True)]
            for planned in todo:
                write_document(self.prepared.folder.cell(planned.digest).cell, planned.description().document())
            self._work(client, jobs, what)

    def choose(self) -> tuple[Choice | None, list[FinalFigure]]:
        """The best setting once all cells are finished, and the evaluations that only it and the base get."""
        prepared = self.prepared
        now, rule = states(prepared), prepared.grid.choose
        unfinished = sum(state not in ("finished", "dropped") for state in now.values())
        if rule is None:
            return None, []
        if unfinished:
            self.reporter.note(f"{unfinished} cells are not finished: no setting is chosen yet")
            return None, []
        groups = {
            group: [planned.digest for planned in cells]
            for group, cells in prepared.groups.items()
            if all(now[planned.digest] == "finished" for planned in cells)
        }
        base = next((p.cell.group for p in prepared.cells if p.cell.is_base), None)
        choice = choose(prepared.folder, rule, groups, base)
        if choice.group in choice.short:
            self.reporter.note(f"no setting reaches what [choose] asks for at least: '{choice.group}' stands")
        self._warn_of_change(choice)
        cells = [p for p in prepared.cells if p.cell.group == choice.group or p.cell.is_base] if prepared.late else []
        lacking = [p for p in cells if any(self._final(e.name, p) is None for e in prepared.late)]
        if lacking:
            self._work(self._cluster(), [self._job(planned, None) for planned in lacking], "final")
        return choice, [
            FinalFigure(
                evaluation=evaluation.name,
                group=p.cell.group,
                seed=p.cell.seed,
                digest=p.digest,
                top1=result.figures.get("top1") if (result := self._final(evaluation.name, p)) else None,
                file=str(prepared.folder.final(evaluation.name, p.digest).relative_to(prepared.folder.path)),
            )
            for evaluation in prepared.late
            for p in cells
        ]

    def _final(self, evaluation: str, planned: Planned) -> EvaluateResult | None:
        return read_result(self.prepared.folder.final(evaluation, planned.digest))

    def _warn_of_change(self, choice: Choice) -> None:
        old = _choices(self.prepared.folder)
        if old and old[-1].group != choice.group:
            self.reporter.note(
                f"the choice was '{old[-1].group}' and is now '{choice.group}': what only chosen cells get has been "
                "looked at for both; the earlier results stay in final/"
            )

    def _cluster(self) -> Client:
        if self._client is None:
            self._client = self._stack.enter_context(
                cluster_client.open_cluster(self.request.cluster, self.reporter, threads=1)
            )
            importing = cluster_client.warm_up(self._client, get_ready)
            self._stack.callback(importing.clear)
        return self._client

    def _job(self, planned: Planned, source: Source | None, pause: int | None = None) -> CellJob:
        cell, prepared = planned.cell, self.prepared
        evaluations = prepared.late if source is None else prepared.always
        return CellJob(
            out=prepared.folder.path,
            token=self.token,
            digest=planned.digest,
            name=cell.name,
            labels=planned.store.path.absolute() if source is None else source.labels.absolute(),
            selection=None if source is None else source.selection,
            student=prepared.student,
            prompts=cell.prompts,
            config=cell.config,
            root=None if self.request.root is None else self.request.root.absolute(),
            threads=cluster_client.threads_of(self.request.cluster),
            device=self.request.device,
            final=source is None,
            evaluations=evaluations if pause is None else rung_evaluations(prepared),
            stored=planned.stored,
            pause=pause,
        )

    def _work(self, client: Client, jobs: Sequence[CellJob], what: str) -> None:
        failed = 0
        self.reporter.progress(what, 0, len(jobs), "cells")
        with _called_off(self.prepared.folder, self.token, self.reporter):
            try:
                reports = cluster_client.run_tasks(
                    client, run_cell, [(job,) for job in jobs], f"ablate-{self.token:x}-{what}", self.reporter
                )
                for done, report in enumerate(reports, 1):
                    failed += report.state == "failed"
                    if report.state == "failed":
                        self.reporter.note(f"failed: cell '{report.name}': " + report.message)
                    self.reporter.progress(what, done, len(jobs), "cells", failed=failed)
            except IncompleteError as problem:  # finished cells count; the result names the others
                self.reporter.note(problem.message + f"; {AGAIN}")


@contextlib.contextmanager
def _called_off(folder: GridFolder, token: int, reporter: Reporter) -> Iterator[None]:
    """When the block is left early, let the cells in flight write their checkpoints first."""
    try:
        yield
    except BaseException:
        folder.stop.touch()
        if _in_flight(folder, token):
            reporter.note("stopping: the cells in flight write their checkpoints")
        deadline = time.monotonic() + GRACE_SECONDS
        while _in_flight(folder, token) and time.monotonic() < deadline:
            time.sleep(0.1)
        raise


def _in_flight(folder: GridFolder, token: int) -> int:
    """Cells of this call that have begun and not ended."""
    last = {}
    for event in read_events(folder.events):
        if event.get("token") == token:
            last[event["digest"]] = event["event"]
    return sum(event == "cell_start" for event in last.values())


def _result(run: _Run, choice: Choice | None, final: list[FinalFigure], seconds: float) -> AblateResult:
    prepared, now = run.prepared, states(run.prepared)
    lacking = {figure.digest for figure in final if figure.top1 is None}
    failures = []
    for planned in prepared.cells:
        problem = prepared.folder.cell(planned.digest).problem()
        if problem is not None and (now[planned.digest] in ("failed", "damaged") or planned.digest in lacking):
            failure = FailedCell(
                name=planned.cell.name, digest=planned.digest, message=problem.message, hint=problem.hint
            )
            failures.append(failure)
    skipped = sum(run.before[digest] == "finished" for digest in now)
    count = count_states(now.values())
    result = AblateResult(
        cells=count | {"finished": count["finished"] - skipped, "skipped": skipped},
        failures=tuple(failures),
        chosen=choice,
        final=tuple(final),
        seconds=seconds,
        out=str(run.request.out),
        next=_next(count, bool(lacking), run.request.out),
    )
    if count["failed"]:
        run.reporter.note(f"{count['failed']} cells have failed: " + result.next)
    group = None if choice is None else choice.group
    earlier = tuple(before for before in _choices(prepared.folder) if before.group != group)
    write_document(
        prepared.folder.results,
        GridResults(**vars(result), earlier_choices=earlier, log=LogSeal.of(prepared.folder.events)).document(),
    )
    return result


def _next(count: Mapping[str, int], lacking: bool, out: Path) -> str:
    """What to run: for cells that failed, were not run to their end, lack what only chosen cells get; else to look."""
    if count["failed"]:
        return RETRY + "; a setting that cannot work is left out with [[exclude]]"
    if count["damaged"]:
        return "restore or remove what is damaged, then run the same command again"
    return (
        AGAIN
        if count["missing"] or lacking
        else f"teachonce report {out} " + option("out") + f" report.html; or teachonce show {out}"
    )


def _choices(folder: GridFolder) -> tuple[Choice, ...]:
    """The choices in results.json, the latest last."""
    results = folder.read_results()
    return () if results is None else results.choices()
