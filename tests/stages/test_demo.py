"""The demo: every stage in one folder, a table at the end, and what an interrupted or repeated demo does."""

from __future__ import annotations

import csv
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import worlds

from teachonce.core.progress import Silent
from teachonce.demo import world as demo_world
from teachonce.errors import UsageError
from teachonce.stages.demo import work as stage

WHO = [
    "teacher, hand-written template",
    "student, hand-written template",
    "student, shared, hard labels",
    "student, shared, hard+soft labels",
    "student, unshared, hard labels",
    "student, unshared, hard+soft labels",
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A demo of 512 photos and 4 steps a run, tasks in this process."""
    sizes = demo_world.WorldSizes(train=512, train_archives=2, val_per_class=1, unseen_per_class=1)
    monkeypatch.setattr(demo_world, "write_world", functools.partial(demo_world.write_world, sizes=sizes))
    monkeypatch.setattr(stage, "STEPS", 4)
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "demo"


@pytest.mark.slow  # as the next: its stages are tried one by one, and its world and models in tests/demo
def test_a_small_demo_leaves_all_it_names(small: Path) -> None:
    """Six lines, every path exists, the files say the same; run again it trains nothing and says the same again."""
    with worlds.inline_tasks():
        result = stage.demo(stage.DemoRequest(out=small), Silent())
    assert [row["who"] for row in result.table] == WHO
    assert [row["trained_parameters"] for row in result.table] == [0, 0, 256, 256, 3072, 3072]
    assert result.table[0]["top1_seen"] > result.table[1]["top1_seen"]
    assert all(Path(path).exists() for path in result.paths.values())
    assert json.loads((small / "results.json").read_text())["table"] == list(result.table)
    with open(small / "table.csv", encoding="utf-8") as file:
        assert [row["who"] for row in csv.DictReader(file)] == WHO
    prompts = {file: file.stat().st_mtime_ns for file in small.rglob("prompts.safetensors")}
    (small / "runs" / "shared-hard-0" / "results.json").unlink()  # as if it had been killed near its end
    with worlds.inline_tasks():
        again = stage.demo(stage.DemoRequest(out=small), Silent())
    assert again.table == result.table
    rewritten = [file.parent.name for file, time in prompts.items() if file.stat().st_mtime_ns != time]
    assert rewritten == ["shared-hard-0"]


@pytest.mark.parametrize("there", ["results.json", "x/y", ""])
def test_a_demo_stays_out_of_other_folders(there: str, small: Path) -> None:
    """A run, a stray folder, a file: nothing is written beside what is there."""
    place = small / there
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("mine")
    with pytest.raises(UsageError, match="nothing was changed|is not a folder"):
        stage.demo(stage.DemoRequest(out=small), Silent())
    assert place.read_text() == "mine" and (not there or len(list(small.iterdir())) == 1)


@pytest.mark.slow
def test_the_whole_demo_shows_what_it_should(tmp_path: Path) -> None:
    """The shipped sizes: the teacher is better than the student, and every kind of prompt beats the template."""
    command = [sys.executable, "-m", "teachonce", "demo", "--out", str(tmp_path / "demo"), "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)["table"]
    teacher, template, *prompts = [(row["top1_seen"], row["top1_unseen"]) for row in table]
    assert teacher[0] > template[0] + 0.15 and teacher[1] > template[1] + 0.15
    assert all(seen > template[0] + 0.03 for seen, _ in prompts)
