"""grid_choice, grid_folder: the best mean over seeds; what of a cell is whole; whose a folder is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from teachonce.core.documents import sealed
from teachonce.errors import DataError, FingerprintError, IntegrityError, UsageError
from teachonce.phrases import phrase
from teachonce.runs.choice import choose
from teachonce.runs.grid_documents import GridDocument
from teachonce.runs.grid_folder import CellFolder, GridFolder, read_document, write_document
from teachonce.search.tables import Choose, Evaluation


def cell(folder: GridFolder, digest: str, held_out: float | None, dev: float | None = None) -> None:
    """A finished cell."""
    place = folder.cell(digest)
    place.path.mkdir(parents=True)
    (place.path / "prompts.safetensors").write_bytes(digest.encode())
    write_document(
        place.path / "results.json",
        {
            "schema": 1,
            "steps": 8,
            "trainable_parameters": 4,
            "seconds": 1.5,
            "held_out_top1": held_out,
            "prompts_digest": hashlib.sha256(digest.encode()).hexdigest(),
        },
    )
    if dev is not None:
        write_document(place.evaluation("dev"), {"schema": 1, "top1": dev, "macro": 1 - dev})


def hint_of(cell: CellFolder) -> str:
    """What to do about a cell's problem."""
    problem = cell.problem()
    assert problem is not None
    return problem.hint


def test_the_best_mean_over_seeds_wins_and_the_first_of_equals(tmp_path: Path) -> None:
    folder = GridFolder(tmp_path)
    figures = {"a": (0.5, 0.2), "b": (0.1, 0.6), "c": (0.4, 0.2), "d": (0.4, 0.2), "e": (0.0, 0.4), "f": (0.2, 0.2)}
    for digest, (held_out, dev) in figures.items():
        cell(folder, digest, held_out, dev)
    groups = {"base": ["a", "b"], "one": ["c", "d"], "two": ["e", "f"]}
    assert choose(folder, Choose(by="dev"), groups).ranking == pytest.approx({"base": 0.4, "two": 0.3, "one": 0.2})
    choice = choose(folder, Choose(by="held_out"), groups)
    assert choice.group == "one" and choice.value == pytest.approx(0.4) and choice.cells == ("c", "d")
    both = choose(folder, Choose(weights={"held_out": 1, "dev": 1}), groups)
    assert both.group == "base" and both.figures == pytest.approx({"held_out": 0.3, "dev": 0.4})
    assert choose(folder, Choose(by="dev", metric="macro"), groups).group == "one"
    assert choose(folder, Choose(by="dev"), {"x": ["c"], "y": ["d"]}).group == "x"


def beside_template(folder: GridFolder, digest: str, **figures: tuple[float, float]) -> None:
    """A finished cell, each evaluation with the template's top-1."""
    cell(folder, digest, None)
    for name, (top1, template) in figures.items():
        document = {"schema": 1, "top1": top1, "baseline": {"top1": template}}
        write_document(folder.cell(digest).evaluation(name), document)


def test_against_the_template_a_measure_counts_by_its_difference(tmp_path: Path) -> None:
    folder = GridFolder(tmp_path)
    beside_template(folder, "a", trained=(0.50, 0.40), unseen=(0.60, 0.61))
    beside_template(folder, "b", trained=(0.48, 0.36), unseen=(0.58, 0.60))  # another split: other images
    rule = Choose(weights={"trained": 3, "unseen": 1}, against="template")
    choice = choose(folder, rule, {"base": ["a", "b"]})
    assert choice.figures == pytest.approx({"trained": 0.11, "unseen": -0.015}) and choice.against == "template"
    assert choice.value == pytest.approx(0.75 * 0.11 - 0.25 * 0.015)
    with pytest.raises(DataError, match="does not say the template's macro"):
        choose(folder, Choose(by="trained", against="template", metric="macro"), {"x": ["c"]} | _with_macro(folder))


def _with_macro(folder: GridFolder) -> dict[str, list[str]]:
    """A cell whose template has no macro accuracy."""
    cell(folder, "c", None)
    document = {"schema": 1, "top1": 0.5, "macro": 0.5, "baseline": {"top1": 0.4}}
    write_document(folder.cell("c").evaluation("trained"), document)
    return {"x": ["c"]}


