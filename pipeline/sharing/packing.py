"""Packs: a label store or an export with the digest of every file, as one plain tar or as a folder.

This module does not know what a sound store is: `stages.pack` verifies the store before and after.

A pack holds, in this order, `digests.json` (what it is), `NAME/...` (the files, sorted by name) and `SHA256SUMS` (their
digests). The same content gives the same bytes, and files of any size go through one small buffer.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from teachonce.core.documents import json_in
from teachonce.core.files import new_folder, whole_file, write_failed
from teachonce.core.progress import Reporter
from teachonce.core.strict import decode
from teachonce.core.sums import MOST_BYTES, SUMS_FILE, is_plain, parse_sums, sums_text
from teachonce.errors import IntegrityError, UsageError
from teachonce.phrases import phrase
from teachonce.sharing.entries import (
    AGAIN,
    FOREIGN,
    Entry,
    FolderTarget,
    Hashed,
    Readable,
    Target,
    TarTarget,
    entries_of,
    files_of,
)

HEAD_FILE = "digests.json"
TAR = ".tar"


@dataclass(frozen=True, kw_only=True)
class PackHead:
    """What digests.json says."""

    schema: Literal[1] = 1
    format: Literal["teachonce-pack"] = "teachonce-pack"
    kind: Literal["label-store", "prompts"]
    name: str
    """Of the folder in the pack."""
    id: str
    """`store_id` of a store; SHA-256 of prompts.safetensors."""
    files: int
    bytes: int


def write_pack(source: Path, head: PackHead, out: Path, reporter: Reporter) -> str:
    """Write a folder's files as a pack: a tar where `out` ends in .tar, else a folder; it appears whole or not at all.

    Returns:
        SHA-256 (hex) of its SHA256SUMS, which stands for the whole content.

    Raises:
        UsageError: there is something at `out`.
        IntegrityError: a file changes while it is read, or is a link.
        IncompleteError, EnvironmentFault: it cannot be written.
    """
    if out.suffix != TAR:
        with new_folder(out, reporter) as folder:
            return _copy(source, head, FolderTarget(folder), reporter)
    require_no_file(out)
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out, last=require_no_file, reporter=reporter) as partial, open(partial, "wb") as file:
            target = TarTarget(file)
            digest = _copy(source, head, target, reporter)
            target.close()
        return digest
    except OSError as problem:
        raise write_failed(out, problem) from problem


def require_no_file(out: Path) -> None:
    """Raise UsageError where something is at `out`."""
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} is there already", hint=phrase("{another out}; nothing was changed"))


def check_pack(pack: Path, reporter: Reporter) -> tuple[PackHead, str]:
    """Compare every file of a pack, tar or folder, with its digest.

    Returns:
        What it is, and SHA-256 of its SHA256SUMS.

    Raises:
        IntegrityError: names the first thing that is not as it was written.
        UsageError: there is no such pack.
    """
    return _pass(pack, None, reporter)


def unpack(pack: Path, out: Path, prove: Callable[[PackHead, Path], None], reporter: Reporter) -> tuple[PackHead, str]:
    """Write the files of a pack to a new folder, which appears only when all digests agree and `prove` is content.

    Raises:
        UsageError: there is something at `out`; there is no such pack.
        IntegrityError: as in `check_pack`, or what `prove` raises.
        IncompleteError, EnvironmentFault: it cannot be written.
    """
    with new_folder(out, reporter) as folder:
        head, digest = _pass(pack, FolderTarget(folder), reporter)
        prove(head, folder / head.name)
    return head, digest


def _copy(source: Path, head: PackHead, target: Target, reporter: Reporter) -> str:
    sums: dict[str, str] = {}

    def add(name: str, size: int, opened: Readable) -> None:
        hashed = Hashed(opened, size, name)
        target.add(name, size, hashed)
        sums[name] = hashed.finish()

    data = (json.dumps(asdict(head), indent=1) + "\n").encode()
    add(HEAD_FILE, len(data), io.BytesIO(data))
    files, done = files_of(source), 0
    if (len(files), sum(size for _, size in files)) != (head.files, head.bytes):
        raise IntegrityError(f"{source} changed before it was packed", hint="let no other program write it")
    for name, size in files:
        with open(source / name, "rb") as opened:
            add(f"{head.name}/{name}", size, opened)
            if opened.read(1):
                raise IntegrityError(f"{source / name} grew while it was packed", hint="let no other program write it")
        done += size
        reporter.progress("pack", done, head.bytes, "bytes")
    listed = sums_text(sums).encode()
    target.add(SUMS_FILE, len(listed), io.BytesIO(listed))
    return hashlib.sha256(listed).hexdigest()


@dataclass
class _Seen:
    """What a pass over a pack has met so far."""

    pack: Path
    head: PackHead | None = None
    listed: bytes = b""
    sums: dict[str, str] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    bytes: int = 0

    def require_place(self, entry: Entry) -> None:
        """Refuse names that lead elsewhere, come twice, or stand where the format has no place for them."""
        name = entry.name
        parts = name.split("/")
        above = {"/".join(parts[:i]) for i in range(1, len(parts))}
        placed = True
        if self.head is None:
            if name != HEAD_FILE:
                raise _not_whole(self.pack, HEAD_FILE)
        else:
            placed = not self.listed and (name == SUMS_FILE or name.startswith(f"{self.head.name}/"))
        twice = name in self.sums or name in self.folders or bool(above & self.sums.keys())
        if not placed or twice or not is_plain(name):
            raise IntegrityError(f"{self.pack} holds {name[:200]!r} where a pack has nothing like it", hint=FOREIGN)
        if name in (HEAD_FILE, SUMS_FILE) and entry.size > MOST_BYTES:
            raise IntegrityError(f"{self.pack}: {name} is too large to be one", hint=FOREIGN)
        self.folders |= above

    def compare(self) -> tuple[PackHead, str]:
        """Compare the digests of the files that were read with the listed ones."""
        if self.head is None or not self.listed:
            raise _not_whole(self.pack, HEAD_FILE if self.head is None else SUMS_FILE)
        try:
            listed = parse_sums(self.listed.decode(), f"{self.pack}: {SUMS_FILE}")
        except UnicodeDecodeError as problem:
            raise IntegrityError(f"{self.pack}: {SUMS_FILE} is no text", hint=AGAIN) from problem
        if sums_text(listed).encode() != self.listed:
            raise IntegrityError(f"{self.pack}: {SUMS_FILE} is not written as `teachonce pack` does", hint=AGAIN)
        for name in sorted(listed.keys() | self.sums.keys()):
            expected, actual = listed.get(name, "not in the list"), self.sums.get(name, "missing")
            if expected != actual:
                raise IntegrityError(
                    f"{self.pack}: {name} is not what was packed: expected SHA-256 {expected}, found {actual}",
                    hint=AGAIN,
                )
        if (self.head.files, self.head.bytes) != (len(self.sums) - 1, self.bytes):
            raise IntegrityError(
                f"{self.pack}: {HEAD_FILE} says {self.head.files} files of {self.head.bytes} bytes, and there are "
                f"{len(self.sums) - 1} of {self.bytes}",
                hint=AGAIN,
            )
        return self.head, hashlib.sha256(self.listed).hexdigest()


def _pass(pack: Path, target: Target | None, reporter: Reporter) -> tuple[PackHead, str]:
    """Go through a pack once, digest every file, and write it as it passes where that is wanted."""
    seen = _Seen(pack)
    for entry in entries_of(pack, HEAD_FILE, SUMS_FILE):
        seen.require_place(entry)
        with entry.open() as opened:
            data = opened.read(entry.size) if entry.name in (HEAD_FILE, SUMS_FILE) else None
            hashed = Hashed(opened if data is None else io.BytesIO(data), entry.size, entry.name)
            if target is not None:
                target.add(entry.name, entry.size, hashed)
            digest = hashed.finish()
        if entry.name == SUMS_FILE:
            seen.listed = data or b""
            continue
        seen.sums[entry.name] = digest
        if seen.head is None:
            seen.head = _head(pack, data or b"")
        else:
            seen.bytes += entry.size
            reporter.progress("check", min(seen.bytes, seen.head.bytes), seen.head.bytes, "bytes")
    return seen.compare()


def _not_whole(pack: Path, lacking: str) -> IntegrityError:
    first = ", which every pack begins with" if lacking == HEAD_FILE else ""
    return IntegrityError(f"{pack} is no pack, or not a whole one: it lacks {lacking}{first}", hint=FOREIGN)


def _head(pack: Path, data: bytes) -> PackHead:
    where = f"{pack}: {HEAD_FILE}"
    try:
        document = json_in(data)
    except ValueError as problem:
        raise IntegrityError(f"{where} is not valid JSON: {problem}", hint=AGAIN) from problem
    if not isinstance(document, dict):
        raise IntegrityError(f"{where} holds no JSON object", hint=AGAIN)
    head = decode(PackHead, document, where, IntegrityError)
    if not is_plain(head.name) or "/" in head.name or head.name in (HEAD_FILE, SUMS_FILE):
        raise IntegrityError(f"{where}: {head.name!r} is no name of a folder", hint=FOREIGN)
    return head
