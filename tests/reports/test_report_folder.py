"""Which runs a folder holds, how they are grouped, what is chosen; and what the tables make of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from statistics import stdev

import pytest
from grid_folders import BASE, BETTER, SAME, SETTINGS, WORSE, Setting, write_evaluation, write_grid, write_run

from teachonce.errors import DataError
from teachonce.reports.csv import tables as csv_tables
from teachonce.reports.curves import MOST_LINES, band, panels
from teachonce.reports.folder import Folder, read_folder
from teachonce.reports.tables import best_group, class_gains, measures
from teachonce.reports.words import headline, points
from teachonce.search.tables import Choose


def test_a_grid_is_read_by_its_own_settings(tmp_path: Path) -> None:
    folder = read_folder(write_grid(tmp_path / "grid", once=("val",), chosen="structure=kv"))
    assert [group.name for group in folder.groups] == [setting.group for setting in SETTINGS]
    assert (folder.base.name, folder.chosen, folder.once, folder.unusable) == ("base", "structure=kv", ("val",), ())
    assert folder.measures == ["held_out", "dev-unseen", "val"]
    assert {table.key: len(table.lines) for table in measures(folder)} == {"held_out": 4, "dev-unseen": 4, "val": 2}


def test_verdicts_are_those_of_the_paired_test(tmp_path: Path) -> None:
    """Made-up gains are far beyond the luck of seeds, or far inside it."""
    folder = read_folder(write_grid(tmp_path / "grid"))
    for table in measures(folder):
        assert [line.verdict for line in table.lines] == ["base", "better", "worse", "alike"]
        assert all(
            line.corrected is not None
            and line.paired is not None
            and line.paired.p is not None
            and line.corrected >= line.paired.p
            for line in table.lines[1:]
        )
    line = measures(folder)[1].lines[1]
    assert line.images is not None and line.images[0] < line.paired.difference < line.images[1]  # type: ignore[union-attr]
    assert line.template_images is not None


def test_evaluations_of_other_images_are_never_compared(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid")
    folder = read_folder(grid)
    for run in folder.groups[1].runs:
        file = run.folder / "evaluations" / "dev-unseen.json"
        document = json.loads(file.read_text())
        file.write_text(json.dumps(document | {"digests": {"samples": "others"}}))
    read = read_folder(grid)
    assert [line.images is None for line in measures(read)[1].lines] == [True, False, False]
    assert all("dev-unseen" not in run.evaluations for run in read.groups[1].runs)
    entries = [entry for entry in read.unusable if "other images or names" in entry.why]
    assert [entry.name for entry in entries] == [run.name for run in folder.groups[1].runs]


def test_runs_in_any_folder_are_grouped_by_config_without_the_seed(tmp_path: Path) -> None:
    """Three levels below; the base is the setting that differs least from what most have."""
    for place, changes in (("a/b", {}), ("a/c", {"structure": "kv"}), ("d", {"soft_weight": 3.0})):
        for seed in (0, 1):
            write_run(tmp_path / place / f"s{seed}", seed, changes)
    write_run(tmp_path / "a" / "b" / "too" / "deep", 9)
    folder = read_folder(tmp_path)
    assert [group.name for group in folder.groups] == ["base", "structure=kv", "soft_weight=3.0"]
    assert [sorted(run.seed for run in group.runs) for group in folder.groups] == [[0, 1]] * 3
    assert [run.name for run in folder.base.runs] == ["a/b/s0", "a/b/s1"]


def test_runs_of_other_stores_or_starts_are_other_settings(tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    results = write_run(tmp_path / "two", seed=1) / "results.json"
    results.write_text(results.read_text().replace("5" * 32, "6" * 32))
    assert len(read_folder(tmp_path).groups) == 2


@pytest.mark.parametrize("part", ["student_tokenizer", "student_preprocess", "student_structure"])
def test_students_of_equal_weights_that_read_otherwise_are_other_settings(part: str, tmp_path: Path) -> None:
    """A run of an early version, which says nothing of it, counts with those that it may belong to, if all agree."""
    for seed, value in enumerate(("a" * 64, "a" * 64, None)):
        results = write_run(tmp_path / f"s{seed}", seed) / "results.json"
        results.write_text(json.dumps(json.loads(results.read_text()) | ({part: value} if value else {})))
    assert [len(group.runs) for group in read_folder(tmp_path).groups] == [3]
    results.write_text(json.dumps(json.loads(results.read_text()) | {part: "b" * 64}))
    assert sorted(len(group.runs) for group in read_folder(tmp_path).groups) == [1, 2]


def test_a_run_folder_alone_is_a_report_of_one(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    folder = read_folder(tmp_path / "run")
    assert len(folder.runs) == 1 and [run.name for run in folder.runs] == ["run"]


def test_settings_that_look_alike_keep_names_of_their_own(tmp_path: Path) -> None:
    """Of a digest a name shows the first digits."""
    for name, end in (("one", "0"), ("two", "1"), ("three", "2")):
        results = write_run(tmp_path / name) / "results.json"
        results.write_text(results.read_text().replace("5" * 32, "5" * 31 + end))
    names = [group.name for group in read_folder(tmp_path).groups]
    assert len(set(names)) == 3 and names[0] == "base"


def test_held_out_rows_are_counted_for_every_run(tmp_path: Path) -> None:
    """Each seed keeps other samples apart, and not the same number of them."""
    for seed, rows in enumerate((28, 27, 28)):
        write_run(tmp_path / f"s{seed}", seed, rows=rows)
    folder = read_folder(tmp_path)
    (table,) = measures(folder)
    assert (table.n, table.most) == (27, 28)
    assert headline(folder, (table,), "base", {}).statements[0].title.endswith("(27 to 28 rows, by seed)")
    lines = {name: data.decode().splitlines() for name, data in csv_tables(folder, (table,), None).items()}
    assert lines["settings.csv"][0].startswith("measure,images,images_most,")
    assert lines["settings.csv"][1].startswith("held_out,27,28,")
    place = lines["runs.csv"][0].split(",").index("images")
    assert [line.split(",")[place] for line in lines["runs.csv"][1:]] == ["28", "27", "28"]


def test_links_in_circles_end(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "one")
    (tmp_path / "runs" / "round").symlink_to(tmp_path / "runs")
    assert len(read_folder(tmp_path / "runs").runs) == 1


def test_runs_that_do_not_count_are_listed(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid")
    cells = {
        cell["name"]: grid / "cells" / cell["digest"] for cell in json.loads((grid / "grid.json").read_text())["cells"]
    }
    shutil.rmtree(cells["base seed=0"])
    (cells["base seed=1"] / "results.json").write_text('{"sch')
    (cells["structure=kv seed=2"] / "evaluations" / "dev-unseen.json").unlink()
    (cells["supervision=hard seed=0"] / "results.json").unlink()
    for file in ("config.toml", "events.jsonl"):
        (cells["soft_weight=2.0 seed=1"] / file).unlink()
    (cells["supervision=hard seed=0"] / "failure.json").write_text('{"message": "diverged"}')
    folder = read_folder(grid)
    assert {entry.name: entry.kind for entry in folder.unusable} == {
        "base seed=0": "waiting",
        "base seed=1": "damaged",
        "structure=kv seed=2": "unfinished",
        "supervision=hard seed=0": "failed",
        "soft_weight=2.0 seed=1": "waiting",
    }
    assert len(folder.runs) == 7
    counted = headline(folder, measures(folder), "base", {}).counted
    assert "1 damaged, 1 failed, 1 not finished, 2 not begun" in counted


def test_a_grid_without_its_base_is_compared_with_the_nearest(tmp_path: Path) -> None:
    grid = write_grid(
        tmp_path / "grid", settings=[Setting(group="two", changes={"structure": "kv", "depth": 1}), BETTER]
    )
    assert read_folder(grid).base.name == BETTER.group


def test_a_damaged_grid_file_leaves_its_runs(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", settings=[BASE, WORSE])
    (grid / "grid.json").write_text('{"schema": 1, "cel')
    folder = read_folder(grid)
    assert [group.name for group in folder.groups] == ["base", "supervision=hard"]
    assert [entry.name for entry in folder.unusable] == ["grid.json"]


@pytest.mark.parametrize("what", ["missing", "empty", "a file", "only damaged"])
def test_a_folder_without_a_finished_run_is_refused_with_a_hint(what: str, tmp_path: Path) -> None:
    place = tmp_path / "runs"
    if what == "a file":
        place.write_text("x")
    elif what == "only damaged":
        (write_run(place / "one") / "results.json").write_text("{")
    elif what == "empty":
        place.mkdir()
    with pytest.raises(DataError) as caught:
        read_folder(place)
    assert "teachonce train" in caught.value.hint
    assert what != "only damaged" or "one: damaged" in caught.value.message


def test_the_best_setting_is_chosen_on_what_is_not_measured_once(tmp_path: Path) -> None:
    """Held-out samples where nothing is declared; never the evaluations that come after the choice."""
    late = dataclasses.replace(SAME, gain={"val": 0.5, "held_out": -0.02})
    folder = read_folder(write_grid(tmp_path / "grid", settings=[BASE, BETTER, late], once=("val",), chosen=late.group))
    undecided = dataclasses.replace(folder, chosen=None, choice={})
    assert best_group(undecided, measures(folder)) == (BETTER.group, {"held_out": 1.0})
    assert best_group(folder, measures(folder))[0] == late.group


def test_classes_are_means_over_seeds_sorted_by_gain(tmp_path: Path) -> None:
    folder = read_folder(write_grid(tmp_path / "grid"))
    gains = class_gains(folder.groups[1], "dev-unseen")
    assert [gain.gain for gain in gains] == sorted((gain.gain for gain in gains), reverse=True)
    lines = [run.evaluations["dev-unseen"].classes for run in folder.groups[1].runs]
    first = gains[0]
    accuracies = [line.top1 for classes in lines for line in classes if line.id == first.id]
    assert len(accuracies) == 3 and first.top1 == pytest.approx(sum(accuracies) / 3)


def test_one_seed_is_called_one_seed_and_not_tested(tmp_path: Path) -> None:
    alone = [dataclasses.replace(setting, seeds=(0,)) for setting in (BASE, BETTER)]
    folder = read_folder(write_grid(tmp_path / "grid", settings=alone))
    tables = measures(folder)
    assert [line.verdict for line in tables[0].lines] == ["base", "untested"]
    text = " ".join(headline(folder, tables, *best_group(folder, tables)).sentences())
    assert "one seed" in text and "may be chance" in text and "Better" not in text


def test_the_headline_says_what_the_tables_say(tmp_path: Path) -> None:
    folder = read_folder(write_grid(tmp_path / "grid", once=("val",), chosen="structure=kv"))
    tables = measures(folder)
    words = headline(folder, tables, *best_group(folder, tables))
    verdicts = dict(words.statements[0].verdicts)
    assert list(verdicts) == ["Better than the base", "Worse than the base", "Not told apart from the base"]
    line = tables[0].lines[1]
    assert line.paired is not None
    assert f"“structure=kv” {points(line.paired.difference)}" in verdicts["Better than the base"][0]
    assert "soft_weight=2.0" in verdicts["Not told apart from the base"][0]
    assert "measured once, after the choice" in words.statements[-1].title
    assert "chose “structure=kv”" in words.choice


@pytest.mark.parametrize(("chosen", "metric"), [("structure=kv", "macro accuracy"), (None, "top-1")])
def test_the_metric_of_the_choice_is_named(chosen: str | None, metric: str, tmp_path: Path) -> None:
    """The grid's where it has chosen; before that the tables', which are of top-1."""
    folder = read_folder(write_grid(tmp_path / "grid", chosen="structure=kv"))
    assert folder.grid is not None
    rule = dataclasses.replace(folder.grid, choose=Choose(by="dev", metric="macro"))
    folder = dataclasses.replace(folder, chosen=chosen, grid=rule)
    tables = measures(folder)
    assert f" {metric}, mean over seeds on " in headline(folder, tables, *best_group(folder, tables)).choice


def test_a_choice_that_changed_is_told(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", once=("val",), chosen="structure=kv")
    results = json.loads((grid / "results.json").read_text())
    (grid / "results.json").write_text(json.dumps(results | {"earlier_choices": [{"group": "base"}]}))
    folder = read_folder(grid)
    assert any("choice has changed" in line for line in headline(folder, measures(folder), "base", {}).cautions)


@pytest.mark.parametrize("what", ["rule", "weights", "metric", "seed", "setting", "removed", "unfinished", "no cells"])
def test_a_choice_of_another_grid_or_rule_is_none_of_this_one(what: str, tmp_path: Path) -> None:
    """grid.json is written first: a grid that was changed and then killed still has the results.json of before."""
    grid = write_grid(tmp_path / "grid", once=("val",), chosen="soft_weight=2.0")
    document, results = (json.loads((grid / name).read_text()) for name in ("grid.json", "results.json"))
    assert read_folder(grid).chosen == "soft_weight=2.0"
    cells = document["cells"]
    if what == "metric":
        results["chosen"]["by"] = {"dev-unseen": 1.0}
        document["choose"] = {"by": "dev-unseen", "weights": {}, "metric": "macro"}
    elif what in ("rule", "weights"):
        document["choose"] |= {
            "rule": {"by": "held_out", "weights": {}},
            "weights": {"weights": {"held_out": 1}},
        }[what]
    elif what == "seed":  # finished, but the kill came before the choice
        results["chosen"]["cells"].pop()
    elif what == "setting":
        del results["chosen"]["ranking"]["structure=kv"]
        results["cells"]["finished"] -= 3
    elif what == "removed":
        document["cells"] = [cell for cell in cells if cell["group"] != "structure=kv"]
    elif what == "unfinished":
        (grid / "cells" / cells[4]["digest"] / "results.json").unlink()
    else:
        results["chosen"] |= {"cells": 3, "by": [], "ranking": None}
    (grid / "grid.json").write_text(json.dumps(document))
    (grid / "results.json").write_text(json.dumps(results))
    folder = read_folder(grid)
    assert (folder.chosen, folder.earlier) == (None, ("soft_weight=2.0",))
    tables = measures(folder)
    words = headline(folder, tables, *best_group(folder, tables))
    assert "has the highest top-1" in words.choice and "The grid has not chosen" in words.choice
    assert any("earlier choice of the grid was “soft_weight=2.0”" in line for line in words.cautions)


def test_credits_of_something_else_are_told_and_compare_no_images(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", settings=(BASE, BETTER))
    (run, *_) = read_folder(grid).groups[1].runs
    shutil.copy(run.folder / "evaluations/dev-unseen.top1.npy", run.folder / "evaluations/dev-unseen.template.top1.npy")
    folder = read_folder(grid)
    (entry,) = folder.unusable
    assert (entry.name, entry.kind) == (
        run.name,
        "damaged",
    ) and "dev-unseen.template.top1.npy has the mean" in entry.why
    assert len(folder.runs) == 6
    line = measures(folder)[1].lines[1]
    assert line.template_images is None and line.images is not None


def test_damaged_files_of_a_grid_are_listed_by_path_and_its_runs_count(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", settings=(BASE, BETTER), evaluations=("dev-unseen", "val"), once=("val",))
    whole = read_folder(grid)
    file = next((grid / "final").glob("val-*.json"))
    file.write_text("[" * 100_000)
    (grid / "results.json").write_text("[")
    folder = read_folder(grid)
    sentences = {entry.why.partition(" ")[0]: entry.name for entry in folder.unusable if entry not in whole.unusable}
    assert str(file.relative_to(grid)) in sentences and "results.json" in sentences
    assert len(folder.runs) == len(whole.runs) == 6 and folder.chosen is None


def test_a_band_is_mean_and_spread_of_the_seeds(tmp_path: Path) -> None:
    folder = read_folder(write_grid(tmp_path / "grid"))
    seed_band = band(folder.base, "held_out", "steps")
    assert seed_band is not None and seed_band.spread is not None
    ends = [run.held_out.values[-1] for run in folder.base.runs]
    assert seed_band.mean[-1] == pytest.approx(sum(ends) / 3)
    assert seed_band.spread[-1] == pytest.approx(stdev(ends))
    by_time = band(folder.base, "held_out", "seconds")
    assert by_time is not None and by_time.x[-1] == pytest.approx(41.0, abs=0.01)


def test_settings_that_change_the_same_keys_share_a_panel(tmp_path: Path) -> None:
    weights = [Setting(group=f"w{i}", changes={"soft_weight": i + 0.5}, seeds=(0,)) for i in range(5)]
    depths = [Setting(group=f"d{i}", changes={"depth": i}, seeds=(0,)) for i in range(1, 4)]
    shared_panels = panels(
        read_folder(write_grid(tmp_path / "grid", settings=[BASE, *weights, *depths], evaluations=()))
    )
    assert [panel.keys for panel in shared_panels] == [("soft_weight",), ("depth",)]
    assert all(panel.groups[0] == "base" and len(panel.groups) <= MOST_LINES + 1 for panel in shared_panels)


def test_runs_without_any_measure_still_make_tables(tmp_path: Path) -> None:
    write_run(tmp_path / "one", changes={"held_out": 0.0})
    results = tmp_path / "one" / "results.json"
    results.write_text(json.dumps(json.loads(results.read_text()) | {"held_out_top1": None}))
    folder: Folder = read_folder(tmp_path)
    assert measures(folder) == () and best_group(folder, ()) == ("base", {})


def test_evaluations_in_run_folders_count_too(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = write_run(tmp_path / f"s{seed}", seed)
        write_evaluation(folder / "evaluations" / "pets.json", 0.5, seed=seed)
    assert read_folder(tmp_path).measures == ["held_out", "pets"]
