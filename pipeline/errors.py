"""Every error a user can meet, grouped by what the person who meets it would do next.

TeachOnceError                exit 1   a bug in this project if raised as itself
|- UsageError                 exit 2   a command, option or config value is wrong: change it
|  `- UnsupportedModelError            the model's structure cannot carry prompts: choose another
|- DataError                  exit 3   images, archives, manifests, class lists: mend or point elsewhere
|  `- ImageChangedError                an image is not the one that the labels were made from
|- IntegrityError             exit 4   what is stored is not what was written, or belongs to something else
|  `- FingerprintError                 the store, run or model is sound but is not the one asked for
|- IncompleteError            exit 5   work is left; the same command continues it
`- EnvironmentFault           exit 6   this machine lacks something: disk, permission, package, device

One fact is one error, whoever meets it (tests/core/test_error_facts.py):

a write fails for want of space, or on the way  IncompleteError, by core/files.write_failed: with room again the same
                                                command goes on
a write is not possible there at all            EnvironmentFault, by core/files.write_failed: no permission, read only,
                                                no such folder
a package is not installed, no network          EnvironmentFault
an image is not the one that was taught         ImageChangedError, a DataError: the store is sound, mend the archives
a file of data is not there or no such file     DataError: archive, class list, selection, label store
a file that says what to do is not there        UsageError: manifest, config, grid, protocol, cluster description
what this project wrote is damaged              IntegrityError
what is stored is sound and of something else   FingerprintError
someone else is at work on it (a lock)          IncompleteError
a part of the work is not done                  IncompleteError

A message says what is wrong, where, and what was expected; `hint` says what to run next.
This module does not print and does not exit: `cli` does both.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Self, TypeVar

T = TypeVar("T", bound="TeachOnceError")
LONGEST_WORD = 200  # characters: what is longer resembles no name, and comparing it would take minutes


class TeachOnceError(Exception):
    """Base of all errors of this project.

    Args:
        message: what is wrong, where (path, chunk, key), what was expected.
        hint: the next command or change, in one line; empty when there is none.

    Both may be a `Phrase` of teachonce.phrases: then they name options that the command line spells as flags.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes, with every fact that a kind of error adds to message and hint."""
        return _restored, (type(self), dict(vars(self)))

    def reworded(self, message: str | None = None, hint: str | None = None) -> Self:
        """The same error with the same facts, said by someone who knows more of where it happened.

        Args:
            message: in place of this one's; None keeps it.
            hint: in place of this one's; None keeps it.
        """
        known = {"message": self.message if message is None else message, "hint": self.hint if hint is None else hint}
        return _restored(type(self), {**vars(self), **known})


def _restored(kind: type[T], facts: Mapping[str, Any]) -> T:
    """An error of a kind, with its facts; `__init__` is not asked, since kinds differ in what it takes."""
    error = kind.__new__(kind, facts["message"], facts["hint"])
    vars(error).update(facts)
    return error


class UsageError(TeachOnceError):
    """A command, an option or a config value is wrong."""

    exit_code = 2


class UnsupportedModelError(UsageError):
    """The tower that should carry prompts does not have the structure that they need."""


class DataError(TeachOnceError):
    """Images, archives, manifests or class lists are not what they should be."""

    exit_code = 3


class ImageChangedError(DataError):
    """An image is not the one that a label store was made from.

    Args:
        image: the archive and the image's key in it, as words.
        store: path of the label store.
        now: CRC-32 of the image's bytes now.
        taught: CRC-32 of the bytes that the labels were made from.
        more: a further part of the sentence, such as how many images differ.
        hint: what else can be done than to restore the archives.
    """

    def __init__(self, image: str, store: str, now: int, taught: int, more: str = "", hint: str = "") -> None:
        super().__init__(
            f"{image} has CRC-32 {now:08x}, and had {taught:08x} when {store} was taught{more}",
            "restore the archives that the labels were made from" + hint,
        )
        self.image = image
        self.store = store
        self.now = now
        self.taught = taught


class IntegrityError(TeachOnceError):
    """What is stored is not what was written."""

    exit_code = 4


class FingerprintError(IntegrityError):
    """A sound store, run or model, but not the one that was asked for."""


class IncompleteError(TeachOnceError):
    """Work is left to do; running the same command again continues it."""

    exit_code = 5


class EnvironmentFault(TeachOnceError):
    """This machine lacks something: disk space, a permission, a package, a device."""

    exit_code = 6


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A phrase that names the nearest known words, for the end of an error message.

    Returns:
        `did you mean 'x'?` when something is near, else `known: a, b, c`.
    """
    choices = list(known)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6) if len(word) <= LONGEST_WORD else []
    if near:
        return f"did you mean '{near[0]}'?"
    return "known: " + ", ".join(choices)


def neither_file_nor_name(given: str, what: str, shipped: Iterable[str]) -> UsageError:
    """The error for a `what` that is given by path or by the name of a shipped one, and is neither."""
    names = sorted(shipped)
    near = did_you_mean(given, names)
    others = "one of these names" if near.startswith("known") else "one of: " + ", ".join(names)
    return UsageError(
        f"'{given}' is neither a {what} file nor the name of one: {near}",
        hint=f"give the path of a .toml file, or {others}",
    )
