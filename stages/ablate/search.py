"""The rungs of a search: which settings are still in it, as the figures on disk decide, and what is measured next.

Decisions are made anew from the figures at every call, so that a search that was killed, changed or given more settings
ends as one that ran from its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from teachonce.core.status import State
from teachonce.errors import FingerprintError, UsageError
from teachonce.runs.cells import Cell
from teachonce.runs.choice import measured
from teachonce.runs.grid_documents import SearchDocument
from teachonce.runs.grid_folder import CellFolder
from teachonce.search.halving import Decision, decide
from teachonce.search.tables import Choose, Evaluation, Search

if TYPE_CHECKING:
    from teachonce.stages.ablate.prepare import Planned, Prepared


@dataclass(frozen=True)
class Standing:
    """Where a search stands."""

    decisions: tuple[Decision, ...]
    alive: tuple[str, ...]
    """Settings that no rung has ended, in the order of the grid."""
    dropped: Mapping[str, int]
    """Digest of a cell that ends early -> the step of the rung."""
    waiting: bool
    """Whether the next rung is not measured on all settings that are alive."""


def require_rungs(search: Search, cells: Sequence[Cell]) -> None:
    """Refuse rungs that a cell reaches at its end or never.

    Raises:
        UsageError: names the first such cell.
    """
    for cell in cells:
        loop = cell.config.loop
        if loop.epochs or loop.steps <= search.rungs[-1]:
            length = f"{loop.epochs:g} epochs" if loop.epochs else f"{loop.steps} steps"
            raise UsageError(
                f"cell '{cell.name}' has {length}, and [search] compares settings after {search.rungs[-1]} steps",
                hint="rungs lie before the last step of every cell: set `steps` in [base], or fewer rungs",
            )


def rung_evaluations(prepared: Prepared) -> tuple[Evaluation, ...]:
    """The evaluations that the choice weighs, which are made at every rung."""
    rule = prepared.grid.choose
    return tuple(evaluation for evaluation in prepared.always if rule and evaluation.name in rule.measures)


def standing(prepared: Prepared, before: int | None = None) -> Standing:
    """Decide every rung that is measured on all settings that are alive.

    Args:
        prepared: the grid.
        before: decide only rungs of fewer steps; None: all.

    Raises:
        FingerprintError: a cell was trained past a rung without being measured there.
    """
    search, rule = prepared.grid.search, prepared.grid.choose
    groups = prepared.groups
    alive = tuple(groups)
    decisions: list[Decision] = []
    dropped: dict[str, int] = {}
    if search is None or rule is None:
        return Standing((), alive, {}, False)
    always = {group for group, cells in groups.items() if cells[0].cell.is_base}
    names = [evaluation.name for evaluation in rung_evaluations(prepared)]
    for step in search.rungs:
        if before is not None and step >= before:
            break
        states = {group: _at_rung(prepared, groups[group], step, names) for group in alive}
        if "unfinished" in states.values():
            return Standing(tuple(decisions), alive, dropped, True)
        values = {
            group: _value(prepared, groups[group], step, rule) for group, state in states.items() if state == "finished"
        }
        failed = [group for group in alive if group not in values]
        decision = decide(step, values, search.keep, always, failed)
        decisions.append(decision)
        dropped |= {planned.digest: step for group in decision.dropped for planned in groups[group]}
        alive = decision.kept
    return Standing(tuple(decisions), alive, dropped, False)


def _at_rung(prepared: Prepared, cells: Sequence[Planned], step: int, names: Sequence[str]) -> State:
    """finished: all cells of a setting are measured at a rung; failed: one cannot be; else unfinished."""
    states = [_cell_at_rung(prepared.folder.cell(planned.digest), planned, step, names) for planned in cells]
    return "failed" if "failed" in states else "unfinished" if "unfinished" in states else "finished"


def _cell_at_rung(cell: CellFolder, planned: Planned, step: int, names: Sequence[str]) -> State:
    rung = cell.rung(step)
    state = rung.state(names)
    if state == "finished":
        return state
    if state == "damaged" or cell.failure.is_file() or cell.damage() is not None:
        return "failed"
    if (rung.read_results() is None and cell.step() > step) or (cell.read_results() and rung.read_results() is None):
        raise FingerprintError(
            f"cell '{planned.cell.name}' was trained past step {step} before it was measured there, so that it cannot "
            "be compared after that step",
            hint=f"give [search] the rungs of before, run the grid in another folder, or remove {cell.path} to train "
            "this cell again",
        )
    return "unfinished"


def _value(prepared: Prepared, cells: Sequence[Planned], step: int, rule: Choose) -> float:
    folders = [prepared.folder.cell(planned.digest).rung(step) for planned in cells]
    return measured(folders, replace(rule, least={})).value


def open_cells(prepared: Prepared, step: int, again: bool) -> list[Planned]:
    """The cells that are to be measured at a rung: of settings that are alive, not yet measured.

    Args:
        prepared: the grid.
        step: of the rung.
        again: whether failed cells are tried again.
    """
    alive = standing(prepared, step).alive
    names = [evaluation.name for evaluation in rung_evaluations(prepared)]
    wanted = {"unfinished", "failed"} if again else {"unfinished"}
    return [
        planned
        for group in alive
        for planned in prepared.groups[group]
        if _cell_at_rung(prepared.folder.cell(planned.digest), planned, step, names) in wanted
        and prepared.folder.cell(planned.digest).damage() is None
    ]


def document_of(search: Search, now: Standing) -> SearchDocument:
    """What search.json says."""
    return SearchDocument(rungs=search.rungs, keep=search.keep, decisions=now.decisions, dropped=dict(now.dropped))


def share_of_steps(search: Search | None, steps: int) -> float:
    """Which share of all steps a search makes, as far as it can be known before: each rung keeps its share."""
    if search is None:
        return 1.0
    edges = [0, *search.rungs, steps]
    parts = [search.keep**number * (edges[number + 1] - edge) for number, edge in enumerate(edges[:-1])]
    return sum(parts) / steps


def in_words(decision: Decision) -> str:
    """One decision in a sentence."""
    failed = f", {len(decision.failed)} with failed cells wait" if decision.failed else ""
    best = f"; the best there is '{next(iter(decision.values))}'" if decision.values else ""
    return f"after {decision.step} steps {len(decision.kept)} of {len(decision.values)} settings go on{failed}{best}"