def test_a_setting_that_misses_a_limit_is_not_chosen_whatever_it_gains(tmp_path: Path) -> None:
    folder = GridFolder(tmp_path)
    beside_template(folder, "a", trained=(0.50, 0.40), unseen=(0.60, 0.60))
    beside_template(folder, "b", trained=(0.70, 0.40), unseen=(0.58, 0.60))
    groups = {"base": ["a"], "greedy": ["b"]}
    assert choose(folder, Choose(by="trained"), groups, "base").group == "greedy"
    choice = choose(folder, Choose(by="trained", least={"unseen": -1.0}), groups, "base")
    assert choice.group == "base" and choice.short == {"greedy": ("unseen",)}
    assert list(choice.ranking) == ["greedy", "base"]
    assert choose(folder, Choose(by="trained", least={"unseen": -2.1}), groups, "base").group == "greedy"
    none = choose(folder, Choose(by="trained", least={"unseen": 5.0}), groups, "base")
    assert none.group == "base" and set(none.short) == {"base", "greedy"}
    assert choose(folder, Choose(by="trained", least={"unseen": 5.0}), groups).group == "greedy"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"by": "held_out", "against": "template"}, "without the template beside it"),
        ({"by": "dev", "least": {"held_out": 1.0}}, "without the template beside it"),
        ({"by": "dev", "least": {"dev": 101.0}}, "percentage points"),
    ],
)
def test_a_rule_that_cannot_be_measured_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Choose(**keys)


def test_a_cell_that_was_not_measured_cannot_choose(tmp_path: Path) -> None:
    folder = GridFolder(tmp_path)
    cell(folder, "a", None, 0.5)
    with pytest.raises(DataError, match="does not say held_out_top1"):
        choose(folder, Choose(by="held_out"), {"base": ["a"]})
    with pytest.raises(DataError, match=r"other\.json does not say top1"):
        choose(folder, Choose(by="other"), {"base": ["a"]})


def test_a_cell_is_finished_when_its_run_and_its_evaluations_are_whole(tmp_path: Path) -> None:
    folder = GridFolder(tmp_path)
    place = folder.cell("a")
    assert place.state([]) == "unfinished" and place.step() == 0
    place.path.mkdir(parents=True)
    place.fail(UsageError("no", hint="so"))
    assert place.state([]) == "failed" and hint_of(place) == "so"
    place.fail(IntegrityError("x is damaged", hint=phrase("restore it, or {another out}; nothing was changed")))
    assert hint_of(place) == f"restore it, or remove {place.path} to train this cell again; nothing was changed"
    place.failure.write_text("{")
    problem = place.problem()
    assert problem is not None and "is damaged" in problem.message and "`retry_failed`" in problem.hint
    place.fail(RuntimeError("out of memory"))
    assert "`retry_failed`" in hint_of(place)
    place.failure.unlink()
    cell(GridFolder(tmp_path / "other"), "a", 0.5)
    other = GridFolder(tmp_path / "other").cell("a")
    assert other.state([]) == "finished" and other.state(["dev"]) == "unfinished"
    other.evaluation("dev").parent.mkdir()
    other.evaluation("dev").write_text('{"schema": 1, "top1": ')  # cut short
    assert other.lacking(["dev"]) == ["dev"]
    (other.path / "results.json").write_text("{")
    assert other.state([]) == "unfinished"


def test_prompts_that_are_not_of_the_run_are_an_error(tmp_path: Path) -> None:
    cell(GridFolder(tmp_path), "a", 0.5)
    place = GridFolder(tmp_path).cell("a")
    (place.path / "prompts.safetensors").write_bytes(b"else")
    assert place.state([]) == "damaged"
    assert "restore it, or remove" in hint_of(place)
    with pytest.raises(IntegrityError, match="is not what its run wrote"):
        place.trained()


def test_documents_hold_null_for_what_is_no_number(tmp_path: Path) -> None:
    write_document(tmp_path / "a/b.json", {"schema": 1, "x": float("nan"), "y": [float("inf"), 1.5], "p": tmp_path})
    document = {"schema": 1, "x": None, "y": [None, 1.5], "p": str(tmp_path)}
    assert read_document(tmp_path / "a/b.json") == sealed(document)
    (tmp_path / "c.json").write_text(json.dumps({"schema": 2}))
    assert read_document(tmp_path / "c.json") is None and read_document(tmp_path / "none.json") is None


def test_a_folder_belongs_to_one_store_and_student_and_its_evaluations_keep_their_meaning(tmp_path: Path) -> None:
    folder = GridFolder(tmp_path / "out")
    entry = Evaluation(name="dev", manifest="a", root="/a")
    wanted = GridDocument(content_id="s", student_digest="d", cells=(), evaluations=(entry,))
    folder.require_ours(wanted)
    write_document(folder.grid, wanted.document())
    more = Evaluation(name="more", manifest="a", split="x")
    folder.require_ours(replace(wanted, evaluations=(replace(entry, root="/b"), more)))
    # A shipped grid that was installed anew.
    moved = replace(entry, classes="/other/environment/study-dev.tsv", manifest="/b/m.toml")
    folder.require_ours(replace(wanted, evaluations=(moved,)))
    other = replace(entry, split="test")
    with pytest.raises(FingerprintError, match=r"label store: there 's', here 't'\n  evaluation dev: split: there"):
        folder.require_ours(replace(wanted, content_id="t", evaluations=(other,)))
    folder.grid.write_text("{")
    with pytest.raises(IntegrityError, match="is damaged"):
        folder.require_ours(wanted)
    with pytest.raises(UsageError, match="is a file"):
        GridFolder(folder.grid).stored()
