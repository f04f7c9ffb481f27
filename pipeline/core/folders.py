"""A folder that appears whole or not at all: built beside its place under another name, then renamed.

It does not know what lies in it. A process that is killed leaves the folder under its other name, and no more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from teachonce.core.files import Check, beside, sync, sync_tree, write_failed
from teachonce.errors import UsageError
from teachonce.phrases import phrase


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
