"""Every error a user can meet, grouped by what the person who meets it would do next.

TeachOnceError                exit 1   a bug in this project if raised as itself
|- UsageError                 exit 2   a command, option or config value is wrong: change it
|  `- UnsupportedModelError            the model's structure cannot carry prompts: choose another
|- DataError                  exit 3   images, archives, manifests, class lists: mend or point elsewhere
|- IntegrityError             exit 4   what is stored is not what was written, or belongs to something else
|  `- FingerprintError                 the store, run or model is sound but is not the one asked for
|- IncompleteError            exit 5   work is left; the same command continues it
`- EnvironmentFault           exit 6   this machine lacks something: disk, permission, package, device

A message says what is wrong, where, and what was expected; `hint` says what to run next.
This module does not print and does not exit: `cli` does both.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TeachOnceError(Exception):
    """Base of all errors of this project.

    Args:
        message: what is wrong, where (path, chunk, key), what was expected.
        hint: the next command or change, in one line; empty when there is none.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)  # both in args, so that the error survives pickling between processes
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(TeachOnceError):
    """A command, an option or a config value is wrong."""

    exit_code = 2


class UnsupportedModelError(UsageError):
    """The tower that should carry prompts does not have the structure that they need."""


class DataError(TeachOnceError):
    """Images, archives, manifests or class lists are not what they should be."""

    exit_code = 3


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
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
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
