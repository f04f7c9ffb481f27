"""Stand-ins for the stages: same requests and results, no work. Run as a script it is `teachonce` on top of them.

It imports no stage, so the command line is tested without torch, a store or an image.

`STUB_ACT` says what a stub does before it returns: `sleep` until a signal comes, `print` where it must not,
`progress` through 100 rows, `progress-then-fail`. `STUB_MARK` names a file that its `finally` writes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

import prompt_stubs
import store_stubs

from teachonce.errors import DataError

STAGES = ("index", "plan", "teach", "inspect", "verify", "relabel", "merge", "subset", "train", "cache", "evaluate")
NAMES = (
    *STAGES,
    "ablate",
    "status",
    "export",
    "pack",
    "report",
    "show",
    "import_",
    "demo",
    "teach.rehearse",
    "evaluate.protocol",
)


def named(name: str) -> Any:
    """The stand-in of a request or a result."""
    return getattr(store_stubs, name, None) or getattr(prompt_stubs, name)


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

    def module(self, name: str) -> types.ModuleType:
        """The stub of one stage, as `teachonce.stages.<name>`."""
        made = types.ModuleType(f"teachonce.stages.{name}")
        if name == "teach.rehearse":
            made.rehearse_half = lambda *asked: self._asked(*asked)  # type: ignore[attr-defined]
            return made
        if name == "evaluate.protocol":
            made.ProtocolRequest = prompt_stubs.ProtocolRequest  # type: ignore[attr-defined]
            made.evaluate_protocol = self._protocol  # type: ignore[attr-defined]
            return made
        if name == "plan":
            made.compare = lambda *asked: self._asked(*asked)  # type: ignore[attr-defined]
        request = f"{name.strip('_').capitalize()}Request"
        result_type = named(f"{name.strip('_').capitalize()}Result")

        def stage(request: Any, reporter: Any) -> Any:
            self.requests.append(request)
            act(reporter)
            if self.problem is not None:
                raise self.problem
            return result_type() if self.result is None else self.result

        setattr(made, request, named(request))
        setattr(made, name, stage)
        return made

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
    for name in NAMES:
        sys.modules[f"teachonce.stages.{name}"] = stubs.module(name)
    from teachonce.cli import main as run

    run()


if __name__ == "__main__":
    main()
