"""The page and its files: complete, the same each time, small, and safe whatever names say."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from grid_folders import BASE, BETTER, NAMES, ODD_NAMES, SAME, WORSE, Setting, write_grid

from teachonce.core.documents import cell_text
from teachonce.reports.csv import tables as csv_tables
from teachonce.reports.folder import read_folder
from teachonce.reports.page import Report, build
from teachonce.reports.svg import canvas, render
from teachonce.reports.tables import measures

FIDELITY = {
    "rows": 48,
    "k": 10,
    "value_kl": {"mean": 1e-5, "p50": 1e-5},
    "mass": {"mean": 0.6},
    "topk_kl": {"ghost": {"mean": 1e-5}, "residual-uniform": {"mean": 0.4}},
    "embedding_kl": {"own scale": {"mean": 2e-4}},
    "by_k": [{"k": k, "mass": 0.1 * k, "ghost": 1e-5 * k, "residual-uniform": 1 / k} for k in (1, 2, 5)],
}
ODD_GROUP = "_odd <b>$x$</b> #0072b2 0.00123456 " + "long" * 30


class Page(HTMLParser):
    """What a browser would see, as far as a test asks."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name)
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.addresses.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


ESCAPES = "\x1b]0;x\x07\u202egpj\x9b"


def test_control_characters_of_a_folder_are_shown_on_the_page_and_in_its_files(tmp_path: Path) -> None:
    names = (ESCAPES, *NAMES[1:])
    odd = Setting(group=f"g {ESCAPES}", changes={"structure": "kv"}, gain={"held_out": 0.1, "dev-unseen": 0.1})
    report = made(write_grid(tmp_path / "grid", settings=(BASE, odd), names=names, title=ESCAPES, question=ESCAPES))
    files = {name: data.decode() for name, data in report.files.items()} | {"page": report.html}
    assert [name for name, text in files.items() if re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)] == []
    assert r"\x1b]0;x\x07\u202egpj\x9b" in report.html


def test_no_csv_file_holds_a_formula(tmp_path: Path) -> None:
    odd = Setting(group="=g()", changes={"structure": "kv"})
    folder = read_folder(write_grid(tmp_path / "grid", settings=(BASE, odd), names=("=1+1", "-a", "@cmd")))
    cells = {
        cell
        for data in csv_tables(folder, measures(folder), FIDELITY).values()
        for line in csv.reader(io.StringIO(data.decode()))
        for cell in line
    }
    assert {"'=g()", "'@cmd", "'=1+1", "'-a"} <= cells
    odd_cells = [cell for cell in cells if cell[:1] in set("=+-@\t\r") and cell]
    assert [cell for cell in odd_cells if not re.fullmatch(r"-[\d.e-]+", cell)] == []


