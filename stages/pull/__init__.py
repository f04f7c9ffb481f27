"""pull: a label store fetched from a bucket or from another disk; it appears whole, or not at all."""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.pull.request import PullRequest, PullResult

__all__ = ["PullRequest", "PullResult", "pull"]


def pull(request: PullRequest, reporter: Reporter) -> PullResult:
    """Fetch the store into a folder beside its place, verify it there, and give the folder its name.

    Raises:
        UsageError: the place is a URL, or something is there that is not this store.
        DataError: the source is no label store, or there is no such bucket.
        IntegrityError: what was fetched is damaged.
        FingerprintError: another store is at the place.
        IncompleteError: chunks of the store are missing, or it changed meanwhile; the same command goes on.
        EnvironmentFault: what the server or the disk refuses.
    """
    from teachonce.stages.pull import work

    return work.pull(request, reporter)
