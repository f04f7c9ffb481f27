"""pack: a finished label store or an export as one file, or a folder, with the digest of every file; check; unpack."""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.pack.request import PackRequest, PackResult

__all__ = ["PackRequest", "PackResult", "pack"]


def pack(request: PackRequest, reporter: Reporter) -> PackResult:
    """Verify, pack and read back; or only check; or unpack into a new folder.

    Raises:
        UsageError: options that do not go together, something at --out, no such source, no pack where one is meant.
        DataError: the source is neither a label store nor an export.
        IncompleteError: chunks of the store are missing.
        IntegrityError: the source, or the pack, is not what was written.
        IncompleteError: the disk is full.
    """
    from teachonce.stages.pack import work

    return work.pack(request, reporter)
