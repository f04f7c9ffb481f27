"""ablate on the command line: every option reaches the stage, and failed cells are an exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stage_stubs

from teachonce.cluster.description import ClusterSpec
from teachonce.stages.ablate import AblateRequest

LINE = "ablate grid.toml --labels x.zarr --student S --out grid"


@pytest.mark.parametrize(
    ("more", "made"),
    [
        ("", {}),
        (
            "--dry-run --root data --workers 3",
            {"dry_run": True, "root": Path("data"), "cluster": ClusterSpec(workers=3)},
        ),
        (
            "--retry-failed --scheduler tcp://h:1 --force-unlock",
            {"retry_failed": True, "force_unlock": True, "cluster": ClusterSpec(scheduler="tcp://h:1")},
        ),
        ("--cluster c.toml", {"cluster": ClusterSpec(file=Path("c.toml"))}),
    ],
)
def test_every_option_reaches_the_stage(
    more: str, made: dict[str, Any], stubs: stage_stubs.Stubs, teachonce_here: Callable[..., Any]
) -> None:
    ended = teachonce_here(*LINE.split(), *more.split())
    given: dict[str, Any] = {"cluster": ClusterSpec(), **made}
    assert stubs.requests == [
        AblateRequest(grid=Path("grid.toml"), labels=Path("x.zarr"), student="S", out=Path("grid"), **given)
    ]
    assert ended.code == 5 and "the loss became nan" in ended.out


def test_two_ways_to_workers_are_refused(teachonce_here: Callable[..., Any]) -> None:
    ended = teachonce_here(*LINE.split(), "--workers", "2", "--scheduler", "tcp://h:1")
    assert ended.code == 2 and "exclude each other" in ended.err


def test_the_document_has_the_counts(teachonce_here: Callable[..., Any]) -> None:
    document = teachonce_here(*LINE.split(), "--json").document
    assert document["cells"] == {"finished": 3, "failed": 1, "skipped": 2, "missing": 0, "damaged": 0}
    assert document["command"] == "ablate" and document["schema"] == 1
