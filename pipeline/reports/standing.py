"""What a grid says besides its runs: which cells its search has ended early, and whether its choice still holds.

It reads no file.
"""

from __future__ import annotations

import math

from teachonce.runs.grid_documents import CellDocument, GridDocument, GridResults, SearchDocument
from teachonce.runs.reader import Unusable


def dropped(cell: CellDocument, search: SearchDocument) -> Unusable | None:
    """Why a cell that the search ended early does not count; None for the others."""
    step = search.dropped.get(cell.digest)
    decision = next((decision for decision in search.decisions if decision.step == step), None)
    if step is None:
        return None
    figures = [] if decision is None else list(decision.values.values())
    compared = ""
    if decision is not None and cell.group in decision.values:
        reached, best = 100 * decision.values[cell.group], 100 * figures[0]
        compared = f": its measure was {reached:.1f}, that of the best setting {best:.1f}"
    return Unusable(cell.name, "dropped", f"ended by the search after {step} steps{compared}")


def is_choice_of(results: GridResults, grid: GridDocument, search: SearchDocument) -> bool:
    """Whether a choice was made among the cells that the grid has now, by the rule that it has now.

    grid.json is written when `ablate` begins, results.json when it ends: after a kill they may be of two grids.
    """
    chosen, rule = results.chosen, grid.choose
    groups = {group: cells for group, cells in grid.groups().items() if not search.dropped.keys() & set(cells)}
    if chosen is None or rule is None:
        return False
    whole = sum(results.cells.get(state, 0) for state in ("finished", "skipped", "dropped")) == len(grid.cells)
    same_cells = sorted(groups.get(chosen.group, [])) == sorted(chosen.cells)
    same_settings = chosen.ranking.keys() == groups.keys()
    shares, by = rule.measures, chosen.by
    same_rule = shares.keys() == by.keys() and all(math.isclose(shares[name], by[name]) for name in shares)
    return whole and same_cells and same_settings and same_rule and chosen.metric == rule.metric
