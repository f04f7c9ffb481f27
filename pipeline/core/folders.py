"""A folder that appears whole or not at all: built beside its place under a hidden name, then renamed.

It does not know what lies in it. A process that is killed leaves the hidden folder, `.NAME.PID.partial`, and no more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from teachonce.core.files import sync, sync_tree
from teachonce.errors import EnvironmentFault, UsageError


def require_new(out: Path) -> None:
    """Refuse a place where something is already; an empty folder is nothing.

    Raises:
        UsageError: it is a file, a link, or a folder that is not empty.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} is there already", hint="give another --out; nothing was changed")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty", hint="give another --out; nothing was changed")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Inside, a hidden folder to fill; behind, it stands at `out`, on the disk with all its files.

    Raises:
        UsageError: there is something at `out`, before or after.
        EnvironmentFault: the disk is full, or its place may not be written to.
    """
    require_new(out)
    partial = beside(out)
    try:
        partial.mkdir(parents=True)
        yield partial
        sync_tree(partial)
        require_new(out)
        os.replace(partial, out)  # takes the place of an empty folder, and of no other
        sync(out.absolute().parent)
    except OSError as problem:
        raise EnvironmentFault(f"cannot write {out}: {problem}") from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def beside(out: Path) -> Path:
    """The hidden name, in the same folder, of what will stand at `out`."""
    place = out.absolute()
    return place.with_name(f".{place.name}.{os.getpid()}.partial")
