"""Data and label stores that lie on no disk of this machine: s3://BUCKET/PATH, gs:// and az://, read through obstore.

`location` turns what a person types into a path. A remote one has pathlib's methods, but is no pathlib.Path: what needs
a real file (open, map, lock) goes through the functions here.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from teachonce.core.files import is_remote
from teachonce.core.outside import open_plain, read_plain
from teachonce.errors import DataError, EnvironmentFault, UsageError
from teachonce.objects.clients import server
from teachonce.objects.faults import explained
from teachonce.objects.paths import RemotePath, as_path
from teachonce.objects.patience import expect

PACKAGES = {"s3": ("obstore", "boto3"), "gs": ("obstore",), "az": ("obstore",)}  # what a scheme needs
EXTRA = "s3"  # of the package, which brings them
MOST_TEXT = 1 << 30  # bytes of a list or table that is read whole; that of ImageNet-21K's images has a tenth
SCAN_BYTES = 8 << 20  # fetched ahead while headers are read
TABLE_BYTES = 1 << 20  # ... and while a table is, whose parts are far from each other
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)


def location(text: str) -> Path:
    """The path that a person means: a local one, or one of pathlib's kind for a URL.

    Raises:
        UsageError: a scheme that is not read.
        EnvironmentFault: its packages are not installed.
    """
    match = _URL.match(text)
    if match is None:
        return Path(text)
    scheme, rest = match[1].lower(), match[2].strip("/")
    if scheme not in PACKAGES or not rest:
        raise UsageError(f"{text}: '{scheme}' is not read; local paths and s3://BUCKET/PATH are (and gs://, az://)")
    missing = [name for name in PACKAGES[scheme] if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentFault(
            f"{text}: the packages that read {scheme} are not installed ({', '.join(missing)})",
            hint=f"pip install 'teachonce[{EXTRA}]'",
        )
    bucket, _, key = rest.partition("/")
    return as_path(RemotePath(scheme, bucket) / key if key else RemotePath(scheme, bucket))


def absolute(path: Path) -> str:
    """The path as text that `location` understands in any working folder."""
    return str(path) if is_remote(path) else str(path.resolve())


def expected(path: Path) -> None:
    """Have patience with a path's server from the start, since it has answered another process of this command."""
    if is_remote(path):
        remote = _remote(path)
        expect(server(remote.scheme, remote.bucket))


def exists(path: Path) -> bool:
    """Whether a file or folder is there.

    Raises:
        DataError: there is no such bucket.
        EnvironmentFault: no answer, or no permission to ask.
    """
    return path.exists()


def read_bytes(path: Path, most: int = MOST_TEXT) -> bytes | None:
    """The whole file; None where there is none.

    Raises:
        DataError: there is no such bucket.
        EnvironmentFault: it is remote, and the network or a permission is missing.
        OSError: it is local, and is no plain file, has more than `most` bytes, or cannot be read.
    """
    try:
        return path.read_bytes() if is_remote(path) else read_plain(path, most)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; in a bucket: anything below this name.

    Raises:
        DataError: there is no such bucket.
        EnvironmentFault: no answer, or no permission to ask.
    """
    return path.is_dir()


def read_range(path: Path, offset: int, size: int) -> bytes:
    """So many bytes of a remote file; fewer where it ends. A server that is away is waited for.

    Raises:
        DataError: there is no such file, or bucket.
        EnvironmentFault: no permission, or no answer for as long as `patience` allows.
    """
    remote = _remote(path)
    try:
        return remote.objects.get_range(remote.key, offset, size)
    except FileNotFoundError as problem:
        raise explained(problem, str(path)) from problem


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file for reading on; of a remote one much is fetched ahead.

    Raises:
        DataError: it is remote, and is not there.
        EnvironmentFault: it is remote, and the network or a permission is missing.
        OSError: it cannot be opened, or what happens inside.
    """
    with open_plain(path) if not is_remote(path) else _remote(path).open(ahead=SCAN_BYTES) as file:
        yield file


def open_table(path: Path) -> IO[bytes]:
    """A file whose parts are read here and there.

    Raises:
        FileNotFoundError, OSError: it cannot be opened.
        EnvironmentFault: it is remote, and the network or a permission is missing.
    """
    return _remote(path).open(ahead=TABLE_BYTES) if is_remote(path) else open_plain(path)


def tree_size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _remote(path: Path) -> RemotePath:
    remote = cast(RemotePath | Path, path)
    if not isinstance(remote, RemotePath):
        raise DataError(f"{path} is no URL")
    return remote
