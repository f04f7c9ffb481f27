"""Where workers leave finished chunks: folders beside the store, each with the empty arrays that a chunk is written to.

Only the driver moves them into the store. A worker that was cut off and comes back late therefore writes to a folder
that nobody looks at any more: it cannot touch what another worker delivered in its stead.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from teachonce.core.files import neighbour
from teachonce.core.progress import Reporter

_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")  # as Zarr calls a file until it is whole


def staging_root(store: Path) -> Path:
    """The folder beside a store that holds all staging folders."""
    return neighbour(store, ".staging")


def new_staging(store: Path, token: int, chunk: int) -> Path:
    """A folder of its own for one attempt at one chunk, below one folder a run.

    Raises:
        OSError: it cannot be made.
    """
    folder = staging_root(store) / f"{token:x}" / f"{chunk}-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    shutil.copyfile(store / "zarr.json", folder / "zarr.json")
    return folder


def stage_array(store: Path, staging: Path, name: str) -> None:
    """Make the empty array of this name in a staging folder: the same metadata, so that a chunk file fits the store."""
    target = staging / name / "zarr.json"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(store / name / "zarr.json", target)


def clear_partials(store: Path, reporter: Reporter) -> None:
    """Remove the files that a command which was killed had left half written in a store, and say so.

    The caller owns the store, and has made sure that it is one. What cannot be removed stays.
    """
    removed = 0
    for folder, _, names in os.walk(store):
        for name in names:
            if _PARTIAL.search(name):
                with suppress(OSError):
                    os.unlink(os.path.join(folder, name))
                    removed += 1
    if removed:
        files = "a file" if removed == 1 else f"{removed} files"
        reporter.note(f"removed {files} of {store} that a command which was killed had left half written")


def clear_staging(store: Path) -> None:
    """Remove what earlier runs and cut-off workers left; the caller owns the store. What cannot be removed stays."""
    shutil.rmtree(staging_root(store), ignore_errors=True)


def drop_staging(folder: Path) -> None:
    """Remove the folder of one attempt, and its parents where they are empty."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()
        folder.parent.parent.rmdir()
