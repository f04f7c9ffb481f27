"""ablate: run every cell of a grid from one label store, and choose among them by the measure that was declared.

Running the same command again continues: finished cells are never run again, interrupted ones go on from their
checkpoints, failed ones are listed and tried again only on request.
"""

from __future__ import annotations

import time

from teachonce.core.progress import Reporter
from teachonce.stages.ablate.request import AblatePlan, AblateRequest, AblateResult

__all__ = ["AblatePlan", "AblateRequest", "AblateResult", "ablate"]


def ablate(request: AblateRequest, reporter: Reporter) -> AblateResult | AblatePlan:
    """Run what is not finished; or, as a dry run, say what that would be.

    Raises:
        UsageError, DataError, FingerprintError, IntegrityError: as `prepare`; nothing was started.
        IncompleteError: another process runs this grid, or the store is not complete.
    """
    from teachonce.stages.ablate.prepare import prepare

    began = time.monotonic()
    prepared = prepare(request, reporter)
    if request.dry_run:
        from teachonce.stages.ablate.plan import plan

        return plan(prepared, request, reporter)
    from teachonce.stages.ablate.work import run_grid  # Dask and torch, when all files are in order

    return run_grid(prepared, request, reporter, began)
