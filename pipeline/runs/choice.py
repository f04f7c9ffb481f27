"""Which setting of a finished grid is the best by the measure that the grid declared before it was run.

This module evaluates nothing: it reads results in the folders of cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from teachonce.errors import DataError
from teachonce.evaluation.result import read_result
from teachonce.runs.grid_documents import Choice
from teachonce.runs.grid_folder import GridFolder
from teachonce.search.tables import HELD_OUT, Choose


def choose(folder: GridFolder, rule: Choose, groups: Mapping[str, Sequence[str]]) -> Choice:
    """Choose among settings whose cells are all finished; of equals the first in the order of the grid.

    Args:
        folder: of the grid.
        rule: the declared measure.
        groups: setting -> digests of its cells, one a seed.

    Raises:
        DataError: a cell was not measured so.
        IntegrityError: an evaluation is not what `evaluate` writes.
    """
    figures = {
        group: {name: mean(_figure(folder, digest, name, rule.metric) for digest in digests) for name in rule.measures}
        for group, digests in groups.items()
    }
    values = {group: sum(share * figures[group][name] for name, share in rule.measures.items()) for group in groups}
    best = max(values, key=lambda group: values[group])  # `max` returns the first of equal settings
    ranking = dict(sorted(values.items(), key=lambda item: -item[1]))
    return Choice(
        group=best,
        value=values[best],
        by=rule.measures,
        metric=rule.metric,
        figures=figures[best],
        cells=tuple(groups[best]),
        ranking=ranking,
    )


def _figure(folder: GridFolder, digest: str, measure: str, metric: str) -> float:
    cell = folder.cell(digest)
    if measure == HELD_OUT:
        file, key, trained = cell.results, "held_out_top1", cell.trained()
        value = None if trained is None else trained.held_out_top1
    else:
        file, key = cell.evaluation(measure), metric
        result = read_result(file)
        value = None if result is None else result.figures.get(metric)
    if value is None:
        raise DataError(
            f"{file} does not say {key}, by which the grid chooses", hint="for held_out set held_out above 0 in [base]"
        )
    return value
