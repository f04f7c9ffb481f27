"""Pages that are made by a script are what it makes today: docs/commands.md of --help, docs/stages.svg of its text.

The commands on the first are tried as far as their options go; no stage runs here.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teachonce.cli.app import EXAMPLES, app
from teachonce.cli.jobs import Job

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "commands.md").read_text(encoding="utf-8")
TEXTS = (DOCS / "commands.toml").read_text(encoding="utf-8")
SOURCE = (DOCS / "stages.txt").read_text(encoding="utf-8")
LINES = [line.strip() for line in PAGE.splitlines() if line.startswith("    teachonce ")]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
SVG = "{http://www.w3.org/2000/svg}"

# The page as a process with a narrow, colourful terminal makes it, and the heavy modules that this loads.
PROBE = """
import json, runpy, sys
from pathlib import Path
docs = Path(sys.argv[1])
page = runpy.run_path(str(docs / "make_commands.py"))["page"]((docs / "commands.toml").read_text(encoding="utf-8"))
print(json.dumps([page, [name for name in ("torch", "zarr", "dask", "open_clip", "numpy") if name in sys.modules]]))
"""


def commands_page(source: str) -> str:
    """What the script makes of a source."""
    page: str = runpy.run_path(str(DOCS / "make_commands.py"))["page"](source)
    return page


def picture(source: str) -> str:
    """What the script draws of a source."""
    drawn: str = runpy.run_path(str(DOCS / "draw_stages.py"))["draw"](source)
    return drawn


def test_the_page_of_commands_is_current_on_any_terminal_and_loads_nothing_heavy() -> None:
    wide = {"COLUMNS": "37", "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(DOCS)],
        env={**os.environ, **wide},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    page, heavy = json.loads(done.stdout)
    assert page == PAGE, "run `make commands`"
    assert heavy == []


@pytest.mark.parametrize("command", sorted(EXAMPLES))
def test_a_section_has_every_option_and_the_example_of_help(command: str, teachonce_here: Callable[..., Any]) -> None:
    section = PAGE.split(f"\n## {command}\n")[1].split("\n## ")[0]
    everywhere = PAGE.split("\n## ")[0]
    assert set(FLAG.findall(teachonce_here(*command.split(), "--help").out)) <= set(FLAG.findall(section + everywhere))
    assert f"  {EXAMPLES[command]}\n" in section
    prose = re.sub(r"```.*?```", "", section, flags=re.DOTALL)
    assert any(line.startswith(f"    teachonce {command} ") for line in prose.splitlines())


@pytest.mark.parametrize("line", LINES)
def test_every_command_of_the_page_parses(line: str) -> None:
    """A copied line is never a usage error."""
    assert isinstance(app(shlex.split(line)[1:], prog_name="teachonce", standalone_mode=False), Job)


@pytest.mark.parametrize(
    "source", [TEXTS.replace("\nshow = ", "\nshown = "), TEXTS.replace("\nstart = ", "\nbegin = ")]
)
def test_a_command_without_a_text_and_a_text_without_a_command_are_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"commands\.toml must have the key"):
        commands_page(source)


def test_the_picture_is_what_the_script_makes_of_its_source() -> None:
    assert picture(SOURCE) == (DOCS / "stages.svg").read_text(encoding="utf-8"), "run `python docs/draw_stages.py`"


def test_the_picture_says_all_that_its_source_says_and_is_readable_in_the_dark() -> None:
    drawn = picture(SOURCE)
    words = {element.text for element in ET.fromstring(drawn).iter(f"{SVG}text")}
    lines = [line for line in SOURCE.splitlines() if line and not line.startswith("#")]
    assert words == {re.sub(r"^(==|--|\*)? +", "", line) for line in lines}
    assert "prefers-color-scheme: dark" in drawn


@pytest.mark.parametrize("source", ["   text\n", "== A frame\n* A box\n   a line that runs out of its box\n"])
def test_text_that_has_no_place_in_the_picture_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"stages\.txt:[13]: "):
        picture(source)
