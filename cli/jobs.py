"""A parsed command, ready to run: what the command functions hand back and `app` starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from teachonce.cli.console import Output
from teachonce.objects.patience import outages_noted

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, kw_only=True)
class Job:
    """A parsed command; `work` does it and returns the exit code."""

    command: str
    json: bool
    quiet: bool
    work: Callable[[Output], int]


def job(
    command: str,
    json: bool,
    quiet: bool,
    stage: Callable[[Output], DataclassInstance],
    shown: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Job:
    """The job that runs a stage and prints its result; `shown` rearranges the values that a person sees."""

    def work(output: Output) -> int:
        with output.working(), outages_noted(output.note):
            result = stage(output)
        output.result(result, shown)
        # A stage that ends well may bring bad news: its result then has an exit code of its own.
        bad_news: int = getattr(result, "exit_code", 0)
        return bad_news

    return Job(command=command, json=json, quiet=quiet, work=work)
