"""report: one HTML page of a folder of runs that opens anywhere, with every figure beside it as CSV and SVG.

It trains and evaluates nothing; the student's text tower runs only for sample rows, when --root is given.
"""

from __future__ import annotations

from collections.abc import Callable

from teachonce.core.progress import Reporter
from teachonce.stages.report.request import ReportRequest, ReportResult

__all__ = ["ReportRequest", "ReportResult", "report"]


def report(request: ReportRequest, reporter: Reporter, spell: Callable[[str], str] = str) -> ReportResult:
    """Read the runs, count, draw and write; `spell` says how options of commands are spelled on the page.

    Raises:
        UsageError: --out is a folder or lies in none.
        DataError: the folder holds no finished run.
        IncompleteError, EnvironmentFault: the page cannot be written.
    """
    from teachonce.stages.report import work

    return work.report(request, reporter, spell)
