"""ablate: cells, what is there is left alone, what failed is told and tried on request, the choice, the dry run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grids
import pytest
import worlds
from grids import BASE, TWO, evaluation, prompts_of, request, run, write
from train_runs import killed_before
from worlds import Notes, World

from teachonce.cluster.description import ClusterSpec
from teachonce.core.documents import read_events, sealed
from teachonce.core.locks import owned
from teachonce.errors import DataError, FingerprintError, IncompleteError, IntegrityError, UsageError
from teachonce.models.prompt_files import load_prompts
from teachonce.recipe.config_file import load_train_config
from teachonce.reports.folder import read_folder
from teachonce.runs.grid_folder import GridFolder
from teachonce.stages import train as train_stage
from teachonce.stages.ablate import ablate
from teachonce.stages.ablate import work as ablate_stage


def document(file: Path) -> Any:
    """A JSON file."""
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def done(world: World, finished: Path, student: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished grid of two settings and two seeds, with an evaluation, a choice and a final evaluation."""
    folder = tmp_path_factory.mktemp("grid")
    text = (
        TWO
        + evaluation(world, "dev", split="val")
        + evaluation(world, "test", only="chosen")
        + "[choose]\nweights = {held_out = 1, dev = 3}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEACHONCE_CACHE", str(folder / "cache"))
        result = run(write(folder / "grid.toml", text), finished, student, folder / "out")
        assert (
            result.cells == {"finished": 4, "failed": 0, "skipped": 0, "missing": 0, "damaged": 0}
            and result.exit_code == 0
        )
        yield folder


def again(done: Path, finished: Path, student: str, **options: Any) -> tuple[Any, Notes]:
    """The same command on the finished grid."""
    notes = Notes()
    return run(done / "grid.toml", finished, student, done / "out", notes, **options), notes


def test_every_cell_is_a_run_folder_with_its_own_config_and_results(done: Path) -> None:
    grid = document(done / "out/grid.json")
    assert [cell["name"] for cell in grid["cells"]] == [
        "base seed=0",
        "base seed=1",
        "structure=shared seed=0",
        "structure=shared seed=1",
    ]
    for cell in grid["cells"]:
        folder = done / "out/cells" / cell["digest"]
        assert load_train_config(folder / "config.toml").to_dict() == cell["config"]
        assert document(folder / "cell.json") == sealed({"schema": 1, **cell})
        assert document(folder / "results.json")["steps"] == 4 and not (folder / "failure.json").exists()
        assert load_prompts(folder).meta.structure == cell["config"]["structure"]
        dev = document(folder / "evaluations/dev.json")
        assert dev["n"] == worlds.PHOTOS and dev["schema"] == 1 and dev["baseline"]["template"] == worlds.TEMPLATE
        assert (folder / "evaluations/dev.csv").is_file() and (folder / "evaluations/dev.top1.npy").is_file()
        assert not (folder / "evaluations/test.json").exists()
    assert len(set(prompts_of(done / "out").values())) == 4
    events = [event["event"] for event in read_events(done / "out/events.jsonl")]
    assert events == ["cell_start", "cell_done"] * 4


def test_the_choice_is_the_best_weighted_mean_over_seeds_and_gets_the_final_evaluations(done: Path) -> None:
    results, grid = document(done / "out/results.json"), document(done / "out/grid.json")
    means: dict[str, list[float]] = {}
    for cell in grid["cells"]:
        folder = done / "out/cells" / cell["digest"]
        held_out, dev = document(folder / "results.json")["held_out_top1"], document(folder / "evaluations/dev.json")
        means.setdefault(cell["group"], []).append(0.25 * held_out + 0.75 * dev["top1"])
    expected = {group: sum(values) / 2 for group, values in means.items()}
    assert results["chosen"]["ranking"] == pytest.approx(expected)
    assert results["chosen"]["group"] == max(expected, key=lambda group: expected[group])
    wanted = {c["digest"] for c in grid["cells"] if c["is_base"] or c["group"] == results["chosen"]["group"]}
    assert {file.name for file in (done / "out/final").glob("*.json")} == {f"test-{digest}.json" for digest in wanted}
    assert {entry["digest"] for entry in results["final"]} == wanted
    assert all(entry["top1"] == document(done / "out" / entry["file"])["top1"] for entry in results["final"])


