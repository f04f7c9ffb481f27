"""index: compare the data on disk with its manifest, whole, before anything is computed from it.

It writes nothing and loads no model.
"""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.index.request import IndexRequest, IndexResult

__all__ = ["IndexRequest", "IndexResult", "index"]


def index(request: IndexRequest, reporter: Reporter) -> IndexResult:
    """Look at the data.

    Raises:
        UsageError: no such manifest or split, or no root.
        DataError: the root is no folder, or the manifest is malformed.
    """
    from teachonce.stages.index import work

    return work.index(request, reporter)
