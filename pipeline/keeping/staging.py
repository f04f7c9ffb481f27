"""Where workers leave finished chunks: folders beside the store, each with the empty arrays that a chunk is written to.

Only the driver moves them into the store. A worker that was cut off and comes back late therefore writes to a folder
that nobody looks at any more: it cannot touch what another worker delivered in its stead.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from teachonce.core.files import neighbour, sync
from teachonce.core.progress import Reporter

TRIES = 20  # of making a folder whose parents others remove as soon as they are empty
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
    for others in reversed(range(TRIES)):
        try:
            folder.mkdir(parents=True)
            break
        except FileNotFoundError:  # another attempt has just ended, and has removed the parents, which were empty
            if not others:
                raise
    shutil.copyfile(store / "zarr.json", folder / "zarr.json")
    return folder


def stage_array(store: Path, staging: Path, name: str) -> None:
    """Make the empty array of this name in a staging folder: the same metadata, so that a chunk file fits the store."""
    target = staging / name / "zarr.json"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(store / name / "zarr.json", target)


class ChunkFolders:
    """The folders `ARRAY/c` of a store, synced so that each name in them outlives a power cut, and no more than that.

    A folder's own name is synced once; after that only what is new in the folder. Several threads may use one object,
    which then sync a folder once more than needed at worst.
    """

    def __init__(self) -> None:
        self._named: set[Path] = set()

    def move_in(self, staged: Path, target: Path, chunk: int) -> None:
        """Move the chunk that a worker staged and synced to its place; `sync` makes the new name durable.

        A chunk file that lies in a folder of its own moves with that folder, whose content is on the disk already.

        Args:
            staged: the folder `ARRAY/c` that the worker wrote to.
            target: the same folder in the store.
            chunk: its number, which is the name of its file or folder.

        Raises:
            OSError: the file is not there, or cannot be moved.
        """
        entry = str(chunk)
        try:
            os.replace(staged / entry, target / entry)
        except FileNotFoundError:  # the first chunk of this array, unless the worker's file is gone
            self._named.discard(target)
            target.mkdir(parents=True, exist_ok=True)
            os.replace(staged / entry, target / entry)
        except OSError as problem:
            if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            os.replace(target / entry, staged / f"{entry}.former")  # it was never committed, or dropped from the ledger
            os.replace(staged / entry, target / entry)

    def sync(self, folders: Iterable[Path]) -> None:
        """Make the names in these folders durable, each once, and the folders' own names where they may be new.

        Raises:
            OSError: one of them cannot be synced.
        """
        for folder in dict.fromkeys(folders):
            sync(folder)
            if folder not in self._named:
                sync(folder.parent)
                self._named.add(folder)


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
