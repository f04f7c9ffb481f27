"""How the command line spells the options that library code names by their keys.

A key's flag is the key with hyphens, so that no table has to be kept: a test holds every key that the library names
against the options of the commands.
"""

from __future__ import annotations

from teachonce.core.documents import visible
from teachonce.phrases import Option, respelled


def spelled(text: str) -> str:
    """A message, hint or note as a person at the command line reads it: options are flags."""
    return str(respelled(text, flag))


def displayed(text: str) -> str:
    """The same for a person's eyes: no character in it is one that a terminal obeys."""
    return visible(spelled(text))


def flag(named: Option) -> str:
    """One option as a flag, or as the advice to give another value of it."""
    if named.kind == "setting":
        return f"--set {named.name}={named.value}"
    word = f"--{named.name.replace('_', '-')} {named.value}".rstrip()
    return f"give another {word}" if named.kind == "another" else word
