"""Every command, file and line of Python in docs/tutorial.md works, in its order; those of imagenet21k.md parse.

Models are tiny, images made up, and tasks run in this process; all else is as a reader types it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds

from teachonce.cli.app import app, run
from teachonce.cli.jobs import Job
from teachonce.cluster.description import load_description
from teachonce.runs.grid import load_grid

DOCS = Path(__file__).resolve().parents[2] / "docs"
FENCE = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CLASSES = ("red_fox", "blue_jay", "green_snake", "piano", "yellow_bus", "cup_of_tea")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@dataclass(frozen=True)
class Fence:
    """A block of a page: its language, the file it stands for, its text."""

    language: str
    file: str
    text: str


def fences(page: str) -> list[Fence]:
    """The blocks of a page, in order."""
    return [Fence(*match) for match in FENCE.findall((DOCS / page).read_text(encoding="utf-8"))]


def commands(page: str) -> list[str]:
    """Every command line of a page."""
    return [line for fence in fences(page) if fence.language == "sh" for line in fence.text.splitlines()]


def draw_photos(root: Path) -> None:
    """Twelve images of each class to train on, five to evaluate."""
    for split, numbers in (("train", range(12)), ("val", range(12, 17))):
        for number, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in numbers:
                (folder / f"{i:04d}.jpg").write_bytes(worlds.encoded(worlds.make_photo(number, i), quality=92))


@pytest.fixture
def one_core() -> Iterator[None]:
    """One core for this process and the workers it starts: on models this small a second thread only costs."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.usefixtures("one_core")
def test_the_tutorial_works_from_the_first_line_to_the_last(
    teacher: str, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every block in its order, in one folder; what the page promises of a step is there after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))
    draw_photos(tmp_path / "photos")
    printed: dict[str, str] = {}
    names: dict[str, Any] = {}
    models = {"ViT-L-14/openai": teacher, "ViT-B-16/openai": student}
    with worlds.inline_tasks():
        for fence in fences("tutorial.md"):
            if fence.language in ("toml", "tsv"):
                (tmp_path / fence.file).write_text(fence.text)
            elif fence.language == "python":
                exec(compile(fence.text, "tutorial.md", "exec"), names)
            else:
                assert fence.language == "sh", fence
                printed |= {line: typed(line, models, capfd) for line in fence.text.splitlines()}
    require_promises(tmp_path, printed, names)


def typed(line: str, models: dict[str, str], capfd: pytest.CaptureFixture[str]) -> str:
    """Run a line of the page with other models; what it printed."""
    program, *words = shlex.split(line)
    assert program == "teachonce", line
    capfd.readouterr()
    code = run([models.get(word, word) for word in words])
    out, err = capfd.readouterr()
    assert code == 0, f"{line}\n{out}\n{err}"
    return out


def require_promises(folder: Path, printed: dict[str, str], names: dict[str, Any]) -> None:
    """What the page says one will have."""
    statuses = [out for line, out in printed.items() if line.startswith("teachonce status")]
    assert ["labels, finished" in statuses[0], "train, finished" in statuses[1], "ablate, finished" in statuses[2]]
    assert json.loads((folder / "grid/results.json").read_text())["cells"]["finished"] == 6
    assert (folder / "per-class.csv").read_text().count("\n") == 1 + len(CLASSES)
    assert (folder / "report.html").read_text(encoding="utf-8").count("<svg") > 0
    weights = np.asarray(names["weights"].detach() if hasattr(names["weights"], "detach") else names["weights"])
    assert weights.shape[0] == 3 and np.allclose(np.linalg.norm(weights, axis=1), 1, atol=1e-5)
    (saved,) = (folder / "prompts").glob("*.npy")
    assert np.allclose(np.load(saved), weights, atol=1e-6)


@pytest.mark.parametrize("line", commands("imagenet21k.md"))
def test_every_command_for_imagenet21k_parses(line: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is copied after days of downloading is no usage error."""
    monkeypatch.chdir(project)
    assert isinstance(app(shlex.split(line)[1:], prog_name="teachonce", standalone_mode=False), Job)


def test_the_files_for_imagenet21k_are_read(tmp_path: Path) -> None:
    """The description of a cluster and the grid are what their readers take."""
    files = {fence.file: fence.text for fence in fences("imagenet21k.md") if fence.language == "toml"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert load_description(tmp_path / "slurm.toml").kind == "slurm"
    grid = load_grid(tmp_path / "21k-grid.toml")
    assert grid.axes["seed"] == (0, 1, 2) and grid.choose is not None


def test_the_estimates_for_imagenet21k_are_those_of_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every quoted line stands in what the command above it prints; without images, models or a network."""
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=10**12))  # else this machine's disk decides
    blocks = fences("imagenet21k.md")
    quotes = [(before, quote) for before, quote in zip(blocks, blocks[1:], strict=False) if quote.language == "text"]
    assert len(quotes) == 2
    for command, quote in quotes:
        out = typed(command.text.strip(), {"/data/imagenet": str(tmp_path)}, capfd)
        printed = [" ".join(re.sub(r"[│|]", " ", line).split()) for line in out.splitlines()]
        for line in quote.text.splitlines():
            assert any(text.startswith(" ".join(line.split())) for text in printed), line


@pytest.mark.parametrize("page", sorted(file.name for file in DOCS.glob("*.md")))
def test_pages_link_to_what_is_there(page: str) -> None:
    """A link to a file of this project names one."""
    targets = LINK.findall((DOCS / page).read_text(encoding="utf-8"))
    assert [target for target in targets if not (DOCS / target).exists()] == []
