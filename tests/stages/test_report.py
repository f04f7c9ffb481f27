"""report and show from what runs leave on disk; really trained tiny runs, with images, in a real browser."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import worlds
from grid_folders import BASE, BETTER, ODD_NAMES, Setting, write_grid, write_run

from teachonce.core.documents import LogSeal, sealed
from teachonce.core.progress import Silent
from teachonce.errors import DataError, IntegrityError, UsageError
from teachonce.recipe.config_file import load_train_config
from teachonce.runs.grid_folder import GridFolder, write_document
from teachonce.stages.report import ReportRequest, ReportResult, report
from teachonce.stages.show import ShowRequest, show
from teachonce.stages.train import TrainRequest, train

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: pages are not opened")
WIDTHS = (1280, 390)
PROBE = """<script>
const all = which => [...document.querySelectorAll(which)], box = e => e.getBoundingClientRect();
const wide = all("*").filter(e => !e.closest(".scroll, pre, svg") && box(e).right > innerWidth + 1);
parent.document.documentElement.setAttribute("data-" + innerWidth, JSON.stringify({
  scroll: document.documentElement.scrollWidth, wide: wide.map(e => e.tagName + "." + e.className),
  plots: all("figure svg").length, flat: all("figure svg").filter(e => box(e).height < 40).length}));
</script>"""


def write(folder: Path, out: Path, **options: Any) -> ReportResult:
    """The report of a folder."""
    return report(ReportRequest(folder=folder, out=out, **options), worlds.Notes())


@pytest.fixture(scope="module")
def trained(finished: Path, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four short runs of two settings."""
    runs = tmp_path_factory.mktemp("trained") / "runs"
    for structure in ("unshared", "shared"):
        for seed in (0, 1):
            overrides = (
                f"structure={structure}",
                f"seed={seed}",
                "steps=6",
                "batch_size=16",
                "log_every=1",
                "held_out=0.3",
                "evaluate_every=2",
                "learning_rate=0.3",
            )
            request = TrainRequest(
                labels=finished,
                student=student,
                out=runs / f"{structure}-{seed}",
                config=load_train_config(None, overrides),
                threads=1,
            )
            with worlds.inline_tasks():
                train(request, worlds.Notes())
    return runs


@pytest.fixture(scope="module")
def of_trained(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ReportResult]:
    """Their report, with images and the store that they recorded."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    world = worlds.session_world(tmp_path_factory)
    with worlds.inline_tasks():
        return out, write(trained, out, root=world.root)


@pytest.fixture(scope="module")
def of_odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of names that could break a page."""
    folder = tmp_path_factory.mktemp("odd")
    odd = Setting(group="<img src=x onerror=alert(1)> " + "long" * 30, changes={"soft_weight": 2.0})
    write_grid(folder / "grid", [BASE, BETTER, odd], ("dev-unseen",), ("val",), ODD_NAMES, "<script>alert(0)</script>")
    write(folder / "grid", folder / "report.html")
    return folder / "report.html"


def test_trained_runs_become_a_page_with_images_and_fidelity(of_trained: tuple[Path, ReportResult]) -> None:
    out, result = of_trained
    page = out.read_text(encoding="utf-8")
    assert (result.runs, result.settings, result.not_counted) == (4, 2, 0)
    assert result.bytes == len(page.encode()) < 3_000_000
    assert page.count("data:image/jpeg") >= 2
    assert "all of them samples that the run was never trained on" in page
    assert "KL of the tail rule ghost" in page
    assert "Not shown" not in page
    files = {file.name for file in Path(result.files).iterdir()}
    assert {"settings.csv", "runs.csv", "files.csv", "curve-1-loss-steps.svg"} <= files
    assert len(files) == result.files_written


