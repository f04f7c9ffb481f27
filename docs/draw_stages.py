"""Draw docs/stages.svg, the picture of the two stages, from docs/stages.txt.

Run it as `python docs/draw_stages.py` after a change of the text. It needs Python alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

SOURCE = Path(__file__).with_name("stages.txt")
PICTURE = Path(__file__).with_name("stages.svg")
TITLE = "TeachOnce in two stages"

BOX_WIDTH, BOX_HEIGHT, GAP = 172, 122, 28  # in units of the view box, which a page may scale
MARGIN, PADDING = 14, 12  # around the picture; between a frame and its boxes
HEADING, LINE = 24, 18  # height of the line of a heading, and of a line of text
LONGEST = 20  # characters of a line that fit into a box

# The card behind the picture makes it readable on any page; the colours follow the reader's own setting.
STYLE = """\
  text { font: 14px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
  .heading { font-weight: 600; }
  .card { fill: #ffffff; }
  .frame { fill: #f3f6fa; stroke: #afb8c1; stroke-dasharray: 5 4; }
  .box { fill: #ffffff; stroke: #57606a; }
  .alone { fill: #ddf4ff; stroke: #0969da; }
  .arrow { stroke: #57606a; stroke-width: 2; }
  .head { fill: #57606a; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .card { fill: #0d1117; }
    .frame { fill: #161b22; stroke: #6e7681; }
    .box { fill: #0d1117; stroke: #8b949e; }
    .alone { fill: #0c2d4d; stroke: #58a6ff; }
    .arrow { stroke: #8b949e; }
    .head { fill: #8b949e; }
  }"""


@dataclass(frozen=True)
class Part:
    """A heading of the source with the lines below it; `mark` is "==" for a frame, "*" for a box in it, "--" alone."""

    mark: str
    heading: str
    lines: tuple[str, ...]


def parts_of(source: str) -> list[Part]:
    """The frames and boxes of the source, in its order.

    Raises:
        ValueError: a line of text stands before the first heading, or does not fit into its box.
    """
    parts: list[Part] = []
    for number, line in enumerate(source.splitlines(), start=1):
        mark, _, heading = line.partition(" ")
        if not line.strip() or mark == "#":
            continue
        if mark in ("==", "--", "*"):
            parts.append(Part(mark, heading.strip(), ()))
        elif not parts:
            raise ValueError(f"{SOURCE.name}:{number}: text stands before the first heading")
        elif parts[-1].mark != "==" and len(line.strip()) > LONGEST:
            raise ValueError(f"{SOURCE.name}:{number}: a line in a box has {LONGEST} characters at most")
        else:
            parts[-1] = Part(parts[-1].mark, parts[-1].heading, (*parts[-1].lines, line.strip()))
    return parts


def draw(source: str) -> str:
    """The picture as the text of an SVG file; the same source gives the same bytes."""
    parts = parts_of(source)
    boxes = [part for part in parts if part.mark != "=="]
    top = MARGIN + HEADING + PADDING
    width = 2 * (MARGIN + PADDING) + len(boxes) * BOX_WIDTH + (len(boxes) - 1) * GAP
    height = top + BOX_HEIGHT + PADDING + HEADING + MARGIN
    shapes = [_rectangle("card", 0, 0, width, height)]
    number = 0  # of the boxes that have been placed
    for index, part in enumerate(parts):
        if part.mark == "==":
            inside = _boxes_inside(parts[index + 1 :])
            shapes += _frame(part, _left(number), inside, height)
            continue
        shapes += _box(part, _left(number), top)
        if number:
            shapes += _arrow(_left(number), top + BOX_HEIGHT // 2)
        number += 1
    description = " ".join(f"{part.heading}: {' '.join(part.lines)}" for part in parts)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
            f"<title>{escape(TITLE)}</title>",
            f"<desc>{escape(description)}</desc>",
            f"<style>\n{STYLE}\n</style>",
            *shapes,
            "</svg>\n",
        ]
    )


def _boxes_inside(rest: list[Part]) -> int:
    """How many boxes stand in the frame that has just been opened."""
    count = 0
    while count < len(rest) and rest[count].mark == "*":
        count += 1
    return count


def _left(number: int) -> int:
    """The left edge of a box by its number."""
    return MARGIN + PADDING + number * (BOX_WIDTH + GAP)


def _frame(part: Part, left: int, boxes: int, height: int) -> list[str]:
    """A dashed frame around some boxes, its heading above them and its text below."""
    width = boxes * BOX_WIDTH + (boxes - 1) * GAP + 2 * PADDING
    bottom = height - MARGIN - PADDING + 3
    return [
        _rectangle("frame", left - PADDING, MARGIN, width, height - 2 * MARGIN),
        _text("heading", left, MARGIN + HEADING - 2, part.heading),
        *(_text("", left, bottom, line) for line in part.lines),
    ]


def _box(part: Part, left: int, top: int) -> list[str]:
    """A box with its heading and its lines."""
    first = top + HEADING
    return [
        _rectangle("alone" if part.mark == "--" else "box", left, top, BOX_WIDTH, BOX_HEIGHT),
        _text("heading", left + PADDING, first, part.heading),
        *(_text("", left + PADDING, first + 6 + LINE * n, line) for n, line in enumerate(part.lines, start=1)),
    ]


def _arrow(right: int, middle: int) -> list[str]:
    """An arrow through the gap that ends at `right`."""
    start, end = right - GAP + 4, right - 4
    return [
        f'<line class="arrow" x1="{start}" y1="{middle}" x2="{end - 8}" y2="{middle}"/>',
        f'<path class="head" d="M{end - 10} {middle - 6}L{end} {middle}L{end - 10} {middle + 6}z"/>',
    ]


def _rectangle(kind: str, left: int, top: int, width: int, height: int) -> str:
    return f'<rect class="{kind}" x="{left}" y="{top}" width="{width}" height="{height}" rx="8"/>'


def _text(kind: str, left: int, baseline: int, words: str) -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{left}" y="{baseline}">{escape(words)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(draw(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
