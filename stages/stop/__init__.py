"""stop: ask the run that writes a label store to end after the chunks under way, from any machine that sees its place.

What is under way is committed, nothing new begins, the run ends with exit 5, and its command typed again goes on.
"""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.stop.request import StopRequest, StopResult

__all__ = ["StopRequest", "StopResult", "stop"]


def stop(request: StopRequest, reporter: Reporter) -> StopResult:
    """Ask for it, and wait for the end if that is wanted.

    Raises:
        UsageError: nobody writes the store.
        DataError: there is something else at this path.
        IncompleteError: the run gives no sign of life any more while its end is waited for.
        EnvironmentFault: nothing can be written beside the store.
    """
    from teachonce.stages.stop import work

    return work.stop(request, reporter)
