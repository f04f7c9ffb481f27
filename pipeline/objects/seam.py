"""The verbs by which label stores are written to a folder or to a bucket, and what each of them promises.

A key is a path below the place that was opened, such as `students/ab12/features/c/3`: its parts are joined by `/`, none
is empty, `.` or `..`, and no key is a folder of another key. An object appears whole under its key, or not at all, and
whoever asks after `put` has returned gets the new content.

Of several writers who call `put_new` for one key, or `put_if` with one version, exactly one wins. Who lost may have had
a content of its own in mind; so contents must differ where it matters who wins, for example by a random token. For an
answer that was lost on the way is replaced by a look: who finds its own content there has won.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Protocol

from teachonce.errors import UsageError

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


@dataclass(frozen=True)
class Version:
    """Tells one content of an object from another; equal contents may have equal versions.

    Attributes:
        mark: the ETag, or a digest of the content.
        generation: a number that some object stores give in addition.
    """

    mark: str
    generation: str | None = None

    @property
    def md5(self) -> str:
        """The MD5 of the content in hex, as far as the mark looks like one; a server may give something alike."""
        return md5_in(self.mark)


@dataclass(frozen=True)
class Stored:
    """An object as it was read."""

    data: bytes
    version: Version


@dataclass(frozen=True)
class Entry:
    """An object as a listing names it; `size` in bytes, `modified_ns` since 1970 as its server's clock has it.

    `md5` is that of the content where it looks like it, as in `Version.md5`, and otherwise empty.
    """

    key: str
    size: int
    modified_ns: int = field(default=0, compare=False)
    md5: str = field(default="", compare=False)


class Objects(Protocol):
    """Objects below one place. Instances may be used by several threads at once.

    Every verb raises EnvironmentFault where a permission or the bucket is missing, or no server answers for as long as
    `patience` allows, and, in a folder, what `core.files.write_failed` makes of a full disk.
    """

    @property
    def place(self) -> str:
        """The folder or the URL, for messages."""

    def get(self, key: str) -> Stored | None:
        """The whole object; None where there is none."""

    def put(self, key: str, data: bytes) -> Version:
        """Write an object, whatever is there."""

    def put_new(self, key: str, data: bytes) -> Version | None:
        """Write an object where none is; None where there is one, which stays as it is."""

    def put_if(self, key: str, data: bytes, version: Version) -> Version | None:
        """Replace an object that still has this version; None where it is another one, or gone, and stays so."""

    def copy(self, source: str, target: str) -> bool:
        """Give an object a second key, whatever is there; False where there is no source. No bytes pass through here
        where the server can copy."""

    def list(self, folder: str = "") -> list[Entry]:
        """All objects below a folder, in its subfolders too, in the order of their keys."""

    def delete(self, key: str) -> None:
        """Remove an object; where there is none this is no error."""


def md5_in(mark: str) -> str:
    """The MD5 in an ETag; empty where it holds something else."""
    match = _MD5.fullmatch(mark)
    return match[1] if match else ""


def checked_key(key: str) -> str:
    """A key as it is.

    Raises:
        UsageError: it could leave the place, or mean the same as another key.
    """
    if not key or any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key:
        raise UsageError(f"'{key}' is no key of an object: its parts are names, joined by '/'")
    return key
