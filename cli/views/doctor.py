"""What `doctor` prints for a person: a line for each finding, and below it what to do.

It looks at no machine: every finding comes from the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}
WIDTH = 12  # of the column with what was looked at


def view(values: Mapping[str, Any]) -> RenderableType:
    """The whole answer, from the keys of its JSON document."""
    lines = Text(overflow="fold")
    for finding in values["findings"]:
        standing = finding["standing"]
        lines.append(f"{standing:<5}", style=COLOURS[standing])
        lines.append(f"{finding['what']:<{WIDTH}}{finding['found']}\n")
        if finding["remedy"]:
            lines.append(f"     next: {finding['remedy']}\n", style="cyan")
    summary = f"{values['failures']} fail, {values['warnings']} warn"
    lines.append(summary if values["failures"] or values["warnings"] else "nothing stands in the way")
    return lines
