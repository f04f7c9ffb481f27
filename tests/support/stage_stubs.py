"""Stand-ins for the stages: the real requests, made-up results, no work. Run as a script it is `teachonce` on top.

It imports no stage's work, so the command line is tested without torch, a store or an image.

`STUB_ACT` says what a stub does before it returns: `sleep` until a signal comes, `print` where it must not,
`progress` through 100 rows, `progress-then-fail`. `STUB_MARK` names a file that its `finally` writes.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prompt_stubs
import store_stubs

from teachonce.errors import DataError

STAGES = (
    "ablate",
    "audit",
    "cache",
    "cluster_check",
    "cluster_script",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "import_",
    "import_model",
    "index",
    "inspect",
    "merge",
    "models",
    "pack",
    "plan",
    "pull",
    "push",
    "relabel",
    "report",
    "show",
    "status",
    "stop",
    "subset",
    "teach",
    "train",
    "verify",
)


def result_kind(name: str) -> str:
    """The name of the class of a stage's result."""
    return "".join(part.capitalize() for part in name.split("_")) + "Result"


def result_of(name: str) -> Any:
    """The stand-in of a stage's result."""
    kind = result_kind(name)
    return getattr(store_stubs, kind, None) or getattr(prompt_stubs, kind)


class Stubs:
    """Stub stages that remember what they were asked, and can be told how to end.

    Attributes:
        requests: every request, in order.
        problem: raised by the next stage instead of returning.
        result: returned instead of the usual result.
    """

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.problem: BaseException | None = None
        self.result: Any = None

    def functions(self) -> Iterator[tuple[types.ModuleType, str, Callable[..., Any]]]:
        """Module, name and stand-in of every function that the command line calls."""
        for name in STAGES:
            module = importlib.import_module(f"teachonce.stages.{name}")
            yield module, name, self._stage(result_of(name))
            if name == "teach":
                yield module, "rehearse_half", self._asked
            if name == "evaluate":
                yield module, "evaluate_protocol", self._protocol
            if name == "plan":
                yield module, "compare", self._asked

    def _stage(self, result_type: Any) -> Callable[[Any, Any], Any]:
        def stage(request: Any, reporter: Any, *spell: Any) -> Any:  # `report` also learns how options are spelled
            self.requests.append(request)
            act(reporter)
            if self.problem is not None:
                raise self.problem
            return result_type() if self.result is None else self.result

        return stage

    def _protocol(self, request: Any, reporter: Any) -> Any:
        self.requests.append(request)
        return prompt_stubs.ProtocolResult()

    def _asked(self, *asked: Any) -> Any:
        """A stage that takes something else than one request."""
        self.requests.append(asked[:-1])
        return store_stubs.PlanResult()


def act(reporter: Any) -> None:
    """Do what STUB_ACT says."""
    what = os.environ.get("STUB_ACT", "")
    mark = os.environ.get("STUB_MARK")
    try:
        if what == "print":
            sys.stdout.write("a library prints\n")
            os.system("echo a child prints")
        if what.startswith("progress"):
            for done in range(0, 60 if what.endswith("fail") else 101, 20):
                reporter.progress("labels", done, 100, "rows", failed=1)
        if what.endswith("fail"):
            raise DataError("no such archive: a.tar", "check --root")
        if what == "sleep":
            reporter.note("sleeping")
            time.sleep(60)
    finally:
        if mark:
            Path(mark).write_text("cleaned up")


def main() -> None:
    """`teachonce` with all stages replaced."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests themselves run in the background
    stubs = Stubs()
    for module, name, function in stubs.functions():
        setattr(module, name, function)
    from teachonce.cli import main as run

    run()


if __name__ == "__main__":
    main()
