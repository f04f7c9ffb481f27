"""Folders: what lies in one, and one that appears whole or not at all, built beside its place and then renamed.

This module does not know what the files are. A process that is killed leaves a new folder under its other name, and no
more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from teachonce.core.files import Check, beside, sync, sync_tree, write_failed
from teachonce.errors import UsageError
from teachonce.phrases import phrase


class Entry(NamedTuple):
    """What lies in a folder under one name."""

    name: str
    kind: Literal["file", "folder", "other"]
    """What the entry is when links are followed; `other` is a device, a pipe, a socket, or a link to nothing."""
    size: int
    """Bytes of a file; 0 for all else."""
    link: bool


def listing(folder: Path) -> list[Entry]:
    """List a folder, in no order.

    Raises:
        OSError: the folder cannot be read.
    """
    entries = []
    if isinstance(folder, os.PathLike):
        with os.scandir(folder) as there:
            for item in there:
                if item.is_file():
                    entries.append(Entry(item.name, "file", item.stat().st_size, item.is_symlink()))
                else:
                    entries.append(Entry(item.name, "folder" if item.is_dir() else "other", 0, item.is_symlink()))
        return entries
    for path in folder.iterdir():  # a remote folder has no links
        is_file = path.is_file()
        kind: Literal["file", "folder"] = "file" if is_file else "folder"
        entries.append(Entry(path.name, kind, path.stat().st_size if is_file else 0, False))
    return entries


def files_below(folder: Path) -> Iterator[str]:
    """Yield the path, relative to the folder, of every file below it; links to folders are not followed."""
    if isinstance(folder, os.PathLike):
        for place, folders, files in os.walk(folder):
            folders.sort()
            for name in sorted(files):
                yield os.path.relpath(os.path.join(place, name), folder)
        return
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def first_bytes(file: Path, size: int) -> bytes:
    """Return the beginning of a file; nothing where the file cannot be read, which whoever needs it whole will say."""
    try:
        with file.open("rb") as stream:
            return stream.read(size)
    except OSError:
        return b""


def require_new(out: Path) -> None:
    """Refuse a place where something is already; an empty folder is nothing.

    Raises:
        UsageError: it is a file, a link, or a folder that is not empty.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} is there already", hint=phrase("{another out}; nothing was changed"))
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty", hint=phrase("{another out}; nothing was changed"))


@contextmanager
def whole_folder(out: Path, draft: Path | None = None, last: Check | None = None) -> Iterator[Path]:
    """Inside, a new folder to fill; behind, it stands at `out`, on the disk with all its files.

    Args:
        out: where it appears. An empty folder gives way to it, anything else is an error.
        draft: where it is built, in the folder of `out`; `.NAME.PID.partial` by default. What is there is removed.
        last: called with `out` just before the folder gets its name: it makes room, or raises to stop that.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    draft = draft or beside(out)
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        sync_tree(draft)
        if last is not None:
            last(out)
        os.replace(draft, out)
        sync(out.absolute().parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """`whole_folder` at a place where nothing is.

    Raises:
        UsageError: there is something at `out`, before or after.
        IncompleteError, EnvironmentFault: the disk is full, or its place may not be written to.
    """
    require_new(out)
    try:
        with whole_folder(out, last=require_new) as partial:
            yield partial
    except OSError as problem:
        raise write_failed(out, problem) from problem
