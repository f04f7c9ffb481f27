"""The class of all commands: an option that takes one value is given once, or it is refused.

The parser of Typer would take the last value and say nothing of the others.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from typer.core import TyperCommand, TyperOption

from teachonce.errors import UsageError


class Once(TyperCommand):
    """A command that refuses to drop a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as usual, after each option with one value was found at most once.

        Raises:
            UsageError: one was given several values.
        """
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option, times in Counter(given).items():
            if isinstance(option, TyperOption) and not option.multiple and not option.is_flag and times > 1:
                raise UsageError(
                    f"{option.opts[0]} is given {times} times, and only one of its values would be used",
                    hint=f"give {option.opts[0]} once",
                )
        return super().parse_args(ctx, args)
