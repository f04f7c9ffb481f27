"""inspect: say what a label store holds, from the store alone; no model is loaded."""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.inspect.request import InspectRequest, InspectResult

__all__ = ["InspectRequest", "InspectResult", "inspect"]


def inspect(request: InspectRequest, reporter: Reporter) -> InspectResult:
    """Read the header, the ledger and a few chunks.

    Raises:
        DataError: not a label store.
        IntegrityError: its header or a chunk that is read is damaged.
    """
    from teachonce.stages.inspect import work

    return work.inspect(request, reporter)
