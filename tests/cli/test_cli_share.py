"""The verbs `export` and `pack`: what they hand to their stages, and how mistakes end. The stages are stubs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stage_stubs

from teachonce.errors import EnvironmentFault, IncompleteError, IntegrityError
from teachonce.objects.remote import location
from teachonce.stages.export import ExportRequest
from teachonce.stages.pack import PackRequest
from teachonce.stages.pull import PullRequest
from teachonce.stages.push import PushRequest

Command = Callable[..., Any]


def test_all_options_of_export_reach_the_stage(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    line = ("--classes", "names.tsv", "--student", "S", "--licence", "mit", "--push", "me/mine")
    ended = teachonce_here("export", "run", "--out", "shared", *line, "--json")
    assert stubs.requests[-1] == ExportRequest(
        run=Path("run"), out=Path("shared"), classes="names.tsv", student="S", licence="mit", push="me/mine"
    )
    assert ended.document["command"] == "export" and ended.document["reloaded"] is True


def test_nothing_is_pushed_unless_asked(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    assert teachonce_here("export", "run", "--out", "shared").code == 0
    assert stubs.requests[-1] == ExportRequest(run=Path("run"), out=Path("shared"))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--out", "x.tar"], {"out": Path("x.tar")}),
        (["--check"], {"check": True}),
        (["--unpack", "--out", "d"], {"unpack": True, "out": Path("d")}),
    ],
)
def test_all_options_of_pack_reach_the_stage(
    options: list[str], wanted: dict[str, Any], teachonce_here: Command, stubs: stage_stubs.Stubs
) -> None:
    ended = teachonce_here("pack", "labels.zarr", *options, "--json")
    assert stubs.requests[-1] == PackRequest(source=Path("labels.zarr"), **wanted)
    assert ended.document["command"] == "pack" and ended.document["digest"] == "f00d"


def test_push_and_pull_hand_both_places_to_their_stages(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    ended = teachonce_here("push", "labels.zarr", "s3://bucket/labels.zarr", "--json")
    assert stubs.requests[-1] == PushRequest(labels=Path("labels.zarr"), target=location("s3://bucket/labels.zarr"))
    assert ended.document["command"] == "push" and ended.document["sent_files"] == 90
    ended = teachonce_here("pull", "s3://bucket/labels.zarr", "labels.zarr", "--json")
    assert stubs.requests[-1] == PullRequest(source=location("s3://bucket/labels.zarr"), labels=Path("labels.zarr"))
    assert ended.document["command"] == "pull" and ended.document["fetched_files"] == 90


@pytest.mark.parametrize(
    ("line", "suggestion"),
    [
        (["export", "run", "--out", "d", "--clases", "x"], "--classes"),
        (["pack", "x", "--chek"], "--check"),
        (["export", "run"], "--out"),
        (["pack"], "SOURCE"),
        (["exprt", "run"], "'export'"),
    ],
)
def test_a_misspelt_or_missing_word_is_a_usage_error(line: list[str], suggestion: str, teachonce_here: Command) -> None:
    ended = teachonce_here(*line)
    assert ended.code == 2 and ended.out == "" and suggestion in ended.err


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (IntegrityError("x was changed"), 4),
        (IncompleteError("3 chunks are missing"), 5),
        (EnvironmentFault("no hub"), 6),
    ],
)
def test_exit_codes(problem: Exception, code: int, teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    stubs.problem = problem
    for line in (("pack", "x", "--check"), ("export", "run", "--out", "d")):
        ended = teachonce_here(*line)
        assert ended.code == code and str(problem) in ended.err and ended.out == ""
