"""ablate with a search: who ends early; pauses change no bit; kills, growth and another share end the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grids import prompts_of, run, write
from worlds import Notes

from teachonce.errors import FingerprintError, UsageError
from teachonce.reports.folder import read_folder
from teachonce.runs.grid_status import grid_status

BASE = (
    "[base]\nsteps = 6\nbatch_size = 8\ncheckpoint_every = 4\nlog_every = 1\nheld_out = 0.3\nevaluate_every = 6\n"
    "[axes]\nseed = [0, 1]\nlearning_rate = [0.002, 0.3]\n"
)
AMONG = '[[evaluate]]\nname = "dev"\nmanifest = "store"\n'
CHOOSE = "[choose]\nweights = {held_out = 1, dev = 1}\n"
SEARCH = "[search]\nrungs = [2, 4]\nkeep = 0.5\n"
GRID = 'design = "one-factor"\n' + BASE + 'structure = ["unshared", "shared"]\n' + AMONG + CHOOSE


def document(file: Path) -> Any:
    """A JSON file."""
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def done(finished: Path, student: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished search over four settings, two seeds each."""
    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEACHONCE_CACHE", str(folder / "cache"))
        result = run(write(folder / "grid.toml", GRID + SEARCH), finished, student, folder / "out")
        assert result.exit_code == 0 and result.cells["dropped"] + result.cells["finished"] == 8
        yield folder


@pytest.fixture(scope="module")
def whole(done: Path, finished: Path, student: str) -> Path:
    """The same grid without a search, beside it."""
    assert run(write(done / "whole.toml", GRID), finished, student, done / "whole").exit_code == 0
    return done / "whole"


def figures(out: Path, digest: str, step: int) -> float:
    """What the rule weighs, read from the files of a rung."""
    rung = out / "cells" / digest / "rungs" / str(step)
    top1 = document(rung / "evaluations/dev.json")["top1"]
    return float(document(rung / "results.json")["held_out_top1"] + top1) / 2


