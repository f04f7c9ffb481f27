"""push: a finished label store copied to a bucket or to another disk, verified before and compared after."""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.push.request import PushRequest, PushResult

__all__ = ["PushRequest", "PushResult", "push"]


def push(request: PushRequest, reporter: Reporter) -> PushResult:
    """Verify the store, send what the target lacks, compare it, and let it appear with its last file.

    Raises:
        UsageError: the store is a URL, or the target lies in it or is a whole bucket.
        DataError: the source is no label store, or there is no such bucket.
        IntegrityError: the store is damaged, or the copy is not what was sent.
        FingerprintError: another store is at the target.
        IncompleteError: chunks of the store are missing, or it changed meanwhile; the same command goes on.
        EnvironmentFault: what the server or the disk refuses.
    """
    from teachonce.stages.push import work

    return work.push(request, reporter)
