"""Data and finished stores that lie on no disk of this machine: s3://BUCKET/PATH, read through fsspec, never written.

`location` turns what a person types into a path. A remote one has pathlib's methods, but is no pathlib.Path: what needs
a real file (open, map, lock) goes through the functions here, which also say clearly what a bucket refuses.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO, Any, TypeVar, cast

from teachonce.core.outside import open_plain, read_plain
from teachonce.errors import DataError, EnvironmentFault, TeachOnceError, UsageError

T = TypeVar("T")
PACKAGES = {"s3": ("s3fs", "upath")}  # what a scheme needs; the extra has its name
WAITS = (1.0, 3.0, 10.0)  # seconds before further tries of a read; s3fs itself tries five times within two seconds
BEHIND_THE_END = "not satisfiable"  # S3's words for an offset behind the end of a file
MOST_TEXT = 1 << 30  # bytes of a list or table that is read whole; that of ImageNet-21K's images has a tenth
SCAN_BYTES = 8 << 20  # fetched ahead while headers are read
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
        raise UsageError(f"{text}: '{scheme}' is not read; local paths and s3://BUCKET/PATH are")
    missing = [name for name in PACKAGES[scheme] if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentFault(
            f"{text}: the packages that read {scheme} are not installed ({', '.join(missing)})",
            hint=f"pip install 'teachonce[{scheme}]'",
        )
    from upath import UPath

    return cast(Path, UPath(f"{scheme}://{rest}"))


def is_remote(path: Path) -> bool:
    """Whether a path is a URL."""
    return not isinstance(path, PurePath)


def absolute(path: Path) -> str:
    """The path as text that `location` understands in any working folder."""
    return str(path) if is_remote(path) else str(path.resolve())


def refuse_writes(path: Path) -> None:
    """Refuse a remote path: label stores are written where files can be renamed and locked.

    Raises:
        UsageError: the path is remote.
    """
    if is_remote(path):
        raise UsageError(
            f"{path}: label stores are read from {str(path).partition(':')[0]}, not written there",
            hint=f"write to a local or shared disk, then copy the finished store: aws s3 sync {path.name} {path}",
        )


def exists(path: Path) -> bool:
    """Whether a file or folder is there.

    Raises:
        EnvironmentFault: no answer, or no permission to ask.
    """
    if not is_remote(path):
        return path.exists()
    with clear_errors(path):
        _files(path).invalidate_cache()  # the cache holds listings that may be a minute old
        return bool(_files(path).exists(_key(path)))


def read_bytes(path: Path, most: int = MOST_TEXT) -> bytes | None:
    """The whole file; None where there is none.

    Raises:
        EnvironmentFault: it is remote, and the network or a permission is missing.
        OSError: it is local, and is no plain file, has more than `most` bytes, or cannot be read.
    """
    try:
        if not is_remote(path):
            return read_plain(path, most)
        with clear_errors(path):
            return _again(lambda: bytes(_files(path).cat_file(_key(path))))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; in a bucket: anything below this name.

    Raises:
        EnvironmentFault: no answer, or no permission to ask.
    """
    if not is_remote(path):
        return path.is_dir()
    with clear_errors(path):
        _files(path).invalidate_cache()
        try:
            return bool(_files(path).ls(_key(path), detail=False))
        except FileNotFoundError:
            return False


def read_range(path: Path, offset: int, size: int) -> bytes:
    """So many bytes of a remote file; fewer where it ends. A network that fails is asked again.

    Raises:
        DataError: there is no such file.
        EnvironmentFault: no permission.
        OSError: it failed on every try; the task may be tried again elsewhere.
    """
    try:
        return _again(lambda: bytes(_files(path).cat_file(_key(path), start=offset, end=offset + size)))
    except failures() as problem:
        if _refused(problem):
            raise explained(problem, str(path)) from problem
        if BEHIND_THE_END in str(problem):
            return b""
        raise OSError(f"{path}: {type(problem).__name__}: {problem}, {len(WAITS) + 1} times") from problem


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file for reading on; of a remote one much is fetched ahead.

    Raises:
        EnvironmentFault: it is remote, and the network or a permission is missing.
        OSError: it cannot be opened, or what happens inside.
    """
    if not is_remote(path):
        with open_plain(path) as file:
            yield file
        return
    with clear_errors(path), _files(path).open(_key(path), "rb", block_size=SCAN_BYTES, cache_type="readahead") as file:
        yield file


def tree_size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    if not is_remote(folder):
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    with clear_errors(folder):
        return int(_files(folder).du(_key(folder), total=True))


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turn what a bucket or network refuses inside into our errors; FileNotFoundError passes as it is."""
    if not is_remote(path):
        yield
        return
    try:
        yield
    except FileNotFoundError:
        raise
    except failures() as problem:
        raise explained(problem, str(path)) from problem


def failures() -> tuple[type[Exception], ...]:
    """What fsspec's file systems raise: not all of it is an OSError."""
    kinds: list[type[Exception]] = [OSError]
    for module, name in (("botocore.exceptions", "BotoCoreError"), ("aiohttp", "ClientError")):
        if module in sys.modules:
            kinds.append(getattr(sys.modules[module], name))
    return tuple(kinds)


def explained(problem: Exception, where: str) -> TeachOnceError:
    """One of our errors for what a file system raised."""
    if isinstance(problem, FileNotFoundError):
        return DataError(f"{where} does not exist", hint="look at the bucket and the path")
    if _refused(problem):
        return EnvironmentFault(
            f"{where} may not be read: {problem}",
            hint="credentials come from AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws; workers "
            "need them too",
        )
    return EnvironmentFault(
        f"{where} cannot be read: {type(problem).__name__}: {problem}",
        hint="is the network up, and is AWS_ENDPOINT_URL right? Then run the same command again",
    )


def _again(read: Callable[[], T]) -> T:
    """The result of `read`, tried again after a while where the network failed."""
    for wait in WAITS:
        try:
            return read()
        except failures() as problem:
            if _refused(problem) or BEHIND_THE_END in str(problem):
                raise
            time.sleep(wait)
    return read()


def _refused(problem: Exception) -> bool:
    """Whether trying again would change nothing."""
    return isinstance(problem, FileNotFoundError | PermissionError) or "Credentials" in type(problem).__name__


def _files(path: Path) -> Any:
    return cast(Any, path).fs


def _key(path: Path) -> str:
    return str(cast(Any, path).path)