def test_at_each_rung_the_better_half_goes_on_with_all_its_seeds(done: Path) -> None:
    search, cells = document(done / "out/search.json"), document(done / "out/grid.json")["cells"]
    alive = list(dict.fromkeys(cell["group"] for cell in cells))
    for decision, step in zip(search["decisions"], (2, 4), strict=True):
        values = {
            group: sum(figures(done / "out", cell["digest"], step) for cell in cells if cell["group"] == group) / 2
            for group in alive
        }
        assert decision["values"] == pytest.approx(values)
        best = sorted(alive, key=lambda group: -values[group])[: -(-len(alive) // 2)]
        base = [cell["group"] for cell in cells if cell["is_base"] and cell["group"] in alive]
        assert set(decision["kept"]) == {*best, *base}
        for cell in cells:
            if cell["group"] in decision["dropped"]:
                assert search["dropped"][cell["digest"]] == step
                assert not (done / "out/cells" / cell["digest"] / "results.json").exists()
        alive = [group for group in alive if group in decision["kept"]]
    assert {cell["group"] for cell in cells if cell["digest"] not in search["dropped"]} == set(alive)


@pytest.mark.slow
def test_a_run_that_was_paused_ends_with_the_bytes_of_one_that_was_not(done: Path, whole: Path) -> None:
    paused, unpaused = prompts_of(done / "out"), prompts_of(whole)
    assert 0 < len(paused) < len(unpaused) == 8 and paused.items() <= unpaused.items()
    for digest in paused:
        mine, other = (document(done / place / "cells" / digest / "results.json") for place in ("out", "whole"))
        assert mine["held_out_top1"] == other["held_out_top1"] and mine["final_loss"] == other["final_loss"]


def test_the_choice_status_and_report_know_who_ended_early(done: Path) -> None:
    results, search = document(done / "out/results.json"), document(done / "out/search.json")
    assert not results["chosen"]["ranking"].keys() & set(search["decisions"][0]["dropped"])
    status = grid_status(done / "out", 0.0)
    assert status.cells["dropped"] == len(search["dropped"]) and status.state == "finished"
    assert status.cells["waiting"] == 0 and not status.open_cells
    folder = read_folder(done / "out")
    assert folder.chosen == results["chosen"]["group"]
    assert [entry.kind for entry in folder.unusable] == ["dropped"] * len(search["dropped"])
    assert all("ended by the search after" in entry.why for entry in folder.unusable)


@pytest.mark.slow
def test_finished_searches_are_left_alone(done: Path, finished: Path, student: str) -> None:
    before = {file: file.stat().st_mtime_ns for file in (done / "out/cells").rglob("*") if file.is_file()}
    result = run(done / "grid.toml", finished, student, done / "out")
    assert result.exit_code == 0 and result.cells["finished"] == 0
    assert before == {file: file.stat().st_mtime_ns for file in (done / "out/cells").rglob("*") if file.is_file()}


def same_end(out: Path, done: Path) -> None:
    """A search ended as the one that ran from its beginning to its end."""
    assert prompts_of(out) == prompts_of(done / "out")
    assert document(out / "search.json") == document(done / "out/search.json")
    assert document(out / "results.json")["chosen"] == document(done / "out/results.json")["chosen"]


@pytest.mark.slow
@pytest.mark.parametrize("calls", [1, 3, 7])
def test_a_search_that_was_killed_ends_the_same(
    calls: int, done: Path, finished: Path, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from teachonce.stages.ablate import cell

    left, scored = [calls], cell.score_set

    def dies(*given: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return scored(*given)

    monkeypatch.setattr(cell, "score_set", dies)
    with pytest.raises(KeyboardInterrupt):
        run(done / "grid.toml", finished, student, tmp_path / "out")
    monkeypatch.undo()
    (tmp_path / "out/search.json").unlink(missing_ok=True)
    assert run(done / "grid.toml", finished, student, tmp_path / "out").exit_code == 0
    same_end(tmp_path / "out", done)


@pytest.mark.slow
def test_more_settings_and_another_share_end_as_if_they_had_been_there_from_the_beginning(
    done: Path, finished: Path, student: str, tmp_path: Path
) -> None:
    fewer = GRID.replace("[0.002, 0.3]", "[0.002]") + SEARCH.replace("0.5", "0.2")
    assert run(write(tmp_path / "fewer.toml", fewer), finished, student, tmp_path / "out").exit_code == 0
    early = document(tmp_path / "out/search.json")["dropped"]
    result = run(done / "grid.toml", finished, student, tmp_path / "out")
    assert result.exit_code == 0 and early
    search = document(tmp_path / "out/search.json")
    assert search == document(done / "out/search.json")
    assert document(tmp_path / "out/results.json")["chosen"] == document(done / "out/results.json")["chosen"]
    kept = {key: data for key, data in prompts_of(tmp_path / "out").items() if key not in search["dropped"]}
    assert kept == prompts_of(done / "out")


@pytest.mark.slow
def test_without_a_search_what_ended_early_goes_on(
    done: Path, whole: Path, finished: Path, student: str, tmp_path: Path
) -> None:
    shutil.copytree(done / "out", tmp_path / "out")
    assert run(done / "whole.toml", finished, student, tmp_path / "out").exit_code == 0
    assert prompts_of(tmp_path / "out") == prompts_of(whole)
    assert "dropped" not in grid_status(tmp_path / "out", 0.0).cells


@pytest.mark.slow
def test_a_setting_that_fails_waits_and_the_others_go_on_then_all_is_decided_anew(
    done: Path, finished: Path, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from teachonce.stages.ablate import cell

    trained = cell.train_stage.train

    def fails(request: Any, reporter: Any) -> Any:
        if request.config.optimiser.learning_rate == 0.3:
            raise RuntimeError("out of luck")
        return trained(request, reporter)

    monkeypatch.setattr(cell.train_stage, "train", fails)
    result = run(done / "grid.toml", finished, student, tmp_path / "out")
    assert result.exit_code == 5 and result.cells["failed"] == 2 and result.chosen is None
    assert document(tmp_path / "out/search.json")["decisions"][0]["failed"]
    assert prompts_of(tmp_path / "out")
    monkeypatch.undo()
    assert run(done / "grid.toml", finished, student, tmp_path / "out", retry_failed=True).exit_code == 0
    assert document(tmp_path / "out/search.json") == document(done / "out/search.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GRID.replace(CHOOSE, "") + SEARCH, "by [choose], and there is none"),
        (GRID + SEARCH.replace("4]", "6]"), "before the last step"),
        (GRID.replace("steps = 6\n", "epochs = 2.0\n") + SEARCH, "epochs"),
        (GRID + SEARCH.replace("[2, 4]", "[4, 2]"), "rise from 1"),
        (GRID + SEARCH + "kep = 1\n", "kep"),
    ],
)
def test_a_search_that_cannot_be_is_refused(text: str, said: str, finished: Path, student: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as problem:
        run(write(tmp_path / "grid.toml", text), finished, student, tmp_path / "out")
    assert said in f"{problem.value.message} {problem.value.hint}"


def test_other_rungs_are_refused_once_cells_are_past_them(
    done: Path, finished: Path, student: str, tmp_path: Path
) -> None:
    other = write(tmp_path / "grid.toml", GRID + SEARCH.replace("[2, 4]", "[1, 4]"))
    notes = Notes()
    with pytest.raises(FingerprintError, match="past step 1"):
        run(other, finished, student, done / "out", notes)