def test_what_is_finished_is_never_run_again_nor_touched(done: Path, finished: Path, student: str) -> None:
    def times() -> dict[str, int]:
        files = [*(done / "out/cells").rglob("*"), *(done / "out/final").rglob("*")]
        return {str(file): file.stat().st_mtime_ns for file in files if file.is_file()}

    before = times()
    result, _ = again(done, finished, student, retry_failed=True)
    assert result.cells == {"finished": 0, "failed": 0, "skipped": 4, "missing": 0, "damaged": 0} and times() == before
    assert result.exit_code == 0 and result.chosen is not None


def test_a_grid_may_grow_and_keeps_what_it_has(done: Path, finished: Path, student: str, tmp_path: Path) -> None:
    shutil.copytree(done / "out", tmp_path / "out")
    text = (done / "grid.toml").read_text().replace("seed = [0, 1]", "seed = [1, 0, 2]")
    (tmp_path / "grid.toml").write_text(text)
    before, notes = prompts_of(tmp_path / "out"), Notes()
    result = run(tmp_path / "grid.toml", finished, student, tmp_path / "out", notes)
    assert result.cells == {"finished": 2, "failed": 0, "skipped": 4, "missing": 0, "damaged": 0}
    assert before.items() <= prompts_of(tmp_path / "out").items() and len(prompts_of(tmp_path / "out")) == 6


def test_another_choice_is_said_and_what_was_chosen_before_stays(
    done: Path, finished: Path, student: str, tmp_path: Path
) -> None:
    shutil.copytree(done / "out", tmp_path / "out")
    results = document(tmp_path / "out/results.json")
    first = results["chosen"]["group"]
    for cell in document(tmp_path / "out/grid.json")["cells"]:
        file = tmp_path / "out/cells" / cell["digest"] / "evaluations/dev.json"
        file.write_text(json.dumps(sealed(document(file) | {"top1": 0.0 if cell["group"] == first else 1.0})))
    kept, notes = {file.name: file.read_bytes() for file in (tmp_path / "out/final").iterdir()}, Notes()
    result = run(done / "grid.toml", finished, student, tmp_path / "out", notes)
    assert result.chosen.group != first and any(f"the choice was '{first}'" in line for line in notes.lines)
    assert kept.items() <= {file.name: file.read_bytes() for file in (tmp_path / "out/final").iterdir()}.items()
    assert [c["group"] for c in document(tmp_path / "out/results.json")["earlier_choices"]] == [first]


def test_a_folder_of_another_grid_is_refused_with_the_differences(
    done: Path, world: World, finished: Path, student: str, tmp_path: Path
) -> None:
    other = worlds.make_clip(tmp_path / "clip", 9, 12)
    shared = worlds.copy_store(finished, tmp_path)
    text = write(tmp_path / "grid.toml", TWO + evaluation(world, "dev", split="train"))
    with pytest.raises(FingerprintError, match=r"evaluation dev: split: there 'val', here 'train'"):
        run(text, finished, student, done / "out")
    with pytest.raises(DataError, match="holds no image features of this student") as caught:
        run(text, finished, other, done / "out")
    assert "`student` local-dir:" in caught.value.hint and "teachonce teach" in caught.value.hint
    hard = write(tmp_path / "hard.toml", TWO.replace("[axes]", 'supervision = "hard"\n[axes]'))
    taught = worlds.teach_inline(world, tmp_path / "hard.zarr", None, students=(student,))
    with pytest.raises(FingerprintError, match="label store: there"):
        run(hard, Path(taught.labels), student, done / "out")
    assert run(done / "grid.toml", shared, student, done / "out").cells["skipped"] == 4  # the same store elsewhere
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.txt").touch()
    with pytest.raises(UsageError, match="is not empty and holds no grid"):
        run(text, finished, student, tmp_path / "full")


