"""Write a file so that a crash leaves either the old content or the new one, never a part.

It does not lock: of two writers at once the last one wins, whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from teachonce.errors import EnvironmentFault, IncompleteError

# With these error numbers a write cannot succeed at that place, however much room there is.
NOT_POSSIBLE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}

Check = Callable[[Path], None]


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by a file that holds `data`, and return once both the file and its name are on the disk.

    The folder must exist. A link stays a link: the file behind it is replaced. What is no file (a pipe, a device) is
    written to as it is.

    Raises:
        IncompleteError, EnvironmentFault: the disk is full, or the folder is missing or may not be written to.
    """
    if path.is_symlink():
        path = path.resolve()
    if path.exists() and not path.is_file() and not path.is_dir():
        _write_through(path, data)
        return
    try:
        with whole_file(path) as partial:
            partial.write_bytes(data)
    except OSError as problem:
        raise write_failed(path, problem) from problem


def _write_through(path: Path, data: bytes) -> None:
    try:
        with open(path, "wb") as stream:
            stream.write(data)
    except OSError as problem:
        raise write_failed(path, problem) from problem


@contextlib.contextmanager
def whole_file(path: Path, last: Check | None = None) -> Iterator[Path]:
    """Inside, a hidden name beside `path` to write a file to; behind, the file stands at `path` and is on the disk.

    Args:
        path: where the file appears; a file that is there is replaced.
        last: called with `path` just before the file gets its name; what it raises stops that.

    Raises:
        OSError: the file cannot be written; nothing is left of it, and `path` is as it was.
    """
    partial = beside(path)
    try:
        yield partial
        sync(partial)
        if last is not None:
            last(path)
        os.replace(partial, path)
        sync(path.absolute().parent)  # without this a power cut may take back the rename
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def beside(out: Path) -> Path:
    """The hidden name, in the same folder, of what will stand at `out`."""
    place = out.absolute()
    return place.with_name(f".{place.name}.{os.getpid()}.partial")


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


def write_failed(path: Path, problem: OSError, hint: str = "") -> EnvironmentFault | IncompleteError:
    """Make the error of a write that failed, wherever it happens.

    Args:
        path: the file or folder that was to be written.
        problem: the system's reason: no space, no permission, a file system that is read only.
        hint: what to do; by default to make room, or to mend the permission, and to run the same command again.

    Returns:
        EnvironmentFault where writing is not possible at all, IncompleteError where it failed on the way, as on a disk
        that became full.
    """
    other = Path(problem.filename) if problem.filename else path
    beside = "" if other.parent == path.parent else f": {other}"
    there = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    free = "" if there is None else f" ({shutil.disk_usage(there).free / 1e6:.0f} MB free)"
    kind = EnvironmentFault if problem.errno in NOT_POSSIBLE else IncompleteError
    return kind(
        f"cannot write {path}: {problem.strerror or problem}{beside}{free}",
        hint=hint or "free space or mend the permission, then run the same command again: nothing finished is lost",
    )
