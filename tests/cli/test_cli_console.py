"""Progress and notes: lines in a log, a bar on a terminal, and the words for numbers.

Which command runs does not matter here.
"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from teachonce import cli
from teachonce.cli.console import Failure, Output, duration, number, pace_text
from teachonce.cli.views.printed import print_view
from teachonce.core.documents import plain
from teachonce.errors import UsageError

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_the_first_line_the_last_and_few_between(capfd: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    output = Output("teach", clock=clock)
    for done in range(0, 101):  # 100 rows in 100 seconds
        output.progress("labels", done, 100, "rows", failed=2)
        clock.now += 1
    output.progress("labels", 100, 100, "rows", failed=2)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "labels: 0/100 rows, failed 2",
        "labels: 30/100 rows, 1 rows/s, 1m 10s left, failed 2",
        "labels: 60/100 rows, 1 rows/s, 40s left, failed 2",
        "labels: 90/100 rows, 1 rows/s, 10s left, failed 2",
        "labels: 100/100 rows, 1 rows/s, failed 2",
    ]


def test_the_rate_leaves_out_what_an_earlier_run_did(capfd: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    output = Output("teach", clock=clock)
    output.progress("labels", 900, 1000, "rows")
    clock.now += 40
    output.progress("labels", 920, 1000, "rows")
    assert "920/1,000 rows, 0.5 rows/s, 2m 40s left" in capfd.readouterr().err


def test_work_that_starts_over_gets_a_new_first_line(capfd: pytest.CaptureFixture[str]) -> None:
    output = Output("train", clock=Clock())
    for done in (0, 10, 0, 10):
        output.progress("epoch", done, 10, "steps")
    assert len(capfd.readouterr().err.splitlines()) == 4


def test_the_heartbeat_can_be_set(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHONCE_HEARTBEAT", "0")
    output = Output("teach")
    for done in range(5):
        output.progress("labels", done, 100, "rows")
    assert len(capfd.readouterr().err.splitlines()) == 5
    monkeypatch.setenv("TEACHONCE_HEARTBEAT", "soon")
    with pytest.raises(UsageError, match="TEACHONCE_HEARTBEAT"):
        output.progress("labels", 6, 100, "rows")


def test_quiet_drops_notes_and_progress(capfd: pytest.CaptureFixture[str]) -> None:
    output = Output("teach", quiet=True)
    output.note("a decision")
    output.progress("labels", 0, 10, "rows")
    assert capfd.readouterr() == ("", "")


def test_a_note_is_one_line_on_stderr_however_long(capfd: pytest.CaptureFixture[str]) -> None:
    text = "[bold]kept[/] " + "word " * 60
    Output("teach").note(text)
    assert capfd.readouterr() == ("", text + "\n")


HOSTILE = "[bold]x[/nothing] :smile: \x1b]0;owned\x07\x1b[31m \x9b1m \u202egpj"
SEEN = r"[bold]x[/nothing] :smile: \x1b]0;owned\x07\x1b[31m \x9b1m \u202egpj"


@dataclass(frozen=True)
class Told:
    """A result in which every text is from outside."""

    name: str
    items: tuple[dict[str, str], ...]
    report: dict[str, str]


def test_text_from_outside_is_shown_and_never_obeyed(capfd: pytest.CaptureFixture[str]) -> None:
    """In notes, progress, errors, keys and cells of tables, titles of views: no escape code, and no markup."""
    output = Output("teach")
    output.note(HOSTILE)
    output.progress(HOSTILE, 1, 2, HOSTILE, **{HOSTILE: HOSTILE})
    output.failure(Failure(kind="DataError", message=HOSTILE, hint=HOSTILE, exit_code=3))
    output.result(Told(HOSTILE, ({HOSTILE: HOSTILE},), {HOSTILE: HOSTILE}))
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    print_view(table, output)
    out, err = capfd.readouterr()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out + err)
    assert err.count(SEEN) == 7 and out.replace("\n", "").count("/nothing]") >= 6


def test_a_document_for_programs_holds_the_text_itself(capfd: pytest.CaptureFixture[str]) -> None:
    Output("teach", json=True).result(Told(HOSTILE, (), {}))
    out = capfd.readouterr().out
    assert json.loads(out)["name"] == HOSTILE and out.isascii() and "\x1b" not in out


def test_every_console_of_the_command_line_shows_text_as_it_stands() -> None:
    """One class does it: a second console would be a second rule."""
    folder = Path(cli.__file__).parent
    made = [file.name for file in folder.rglob("*.py") if re.search(r"(?<![.\w])Console\(", file.read_text())]
    assert made == [] and (folder / "console.py").read_text().count("(Console)") == 1


def _on_a_terminal(command: list[str], **variables: str) -> tuple[int, str, str]:
    """Exit code, stdout and what a person sees, with stderr on a terminal of its own."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **variables}
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, env=env, text=True, timeout=60)
    finally:
        os.close(theirs)
    seen = b""
    try:
        while block := os.read(ours, 65536):
            seen += block
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(ours)
    return done.returncode, done.stdout, seen.decode()


def test_a_terminal_gets_a_bar(stubbed_command: list[str]) -> None:
    code, out, seen = _on_a_terminal([*stubbed_command, "demo", "--json"], STUB_ACT="progress")
    assert code == 0
    assert out.count("\n") == 1
    assert "100/100 rows" in seen
    assert "━" in seen


def test_the_bar_is_closed_before_an_error_is_shown(stubbed_command: list[str]) -> None:
    code, out, seen = _on_a_terminal([*stubbed_command, "demo"], STUB_ACT="progress-then-fail")
    assert (code, out) == (3, "")
    cursor_back = seen.index("\x1b[?25h")
    assert cursor_back < seen.index("no such archive")
    assert COLOUR.search(seen)


def test_no_color(stubbed_command: list[str]) -> None:
    _, _, seen = _on_a_terminal([*stubbed_command, "demo"], STUB_ACT="progress-then-fail", NO_COLOR="1")
    assert "no such archive" in seen
    assert not COLOUR.search(seen)


def test_help_has_no_colour_in_a_pipe(teachonce_process: Callable[..., Any]) -> None:
    assert "\x1b" not in teachonce_process("teach", "--help").out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0s"), (59.4, "59s"), (60, "1m 00s"), (200, "3m 20s"), (7500, "2h 05m"), (356400, "4d 03h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1234567, "1,234,567"), (0.000123456, "0.0001235"), (12345.67, "12,345.7"), (2.5, "2.5")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_an_unknown_total_leaves_out_what_depends_on_it() -> None:
    assert pace_text(12, 0, "files", 2.0, {}) == "12 files, 2 files/s"


def test_plain_values() -> None:
    assert plain({1: (float("nan"), -float("inf"), True, None)}) == {"1": [None, None, True, None]}
