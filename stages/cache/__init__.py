"""cache: list or clear what was kept to save time: working sets beside a label store, or in the user's cache folder.

Everything it clears is made again when it is needed. What a process has open is left alone.
"""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.cache.request import Action, CacheEntry, CacheRequest, CacheResult

__all__ = ["Action", "CacheEntry", "CacheRequest", "CacheResult", "cache"]


def cache(request: CacheRequest, reporter: Reporter) -> CacheResult:
    """List or clear.

    Raises:
        DataError: there is no such store.
        EnvironmentFault: the user's cache folder is none.
    """
    from teachonce.stages.cache import work

    return work.cache(request, reporter)
