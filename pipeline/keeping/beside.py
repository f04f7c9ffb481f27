"""Small files that lie beside a label store, such as the log of failed images: in its folder, or in its bucket."""

from __future__ import annotations

import threading
from pathlib import Path

from teachonce.core.files import atomic_write_bytes, is_remote
from teachonce.core.progress import Reporter
from teachonce.objects.places import open_objects

_APPENDING = threading.Lock()


def write_beside(path: Path, data: bytes, reporter: Reporter | None = None) -> None:
    """Write such a file; who reads it sees the former content or this one.

    Args:
        path: of the file.
        data: its content.
        reporter: told what killed processes had left in the folder.

    Raises:
        IncompleteError, EnvironmentFault: it cannot be written.
    """
    if is_remote(path):
        open_objects(path.parent).put(path.name, data)
    else:
        atomic_write_bytes(path, data, reporter)


def read_beside(path: Path) -> bytes | None:
    """The content of such a file; None where there is none.

    Raises:
        EnvironmentFault: it cannot be read.
        OSError: it lies in a folder, and cannot be read.
    """
    if is_remote(path):
        stored = open_objects(path.parent).get(path.name)
        return None if stored is None else stored.data
    return path.read_bytes() if path.is_file() else None


def append_beside(path: Path, text: str) -> None:
    """Add lines to such a file, which only the owner of the store writes.

    Raises:
        EnvironmentFault: it lies in a bucket, and cannot be written.
        OSError: it lies in a folder, and cannot be written.
    """
    with _APPENDING:
        if is_remote(path):  # objects only grow by being written anew
            write_beside(path, (read_beside(path) or b"") + text.encode())
            return
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
