"""The verbs of the seam for a bucket, through obstore.

A conditional write whose answer is lost is looked after: the writer reads the object back. Its own content there means
that it has won; another one's, that it has lost; the state before, that the write is tried again.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any, TypeVar

from teachonce.errors import EnvironmentFault
from teachonce.objects.clients import client, server
from teachonce.objects.faults import explained, is_missing, may_pass, status_of
from teachonce.objects.patience import again
from teachonce.objects.seam import Entry, Stored, Version, checked_key

T = TypeVar("T")
MOST_ROUNDS = 20  # of a conditional write that is neither won nor lost: the server says no and holds nothing
MOST_AT_ONCE = 64 << 20  # bytes of one request; what is larger goes in parts, which a kill may leave in the bucket
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
        top = self._key(folder) if folder else self.prefix
        start = len(self.prefix) + 1 if self.prefix else 0
        metas = self._again(folder, lambda store: store.list(top or None).collect())
        entries = (Entry(str(meta["path"])[start:], int(meta["size"])) for meta in metas)
        return sorted(entries, key=lambda entry: entry.key)

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
            f"{self.place}/{key}: the server refuses to write it although nothing stands against it, {MOST_ROUNDS} times"
        )

    def _version(self, meta: Any) -> Version:
        """S3's own number of a version is no condition of a write, and not every answer has it."""
        return Version(str(meta["e_tag"]), None if self.scheme == "s3" else meta["version"])

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
