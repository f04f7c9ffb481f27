"""The verbs of the seam for a folder of this machine, or of a disk that several machines see.

`put_new` puts a whole file in place by a link, which fails where the name is taken, on network disks too. `put_if`
compares and replaces while it holds the system's lock on the folder; so do `put` and `delete`, so that nothing comes
between its look and its write.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from teachonce.core.files import beside, drafts, is_draft, remove_draft, sync, sync_up, write_failed
from teachonce.core.locks import exclusive
from teachonce.objects.seam import Entry, Stored, Version, checked_key


class FolderObjects:
    """`Objects` below a folder, which is made when the first object is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    @property
    def place(self) -> str:
        return str(self.folder)

    def get(self, key: str) -> Stored | None:
        path = self._path(key)
        try:
            data = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except OSError as problem:
            raise write_failed(path, problem) from problem
        return Stored(data, _version(data))

    def put(self, key: str, data: bytes) -> Version:
        with self._draft(key, data) as (draft, path):
            with exclusive(path.parent):
                os.replace(draft, path)
            sync(path.parent)
        return _version(data)

    def put_new(self, key: str, data: bytes) -> Version | None:
        with self._draft(key, data) as (draft, path):
            try:
                os.link(draft, path)
            except FileExistsError:
                # A network disk may do it and lose the answer; asked again, it finds the name taken.
                if os.stat(draft).st_nlink == 1:
                    return None
            sync(path.parent)
        return _version(data)

    def put_if(self, key: str, data: bytes, version: Version) -> Version | None:
        with self._draft(key, data) as (draft, path):
            with exclusive(path.parent):
                now = self.get(key)
                if now is None or now.version != version:
                    return None
                os.replace(draft, path)
            sync(path.parent)
        return _version(data)

    def copy(self, source: str, target: str) -> bool:
        stored = self.get(source)
        if stored is None:
            return False
        self.put(target, stored.data)
        return True

    def list(self, folder: str = "") -> list[Entry]:
        top = self._path(folder) if folder else self.folder
        entries = []
        for parent, _, names in os.walk(top):
            for name in names:
                file = Path(parent, name)
                if is_draft(name):
                    continue
                with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                    facts = file.stat()
                    key = file.relative_to(self.folder).as_posix()
                    entries.append(Entry(key, facts.st_size, facts.st_mtime_ns))
        return sorted(entries, key=lambda entry: entry.key)

    def delete(self, key: str) -> None:
        path = self._path(key)
        try:
            with exclusive(path.parent):
                path.unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as problem:
            raise write_failed(path, problem) from problem

    def clear_drafts(self) -> None:
        """Remove what killed writers had left half made."""
        for parent, _, names in os.walk(self.folder):
            if any(map(is_draft, names)):
                for left in drafts(Path(parent)):
                    remove_draft(left)

    def _path(self, key: str) -> Path:
        return self.folder / checked_key(key)

    @contextlib.contextmanager
    def _draft(self, key: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        """A file beside its place that holds the data, on the disk; and its place."""
        path = self._path(key)
        draft = beside(path)
        try:
            self._make_parents(path)
            with open(draft, "xb") as file:
                with contextlib.suppress(OSError):  # on a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)  # `clear_drafts` of another process leaves it alone
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                yield draft, path
        except OSError as problem:
            raise write_failed(path, problem) from problem
        finally:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)

    def _make_parents(self, path: Path) -> None:
        """Make the folders of a file, durably."""
        there = next(folder for folder in path.parents if folder.is_dir())
        if there != path.parent:
            path.parent.mkdir(parents=True, exist_ok=True)
            sync_up(path.parent, there)


def _version(data: bytes) -> Version:
    return Version("blake2b:" + hashlib.blake2b(data, digest_size=16).hexdigest())