def test_prompts_changed_by_hand_are_noticed(done: Path, finished: Path, student: str, tmp_path: Path) -> None:
    shutil.copytree(done / "out", tmp_path / "out")
    """The cell is listed and left as it is; what the grid lacks besides is run all the same."""
    changed, lost = sorted((tmp_path / "out/cells").iterdir())[:2]
    file = changed / "prompts.safetensors"
    bad = file.read_bytes()[:-1] + b"x"
    file.write_bytes(bad)
    shutil.rmtree(lost)
    result = run(done / "grid.toml", finished, student, tmp_path / "out", retry_failed=True)
    assert result.cells == {"finished": 1, "failed": 0, "skipped": 2, "missing": 0, "damaged": 1}
    (failure,) = result.failures
    assert failure.digest == changed.name and "is not what its run wrote" in failure.message
    assert result.exit_code == IntegrityError.exit_code and result.chosen is None and file.read_bytes() == bad


def test_a_failed_cell_is_told_leaves_the_others_alone_and_runs_again_on_request(
    finished: Path, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, grid = train_stage.train, write(tmp_path / "grid.toml", TWO)

    def breaking(wanted: Any, reporter: Any) -> Any:
        if wanted.config.prompts.structure == "shared" and wanted.config.loop.seed == 1:
            raise UsageError("step 3: the loss became nan", hint="use a smaller learning_rate")
        if wanted.config.prompts.structure == "shared":
            raise RuntimeError("a product failed")
        return real(wanted, reporter)

    monkeypatch.setattr(train_stage, "train", breaking)
    result = run(grid, finished, student, tmp_path / "out")
    assert (
        result.cells == {"finished": 2, "failed": 2, "skipped": 0, "missing": 0, "damaged": 0} and result.exit_code == 5
    )
    assert {(f.name, f.message) for f in result.failures} == {
        ("structure=shared seed=0", "RuntimeError: a product failed"),
        ("structure=shared seed=1", "step 3: the loss became nan"),
    }
    hints = {f.name: f.hint for f in result.failures}
    assert hints["structure=shared seed=1"] == "use a smaller learning_rate"
    assert "`retry_failed`" in hints["structure=shared seed=0"], "of an error that has no hint of its own"
    kept, notes = prompts_of(tmp_path / "out"), Notes()
    monkeypatch.setattr(train_stage, "train", real)
    result = run(grid, finished, student, tmp_path / "out", notes)  # not asked for
    assert (
        result.cells == {"finished": 0, "failed": 2, "skipped": 2, "missing": 0, "damaged": 0}
        and len(result.failures) == 2
    )
    assert "`retry_failed`" in result.next and "[[exclude]]" in result.next
    assert notes.lines[-1] == f"2 cells have failed: {result.next}"
    assert document(tmp_path / "out/results.json")["next"] == result.next
    result = run(grid, finished, student, tmp_path / "out", retry_failed=True)
    assert (
        result.cells == {"finished": 2, "failed": 0, "skipped": 2, "missing": 0, "damaged": 0} and result.exit_code == 0
    )
    assert result.next.startswith("teachonce report ")
    assert kept.items() <= prompts_of(tmp_path / "out").items()
    assert not list((tmp_path / "out").glob("cells/*/failure.json"))


def test_an_interrupted_cell_goes_on_from_its_checkpoint_with_the_same_bytes(
    done: Path, finished: Path, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablate_stage, "GRACE_SECONDS", 0.0)  # nobody is left to write a checkpoint
    grid = write(tmp_path / "grid.toml", TWO)
    with killed_before(3):
        run(grid, finished, student, tmp_path / "out")
    assert not prompts_of(tmp_path / "out") and len(list((tmp_path / "out").glob("cells/*/checkpoints"))) == 1
    result = run(grid, finished, student, tmp_path / "out")
    assert result.cells["finished"] == 4 and prompts_of(tmp_path / "out") == prompts_of(done / "out")


def test_a_cell_with_a_damaged_config_is_told_to_be_removed(finished: Path, student: str, tmp_path: Path) -> None:
    """Its --out is not the grid's: another one would help nobody."""
    grid = write(tmp_path / "grid.toml", BASE)
    run(grid, finished, student, tmp_path / "out")
    (cell,) = (tmp_path / "out/cells").iterdir()
    (cell / "results.json").unlink()
    (cell / "config.toml").write_text("steps = = 3")
    (failure,) = run(grid, finished, student, tmp_path / "out").failures
    assert f"remove {cell} to train this cell again" in failure.hint and "`out`" not in failure.hint
    shutil.rmtree(cell)
    assert run(grid, finished, student, tmp_path / "out").cells["finished"] == 1


@pytest.mark.slow  # reads a grown grid; what a report says of each state is tried on made-up folders in CI
def test_the_report_takes_the_choice_for_that_of_this_grid_until_it_grows(
    done: Path, finished: Path, student: str, tmp_path: Path
) -> None:
    """A grid that was extended and then killed has chosen nothing yet."""
    shutil.copytree(done / "out", tmp_path / "out")
    assert read_folder(tmp_path / "out").chosen == document(done / "out/results.json")["chosen"]["group"]
    text = (done / "grid.toml").read_text().replace("seed = [0, 1]", "seed = [0, 1, 2]")
    with killed_before(3):
        run(write_whole(tmp_path / "grid.toml", text), finished, student, tmp_path / "out")
    assert read_folder(tmp_path / "out").chosen is None


def test_two_processes_do_not_run_one_grid(done: Path, finished: Path, student: str) -> None:
    with owned(done / "out/grid.json", Notes()), pytest.raises(IncompleteError, match="is being written by process"):
        again(done, finished, student)


def test_a_dry_run_lists_and_estimates_and_writes_nothing(
    done: Path, world: World, finished: Path, student: str, tmp_path: Path
) -> None:
    shared = worlds.copy_store(finished, tmp_path)
    grid = write(tmp_path / "grid.toml", TWO + '"data.shots" = [0, 2]\n' + evaluation(world, "dev"))
    before = sorted(tmp_path.rglob("*"))
    plan = run(grid, shared, student, tmp_path / "out", dry_run=True, cluster=ClusterSpec(workers=2))
    assert sorted(tmp_path.rglob("*")) == before
    assert (
        plan.cells == {"finished": 0, "failed": 0, "missing": 8, "damaged": 0}
        and plan.to_run == 8
        and plan.workers == 2
    )
    assert "timed: 3 steps of cell 'base seed=0'" in plan.measured and plan.seconds > 0
    assert len(plan.derived) == 1 and "shots 2" in plan.derived[0]
    text = (done / "grid.toml").read_text().replace("seed = [0, 1]", "seed = [0, 1, 2]")
    (tmp_path / "more.toml").write_text(text)
    plan = run(tmp_path / "more.toml", finished, student, done / "out", dry_run=True)
    assert plan.cells == {"finished": 4, "failed": 0, "missing": 2, "damaged": 0} and "of 4 cells here" in plan.measured
    assert [cell["state"] for cell in plan.plan] == ["finished", "finished", "missing"] * 2
    assert again(done, finished, student, dry_run=True)[0].seconds == 0


@pytest.mark.slow  # two starts of workers, each of which imports torch
def test_two_workers_of_dask_give_the_same_prompts(done: Path, finished: Path, student: str, tmp_path: Path) -> None:
    grid = write(tmp_path / "grid.toml", TWO)
    wanted = request(grid, finished, student, tmp_path / "out", cluster=ClusterSpec(workers=2))
    result = ablate(wanted, Notes())
    assert result.cells == {"finished": 4, "failed": 0, "skipped": 0, "missing": 0, "damaged": 0}
    assert prompts_of(tmp_path / "out") == prompts_of(done / "out")
    open_cells: dict[str, int] = {}  # the quicker worker may take all four, but each has one at a time
    for event in read_events(tmp_path / "out/events.jsonl"):
        if event["event"] == "cell_start":
            assert event["pid"] not in open_cells.values()
            open_cells[event["digest"]] = event["pid"]
        else:
            del open_cells[event["digest"]]
    assert not open_cells


def test_base_alone_is_a_grid(finished: Path, student: str, tmp_path: Path) -> None:
    result = run(write(tmp_path / "grid.toml", BASE), finished, student, tmp_path / "out")
    assert result.cells["finished"] == 1 and grids.prompts_of(tmp_path / "out")


def write_whole(file: Path, text: str) -> Path:
    """A grid file that has its head already."""
    file.write_text(text)
    return file


def changed(done: Path, tmp_path: Path, old: str, new: str) -> Path:
    """A copy of the finished grid's folder, and beside it the grid with something changed."""
    shutil.copytree(done / "out", tmp_path / "out")
    for file in done.glob("*.t*"):
        shutil.copy(file, tmp_path)
    text = (tmp_path / "grid.toml").read_text()
    assert old in text
    (tmp_path / "grid.toml").write_text(text.replace(old, new, 1))
    return tmp_path


def test_a_result_of_another_set_under_the_same_name_is_refused(
    done: Path, world: World, finished: Path, student: str, tmp_path: Path
) -> None:
    """Also where grid.json knows nothing of it any more, because the evaluation was taken out in between."""
    here = changed(done, tmp_path, 'name = "dev"', 'name = "dev"\nclasses = "some.tsv"')
    (here / "some.tsv").write_text("n01\nn02\n")
    before = (here / "out/grid.json").read_bytes()
    with pytest.raises(FingerprintError, match="evaluation 'dev'"):
        run(here / "grid.toml", finished, student, here / "out")
    (here / "out/grid.json").write_text(json.dumps(sealed(json.loads(before) | {"evaluations": []})))
    with pytest.raises(FingerprintError, match="is not of the evaluation 'dev' as the grid has it now") as caught:
        run(here / "grid.toml", finished, student, here / "out")
    assert "names: there" in caught.value.message and "images: there" in caught.value.message


def test_a_class_file_that_was_edited_is_noticed(
    done: Path, finished: Path, student: str, tmp_path: Path, world: World
) -> None:
    """The path is the same, what it holds is not: figures of two sets are never averaged."""
    here = changed(done, tmp_path, 'name = "dev"', 'name = "few"\nclasses = "some.tsv"')
    text = (here / "grid.toml").read_text().replace("dev = 3", "few = 3")
    (here / "grid.toml").write_text(text)
    (here / "some.tsv").write_text("n01\nn02\n")
    assert run(here / "grid.toml", finished, student, here / "out").exit_code == 0
    (here / "some.tsv").write_text("n01\nn02\nn03\n")
    with pytest.raises(FingerprintError, match="is not of the evaluation 'few'"):
        run(here / "grid.toml", finished, student, here / "out")


def test_a_lost_grid_json_costs_nothing(done: Path, finished: Path, student: str, tmp_path: Path) -> None:
    """Cells are found by their digests; a folder that only looks like a grid's is still refused."""
    shutil.copytree(done / "out", tmp_path / "out")
    (tmp_path / "out/grid.json").unlink()
    result = run(done / "grid.toml", finished, student, tmp_path / "out")
    assert result.cells == {"finished": 0, "failed": 0, "skipped": 4, "missing": 0, "damaged": 0}
    assert prompts_of(tmp_path / "out") == prompts_of(done / "out")
    (tmp_path / "mine/cells/a").mkdir(parents=True)
    with pytest.raises(UsageError, match="not empty and holds no grid"):
        run(done / "grid.toml", finished, student, tmp_path / "mine")


def test_a_grid_that_was_killed_before_it_was_written_down_begins_anew(tmp_path: Path) -> None:
    (tmp_path / ".grid.json.1-ab.partial").touch()
    assert GridFolder(tmp_path).stored() is None
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match="not empty and holds no grid"):
        GridFolder(tmp_path).stored()
