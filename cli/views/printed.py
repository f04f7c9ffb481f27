"""Printing a view: a table or a page of text for a person, or one JSON document for a program."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from teachonce.cli.console import PIPE_WIDTH, Output, Screen, on_terminal
from teachonce.cli.words import displayed, spelled
from teachonce.core.documents import plain

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def print_result(result: DataclassInstance, output: Output, view: Callable[[dict[str, Any]], RenderableType]) -> None:
    """Print a result: as a document where `--json` asks for one, else as its view."""
    values: dict[str, Any] = plain(dataclasses.asdict(result), spelled if output.json else displayed)
    if output.json:
        output.document(values)
    else:
        print_view(view(values), output)


def print_view(view: RenderableType, output: Output) -> None:
    """Print a view in the width of the terminal, or of PIPE_WIDTH columns; lines end where their text ends."""
    console = Screen(file=sys.stdout, width=None if on_terminal(sys.stdout) else PIPE_WIDTH)
    with console.capture() as captured:
        console.print(view)
    output.text("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