@in_a_browser
@pytest.mark.parametrize("which", ["trained", "odd"])
def test_a_browser_shows_the_page_whole(
    which: str, of_trained: tuple[Path, ReportResult], of_odd: Path, tmp_path: Path
) -> None:
    """No console message, all plots drawn, nothing wider than the window but what scrolls in a frame of its own."""
    page = of_trained[0] if which == "trained" else of_odd
    console = browse(page, tmp_path, "--screenshot=" + str(tmp_path / "page.png")).stderr
    assert "CONSOLE" not in console, console
    assert (tmp_path / "page.png").stat().st_size > 10_000
    text = page.read_text(encoding="utf-8")
    dom = browse(framed(text, tmp_path / "probe.html"), tmp_path, "--dump-dom")
    assert "CONSOLE" not in dom.stderr, dom.stderr
    for width in WIDTHS:
        match = re.search(rf'data-{width}="([^"]*)"', dom.stdout)
        assert match is not None, width
        state = json.loads(html.unescape(match[1]))
        assert (state["wide"], state["flat"]) == ([], 0)
        assert state["scroll"] <= width
        assert state["plots"] == text.count('<svg role="img"') > 8


def framed(text: str, file: Path) -> Path:
    """The page with a probe, in frames of all widths: a browser's own window is never narrower than 500 pixels."""
    probed = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", f"{PROBE}</body>")
    frames = [
        f'<iframe width="{width}" height="900" style="border:0" srcdoc="{html.escape(probed)}"></iframe>'
        for width in WIDTHS
    ]
    file.write_text(f"<!doctype html><meta charset=utf-8><body>{''.join(frames)}</body>", encoding="utf-8")
    return file