def made(folder: Path) -> Report:
    """The report of a folder, with the fidelity of a made-up store."""
    return build(read_folder(folder), FIDELITY, "not here", "labels.zarr", "teachonce report grid --out report.html")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A grid whose title, question, settings and classes have names that could break a page."""
    settings = [BASE, BETTER, Setting(group=ODD_GROUP, changes={"context": '<i>a & "b"</i> 狼'})]
    folder = tmp_path_factory.mktemp("odd")
    write_grid(
        folder,
        settings,
        once=("val",),
        chosen=BETTER.group,
        names=ODD_NAMES,
        title="<script>alert(0)</script>",
        question='"Does" <b>this</b> & that 🦊 help?',
    )
    return made(folder)


def test_no_name_becomes_markup(odd: Report) -> None:
    page = Page(odd.html)
    assert not {"script", "img", "b", "i"} & set(page.tags) - {"b", "i"}
    text = "".join(page.text)
    for name in (*ODD_NAMES, "<script>alert(0)</script>", '"Does" <b>this</b> & that 🦊 help?'):
        assert name in text, name
    for file, data in odd.files.items():
        if file.endswith(".svg"):
            tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(data).iter()}
            assert tags <= {
                "svg",
                "title",
                "desc",
                "defs",
                "style",
                "g",
                "path",
                "use",
                "text",
                "tspan",
                "clipPath",
                "rect",
            }


def test_the_page_asks_for_nothing(odd: Report) -> None:
    page = Page(odd.html)
    assert {"script", "link", "iframe", "object", "embed"}.isdisjoint(page.tags)
    assert all(address.startswith(("#", "data:image/jpeg")) for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)", odd.html)
    assert "default-src 'none'" in odd.html


def test_ids_are_unique_and_references_find_them(odd: Report) -> None:
    page = Page(odd.html)
    assert len(page.ids) == len(set(page.ids))
    named = [address[1:] for address in page.addresses if address.startswith("#")]
    named += re.findall(r"url\(#([^)]+)\)", odd.html)
    named += " ".join(re.findall(r'aria-labelledby="([^"]+)"', odd.html)).split()
    assert set(named) <= set(page.ids)


def test_every_part_is_there(odd: Report) -> None:
    page = Page(odd.html)
    parts = {"result", "settings", "curves", "classes", "cost", "samples", "fidelity", "configs", "origin"}
    assert parts <= set(page.ids)
    plots = [name for name in odd.files if name.endswith(".svg")]
    drawn = odd.html.count('<svg role="img"')
    # Differences on 3 measures, 4 curves, classes of 2 settings on 2 sets, 2 costs on 2 measures, fidelity.
    assert drawn == len(plots) == 3 + 4 + 2 * 2 + 2 * 2 + 2
    assert odd.html.count("<title") == 1 + len(plots) and odd.html.count("<desc") == len(plots)
    assert "Not shown: not here." in "".join(page.text)


def test_names_keep_their_digits_in_plots(odd: Report) -> None:
    """Coordinates are shortened and colours replaced in tags only."""
    forest = odd.files["differences-1.svg"].decode()
    assert "#0072b2 0.00123456" in forest
    assert "#0072b2 0.00123456" in odd.html


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (made(write_grid(tmp_path / "grid", [BASE, BETTER])) for _ in range(2))
    assert first.html == second.html
    assert first.files == second.files


def test_csv_files_hold_what_the_page_shows(odd: Report) -> None:
    tables = {
        name: list(csv.DictReader(io.StringIO(data.decode())))
        for name, data in odd.files.items()
        if name.endswith(".csv")
    }
    names = ("settings", "references", "runs", "curves", "configs", "classes", "fidelity")
    assert set(tables) == {f"{name}.csv" for name in names}
    reference = tables["references.csv"][0]  # the same on the rows of all settings
    assert len(tables["references.csv"]) == len({row["measure"] for row in tables["references.csv"]})
    assert float(reference["top1"]) == pytest.approx(0.44, abs=0.05)
    of_measure = [row for row in tables["settings.csv"] if row["measure"] == reference["measure"]]
    assert all(
        float(row["over_linear"]) == pytest.approx(float(row["top1"]) - float(reference["top1"]), abs=1e-5)
        for row in of_measure
    )
    line = next(
        row for row in tables["settings.csv"] if row["setting"] == BETTER.group and row["measure"] == "held_out"
    )
    assert float(line["difference"]) == pytest.approx(0.05, abs=0.005)
    assert line["verdict"] == "better" and float(line["p_holm"]) < 0.05
    assert {cell_text(row["name"]) for row in tables["classes.csv"]} == set(ODD_NAMES)
    assert len([row for row in tables["runs.csv"] if row["measure"] == "held_out"]) == 9
    assert {row["setting"] for row in tables["curves.csv"]} == {"base", BETTER.group, ODD_GROUP}


def test_a_setting_may_be_called_like_a_column(tmp_path: Path) -> None:
    """configs.csv has a column a setting: none takes the place of another, or of the keys."""
    odd = [Setting(group=name, changes={"steps": 7 + i}, seeds=(0,)) for i, name in enumerate(("key", "key (2)"))]
    folder = read_folder(write_grid(tmp_path / "grid", [BASE, *odd], ()))
    table = list(csv.DictReader(io.StringIO(csv_tables(folder, (), None)["configs.csv"].decode())))
    steps = next(row for row in table if row["key"] == "steps")
    assert list(steps) == ["key", "base", "key (2)", "key (2) (3)"]
    assert [steps[name] for name in list(steps)[1:]] == ["120", "7", "8"]


def test_plots_say_in_words_what_they_show() -> None:
    with canvas() as (figure, axes):
        (line,) = axes.plot([0, 1], [0, 1])
        plot = render(figure, "p", "A <title>", "short", 'with "words" & more', [(line, "_one"), (line, "two")])
    root = ElementTree.fromstring(plot.file)
    words = {element.tag.rpartition("}")[2]: element.text for element in root if element.get("id") in ("p-t", "p-d")}
    assert words == {"title": "A <title>", "desc": 'with "words" & more'}
    assert "_one" in plot.file.decode() and "_one" not in plot.inline  # the page has legends of its own
    assert "width" not in plot.inline.partition(">")[0].replace("stroke-width", "")


@pytest.mark.slow
def test_a_large_report_stays_small(tmp_path: Path) -> None:
    """21 cells of 600 logged steps, 120 classes, five measures."""
    settings = [BASE, BETTER, WORSE, SAME]
    settings += [Setting(group=f"depth={i}", changes={"depth": i}) for i in (1, 2, 3)]
    names = [f"{NAMES[i % 8]} {i}" for i in range(120)]
    write_grid(
        tmp_path,
        settings,
        ("dev-unseen", "sketch"),
        ("val", "test-unseen"),
        names,
        steps=600,
        log_every=1,
        n=1200,
        chosen=BETTER.group,
    )
    report = made(tmp_path)
    assert len(report.html.encode()) < 1_000_000
    assert sum(map(len, report.files.values())) < 3_000_000
