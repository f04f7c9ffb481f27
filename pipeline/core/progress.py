"""How a stage tells the person what it is doing: one small interface, and a silent one for libraries and tests.

It does not print: `cli.console` implements `Reporter` with Rich bars on a terminal and heartbeat lines elsewhere.
"""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """What a stage may say while it works. Calls are cheap; the receiver decides how often to show them."""

    def note(self, text: str) -> None:
        """One line for the person: a decision, a count, a warning."""

    def progress(self, what: str, done: int, total: int, unit: str, **figures: float | int | str) -> None:
        """`done` of `total` `unit`s of the work called `what` are finished; `figures` are shown beside it."""


class Silent:
    """A reporter that says nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def progress(self, what: str, done: int, total: int, unit: str, **figures: float | int | str) -> None:
        """Say nothing."""