def browse(page: Path, place: Path, *action: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a browser without a window."""
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1280,1600")
    command = [str(CHROMIUM), *options, f"--user-data-dir={place / 'profile'}", *action, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    write_grid(tmp_path / "grid", [BASE], ())
    result = write(tmp_path / "grid", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "give `labels` STORE" in page and "add `root` DIR" in page
    assert "No evaluation has a table of classes" in page
    assert result.headline[0].startswith("3 runs of 1 setting")


def test_a_store_that_does_not_fit_is_said(finished: Path, world: worlds.World, tmp_path: Path) -> None:
    """No features of this student; and a store that is none."""
    write_run(tmp_path / "runs" / "one")
    with worlds.inline_tasks():
        write(tmp_path / "runs", tmp_path / "r.html", labels=finished, root=world.root)
    assert "holds no image features of the run" in (tmp_path / "r.html").read_text(encoding="utf-8")
    write(tmp_path / "runs", tmp_path / "r.html", labels=tmp_path, root=world.root)
    assert "is not a label store" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_images_that_are_gone_are_said(trained: Path, finished: Path, tmp_path: Path) -> None:
    with worlds.inline_tasks():
        write(trained, tmp_path / "r.html", labels=finished, root=tmp_path)
    assert "cannot open" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_damaged_run_is_listed_and_not_counted(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "good")
    (write_run(tmp_path / "runs" / "<b>bad</b>", seed=1) / "results.json").write_text('{"schema"')
    result = write(tmp_path / "runs", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert (result.runs, result.not_counted) == (1, 1)
    assert "&lt;b&gt;bad&lt;/b&gt;" in page and "damaged" in page and "<b>bad" not in page


def test_show_and_report_name_every_file_that_was_changed_and_show_the_rest(tmp_path: Path) -> None:
    """A cell's evaluation costs the cell; what stands beside, or over all cells, costs a line; the figures stay."""
    grid = write_grid(tmp_path / "grid", once=("val",), chosen="structure=kv")
    files = GridFolder(grid)
    whole = show(ShowRequest(path=grid), Silent())
    first, second = files.read_grid().cells[:2]
    final = files.final("val", first.digest)
    for file in (files.cell(second.digest).evaluation("dev-unseen"), final, files.cell(first.digest).cell):
        document = sealed(json.loads(file.read_text()))
        file.write_text(json.dumps(document | {"top1": 0.99, "seed": 9}))
    results = files.read_results()
    assert results is not None
    write_document(files.results, dataclasses.replace(results, log=LogSeal(1, "0" * 64)).document())
    shown = show(ShowRequest(path=grid), Silent())
    said = {line["why"].partition(" ")[0]: line["name"] for line in shown.not_counted}
    assert said == {
        "evaluations/dev-unseen.json": second.name,
        "cell.json": first.name,
        f"final/{final.name}": "grid",
        "events.jsonl": "grid",
    }
    assert shown.runs == whole.runs - 1 and len(shown.settings) == len(whole.settings)
    assert 0.99 not in [figures["top1"] for line in shown.settings for figures in line["measures"].values()]
    written = write(grid, tmp_path / "r.html")
    assert written.not_counted == 4
    with pytest.raises(IntegrityError, match=r"dev-unseen\.json is not what was written"):
        show(ShowRequest(path=files.cell(second.digest).evaluation("dev-unseen")), Silent())


def test_a_new_report_takes_away_its_old_files_and_nothing_else(tmp_path: Path) -> None:
    write_grid(tmp_path / "grid", [BASE, BETTER], ("dev-unseen",))
    write(tmp_path / "grid", tmp_path / "r.html")
    beside = tmp_path / "r-files"
    (beside / "notes.txt").write_text("mine")
    (beside / "differences-1.svg").write_text("mine, too, now")
    assert (beside / "differences-2.svg").is_file()
    shutil.rmtree(tmp_path / "grid")
    write_grid(tmp_path / "grid", [BASE], ())
    write(tmp_path / "grid", tmp_path / "r.html")
    assert (beside / "notes.txt").read_text() == "mine"
    assert (beside / "differences-1.svg").is_file() and not (beside / "differences-2.svg").exists()


@pytest.mark.parametrize(
    ("out", "error"), [("there", UsageError), ("no/such/r.html", UsageError), ("r.html", DataError)]
)
def test_what_cannot_be_is_refused_before_anything_is_written(out: str, error: type[Exception], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(error):
        write(tmp_path / "there", tmp_path / out)
    assert [item.name for item in tmp_path.iterdir()] == ["there"]


def test_show_gives_the_essence_of_a_grid(tmp_path: Path) -> None:
    write_grid(tmp_path / "grid", once=("val",), chosen=BETTER.group)
    for path in (tmp_path / "grid", tmp_path / "grid" / "results.json"):
        result = show(ShowRequest(path=path), worlds.Notes())
        assert (result.kind, result.best, result.runs) == ("grid", BETTER.group, 12)
        figures = result.settings[1]["measures"]["held_out"]
        assert figures["verdict"] == "better" and figures["difference"] == pytest.approx(0.05, abs=0.005)
        assert "val" in result.measures and 2 < len(result.settings[0]["loss"]) <= 16


def test_show_knows_runs_stores_and_documents(finished: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", changes={"structure": "kv"})
    shown = show(ShowRequest(path=run), worlds.Notes())
    assert (shown.kind, shown.config["structure"], shown.config["steps"]) == ("run", "kv", 120)
    assert show(ShowRequest(path=finished), worlds.Notes()).next == f"teachonce inspect {finished}"
    (tmp_path / "val.json").write_text('{"schema": 1, "top1": 0.5, "confused": []}')
    assert show(ShowRequest(path=tmp_path / "val.json"), worlds.Notes()).figures == {"schema": 1, "top1": 0.5}


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_show_refuses_what_it_does_not_know(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError) as caught:
        show(ShowRequest(path=tmp_path / "x.json"), worlds.Notes())
    assert caught.value.hint


def test_the_commands_print_sentences_and_a_table(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from teachonce.cli.app import run

    write_grid(tmp_path / "grid", [BASE, BETTER, Setting(group="[red]odd", changes={"soft_weight": 2.0})], ())
    call: Callable[..., int] = run
    assert call(["show", str(tmp_path / "grid")]) == 0
    shown = capfd.readouterr().out
    assert "▲+4.9" in shown and "[red]odd" in shown and "█" in shown and "teachonce report" in shown
    assert call(["report", str(tmp_path / "grid"), "--out", str(tmp_path / "r.html")]) == 0
    assert "9 runs of 3 settings" in capfd.readouterr().out
    assert call(["show", str(tmp_path / "grid"), "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["schema"], document["best"]) == (1, BETTER.group)
