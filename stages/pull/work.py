"""The work of `pull`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import os
import time
from pathlib import Path

from teachonce.core.files import is_remote, neighbour, require_new, sync_tree, write_failed
from teachonce.core.locks import exclusive
from teachonce.core.progress import Reporter
from teachonce.errors import FingerprintError, IncompleteError, IntegrityError, UsageError
from teachonce.labels.store import LabelStore
from teachonce.objects.places import open_objects
from teachonce.objects.transfer import Sent
from teachonce.sharing.store_copy import copy_store, store_files
from teachonce.stages.pull.request import PullRequest, PullResult
from teachonce.stages.verify import VerifyRequest
from teachonce.stages.verify.work import examine

LOCK = ".pull.lock"
DRAFT = ".pull"  # a folder beside the store's place while it is fetched; an interrupted run leaves it to the next


def pull(request: PullRequest, reporter: Reporter) -> PullResult:
    """Fetch the store and verify it. The stage's `pull` says what is raised."""
    began = time.monotonic()
    if is_remote(request.labels):
        raise UsageError(f"{request.labels} is no place on a disk", hint=f"teachonce push STORE {request.labels}")
    if (request.labels / "zarr.json").exists():
        store_id, done = _already(request, reporter)
    else:
        require_new(request.labels)
        store_id, done = _fetch(request, reporter)
    return PullResult(
        source=str(request.source),
        labels=str(request.labels),
        store_id=store_id,
        files=done.objects,
        bytes=done.bytes,
        fetched_files=done.sent,
        fetched_bytes=done.sent_bytes,
        seconds=time.monotonic() - began,
    )


def _already(request: PullRequest, reporter: Reporter) -> tuple[str, Sent]:
    """The id of the store, which is there, and its files.

    Raises:
        FingerprintError: another one is there.
    """
    here, there = LabelStore.open(request.labels).store_id(), LabelStore.open(request.source).store_id()
    if here != there:
        raise FingerprintError(
            f"{request.labels} holds store {here}, and {request.source} is store {there}",
            hint="give another place, or remove what is there if nobody needs it",
        )
    reporter.note(f"{request.labels} is there already, with the same id; `teachonce verify` reads it")
    entries = store_files(open_objects(request.labels))
    return here, Sent(len(entries), sum(entry.size for entry in entries))


def _fetch(request: PullRequest, reporter: Reporter) -> tuple[str, Sent]:
    draft = neighbour(request.labels, DRAFT)
    try:
        draft.mkdir(parents=True, exist_ok=True)
        lock = neighbour(request.labels, LOCK)  # the folder's own lock is taken for single files meanwhile
        with exclusive(lock, wait=False, create=True) as alone:
            if alone is None:
                raise IncompleteError(
                    f"{request.labels} is being fetched by another process", hint="wait for it, then run this again"
                )
            store_id, done = copy_store(request.source, draft, reporter)
            _require_sound(request, draft, reporter)
            sync_tree(draft)
            require_new(request.labels)
            os.replace(draft, request.labels)
            lock.unlink()
    except OSError as problem:
        raise write_failed(request.labels, problem) from problem
    return store_id, done


def _require_sound(request: PullRequest, draft: Path, reporter: Reporter) -> None:
    """Refuse what is not what its ledger says; the draft stays, so that the same command fetches only what lacks."""
    checked, _ = examine(VerifyRequest(labels=draft), reporter)
    if checked.ok:
        return
    first = checked.faults[0]
    problem = f"{first.where}: expected {first.expected}, found {first.found}"
    if checked.exit_code == IncompleteError.exit_code:
        raise IncompleteError(
            f"{request.source} is not complete: {checked.chunks_missing} chunks are missing; {problem}",
            hint="run the command that makes it again, then pull",
        )
    raise IntegrityError(
        f"{request.source} is damaged: {len(checked.faults)} faults, the first: {problem}",
        hint=f"look at it with `teachonce verify {request.source}`; what was fetched lies in {draft}",
    )
