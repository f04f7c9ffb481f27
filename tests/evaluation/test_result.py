"""The document of `evaluate`: read into the dataclass that wrote it, whichever version that was."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from teachonce.core.documents import plain
from teachonce.errors import IntegrityError
from teachonce.evaluation.result import EvaluateResult, decode_result, read_result

WRITTEN: dict[str, Any] = {  # by version 0.1, with these keys in this order
    "top1": 0.60546875,
    "top5": 0.94140625,
    "macro": 0.60546875,
    "ece": 0.2747032218752422,
    "nll": None,
    "n": 256,
    "classes": 256,
    "classes_seen": 256,
    "top1_interval": [0.5444625234080491, 0.6633565068286498],
    "tied_names": 0,
    "failed": 0,
    "left_out": 0,
    "template": None,
    "run": "runs/unshared",
    "wise": 1.0,
    "baseline": {"top1": 0.56640625, "top5": 0.91796875, "nll": 1.6789492219686508, "template": "a photo of a {}."},
    "paired": {"only_prompts": 12, "only_template": 2, "n": 256, "p": 0.012939453125},
    "protocol": None,
    "manifest": "demo",
    "split": "val",
    "chosen": "all classes among all names (256)",
    "templates": ["a photo of a {}."],
    "names_digest": "751af688",
    "digests": {"student": "7b3283c5", "vocabulary": "751af688", "samples": "fd226f70", "prompts": "64c457cc"},
    "per_class": None,
    "credits": None,
    "confused": [{"class": "red star", "as": "red cross", "share": 1.0, "images": 1}],
    "schema": 1,
}


def test_a_result_that_was_read_is_written_back_byte_for_byte() -> None:
    """Also a figure that is no number, which a document has as null."""
    result = decode_result(WRITTEN, "val.json")
    again = plain(asdict(result))
    later = {"linear": None, "linear_why": ""}  # what a later version says besides
    assert {key: again.pop(key) for key in later} == later
    assert json.dumps(again) == json.dumps(WRITTEN)
    assert "nll" not in result.figures and result.figures["top1"] == 0.60546875
    assert result.template_figures == {"top1": 0.56640625, "top5": 0.91796875, "nll": 1.6789492219686508}


def test_results_of_earlier_and_later_versions_are_read() -> None:
    """The first version knew neither calibration nor digests of names; what is not known is passed over."""
    early = decode_result({"schema": 1, "command": "evaluate", "top1": 0.5, "n": 4, "digests": {"samples": "s"}}, "x")
    assert early.figures == {"top1": 0.5} and (early.templates, early.names_digest) == ((), "")
    assert asdict(decode_result(WRITTEN | {"joules": 7}, "x"))["paired"] == WRITTEN["paired"]


@pytest.mark.parametrize(
    "change",
    [{"schema": 2}, {"top1": "high"}, {"n": 0.5}, {"digests": ["x"]}, {"split": 7}, {"templates": "a {}."}],
)
def test_a_damaged_result_names_its_file(change: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match=r"there/val\.json") as caught:
        decode_result(WRITTEN | change, "there/val.json")
    assert "evaluate again" in caught.value.hint


def test_a_result_that_is_not_there_or_cut_short_is_none(tmp_path: Path) -> None:
    file = tmp_path / "val.json"
    assert read_result(file) is None
    file.write_text(json.dumps(WRITTEN)[:50])
    assert read_result(file) is None
    file.write_text(json.dumps(WRITTEN))
    assert isinstance(read_result(file), EvaluateResult)
