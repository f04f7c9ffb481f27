"""The work of `push`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import time

from teachonce.core.files import is_remote
from teachonce.core.progress import Reporter
from teachonce.errors import IncompleteError, IntegrityError, UsageError
from teachonce.sharing.store_copy import copy_store
from teachonce.stages.push.request import PushRequest, PushResult
from teachonce.stages.verify import VerifyRequest
from teachonce.stages.verify.work import examine


def push(request: PushRequest, reporter: Reporter) -> PushResult:
    """Verify the store and send it. The stage's `push` says what is raised."""
    began = time.monotonic()
    if is_remote(request.labels):
        raise UsageError(
            f"{request.labels} is not on a disk of this machine", hint=f"teachonce pull {request.labels} LABELS.zarr"
        )
    if not is_remote(request.target) and request.target.resolve().is_relative_to(request.labels.resolve()):
        raise UsageError(f"{request.target} lies in {request.labels}", hint="give a place beside it, or a URL")
    _require_sound(request, reporter)
    store_id, done = copy_store(request.labels, request.target, reporter)
    if not done.sent:
        reporter.note(f"{request.target} held all of it already")
    return PushResult(
        labels=str(request.labels),
        target=str(request.target),
        store_id=store_id,
        files=done.objects,
        bytes=done.bytes,
        sent_files=done.sent,
        sent_bytes=done.sent_bytes,
        seconds=time.monotonic() - began,
    )


def _require_sound(request: PushRequest, reporter: Reporter) -> None:
    """Refuse a store that is damaged or not complete: a copy would spread it."""
    checked, next_step = examine(VerifyRequest(labels=request.labels), reporter)
    if checked.ok:
        return
    first = checked.faults[0]
    problem = f"{first.where}: expected {first.expected}, found {first.found}"
    if checked.exit_code == IncompleteError.exit_code:
        raise IncompleteError(
            f"{request.labels} is not complete: {checked.chunks_missing} chunks are missing; {problem}",
            hint=next_step + ", then push",
        )
    raise IntegrityError(
        f"{request.labels} is damaged: {len(checked.faults)} faults, the first: {problem}",
        hint=next_step + ", then push",
    )
