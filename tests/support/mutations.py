"""Damaged and hostile versions of a sound file, as Hypothesis draws them. It tests nothing.

A mutation replaces, inserts, repeats, cuts or flips. What it puts in is what breaks readers: no bytes, no UTF-8,
endless numbers, deep nesting, paths that lead out, words of other types.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from hypothesis import strategies as st

Deed = Literal["flip", "insert", "replace token", "repeat", "cut", "drop"]
TOKEN = re.compile(rb'"[^"\n]*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null|[A-Za-z_]\w*')
NASTY = (
    b"",
    b"\x00",
    b"\xff\xfe",
    b"\xc3\x28",
    b"-1",
    b"0",
    b"1e400",
    b"-1e-400",
    b"NaN",
    b"Infinity",
    b"9" * 30,
    b"9" * 5000,
    b"0x7fffffffffffffff",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"{}",
    b"[]",
    b"null",
    b"true",
    b'"x"',
    b'"' + b"x" * 70_000 + b'"',
    b'"../../etc/passwd"',
    b'"/dev/zero"',
    b'"a\\u0000b"',
    b'"\\ud800"',
    b'"\\u202e\\u001b[31m"',
    b"\n",
    b"\t",
    b'"',
    b"#",
    b"=",
    b"1979-05-27T07:32:00Z",
)


@dataclass(frozen=True)
class Mutation:
    """One change of some bytes; `place` is a share of their length."""

    deed: Deed
    place: float
    number: int
    nasty: bytes

    def of(self, data: bytes) -> bytes:
        """The changed bytes."""
        if not data:
            return self.nasty
        at = min(int(self.place * len(data)), len(data) - 1)
        if self.deed == "flip":
            return data[:at] + bytes([data[at] ^ (1 << self.number % 8)]) + data[at + 1 :]
        if self.deed == "insert":
            return data[:at] + self.nasty + data[at:]
        if self.deed == "cut":
            return data[:at]
        if self.deed == "repeat":
            return data[: at + self.number] + data[at:]
        if self.deed == "drop":
            return data[:at] + data[at + self.number :]
        tokens = list(TOKEN.finditer(data))
        if not tokens:
            return self.nasty
        chosen = tokens[int(self.place * len(tokens)) % len(tokens)]
        return data[: chosen.start()] + self.nasty + data[chosen.end() :]


mutations = st.lists(
    st.builds(
        Mutation,
        st.sampled_from(("flip", "insert", "replace token", "replace token", "repeat", "cut", "drop")),
        st.floats(0, 1, allow_nan=False),
        st.integers(1, 40),
        st.sampled_from(NASTY),
    ),
    min_size=1,
    max_size=3,
)
"""One to three changes, one after the other."""


def mutated(data: bytes, changes: list[Mutation]) -> bytes:
    """The bytes after all changes."""
    for change in changes:
        data = change.of(data)
    return data
