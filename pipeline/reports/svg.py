"""SVG for a report: figures without clocks or chance in them, readable on paper, on a phone and in the dark.

This module knows no report; `plots` draws.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from teachonce.core.documents import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.3  # inches; plots are drawn small and shown at least at this size, so that their text stays readable
HEIGHT = 2.4
LINE_OF_LEGEND = 0.17  # inches
LONGEST_LABEL = 46  # characters of a name in a legend; the page has the whole name

INK, MUTED, GRID, PAPER = "#24292f", "#6e7781", "#d8dee4", "#ffffff"
# The colours follow Okabe and Ito, darkened for thin lines on white; dashes and markers differ too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5548f", "#b87b00", "#4aa3d8")
DASHES: tuple[Any, ...] = ("--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("s", "^", "D", "v", "P", "X")
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "rule", **{colour: f"c{i}" for i, colour in enumerate(COLOURS, 1)}}
BETTER, WORSE, ALIKE = COLOURS[2], COLOURS[1], MUTED
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "teachonce",
    "text.parse_math": False,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "figure.constrained_layout.use": True,
    "path.simplify": True,
    "axes.formatter.useoffset": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Plot:
    """One figure, in two forms."""

    name: str
    """Stem of the file's name."""
    title: str
    caption: str
    """The title for a part of the page that says the rest itself."""
    description: str
    inline: str
    """The form for the page: its colours are the page's variables, and it has no legend of its own."""
    file: bytes
    """The form for a file: fixed colours on white, with a legend."""


@contextmanager
def canvas(height: float = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    """Open a small figure in the style of reports; draw and render inside the block."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        settings: Any = matplotlib.rcParams  # typed by the name of every setting
        settings.update(STYLE)
        # The viewer's fonts draw the text, so a character that the measuring font lacks is no fault.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(WIDTH, height))
        yield figure, figure.add_subplot()


def render(
    figure: Figure, name: str, title: str, caption: str, description: str, legend: Sequence[tuple[Any, str]] = ()
) -> Plot:
    """Render both forms of a figure.

    Args:
        figure: the drawn figure.
        name: a name that is unique in the report; it keeps the element ids of plots apart.
        title, description: what the plot shows, for those who do not see it.
        caption: as `Plot.caption`.
        legend: artists and their labels, for the form that is a file.
    """
    svg = _svg(figure)
    inline = _page_form(svg, name, title, description)
    if legend:
        labels = [_label(text) for _, text in legend]
        columns = 2 if max(map(len, labels)) <= LONGEST_LABEL // 2 else 1
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + LINE_OF_LEGEND * -(-len(labels) // columns) + 0.05)
        figure.legend([artist for artist, _ in legend], labels, loc="outside lower left", ncols=columns)
        svg = _svg(figure)
    file = _accessible(svg, name, title, description)
    return Plot(name, title, caption, description, inline, f'<?xml version="1.0" encoding="utf-8"?>\n{file}\n'.encode())


def _svg(figure: Figure) -> str:
    """Return the figure as matplotlib draws it, on white.

    `savefig` would draw all of it twice, to find sizes that do not matter here.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    drawing: Any = FigureCanvasSVG(figure)  # the method of this object has no types
    drawing.print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = visible(buffer.getvalue())  # texts from outside are in it, and XML has no place for control characters
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = _in_tags(r"font: ([^;'\"]*?)(\d[\d.]*px) [^;\"]*", rf"font: \1\2 {FONT}", text)
    return _in_tags(r"(\d+\.\d\d)\d+", r"\1", text)  # hundredths of a point are enough


def _in_tags(pattern: str, put: str, svg: str) -> str:
    """Replace in tags alone: a name that stands between tags stays unchanged. In names, `<` and `>` are escaped."""
    return re.sub(r"<[^<>]*>", lambda tag: re.sub(pattern, put, tag[0]), svg)


def _page_form(svg: str, name: str, title: str, description: str) -> str:
    svg = svg.replace(f"fill: {PAPER}", "fill: none", 1)  # the first such fill is the figure's own ground
    for colour, variable in VARIABLES.items():
        svg = _in_tags(colour, f"var(--{variable})", svg)
    svg = re.sub(r"<style.*?</style>\s*", "", svg, flags=re.DOTALL)  # a style in the page would apply to the whole page
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", svg, count=1)
    return _accessible(svg, name, title, description)


def _accessible(svg: str, name: str, title: str, description: str) -> str:
    """Give element ids of their own, and words for what is shown."""
    svg = _in_tags(r'\bid="', f'id="{name}-', svg)
    svg = _in_tags(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    words, more = escape(visible(title)), escape(visible(description))
    head = f'<title id="{name}-t">{words}</title><desc id="{name}-d">{more}</desc>'
    svg = re.sub(r"<svg ", f'<svg role="img" aria-labelledby="{name}-t {name}-d" ', svg, count=1)
    start = svg.index(">", svg.index("<svg")) + 1
    return svg[:start] + head + svg[start:]


def _label(text: str) -> str:
    short = text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…"
    # matplotlib leaves out a label that begins with an underscore.
    return f"\u200b{short}" if short.startswith("_") else short


def short_label(text: str, longest: int = LONGEST_LABEL) -> str:
    """Return a name, cut so that it fits into a plot."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
