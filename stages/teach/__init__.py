"""teach: run the frozen teacher once over a split and write its top-k soft labels to a label store.

Running the same command again after any interruption continues it; a finished store is only checked. `request` says
what is asked and answered, `checks` refuses what cannot be done, `work` computes, `rehearse` computes half of it.
"""

from __future__ import annotations

import time

from teachonce.core.progress import Reporter
from teachonce.errors import UsageError
from teachonce.keeping.owners import owned
from teachonce.stages.teach.request import (
    Computing,
    Half,
    Kept,
    RehearseResult,
    TaughtData,
    TeachRequest,
    TeachResult,
)
from teachonce.watching.stop import heeded

__all__ = [
    "Computing",
    "Half",
    "Kept",
    "RehearseResult",
    "TaughtData",
    "TeachRequest",
    "TeachResult",
    "rehearse_half",
    "teach",
]


def teach(request: TeachRequest, reporter: Reporter) -> TeachResult:
    """Complete the store that the request describes.

    Raises:
        UsageError: an option is out of range, or asks for nothing; there is no such model, or a student can carry no
            prompts and was not asked for with `features_only`.
        EnvironmentFault: a model's files cannot be had, or a package that it needs is not installed.
        DataError: the data is not what the manifest says, or too many images failed.
        FingerprintError: the store at this path was made from something else.
        IncompleteError: another process writes the store, somebody asked this run to stop, or chunks are missing at
            the end.
    """
    from teachonce.stages.teach.checks import check_request, require_data, wanted_store

    began = time.monotonic()
    check_request(request)
    wanted = wanted_store(request, reporter)
    require_data(request, wanted)
    with (
        owned(request.labels, reporter, request.force_unlock) as token,
        heeded(request.labels, token, reporter) as stop,
    ):
        from teachonce.stages.teach.work import complete  # torch, open_clip and Dask, when all else is in order

        return complete(request, wanted, token, stop, began, reporter)


def rehearse_half(request: TeachRequest, half: Half, seconds: float, reporter: Reporter) -> RehearseResult:
    """Run one half of the pipeline for about so many seconds: the images without a model, or a model without images.

    Raises:
        UsageError, DataError: as `teach`.
    """
    from teachonce.stages.teach.checks import check_request, wanted_store

    check_request(request)
    if seconds <= 0:
        raise UsageError(f"seconds must be above 0, found {seconds}")
    wanted = wanted_store(request, reporter)
    from teachonce.stages.teach.rehearse import images_alone, models_alone  # torch and open_clip

    return (models_alone if half == "models" else images_alone)(request, wanted, seconds, reporter)
