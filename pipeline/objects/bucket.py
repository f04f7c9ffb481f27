"""The verbs of the seam for a bucket, through obstore.

A conditional write whose answer is lost is looked after: the writer reads the object back. Its own content there means
that it has won; another one's, that it has lost; the state before, that the write is tried again.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from teachonce.errors import EnvironmentFault
from teachonce.objects.clients import client, server
from teachonce.objects.faults import code_of, explained, is_missing, may_pass, status_of
from teachonce.objects.patience import again
from teachonce.objects.seam import Entry, Stored, Version, checked_key, md5_in

T = TypeVar("T")
MOST_ROUNDS = 20  # of a conditional write that is neither won nor lost: the server says no and holds nothing
MOST_AT_ONCE = 64 << 20  # bytes of one request; what is larger goes in parts, which a kill may leave in the bucket
BEHIND_THE_END = "416"  # the answer for an offset where the object has ended
LOST = ("AlreadyExistsError", "PreconditionError")  # obstore's errors for a condition that does not hold


class BucketObjects:
    """`Objects` below SCHEME://BUCKET/PREFIX.

    Args:
        scheme: such as s3.
        bucket: its name.
        prefix: the folder in it; empty for the whole bucket.
    """

    def __init__(self, scheme: str, bucket: str, prefix: str = "") -> None:
        self.scheme, self.bucket, self.prefix = scheme, bucket, prefix.strip("/")

    @property
    def place(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    def get(self, key: str) -> Stored | None:
        def read(store: Any) -> Stored:
            answer = store.get(self._key(key))
            return Stored(bytes(answer.bytes()), self._version(answer.meta))

        try:
            return self._again(key, read)
        except FileNotFoundError:
            return None

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """So many bytes of an object; fewer where it ends.

        Raises:
            FileNotFoundError: there is none.
        """

        def read(store: Any) -> bytes:
            try:
                return bytes(store.get_range(self._key(key), start=offset, length=size))
            except Exception as problem:
                if status_of(problem) == BEHIND_THE_END:
                    return b""
                raise

        return self._again(key, read) if size else b""

    def facts(self, key: str) -> Entry | None:
        """What is known of an object without reading it; None where there is none."""

        def ask(store: Any) -> Any:
            try:
                return store.head(self._key(key))
            except Exception as problem:
                if status_of(problem) not in ("", "404") and not code_of(problem):
                    store.get_range(self._key(key), start=0, length=1)  # its answer has words, which this one lacks
                raise

        try:
            return self._entry(self._again(key, ask))
        except FileNotFoundError:
            return None

    def is_folder(self, key: str) -> bool:
        """Whether anything lies below this name."""
        top = self._top(key)
        return self._again(key, lambda store: any(len(page) for page in store.list(top, chunk_size=1)))

    def listing(self, key: str) -> tuple[builtins.list[Entry], builtins.list[str]]:
        """What lies in a folder: objects, and the keys of folders; both by name."""
        top = self._top(key)
        answer = self._again(key, lambda store: store.list_with_delimiter(top))
        objects = self._entries(answer["objects"])
        return objects, sorted(str(folder)[self._start :] for folder in answer["common_prefixes"])

    def put(self, key: str, data: bytes) -> Version:
        many = len(data) > MOST_AT_ONCE
        return self._again(key, lambda store: self._version(store.put(self._key(key), data, use_multipart=many)))

    def put_new(self, key: str, data: bytes) -> Version | None:
        return self._conditional(key, data, None)

    def put_if(self, key: str, data: bytes, version: Version) -> Version | None:
        return self._conditional(key, data, version)

    def copy(self, source: str, target: str) -> bool:
        try:
            self._again(source, lambda store: store.copy(self._key(source), self._key(target)))
        except FileNotFoundError:
            return False
        except _CannotCopy:
            stored = self.get(source)
            if stored is None:
                return False
            self.put(target, stored.data)
        return True

    def list(self, folder: str = "") -> builtins.list[Entry]:
        top = self._top(folder)
        return self._entries(self._again(folder, lambda store: store.list(top).collect()))

    def delete(self, key: str) -> None:
        try:
            self._again(key, lambda store: store.delete(self._key(key)))
        except FileNotFoundError:
            return

    def _conditional(self, key: str, data: bytes, version: Version | None) -> Version | None:
        mode: Any = "create"
        if version is not None:
            mode = {"e_tag": version.mark} | ({"version": version.generation} if version.generation else {})
        for _ in range(MOST_ROUNDS):
            try:
                return self._again(key, lambda store: self._version(store.put(self._key(key), data, mode=mode)))
            except _ConditionFailed:
                now = self.get(key)
            if now is not None and now.data == data:
                return now.version
            if (now is None) != (version is None) or (now is not None and now.version != version):
                return None
        raise EnvironmentFault(
            f"{self.place}/{key}: the server refused {MOST_ROUNDS} times to write it, and nothing stands against it"
        )

    def _version(self, meta: Any) -> Version:
        """S3's own number of a version is no condition of a write, and not every answer has it."""
        return Version(str(meta["e_tag"]), None if self.scheme == "s3" else meta["version"])

    @property
    def _start(self) -> int:
        """Where keys of the seam begin in the bucket's own."""
        return len(self.prefix) + 1 if self.prefix else 0

    def _top(self, folder: str) -> str | None:
        return (self._key(folder) if folder else self.prefix) or None

    def _entries(self, metas: Iterable[Any]) -> builtins.list[Entry]:
        return sorted(map(self._entry, metas), key=lambda entry: entry.key)

    def _entry(self, meta: Any) -> Entry:
        modified = int(meta["last_modified"].timestamp() * 1e9)
        return Entry(str(meta["path"])[self._start :], int(meta["size"]), modified, md5_in(str(meta["e_tag"])))

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{checked_key(key)}" if self.prefix else checked_key(key)

    def _again(self, key: str, request: Callable[[Any], T]) -> T:
        """The answer to a request, which is repeated through outages.

        Raises:
            FileNotFoundError: there is no such object.
            _ConditionFailed, _CannotCopy: the server says so.
            TeachOnceError: for anything else.
        """
        where = f"{self.place}/{key}" if key else self.place
        try:
            store = client(self.scheme, self.bucket)
            return again(lambda: request(store), server(self.scheme, self.bucket), may_pass)
        except Exception as problem:
            if is_missing(problem):
                raise
            if type(problem).__name__ in LOST:
                raise _ConditionFailed from problem
            if type(problem).__name__ == "NotSupportedError" or status_of(problem) == "501":
                raise _CannotCopy(str(problem)) from problem
            raise explained(problem, where) from problem


class _ConditionFailed(Exception):
    """The condition of a write does not hold, or the server says so."""


class _CannotCopy(EnvironmentFault):
    """The server does not know what was asked for."""
