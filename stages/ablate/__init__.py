"""ablate: run every cell of a grid from one label store, and choose among them by the measure that was declared.

Running the same command again continues: finished cells are never run again, interrupted ones go on from their
checkpoints, failed ones are listed and tried again only on request.
"""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.ablate.request import AblatePlan, AblateRequest, AblateResult

__all__ = ["AblatePlan", "AblateRequest", "AblateResult", "ablate"]


def ablate(request: AblateRequest, reporter: Reporter) -> AblateResult | AblatePlan:
    """Run what is not finished; or, as a dry run, say what that would be.

    Raises:
        UsageError, DataError, FingerprintError, IntegrityError: as `prepare`; nothing was started.
        IncompleteError: another process runs this grid, or the store is not complete.
    """
    from teachonce.stages.ablate import work

    return work.ablate(request, reporter)
