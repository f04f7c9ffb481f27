"""What a command hands to its stage, and how the result looks to a program and to a person.

Stages are stubs: nothing here computes.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prompt_stubs
import pytest
import stage_stubs
import store_stubs
from requests_of import evaluate_request, protocol_request, teach_request

from teachonce.core.documents import SEAL, is_as_written
from teachonce.recipe.config import TrainConfig
from teachonce.recipe.config_file import flat
from teachonce.stages.cache import CacheRequest
from teachonce.stages.demo import DemoRequest
from teachonce.stages.plan import PlanRequest

Command = Callable[..., Any]

LINES = {
    "teach": ("teach", "m.toml", "--labels", "x.zarr"),
    "inspect": ("inspect", "x.zarr"),
    "verify": ("verify", "x.zarr"),
    "train": ("train", "x.zarr", "--student", "S", "--out", "run"),
    "evaluate": ("evaluate", "--student", "S", "--manifest", "m.toml"),
    "import": ("import", "model.pth.tar-50", "--student", "S", "--out", "runs/coop"),
    "status": ("status", "run"),
    "cache": ("cache", "list", "x.zarr"),
    "demo": ("demo",),
    "doctor": ("doctor", "--path", "x"),
}


@pytest.mark.parametrize("name", sorted(LINES))
def test_json_is_one_document_with_all_of_the_result(name: str, teachonce_here: Command) -> None:
    ended = teachonce_here(*LINES[name], "--json")
    result = stage_stubs.result_of(name)()
    assert ended.code == 0
    assert ended.document["schema"] == 1
    assert ended.document["command"] == name
    digest = {SEAL} if name == "evaluate" else set()  # its document is laid down beside runs
    assert set(ended.document) == {"schema", "command"} | digest | {field.name for field in dataclasses.fields(result)}
    assert is_as_written(ended.document)


def test_json_has_no_values_that_json_does_not_know(teachonce_here: Command) -> None:
    assert teachonce_here(*LINES["train"], "--json").document["final_loss"] is None
    assert teachonce_here(*LINES["train"], "--json").document["out"] == "run"
    assert teachonce_here(*LINES["inspect"], "--json").document["statistics"] == {"entropy": None}
    assert teachonce_here(*LINES["evaluate"], "--json").document["top1_interval"] == [0.55, 0.69]


def test_json_knows_the_scalars_of_numpy(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    np = pytest.importorskip("numpy")
    stubs.result = prompt_stubs.EvaluateResult(top1=np.float32(0.5), n=np.int64(7))
    document = teachonce_here(*LINES["evaluate"], "--json").document
    assert (document["top1"], document["n"]) == (0.5, 7)


@pytest.mark.parametrize("flags", [(), ("--json",), ("--quiet",)], ids=str)
def test_prints_of_libraries_and_children_do_not_reach_stdout(
    flags: tuple[str, ...], teachonce_here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_ACT", "print")
    ended = teachonce_here(*LINES["demo"], *flags)
    assert "prints" not in ended.out
    assert "a library prints" in ended.err
    assert "a child prints" in ended.err


def test_people_see_percent_programs_see_fractions(teachonce_here: Command) -> None:
    text = teachonce_here(*LINES["evaluate"]).out
    assert "62.50%" in text
    assert "55.00%, 69.00%" in text
    assert teachonce_here(*LINES["evaluate"], "--json").document["top1"] == 0.625
    assert "75.00%" in teachonce_here(*LINES["demo"]).out


def test_text_from_data_is_not_taken_for_markup(teachonce_here: Command) -> None:
    text = teachonce_here(*LINES["inspect"]).out
    assert "[red]a.jpg" in text
    assert "tench, eel" in text
    assert "fingerprint.teacher.precision" in text


@pytest.mark.parametrize("code", [4, 5])
def test_verify_lists_faults_and_ends_with_its_code(
    code: int, teachonce_here: Command, stubs: stage_stubs.Stubs
) -> None:
    fault = store_stubs.Fault(where="labels chunk 2", expected="ab12", found="cd34")
    stubs.result = store_stubs.VerifyResult(ok=False, faults=(fault,), exit_code=code)
    ended = teachonce_here(*LINES["verify"])
    assert ended.code == code
    assert all(word in ended.out for word in ("labels chunk 2", "ab12", "cd34"))
    ended = teachonce_here(*LINES["verify"], "--json")
    assert ended.code == code
    assert ended.document["faults"] == [{"where": "labels chunk 2", "expected": "ab12", "found": "cd34"}]


def test_verify_repairs_only_when_asked(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    teachonce_here(*LINES["verify"])
    teachonce_here(*LINES["verify"], "--repair")
    assert [request.repair for request in stubs.requests] == [False, True]


def test_eval_is_evaluate(teachonce_here: Command) -> None:
    ended = teachonce_here("eval", *LINES["evaluate"][1:], "--json")
    assert ended.document["command"] == "evaluate"


@pytest.mark.parametrize("line", [("teach", "m.toml"), ("teach", "--manifest", "m.toml")])
def test_the_manifest_is_given_either_way(
    line: tuple[str, ...], teachonce_here: Command, stubs: stage_stubs.Stubs
) -> None:
    assert teachonce_here(*line, "--labels", "x.zarr").code == 0
    assert stubs.requests[-1] == teach_request(manifest="m.toml", root=None, labels=Path("x.zarr"), teacher=None)


def test_the_manifest_is_given_once(teachonce_here: Command) -> None:
    assert teachonce_here("teach", "m.toml", "--manifest", "m.toml", "--labels", "x.zarr").code == 2
    assert teachonce_here("teach", "--labels", "x.zarr").code == 2


def test_index_hands_every_option_on_and_ends_with_its_code(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    fault = {"split": "val", "where": "[a].tar", "expected": "7 archives", "found": "6"}
    stubs.result = store_stubs.IndexResult(faults=(fault,), exit_code=3)
    ended = teachonce_here("index", "m", "--root", "data", "--split", "val", "--digests")
    assert ended.code == 3 and "[a].tar" in ended.out and "7 archives" in ended.out
    asked = stubs.requests[-1]
    assert (asked.manifest, asked.root, asked.split, asked.digests) == ("m", Path("data"), "val", True)
    stubs.result = None
    assert teachonce_here("index", "--manifest", "m", "--root", "data").code == 0
    assert (stubs.requests[-1].split, stubs.requests[-1].digests) == (None, False)


def test_teach_hands_every_option_on(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    line = "teach m --root data --split val --labels x.zarr --teacher T --student A --student B --vocabulary V"
    line += " --template {} --top-k 5 --embeddings float16 --workers 2 --chunk-rows 64 --force-unlock"
    line += " --set threads=1 --set batch_size=8 --set precision=bf16 --set max_failed_share=0.5"
    assert teachonce_here(*line.split()).code == 0
    assert stubs.requests[-1] == teach_request(
        manifest="m",
        root=Path("data"),
        split="val",
        labels=Path("x.zarr"),
        teacher="T",
        students=("A", "B"),
        vocabulary="V",
        templates=("{}",),
        top_k=5,
        embeddings="float16",
        workers=2,
        threads=1,
        batch_size=8,
        chunk_rows=64,
        precision="bf16",
        max_failed_share=0.5,
        force_unlock=True,
    )


@pytest.mark.parametrize(("flag", "half"), [("--dry-run-io", "images"), ("--dummy-images", "models")])
def test_teach_rehearses_half_of_it(flag: str, half: str, teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    line = f"teach m --root data --labels x.zarr --teacher T {flag} --set rehearsal_seconds=5"
    assert teachonce_here(*line.split()).code == 0
    request, asked, seconds = stubs.requests[-1]
    assert (request.teacher, asked, seconds) == ("T", half, 5.0)
    both = teachonce_here(*line.split(), "--dry-run-io", "--dummy-images")
    assert both.code == 2 and "exclude each other" in both.err
    assert teachonce_here(*line.replace("=5", "=0").split()).code == 2


def test_plan_takes_what_teach_takes(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    line = "m --root data --split val --labels x.zarr --teacher T --student A --vocabulary V --template {} --top-k 5"
    line += " --embeddings int8 --workers 2 --chunk-rows 64 --views 2 --shots 4 --set threads=1 --set batch_size=8"
    assert teachonce_here("teach", *line.split()).code == 0
    assert teachonce_here("plan", *line.split(), "--rate", "90", "--out", "p.json").code == 0
    taught, planned = stubs.requests[-2:]
    assert planned == PlanRequest(teach=taught, rate=90.0, seconds=30.0, out=Path("p.json"))
    stubs.result = store_stubs.PlanResult(fits=False, exit_code=6)
    ended = teachonce_here("plan", *line.split(), "--json")
    assert ended.code == 6 and json.loads(ended.out)["fits"] is False
    stubs.result = None
    assert teachonce_here("plan", "--labels", "x.zarr", "--compare", "p.json").code == 0
    assert stubs.requests[-1] == (Path("p.json"), Path("x.zarr"))


def test_evaluate_hands_every_option_on(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    line = "evaluate run --student S --manifest m --root data --split test --vocabulary V --template {}"
    line += " --wise 0.25 --classes novel --among all --without held.tsv --per-class c.csv --credits c.npy"
    line += " --set batch_size=4 --set threads=2 --set cache=false"
    assert teachonce_here(*line.split()).code == 0
    assert stubs.requests[-1] == evaluate_request(
        run=Path("run"),
        student="S",
        manifest="m",
        root=Path("data"),
        split="test",
        vocabulary="V",
        template="{}",
        wise=0.25,
        classes="novel",
        among="all",
        without=Path("held.tsv"),
        per_class=Path("c.csv"),
        credits=Path("c.npy"),
        cache=False,
        batch_size=4,
        threads=2,
    )
    assert teachonce_here("evaluate", "--student", "S", "--manifest", "m").code == 0
    assert stubs.requests[-1] == evaluate_request(run=None, student="S", manifest="m", root=None)


def test_a_protocol_is_another_stage_with_its_own_exit_code(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    line = "evaluate run --student S --protocol p --root data --manifest m --split test --classes base --without w.tsv"
    line += " --vocabulary V --template {} --wise 0.5 --per-class c --credits d --skip-missing --set cache=false"
    ended = teachonce_here(*line.split())
    assert ended.code == 5 and "-50.00%" in ended.out and "1.2345" not in ended.out
    assert stubs.requests[-1] == protocol_request(
        protocol="p",
        run=Path("run"),
        student="S",
        root=Path("data"),
        manifest="m",
        split="test",
        vocabulary="V",
        classes="base",
        without=Path("w.tsv"),
        template="{}",
        wise=0.5,
        per_class=Path("c"),
        credits=Path("d"),
        skip_missing=True,
        cache=False,
    )
    assert teachonce_here(*line.split(), "--json").document["details"] == {"pets": {"nll": 1.2345}}


@pytest.mark.parametrize(
    ("line", "word"),
    [("--protocol p --among all", "--among"), ("--manifest m --skip-missing", "--skip-missing"), ("", "--protocol")],
)
def test_evaluate_takes_a_manifest_or_a_protocol(line: str, word: str, teachonce_here: Command) -> None:
    ended = teachonce_here("evaluate", "--student", "S", *line.split())
    assert ended.code == 2 and word in ended.err


def test_train_flags_win_over_set_and_set_over_the_file(
    teachonce_here: Command, stubs: stage_stubs.Stubs, tmp_path: Path
) -> None:
    file = tmp_path / "c.toml"
    file.write_text("steps = 7\nseed = 7\nbatch_size = 7\n")
    line = ("--config", str(file), "--set", "steps=8", "--set", "seed=8", "--set", "threads=2")
    flags = ("--seed", "9", "--structure", "shared", "--supervision", "hard", "--resume")
    assert teachonce_here(*LINES["train"], *line, *flags).code == 0
    request = stubs.requests[-1]
    assert (request.threads, request.resume) == (2, True)
    assert request.config == TrainConfig.of(structure="shared", supervision="hard", batch_size=7, steps=8, seed=9)


def test_train_hands_on_what_the_store_must_be(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    line = "--select few.json --manifest m --split val --vocabulary V --root data --init first"
    assert teachonce_here(*LINES["train"], *line.split()).code == 0
    request = stubs.requests[-1]
    assert (request.selection, request.manifest, request.split) == (Path("few.json"), "m", "val")
    assert (request.vocabulary, request.root, request.init) == ("V", Path("data"), Path("first"))


def test_cache_takes_an_action_and_perhaps_a_store(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    for line in ("cache list", "cache clear x.zarr"):
        assert teachonce_here(*line.split()).code == 0
    assert stubs.requests == [
        CacheRequest(action="list"),
        CacheRequest(action="clear", labels=Path("x.zarr")),
    ]
    assert teachonce_here("cache").code == 2


def test_demo_hands_every_option_on(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    assert teachonce_here("demo").code == 0
    assert stubs.requests[-1] == DemoRequest(out=Path("teachonce-demo"))
    assert teachonce_here("demo", "--out", "d", "--seeds", "2", "--workers", "2", "--train-models", "t").code == 0
    assert stubs.requests[-1] == DemoRequest(out=Path("d"), seeds=2, workers=2, train_models=Path("t"))


def test_print_config_needs_no_store_and_reads_back(
    teachonce_here: Command, stubs: stage_stubs.Stubs, tmp_path: Path
) -> None:
    ended = teachonce_here("train", "--print-config", "--steps", "3")
    assert ended.code == 0
    assert flat(tomllib.loads(ended.out), "printed") == TrainConfig.of(steps=3).to_dict()
    (tmp_path / "c.toml").write_text(ended.out)
    again = teachonce_here("train", "--print-config", "--config", str(tmp_path / "c.toml"), "--json")
    assert again.document["config"] == TrainConfig.of(steps=3).to_dict()
    assert stubs.requests == []


def test_json_lines_append_to_one_file(teachonce_here: Command) -> None:
    out = teachonce_here(*LINES["evaluate"], "--json").out
    assert out.count("\n") == 1
    assert out.endswith("\n")
    assert json.loads(out)


@pytest.mark.parametrize("name", [name for name in stage_stubs.STAGES if name != "status"])  # three kinds of its own
def test_a_stand_in_says_nothing_that_the_real_result_does_not_say(name: str) -> None:
    module = importlib.import_module(f"teachonce.stages.{name}")
    real = getattr(module, stage_stubs.result_kind(name))
    said = {field.name for field in dataclasses.fields(stage_stubs.result_of(name))}
    assert said - {field.name for field in dataclasses.fields(real)} - set(dir(real)) == set()
