"""plan: what a `teach` would take in rows, bytes, time and memory, before it writes anything; and how it was after all.

It writes nothing but the plan itself, where asked to. The same request is given as to `teach`. `request` says what is
asked and answered, `figures` makes the plan, `probe` measures what it rests on, `outcome` sets it beside a store.
"""

from __future__ import annotations

from pathlib import Path

from teachonce.core.progress import Reporter
from teachonce.errors import UsageError
from teachonce.phrases import phrase
from teachonce.stages.plan.request import Compared, CompareResult, PlanRequest, PlanResult

__all__ = ["CompareResult", "Compared", "PlanRequest", "PlanResult", "compare", "plan"]


def plan(request: PlanRequest, reporter: Reporter) -> PlanResult:
    """Plan a run.

    Raises:
        UsageError: as `teach`, or a rate or time that is not positive.
        DataError: the data is not there, and no rate is stated.
        FingerprintError: the store at this path was made from something else.
    """
    from teachonce.stages.plan.figures import planned
    from teachonce.stages.teach.checks import check_request, wanted_store

    check_request(request.teach)
    if (request.rate is not None and request.rate <= 0) or request.seconds <= 0:
        raise UsageError(phrase("{rate} and {set} seconds must be above 0"))
    return planned(request, wanted_store(request.teach, reporter), reporter)


def compare(plan_file: Path, labels: Path, reporter: Reporter) -> CompareResult:
    """Read a plan and a store, and set them side by side.

    Raises:
        DataError: the file is no plan.
        UsageError: the store was taught from other data, or by another teacher.
    """
    from teachonce.stages.plan.outcome import compared

    return compared(plan_file, labels, reporter)
