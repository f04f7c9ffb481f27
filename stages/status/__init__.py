"""status: where a teach, a training run or a grid stands, seen from outside; nothing is locked and nothing written.

It finds out by itself which of the three a folder is. Half-written files are no news, and it loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from teachonce.core.progress import Reporter
from teachonce.stages.status.request import StatusRequest

if TYPE_CHECKING:
    from teachonce.stages.status.work import Status

__all__ = ["StatusRequest", "status"]


def status(request: StatusRequest, reporter: Reporter) -> Status:
    """Say where the work in a folder stands.

    Raises:
        DataError: the folder is none of the three; names those inside.
        IntegrityError: the metadata of a store is damaged; of a run or a grid, `damaged` lists what is.
    """
    from teachonce.stages.status import work

    return work.status(request, reporter)
