"""relabel, merge, subset and audit on the command line: options reach their stage, and mistakes are refused early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stage_stubs

from teachonce.stages.audit import AuditRequest
from teachonce.stages.merge import MergeRequest
from teachonce.stages.relabel import RelabelRequest
from teachonce.stages.subset import SubsetRequest


@pytest.mark.parametrize(
    ("line", "request_made"),
    [
        ("relabel a.zarr --labels b.zarr", RelabelRequest(parent=Path("a.zarr"), labels=Path("b.zarr"))),
        (
            "relabel a.zarr --labels b.zarr --vocabulary v.tsv --template one_{} --template two_{} --top-k 7 "
            "--temperatures 1,2,0.5 --classes c.txt --teacher RN50/openai --root data --force-unlock --set threads=2",
            RelabelRequest(
                parent=Path("a.zarr"),
                labels=Path("b.zarr"),
                vocabulary="v.tsv",
                templates=("one_{}", "two_{}"),
                top_k=7,
                temperatures=(1.0, 2.0, 0.5),
                classes=Path("c.txt"),
                teacher="RN50/openai",
                root=Path("data"),
                threads=2,
                force_unlock=True,
            ),
        ),
        (
            "relabel a.zarr --labels b.zarr --prompts runs/x --per-sample-temperature 1.5 --prior balanced",
            RelabelRequest(
                parent=Path("a.zarr"), labels=Path("b.zarr"), prompts=Path("runs/x"), entropy=1.5, prior="balanced"
            ),
        ),
        (
            "relabel a.zarr --labels b.zarr --label-noise 0.4 --noise-seed 3",
            RelabelRequest(parent=Path("a.zarr"), labels=Path("b.zarr"), label_noise=0.4, noise_seed=3),
        ),
        (
            "relabel a.zarr --labels b.zarr --head runs/x",
            RelabelRequest(parent=Path("a.zarr"), labels=Path("b.zarr"), head=Path("runs/x")),
        ),
        (
            "merge a.zarr b.zarr --labels ab.zarr --weights margin",
            MergeRequest(parents=(Path("a.zarr"), Path("b.zarr")), labels=Path("ab.zarr"), row_weights="margin"),
        ),
        (
            "merge a.zarr b.zarr --labels ab.zarr",
            MergeRequest(parents=(Path("a.zarr"), Path("b.zarr")), labels=Path("ab.zarr")),
        ),
        (
            "merge a.zarr b.zarr c.zarr --labels x.zarr --weights 1,2,0.5 --top-k 9 --set calibrate=false "
            "--set threads=1 --force-unlock",
            MergeRequest(
                parents=(Path("a.zarr"), Path("b.zarr"), Path("c.zarr")),
                labels=Path("x.zarr"),
                weights=(1.0, 2.0, 0.5),
                top_k=9,
                calibrate=False,
                threads=1,
                force_unlock=True,
            ),
        ),
        (
            "audit a.zarr",
            AuditRequest(labels=Path("a.zarr")),
        ),
        (
            "audit a.zarr --out x.html --root data --against b.zarr --against-root new --confidence 0.8",
            AuditRequest(
                labels=Path("a.zarr"),
                out=Path("x.html"),
                root=Path("data"),
                against=Path("b.zarr"),
                against_root=Path("new"),
                confidence=0.8,
            ),
        ),
        (
            "subset a.zarr --out clean.json --clean audit.csv",
            SubsetRequest(labels=Path("a.zarr"), out=Path("clean.json"), clean=Path("audit.csv")),
        ),
        (
            "subset a.zarr --out few.json --shots 16",
            SubsetRequest(labels=Path("a.zarr"), out=Path("few.json"), shots=16),
        ),
        (
            "subset a.zarr --out few.json --shots 2 --seed 3 --top-k 4 --classes c.txt",
            SubsetRequest(labels=Path("a.zarr"), out=Path("few.json"), shots=2, seed=3, top_k=4, classes=Path("c.txt")),
        ),
    ],
)
def test_options_reach_the_stage(
    line: str, request_made: Any, stubs: stage_stubs.Stubs, teachonce_here: Callable[..., Any]
) -> None:
    ended = teachonce_here(*line.split(), "--json")
    assert ended.code == 0 and stubs.requests == [request_made]
    assert ended.document["command"] == line.split()[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("relabel a.zarr", "--labels"),
        ("relabel a.zarr --labels b.zarr --temperatures 1,two", "--temperatures 1,two: expected numbers"),
        ("relabel a.zarr --labels b.zarr --temperatures ", "expected numbers"),
        ("relabel a.zarr --labels b.zarr --top-k 0", "top-k"),
        ("relabel a.zarr --labels b.zarr --set threads=0", "threads must be at least 1"),
        ("merge --labels b.zarr", "A.zarr"),
        ("merge a.zarr b.zarr --labels c.zarr --weights 1;2", "--weights 1;2: expected numbers"),
        ("merge a.zarr b.zarr --labels c.zarr --weights margn", "did you mean 'margin'"),
        ("relabel a.zarr --labels b.zarr --per-sample-temperature warm", "per-sample-temperature"),
        ("merge a.zarr b.zarr --labels c.zarr --set calibrat=false", "did you mean 'calibrate'"),
        ("merge a.zarr b.zarr --labels c.zarr --set calibrate=1", "expected bool"),
        ("subset a.zarr --shots 1", "--out"),
        ("subset a.zarr --out few.json --shots 0", "shots"),
        ("subset a.zarr --out few.json --shots 1 --seed -1", "seed"),
    ],
)
def test_a_wrong_option_is_refused(
    line: str, message: str, stubs: stage_stubs.Stubs, teachonce_here: Callable[..., Any]
) -> None:
    ended = teachonce_here(*line.split(" "))
    assert ended.code == 2 and stubs.requests == []
    assert message in ended.err
