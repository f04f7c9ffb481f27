"""`docs/check_prose.py` finds what it forbids, leaves alone what it allows, and repairs what it finds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "check_prose.py"
LONG = "This sentence says so much about the store and its ledger that it does not fit in a hundred columns of text"
HALF = "These few words are here to fill the line until it is longer than any line with two sentences may be"


def check(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the script on one page."""
    command = [sys.executable, str(SCRIPT), *options, str(page)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("text", "line", "fault"),
    [
        (f"Short. {LONG}.\n", 1, "more than one sentence"),
        (f"- A list is prose. {LONG}.\n", 1, "more than one sentence"),
        (f"1. A numbered one too. {LONG}.\n", 1, "more than one sentence"),
        (f"{LONG}. `code` begins the next.\n", 1, "more than one sentence"),
        (f"{LONG}! (A bracket begins the next.)\n", 1, "more than one sentence"),
        (f"Is it long? {LONG}.\n", 1, "more than one sentence"),
        (f"A sentence that begins here\nand goes on. It is short.\n\n{HALF},\nbut ends here.\n", 4, "ends inside"),
        (f"A sentence begins on a line\nof its own, and then {LONG}.\n", 2, "begins inside"),
        (f"    code\n\nText. {LONG}.\n", 3, "more than one sentence"),
        (f"```\ncode\n```\nText. {LONG}.\n", 4, "more than one sentence"),
    ],
)
def test_a_long_line_that_is_not_one_sentence_is_named(tmp_path: Path, text: str, line: int, fault: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    done = check(page)
    assert done.returncode == 1
    assert f"{page}:{line}: " in done.stdout and fault in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        f"{LONG}.\nShort. And another short one.\n",
        f"{LONG} (e.g. this, i.e. that, cf. Holm, Scand. J. Statist. 6).\n",
        f"{LONG}, version 3.1.6 of it, in `docs. Page`, and in [a page](that.has/dots.md).\n",
        f"- {LONG}.\n  {LONG}:\n",
        f"| a table | {LONG}. {LONG}. |\n",
        f"# A heading. {LONG}\n",
        f"```sh\n{LONG}. {LONG}.\n```\n",
        f"Text.\n\n    {LONG}. {LONG}.\n",
        f"[link]: https://example.org/{'x' * 120}\n",
        f"![A picture. {LONG}](a.svg) ![Another](b.svg)\n",
        f"{LONG}\n",
    ],
)
def test_one_sentence_tables_code_headings_and_links_may_be_long(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    done = check(page)
    assert (done.returncode, done.stdout) == (0, "")


def test_write_mends_the_layout_and_changes_no_word(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = f"# Title\n\nOne. {LONG}, and goes\non. Two.\n\n1. First. {LONG}. 2. no item\n\n    code. {LONG}. Code.\n"
    page.write_text(text, encoding="utf-8")
    assert check(page).returncode == 1
    assert check(page, "--write").returncode == 0
    mended = page.read_text(encoding="utf-8")
    assert mended.split() == text.split()
    assert f"    code. {LONG}. Code.\n" in mended
    assert f"One.\n{LONG}, and goes on.\nTwo.\n" in mended
    assert not any(line.lstrip().startswith("2. ") for line in mended.splitlines()), "text became a list"
    check(page, "--write")
    assert page.read_text(encoding="utf-8") == mended
