"""SHA256SUMS: the list of digests beside shared files, as `sha256sum -c` reads it.

It says whether files are what was written, not who wrote them: who can change a file can change the list.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from teachonce.core.outside import read_plain, require_plain
from teachonce.errors import IntegrityError

SUMS_FILE = "SHA256SUMS"
CARD_FILE = "README.md"  # people write into the card
AGAIN = "copy or download it again, or export it again from its run"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
MOST_BYTES = 64 << 20  # of a list: some 400,000 files


def sums_text(sums: Mapping[str, str]) -> str:
    """One `digest  name` line a file, in the order given; names are of one line."""
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items())


def parse_sums(text: str, where: str) -> dict[str, str]:
    """The digest of each name, from the text of a list.

    Raises:
        IntegrityError: a line of another form, a name that comes twice or leads elsewhere.
    """
    sums: dict[str, str] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise IntegrityError(f"{where}, line {number}: expected `SHA-256  name`, found {line[:80]!r}")
        name = match[2]
        if not is_plain(name) or name in sums:
            raise IntegrityError(f"{where}, line {number}: the name {name[:80]!r} comes twice or leads elsewhere")
        sums[name] = match[1]
    return sums


def read_sums(file: Path) -> dict[str, str]:
    """The list in a file.

    Raises:
        IntegrityError: as in `parse_sums`, or it is no text, or too large for one.
        OSError: it cannot be read.
    """
    if require_plain(file) > MOST_BYTES:
        raise IntegrityError(f"{file} is too large for a list of digests")
    try:
        return parse_sums(read_plain(file, MOST_BYTES).decode(), str(file))
    except UnicodeDecodeError as problem:
        raise IntegrityError(f"{file} is no text: {problem}") from problem


def is_plain(name: str) -> bool:
    """Whether a name with `/` between its parts stays below the folder it is put in, on any system."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and ":" not in name and not {"", ".", ".."} & set(parts)


def digest_of(file: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_sums(folder: Path, names: Iterable[str]) -> None:
    """Write the list of the named files of a folder into it."""
    sums = {name: digest_of(folder / name) for name in sorted(names)}
    (folder / SUMS_FILE).write_text(sums_text(sums), encoding="utf-8", newline="\n")


def require_unchanged(folder: Path, vouched: Collection[str], whole: bool = False) -> None:
    """Compare the files of an export with its list; without a list there is nothing to compare. The card may differ.

    Args:
        vouched: names of the files that an export writes: where one of them lies in the folder, the list must name it.
        whole: also refuse files that are listed and not there, and any that are there and not listed; else a part of
            what was shared is enough.

    Raises:
        IntegrityError: names the first file that is another, or the list itself.
    """
    if not (folder / SUMS_FILE).is_file():
        return
    sums = read_sums(folder / SUMS_FILE)
    if whole:
        _require_listed(folder, sums, vouched)
    for name in vouched:
        if name not in sums and (folder / name).exists():
            raise IntegrityError(
                f"{folder / SUMS_FILE} does not list {name}, which lies beside it: one of them was changed", hint=AGAIN
            )
    for name, digest in sums.items():
        file = folder / name
        if name == CARD_FILE or (not whole and not file.exists()):
            continue
        actual = digest_of(file) if file.is_file() else "missing"
        if actual != digest:
            raise IntegrityError(
                f"{file} is not what was exported: its SHA-256 should be {digest} and is {actual}",
                hint=AGAIN,
            )


def _require_listed(folder: Path, sums: Mapping[str, str], vouched: Collection[str]) -> None:
    """Refuse what lies in the folder and is not in its list: nobody vouches for it."""
    there = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_symlink() or file.is_file())
    more = sorted(set(there) - sums.keys() - {SUMS_FILE, *vouched})  # the caller checks the vouched ones
    if more:
        others = f" and {len(more) - 1} more" if len(more) > 1 else ""
        raise IntegrityError(
            f"{folder / SUMS_FILE} does not list {more[0]}{others}: `teachonce export` wrote nothing like it",
            hint="take it out of the folder",
        )
