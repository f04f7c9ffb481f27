"""subset: choose samples of a label store and write the choice to a small file; the store stays as it is."""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.subset.request import SubsetRequest, SubsetResult

__all__ = ["SubsetRequest", "SubsetResult", "subset"]


def subset(request: SubsetRequest, reporter: Reporter) -> SubsetResult:
    """Write the selection file.

    Raises:
        UsageError: the request selects nothing, asks for more than the store holds, or --out is another file.
        DataError: not a label store, a class that is not in its vocabulary, or no sample is left.
        IncompleteError: the store is not complete.
        IncompleteError, EnvironmentFault: the file cannot be written.
    """
    from teachonce.stages.subset import work

    return work.subset(request, reporter)
