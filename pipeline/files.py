"""Write a file so that a crash leaves either the old content or the new one, never a part.

It does not lock: of two writers at once the last one wins, whole.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from teachonce.errors import EnvironmentFault


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by a file that holds `data`, and return once both the file and its name are on the disk.

    The folder must exist. A link stays a link: the file behind it is replaced. What is no file (a pipe, a device) is
    written to as it is.

    Raises:
        EnvironmentFault: the disk is full, or the folder is missing or may not be written to.
    """
    if path.is_symlink():
        path = path.resolve()
    if path.exists() and not path.is_file() and not path.is_dir():
        _write_through(path, data)
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as problem:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise EnvironmentFault(f"cannot write {path}: {problem.strerror or problem}") from problem


def _write_through(path: Path, data: bytes) -> None:
    try:
        with open(path, "wb") as stream:
            stream.write(data)
    except OSError as problem:
        raise EnvironmentFault(f"cannot write {path}: {problem.strerror or problem}") from problem


def _sync_folder(folder: Path) -> None:
    """Without this a power cut may take back the rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
