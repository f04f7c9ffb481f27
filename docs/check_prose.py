"""Checks how prose is laid out: a line holds at most 100 columns, or exactly one sentence.

    python docs/check_prose.py            # names each line that breaks the rule; exit 1 if there is one
    python docs/check_prose.py --write    # puts every sentence on a line of its own

A change of one sentence then shows as a change of one line. The rule is about paragraphs and lists of the Markdown
files listed in `PAGES`; tables, code, headings, link definitions and lines of images alone may be as long as they are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("*.md", "docs/**/*.md", "tests/*.md", "benchmarks/*.md", "data_manifests/*.md", "configs/*.md")
COLUMNS = 100

ABBREVIATIONS = ("e.g", "i.e", "cf", "vs", "etc", "approx", "no", "Fig", "Eq", "Scand", "Statist")
"""Words whose full stop ends no sentence; a single capital letter is one too ("J. Statist.")."""
ENDING = re.compile(r"""[.!?][)\]"'*_]*(?=\s|$)""")
CLOSED = re.compile(r"""[.!?:;][)\]"'*_`]*$""")
ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+")
FENCE = re.compile(r"\s*(```+|~~~+)")
APART = re.compile(r"\s*(?:\||#|<|:::|\[[^\]]+\]:\s|(?:!\[[^\]]*\]\([^)]*\)\s*)+$)")
"""Lines that are no prose: tables, headings, HTML, directives, link definitions, images alone."""
CODE_INDENT = " " * 4
UNSAFE_START = re.compile(r"(?:[-+*#>|]|\d+[.)])(?:\s|$)")
"""What at the beginning of a line would be read as a list, a heading, a quotation or a table."""


@dataclass(frozen=True)
class Block:
    """Lines of one paragraph or list item: where it begins in the file (from 0), and the lines as they stand."""

    start: int
    lines: tuple[str, ...]


def prose(lines: Sequence[str]) -> Iterator[Block]:
    """The paragraphs and list items of a page, in order; everything that is no prose ends a block."""
    block: list[str] = []
    start, fence, code = 0, "", False
    for number, line in enumerate([*lines, ""]):
        mark = FENCE.match(line)
        if fence or mark:
            fence = "" if fence and mark and mark[1] == fence else fence or (mark[1] if mark else "")
            apart, code = True, False
        else:
            code = line.startswith(CODE_INDENT) and not block if line.strip() else code
            apart = not line.strip() or code or APART.match(line) is not None
        if block and (apart or ITEM.match(line)):
            yield Block(start, tuple(block))
            block = []
        if not apart:
            start = start if block else number
            block.append(line)


def without_code(text: str) -> str:
    """The text with code spans and addresses of links masked, so that their full stops end nothing; same length."""
    masked = re.sub(r"`[^`]*`", lambda span: "`" + "x" * (len(span[0]) - 2) + "`", text)
    return re.sub(r"(?<=\]\()[^)\s]*", lambda address: "x" * len(address[0]), masked)


def sentence_ends(text: str) -> list[int]:
    """Where a sentence ends inside the text and another begins: the place behind the full stop."""
    masked = without_code(text)
    ends = []
    for match in ENDING.finditer(masked):
        before = masked[: match.start()].split()[-1:] or [""]
        word = before[0].lstrip("([\"'*_")
        rest = masked[match.end() :].lstrip()
        abbreviated = word in ABBREVIATIONS or re.fullmatch(r"[A-Z]", word) is not None
        if rest and not rest[0].islower() and not abbreviated:
            ends.append(match.end())
    return ends


def faults(text: str) -> Iterator[tuple[int, str]]:
    """Each line that breaks the rule: its number (from 1), and what is wrong with it."""
    for block in prose(text.splitlines()):
        for place, line in enumerate(block.lines):
            if len(line) <= COLUMNS:
                continue
            if sentence_ends(ITEM.sub("", line, count=1)):
                yield block.start + place + 1, f"{len(line)} columns and more than one sentence"
            elif place and not CLOSED.search(block.lines[place - 1].rstrip()):
                yield block.start + place + 1, f"{len(line)} columns, and begins inside a sentence"
            elif place + 1 < len(block.lines) and not CLOSED.search(line.rstrip()):
                yield block.start + place + 1, f"{len(line)} columns, and ends inside a sentence"


def one_sentence_a_line(block: Block) -> list[str]:
    """The same text with each sentence on a line of its own, indented as the block is."""
    first = block.lines[0]
    item = ITEM.match(first)
    head = item[0] if item else re.match(r"\s*", first)[0]  # type: ignore[index]  # it matches the empty string
    text = " ".join([first[len(head) :].strip(), *(line.strip() for line in block.lines[1:])])
    ends = [end for end in sentence_ends(text) if not UNSAFE_START.match(text[end:].lstrip())]
    parts = [text[begin:end].strip() for begin, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    return [(" " * len(head) if place else head) + part for place, part in enumerate(parts)]


def rewritten(text: str) -> str:
    """The page with one sentence a line; blocks that keep the rule already and fit in 100 columns change as well."""
    lines = text.splitlines()
    for block in reversed(list(prose(lines))):
        lines[block.start : block.start + len(block.lines)] = one_sentence_a_line(block)
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Check the project's pages, or those that are named; 0: all keep the rule, 1: some do not."""
    names = [argument for argument in arguments if argument != "--write"]
    pages = [Path(name) for name in names] or sorted({page for pattern in PAGES for page in ROOT.glob(pattern)})
    bad = 0
    for page in pages:
        text = page.read_text(encoding="utf-8")
        if "--write" in arguments:
            page.write_text(rewritten(text), encoding="utf-8")
            continue
        for number, fault in faults(text):
            bad += 1
            sys.stdout.write(f"{page}:{number}: {fault}\n")
    if bad:
        sys.stdout.write("One sentence a line, or at most 100 columns: `docs/check_prose.py --write FILE` does it.\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
