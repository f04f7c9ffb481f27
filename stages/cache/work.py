"""The work of `cache`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np

from teachonce.core.files import drafts, remove_draft
from teachonce.core.machine import CACHE_VARIABLE, cache_folder
from teachonce.core.outside import NO_ARRAY
from teachonce.core.progress import Reporter
from teachonce.errors import DataError, EnvironmentFault
from teachonce.objects.remote import tree_size
from teachonce.rows.files import clear, clear_locks, folder_beside, folder_in_cache, stored_sets
from teachonce.stages.cache.request import CacheEntry, CacheRequest, CacheResult


def cache(request: CacheRequest, reporter: Reporter) -> CacheResult:
    """List or clear. The stage's `cache` says what is raised."""
    if request.labels is None:
        if cache_folder().exists() and not cache_folder().is_dir():
            raise EnvironmentFault(
                f"the cache folder {cache_folder()} is no folder",
                hint=f"set {CACHE_VARIABLE} to a folder, or remove that file",
            )
        entries = _working_sets(folder_in_cache()) + _evaluations() + _half_made(cache_folder())
        entries += _half_made(cache_folder() / "features") + _half_made(cache_folder() / "results")
    else:
        folder = folder_beside(request.labels)
        if not request.labels.exists() and not folder.exists():
            raise DataError(f"{request.labels} does not exist", hint="teachonce cache list lists the user's own cache")
        entries = _working_sets(folder) + _half_made(folder.parent)
    freed, skipped = 0, []
    if request.action == "clear":
        clear_locks(folder_in_cache() if request.labels is None else folder_beside(request.labels))
        for entry in entries:
            if _clear(entry):
                freed += entry.bytes
                if entry.kind == "half made":
                    reporter.note(f"removed {entry.path}, which a process that was killed had left half made")
            else:
                skipped.append(entry.path)
                reporter.note(f"left {entry.path} alone: a process uses it")
    return CacheResult(
        action=request.action,
        entries=entries,
        bytes=sum(entry.bytes for entry in entries),
        freed=freed,
        skipped=tuple(skipped),
    )


def _working_sets(folder: Path) -> tuple[CacheEntry, ...]:
    return tuple(
        CacheEntry(
            path=str(stored.place),
            kind="unfinished" if stored.rows is None else "working set",
            store=stored.store,
            bytes=stored.bytes,
            rows=stored.rows,
            created=stored.created,
            in_use=stored.in_use,
        )
        for stored in stored_sets(folder)
    )


def _half_made(folder: Path) -> tuple[CacheEntry, ...]:
    """Files and folders that were not whole when their process was killed: a pack, an export, a store, a page."""
    return tuple(
        CacheEntry(
            path=str(draft),
            kind="half made",
            store="",
            bytes=tree_size(draft) if draft.is_dir() else draft.stat().st_size,
            rows=None,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(draft.stat().st_mtime)),
            in_use=False,
        )
        for draft in drafts(folder)
    )


def _evaluations() -> tuple[CacheEntry, ...]:
    """Image features of evaluation splits, and what models made of them."""
    entries = []
    kinds: tuple[tuple[Literal["features", "results"], str], ...] = (("features", "*.npy"), ("results", "*.npz"))
    for kind, pattern in kinds:
        for file in sorted((cache_folder() / kind).glob(pattern)):
            created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(file.stat().st_mtime))
            entries.append(
                CacheEntry(
                    path=str(file),
                    kind=kind,
                    store="",
                    bytes=file.stat().st_size,
                    rows=_rows(file),
                    created=created,
                    in_use=False,
                )
            )
    return tuple(entries)


def _rows(file: Path) -> int | None:
    """Images of an entry; None where it is damaged: `evaluate` computes it again."""
    try:
        if file.suffix == ".npy":
            return len(np.load(file, mmap_mode="r", allow_pickle=False))
        with np.load(file, allow_pickle=False) as arrays:
            return len(arrays["decoded"])
    except (*NO_ARRAY, KeyError, zipfile.BadZipFile):
        return None


def _clear(entry: CacheEntry) -> bool:
    path = Path(entry.path)
    if entry.kind == "half made":
        remove_draft(path)
        return not path.exists()
    if entry.kind not in ("features", "results"):
        return clear(path)
    path.with_suffix(".sha256").unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    return True
