"""Reports of searches, of splits of classes and of rules with limits: who counts, who is compared, what is said."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import pytest
from grid_folders import WORSE, write_grid

from teachonce.reports.folder import read_folder
from teachonce.reports.tables import best_group, measures
from teachonce.reports.words import headline


def test_settings_that_a_search_ended_are_listed_and_in_no_table(tmp_path: Path) -> None:
    out = write_grid(tmp_path / "grid", chosen="structure=kv")
    grid = json.loads((out / "grid.json").read_text()) | {"search": {"rungs": [40], "keep": 0.75}}
    (out / "grid.json").write_text(json.dumps(grid))
    ended = {cell["digest"]: 40 for cell in grid["cells"] if cell["group"] == WORSE.group}
    decision = {"step": 40, "values": {"structure=kv": 0.5, WORSE.group: 0.3}, "kept": [], "dropped": [WORSE.group]}
    search = {"schema": 1, "rungs": [40], "keep": 0.75, "decisions": [decision], "dropped": ended}
    (out / "search.json").write_text(json.dumps(search))
    results = json.loads((out / "results.json").read_text())
    results["cells"] = {"finished": 9, "dropped": 3, "failed": 0}
    del results["chosen"]["ranking"][WORSE.group]
    (out / "results.json").write_text(json.dumps(results))
    folder = read_folder(out)
    assert folder.chosen == "structure=kv" and WORSE.group not in [group.name for group in folder.groups]
    assert [entry.kind for entry in folder.unusable] == ["dropped"] * 3
    assert folder.unusable[0].why.endswith("after 40 steps: its measure was 30.0, that of the best setting 50.0")
    said = headline(folder, measures(folder), *best_group(folder, measures(folder)))
    assert "3 ended early by the search" in said.counted


def test_a_rule_with_limits_says_who_could_not_be_chosen(tmp_path: Path) -> None:
    out = write_grid(tmp_path / "grid", chosen="base")
    results = json.loads((out / "results.json").read_text())
    results["chosen"]["short"] = {"structure=kv": ["dev-unseen"]}
    (out / "results.json").write_text(json.dumps(results))
    folder = read_folder(out)
    said = headline(folder, measures(folder), *best_group(folder, measures(folder)))
    assert "Short of the limits of the grid's rule: “structure=kv” (dev-unseen)." in said.choice
    assert "no setting that reaches them has a higher" in said.choice


def test_runs_of_two_splits_are_compared_split_by_split_though_their_images_differ(tmp_path: Path) -> None:
    """Settings have seeds 0 and 1 on split 1, seed 2 on split 2; a run with other images than its twins is left out."""
    out = write_grid(tmp_path / "grid")
    grid = json.loads((out / "grid.json").read_text())
    grid["evaluations"][0]["manifest"] = "store"
    for cell in grid["cells"]:
        cell["split"] = 1 + cell["seed"] // 2
        file = out / "cells" / cell["digest"] / "evaluations/dev-unseen.json"
        document = json.loads(file.read_text())
        document["digests"] = {"samples": f"of split {cell['split']} seed {cell['seed']}"}
        document["baseline"]["top1"] = 0.3 + 0.1 * cell["split"]
        if cell["group"] == WORSE.group and cell["seed"] == 2:
            document["digests"] = {"samples": "others"}
        file.write_text(json.dumps(document))
    (out / "grid.json").write_text(json.dumps(grid))
    folder = read_folder(out)
    table = next(table for table in measures(folder) if table.key == "dev-unseen")
    pairs = [line.paired.n for line in table.lines[1:] if line.paired is not None]
    assert pairs == [3, 2, 3]
    assert len([entry for entry in folder.unusable if "other images or names" in entry.why]) == 1
    line = table.lines[1]
    differences = [line.by_seed[run.draw] - (0.3 + 0.1 * run.split) for run in folder.groups[1].runs]
    assert line.template is not None and line.template.difference == pytest.approx(mean(differences))
    assert table.template["top1"] == pytest.approx((0.4 + 0.4 + 0.5) / 3)
    said = headline(folder, measures(folder), *best_group(folder, measures(folder)))
    assert "2 splits of the classes (1, 2), 3 seeds (0, 1, 2)" in said.counted
