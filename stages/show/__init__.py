"""show: the essence of a folder of runs: settings, figures against the base, the loss; no plot and no model.

For a label store it only says where to look: `inspect` does that.
"""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.show.request import ShowRequest, ShowResult

__all__ = ["ShowRequest", "ShowResult", "show"]


def show(request: ShowRequest, reporter: Reporter) -> ShowResult:
    """Look at a run folder, a grid folder, a folder of runs, a label store or a results.json.

    Raises:
        DataError: there is nothing of the kind.
    """
    from teachonce.stages.show import work

    return work.show(request, reporter)
