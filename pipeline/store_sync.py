"""Make writes last: fsync of files and folders, and one clear error when a write fails.

Zarr renames a finished chunk into place but never syncs it; the ledger's promise needs data on disk before the record.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from teachonce.errors import IncompleteError


def sync(path: Path) -> None:
    """fsync one file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_up(file: Path, top: Path) -> None:
    """fsync a file and every folder from its own up to `top`: a new name is durable only with its folder."""
    sync(file)
    for folder in file.parents:
        sync(folder)
        if folder == top:
            return


def sync_tree(folder: Path) -> None:
    """fsync everything below a folder, and the folder."""
    for parent, _, files in os.walk(folder):
        for name in files:
            sync(Path(parent) / name)
        sync(Path(parent))


def write_failed(path: Path, problem: OSError) -> IncompleteError:
    """The error of a write that failed: where, why, how much space is left, what to do."""
    free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
    return IncompleteError(
        f"writing {problem.filename or path} failed: {problem.strerror or problem} ({free / 1e6:.0f} MB free)",
        hint="free space or mend the permission, then run the same command again: nothing that was committed is lost",
    )
