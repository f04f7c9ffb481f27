"""The documents of a grid: read into the dataclasses that wrote them, whichever version that was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teachonce.core.documents import SEAL, sealed
from teachonce.errors import IntegrityError, UsageError
from teachonce.phrases import Phrase, phrase
from teachonce.runs.grid_documents import (
    CellDocument,
    Choice,
    GridResults,
    decode_failure,
    decode_grid,
    decode_grid_results,
)
from teachonce.runs.grid_folder import GridFolder, write_document
from teachonce.search.tables import Choose, DataKeys

CELL: dict[str, Any] = {  # as version 0.1 wrote the documents, with these keys in this order
    "digest": "53e2e86383b10e52",
    "name": "structure=shared seed=1",
    "group": "structure=shared",
    "changes": {"structure": "shared"},
    "seed": 1,
    "is_base": False,
    "config": {"structure": "shared", "learning_rate": 0.03, "steps": 6, "tf32": False},
    "data": {
        "top_k": 0,
        "shots": 0,
        "shots_seed": 0,
        "classes": "",
        "all_names": False,
        "vocabulary": "",
        "template": [],
    },
    "prompts": None,
    "no_effect": ["momentum has no effect with optimizer = 'adamw'"],
}
GRID: dict[str, Any] = {
    "schema": 1,
    "title": "small",
    "question": "does it read?",
    "design": "one-factor",
    "grid_digest": "9cb7432997e13e02",
    "labels": "b0/labels.zarr",
    "store_id": "be225bba",
    "content_id": "1317ea8a",
    "student": "local-dir:student",
    "student_digest": "7b3283c5",
    "student_behaviour": {"tokenizer": "0a1b"},
    "base": {"structure": "unshared", "learning_rate": 0.03, "data.template": []},
    "axes": {"seed": [1, 2], "structure": ["unshared", "shared"]},
    "cells": [CELL],
    "evaluations": [
        {
            "name": "val",
            "manifest": "demo",
            "split": "val",
            "vocabulary": None,
            "classes": None,
            "among": "classes",
            "without": None,
            "template": None,
            "wise": 1.0,
            "root": None,
            "protocol": None,
            "only": "",
        }
    ],
    "choose": {"by": "held_out", "weights": {}, "metric": "top1"},
}
CHOICE: dict[str, Any] = {
    "group": "base",
    "value": 0.35411799065420557,
    "by": {"held_out": 1.0},
    "metric": "top1",
    "figures": {"held_out": 0.35411799065420557},
    "cells": ["53d0c112b82545eb", "6b02340bec90e071"],
    "ranking": {"base": 0.35411799065420557, "structure=shared": 0.34684092679127726},
}
RESULTS: dict[str, Any] = {
    "schema": 1,
    "cells": {"finished": 4, "failed": 0, "missing": 0, "damaged": 0, "skipped": 0},
    "failures": [{"name": "x seed=1", "digest": "53e2", "message": "the loss is NaN", "hint": "a lower rate"}],
    "chosen": CHOICE,
    "final": [
        {
            "evaluation": "test",
            "group": "base",
            "seed": 1,
            "digest": "53d0c112b82545eb",
            "top1": None,
            "file": "final/test-53d0c112b82545eb.json",
        }
    ],
    "seconds": 75.40454596299969,
    "out": "old/grid",
    "next": "teachonce show old/grid",
    "earlier_choices": [CHOICE | {"group": "structure=shared"}],
    "log": {"bytes": 12, "sha256": "e10ac0c5"},
}
FAILURE: dict[str, Any] = {
    "schema": 1,
    "kind": "UsageError",
    "message": "no",
    "hint": "give another `out`",
    "parts": {"message": ["no"], "hint": ["give another ", ["out", "", "name"]]},
    "ours": True,
    "time": 1764476132.5,
}


def written(file: Path, document: dict[str, Any]) -> bytes:
    """What `ablate` leaves in a file."""
    write_document(file, document)
    return file.read_bytes()


def test_documents_that_were_read_are_written_back_byte_for_byte(tmp_path: Path) -> None:
    grid = decode_grid(GRID, "grid.json")
    results = decode_grid_results(RESULTS, "results.json")
    for before, after in (
        (GRID, grid.document()),
        ({"schema": 1, **CELL}, grid.cells[0].document()),
        (RESULTS, results.document()),
    ):
        assert written(tmp_path / "after", after) == written(tmp_path / "before", before)
    assert (grid.cells[0].data, grid.choose) == (DataKeys(), Choose(by="held_out"))
    assert [choice.group for choice in results.choices()] == ["structure=shared", "base"]


def test_a_failure_is_read_with_the_options_that_it_names(tmp_path: Path) -> None:
    cell = GridFolder(tmp_path).cell("a")
    failure = cell.fail(UsageError("no", hint=phrase("give another {out}, or {resume}")))
    before = cell.failure.read_bytes()
    assert cell.read_failure() == failure
    assert isinstance(failure.hint, Phrase) and written(cell.failure, failure.document()) == before
    assert list(json.loads(before)) == [*FAILURE, SEAL]


@pytest.mark.parametrize("decode", [decode_grid, decode_grid_results, decode_failure])
def test_documents_with_a_digest_are_read_and_changed_ones_refused(decode: Callable[..., Any]) -> None:
    document = {decode_grid: GRID, decode_grid_results: RESULTS, decode_failure: FAILURE}[decode]
    assert decode(sealed(document), "x") == decode(document, "x")
    with pytest.raises(IntegrityError, match=r"x is"):
        decode(sealed(document) | {"seconds": 1.0, "title": "t", "kind": "k"}, "x")


def test_documents_of_earlier_and_later_versions_are_read() -> None:
    """What is not there has its default, and what is not known is passed over, in the tables inside too."""
    cell = {"digest": "a", "name": "base seed=0", "group": "base"}
    grid = decode_grid({"schema": 1, "cells": [cell]}, "grid.json")
    assert grid.cells == (CellDocument(digest="a", name="base seed=0", group="base"),)
    assert (grid.content_id, grid.evaluations, grid.choose) == (None, (), None)
    later = GRID | {"cells": [CELL | {"colour": "red"}], "evaluations": [GRID["evaluations"][0] | {"fast": True}]}
    assert decode_grid(later | {"energy": 7}, "grid.json") == decode_grid(GRID, "grid.json")
    assert decode_grid_results({"schema": 1, "cells": {}}, "results.json") == GridResults()
    assert decode_failure({"message": "diverged"}, "failure.json").message == "diverged"


@pytest.mark.parametrize("damage", [{"cells": 3, "by": []}, {"value": "high"}, {"ranking": None}])
def test_of_a_choice_that_is_not_whole_the_setting_is_known(damage: dict[str, Any]) -> None:
    results = decode_grid_results(RESULTS | {"chosen": CHOICE | damage, "earlier_choices": [{"group": "a"}]}, "x")
    assert results.choices() == (Choice(group="a"), Choice(group="base"))


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        GRID | {"schema": 2},
        GRID | {"cells": None},
        GRID | {"cells": [3]},
        GRID | {"cells": [CELL | {"digest": 7}]},
        GRID | {"evaluations": [{"name": "val"}]},
        GRID | {"title": 7},
        {key: value for key, value in GRID.items() if key != "cells"},
    ],
)
def test_a_damaged_grid_names_its_file(document: Any) -> None:
    with pytest.raises(IntegrityError, match=r"^there/grid\.json is damaged: it is not what `ablate` writes") as caught:
        decode_grid(document, "there/grid.json")
    assert "restore it" in caught.value.hint


@pytest.mark.parametrize("change", [{"schema": 2}, {"message": 7}, {"hint": None}, {"time": "noon"}])
def test_a_damaged_failure_names_its_file(change: dict[str, Any]) -> None:
    """An early version wrote no parts; its texts are read as they are."""
    early = {key: value for key, value in FAILURE.items() if key != "parts"}
    assert decode_failure(early, "there/failure.json").hint == "give another `out`"
    with pytest.raises(IntegrityError, match=r"there/failure\.json"):
        decode_failure(early | change, "there/failure.json")


@pytest.mark.parametrize("change", [{"schema": 2}, {"cells": 4}, {"failures": [{}]}, {"final": 1}, {"seconds": "long"}])
def test_damaged_results_name_their_file_and_count_as_none(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"there/results\.json"):
        decode_grid_results(RESULTS | change, "there/results.json")
    folder = GridFolder(tmp_path)
    write_document(folder.results, RESULTS | change)
    assert folder.read_results() is None
