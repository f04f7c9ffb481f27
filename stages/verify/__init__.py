"""verify: read every chunk of a label store and compare it with the ledger; CPU only, no model is loaded.

With `repair`, chunks that fail are taken out of the ledger, so that the next `teach` rebuilds exactly those.
"""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.verify.request import Fault, VerifyRequest, VerifyResult

__all__ = ["Fault", "VerifyRequest", "VerifyResult", "verify"]


def verify(request: VerifyRequest, reporter: Reporter) -> VerifyResult:
    """Check metadata, static arrays and every chunk.

    Raises:
        DataError: not a label store.
        IntegrityError: a metadata file is damaged, so that nothing else can be trusted.
        UsageError: --teacher without --root, or --sample without --teacher.
        FingerprintError: the teacher is not the one that made the store.
    """
    from teachonce.stages.verify import work

    return work.verify(request, reporter)
