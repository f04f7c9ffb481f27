"""results.json of a run: read into the dataclass that wrote it, whichever version that was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from teachonce.core.documents import sealed
from teachonce.runs.folder import RunFolder
from teachonce.runs.results import RunResults

WRITTEN: dict[str, Any] = {  # by version 0.1, with these keys in this order
    "schema": 1,
    "steps": 8,
    "trainable_parameters": 3072,
    "seconds": 1.243,
    "final_loss": 5.515044784545898,
    "held_out_top1": None,
    "out": "runs/after",
    "prompts_digest": "cca806c2",
    "store_id": "be225bba",
    "student_digest": "7b3283c5",
    "student_tokenizer": "0f1e",
    "student_preprocess": "2d3c",
    "student_structure": None,
    "selection_digest": "all rows",
    "vocabulary_digest": "751af688",
    "start": "of the config",
}


def folder_with(place: Path, document: dict[str, Any]) -> RunFolder:
    """A run folder that holds nothing but these results."""
    run = RunFolder(place)
    run.results.write_text(json.dumps(document, indent=1) + "\n")
    return run


def test_results_that_were_read_are_written_back_byte_for_byte(tmp_path: Path) -> None:
    run = folder_with(tmp_path, sealed(WRITTEN | {"log": {"bytes": 7, "sha256": "abc"}}))
    before, results = run.results.read_bytes(), run.read_results()
    assert results is not None and (results.steps, results.held_out_top1, results.store_id) == (8, None, "be225bba")
    run.write_results(results)
    assert run.results.read_bytes() == before


def test_results_of_earlier_and_later_versions_are_read(tmp_path: Path) -> None:
    """What is not there has its default; what is not known is passed over."""
    few = {key: WRITTEN[key] for key in ("schema", "steps", "trainable_parameters", "seconds")}
    assert folder_with(tmp_path, few).read_results() == RunResults(steps=8, trainable_parameters=3072, seconds=1.243)
    more = folder_with(tmp_path, WRITTEN | {"energy_joules": 7}).read_results()
    assert more == folder_with(tmp_path, WRITTEN).read_results() is not None


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"steps": None},
        {"steps": "8"},
        {"trainable_parameters": True},
        {"seconds": float("nan")},
        {"final_loss": float("inf")},
        {"held_out_top1": "high"},
        {"prompts_digest": 7},
    ],
)
def test_results_that_no_run_writes_are_none(change: dict[str, Any], tmp_path: Path) -> None:
    assert folder_with(tmp_path, WRITTEN | change).read_results() is None
