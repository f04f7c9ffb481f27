"""Write a file or a folder so that a crash leaves either the old content or the new one, never a part.

What is not whole yet lies beside its place, as `.NAME.PID-RANDOM.partial`, and whoever writes it holds a lock on it. A
process that is killed leaves it there; who writes to the same place next sees that nobody holds it, and removes it. Of
two writers at once the last one wins, whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

from teachonce.core.progress import Reporter
from teachonce.errors import EnvironmentFault, IncompleteError, UsageError
from teachonce.phrases import phrase

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
_DRAFT = re.compile(r"\.(.+)\.(\d+)(-[0-9a-f]+)?\.partial", re.DOTALL)  # without the random part: earlier versions


def atomic_write_bytes(path: Path, data: bytes, reporter: Reporter | None = None) -> None:
    """Replace `path` by a file that holds `data`, and return once both the file and its name are on the disk.

    The folder must exist. A link stays a link: the file behind it is replaced. What is no file (a pipe, a device) is
    written to as it is.

    Args:
        path: of the file.
        data: its content.
        reporter: told what killed processes had left here.

    Raises:
        IncompleteError, EnvironmentFault: the disk is full, or the folder is missing or may not be written to.
    """
    try:
        if path.is_symlink():
            path = path.resolve()
        if path.exists() and not path.is_file() and not path.is_dir():
            _write_through(path, data)
            return
        with whole_file(path, reporter=reporter) as partial:
            partial.write_bytes(data)
    except OSError as problem:
        raise write_failed(path, problem) from problem


def _write_through(path: Path, data: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(data)


@contextlib.contextmanager
def whole_file(path: Path, last: Check | None = None, reporter: Reporter | None = None) -> Iterator[Path]:
    """Inside, an empty file under a hidden name beside `path` to write to; behind, it stands at `path`, on the disk.

    Args:
        path: where the file appears; a file that is there is replaced.
        last: called with `path` just before the file gets its name; what it raises stops that.
        reporter: told what killed processes had left here.

    Raises:
        OSError: the file cannot be written; nothing is left of it, and `path` is as it was.
    """
    clear_drafts(path, reporter)
    partial = beside(path)
    handle = _held(partial, folder=False)
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
        os.close(handle)


def require_new(out: Path) -> None:
    """Refuse a place where something is already; an empty folder is nothing.

    Raises:
        UsageError: it is a file, a link, or a folder that is not empty.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} is there already", hint=phrase("{another out}; nothing was changed"))
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty", hint=phrase("{another out}; nothing was changed"))


@contextlib.contextmanager
def whole_folder(
    out: Path, draft: Path | None = None, last: Check | None = None, reporter: Reporter | None = None
) -> Iterator[Path]:
    """Inside, a new folder to fill; behind, it stands at `out`, on the disk with all its files.

    Args:
        out: where it appears. An empty folder gives way to it, anything else is an error.
        draft: where it is built, in the folder of `out`; `.NAME.PID-RANDOM.partial` by default. What is there is
            removed.
        last: called with `out` just before the folder gets its name: it makes room, or raises to stop that.
        reporter: told what killed processes had left here.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    clear_drafts(out, reporter)
    draft = draft or beside(out)
    shutil.rmtree(draft, ignore_errors=True)
    draft.parent.mkdir(parents=True, exist_ok=True)
    handle = _held(draft, folder=True)
    try:
        yield draft
        sync_tree(draft)
        if last is not None:
            last(out)
        os.replace(draft, out)
        sync(out.absolute().parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(handle)


@contextlib.contextmanager
def new_folder(out: Path, reporter: Reporter | None = None) -> Iterator[Path]:
    """`whole_folder` at a place where nothing is.

    Raises:
        UsageError: there is something at `out`, before or after.
        IncompleteError, EnvironmentFault: the disk is full, or its place may not be written to.
    """
    require_new(out)
    try:
        with whole_folder(out, last=require_new, reporter=reporter) as partial:
            yield partial
    except OSError as problem:
        raise write_failed(out, problem) from problem


def beside(out: Path) -> Path:
    """A hidden name that no other writer has, in the same folder, for what will stand at `out`."""
    place = out.absolute()
    return place.with_name(f".{place.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


def is_remote(path: Path) -> bool:
    """Whether a path is a URL: one of pathlib's kind, which is no path of this machine."""
    return not isinstance(path, PurePath)


def refuse_writes(path: Path) -> None:
    """Refuse a remote path, where files can be neither renamed nor locked.

    Raises:
        UsageError: the path is remote.
    """
    if is_remote(path):
        raise UsageError(
            f"{path}: relabel and merge write to a disk, not to {str(path).partition(':')[0]}; teach writes there",
            hint=f"write to a local or shared disk, then send the finished store: teachonce push {path.name} {path}",
        )


def neighbour(path: Path, ending: str) -> Path:
    """What belongs to a file or folder and lies beside it under its name and an ending, such as its lock.

    It lies beside what a link leads to: one thing has one lock, whatever names lead to it.
    """
    if not is_remote(path) and path.is_symlink():
        path = Path(os.path.realpath(path))
    return path.with_name(path.name + ending)


def drafts(folder: Path, name: str | None = None) -> list[Path]:
    """What killed processes left half made in a folder, or of one name there; never what a living process writes."""
    left = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _DRAFT.fullmatch(entry.name)
            if match and name in (None, match[1]) and _is_abandoned(Path(entry.path), int(match[2]), bool(match[3])):
                left.append(Path(entry.path))
    return sorted(left)


def is_draft(name: str) -> bool:
    """Whether a file's name is one under which something is written that is not whole yet."""
    return _DRAFT.fullmatch(name) is not None


def clear_drafts(out: Path, reporter: Reporter | None = None) -> None:
    """Remove what killed processes left half made of `out`, and say so."""
    place = out.absolute()
    for left in drafts(place.parent, place.name):
        remove_draft(left)
        if reporter is not None:
            reporter.note(f"removed {left}, which a process that was killed had left half made")


def remove_draft(draft: Path) -> None:
    """Remove what `drafts` lists; what cannot be removed stays."""
    if draft.is_dir() and not draft.is_symlink():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _held(draft: Path, folder: bool) -> int:
    """Make a draft and hold the system's lock on it, which ends with this process; returns a descriptor."""
    while True:
        if folder:
            draft.mkdir()
        handle = os.open(draft, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):  # on a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(handle), os.stat(draft)):
                return handle
        except FileNotFoundError:  # between its making and its lock another process took it for a dead one's
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_abandoned(draft: Path, pid: int, locked: bool) -> bool:
    """Whether nobody holds a draft; not where that cannot be known, on a file system without locks."""
    if draft.is_symlink() or not (draft.is_dir() or draft.is_file()):
        return False
    if not locked and os.path.exists(f"/proc/{pid}"):  # an earlier version, which does not lock, may be writing it
        return False
    try:
        handle = os.open(draft, (os.O_RDONLY if draft.is_dir() else os.O_RDWR) | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def sync(path: Path) -> None:
    """fsync one file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_up(file: Path, top: Path) -> None:
    """fsync a file and every folder from its own up to `top`: a new name is durable only with its folder.

    Where `top` is the file, no folder is synced.
    """
    for path in (file, *file.parents):
        sync(path)
        if path == top:
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
