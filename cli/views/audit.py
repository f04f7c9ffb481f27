"""What `audit` prints for a person: the result in sentences, then what was written where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from teachonce.cli.console import render

FIGURES = ("samples", "labelled", "found", "left_out", "compared_by", "out", "list", "files", "seconds")


def view(values: Mapping[str, Any]) -> RenderableType:
    """The whole answer, from the keys of its JSON document."""
    figures = {name: values[name] for name in FIGURES}
    return Group(*(Text(sentence) for sentence in values["headline"]), *render(figures))
