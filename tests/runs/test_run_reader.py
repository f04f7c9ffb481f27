"""Reading runs for a report: whole ones with their curves, all else with the reason that it does not count."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from grid_folders import PHOTOS, START, write_evaluation, write_run
from patience import seconds

from teachonce.core.documents import LogSeal, csv_bytes, sealed
from teachonce.core.sums import digest_of
from teachonce.evaluation.result_files import BESIDE, MeasuredOn, read_evaluation
from teachonce.runs.folder import RunFolder
from teachonce.runs.reader import Run, Unusable, read_run

UNCLOSED = b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4' \n"  # the bracket of its head is never closed


def readable(folder: Path) -> Run:
    """The run, which must be one."""
    read = read_run(folder, "run")
    assert isinstance(read, Run), read
    return read


def test_a_whole_run_gives_config_figures_and_curves(tmp_path: Path) -> None:
    run = readable(write_run(tmp_path / "run", seed=3, changes={"structure": "kv"}, top1=0.45, seconds=30.0))
    assert (run.seed, run.config["structure"], run.results.held_out_top1) == (3, "kv", 0.45)
    assert run.loss.steps.tolist() == list(range(5, 121, 5))
    assert run.loss.seconds == pytest.approx(run.loss.steps / 120 * 30.0, abs=1e-4)
    assert run.held_out.values[-1] == pytest.approx(0.45)
    assert (run.seconds, run.last_time, run.held_out_rows) == (30.0, START + 30.0, 900)


def test_time_between_a_stop_and_its_resume_does_not_count(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", seconds=40.0)
    lines = (folder / "events.jsonl").read_text().splitlines()
    before = json.loads(lines[9])["time"]
    lines.insert(10, json.dumps({"event": "pairing", "step": 40, "time": before + 5000}))
    later = [json.loads(line) for line in lines[11:]]
    shifted = [json.dumps(event | {"time": event["time"] + 5000}) for event in later]
    (folder / "events.jsonl").write_text("\n".join([*lines[:11], *shifted]) + "\n")
    assert readable(folder).loss.seconds[-1] == pytest.approx(40.0, abs=1e-3)


def test_torn_and_foreign_lines_of_a_log_are_passed_over(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    odd = ["[1]", '{"event": "step", "step": "five", "loss": 1}', '{"event": "step", "step": 300, "loss": NaN}']
    with (folder / "events.jsonl").open("a") as log:
        log.write("\n".join([*odd, '{"event": "st']))
    assert readable(folder).loss.steps[-1] == 120


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("results.json", None, "unfinished"),
        ("results.json", '{"schema": 1, "ste', "damaged"),
        ("results.json", '{"schema": 2, "steps": 3, "trainable_parameters": 1, "seconds": 1}', "damaged"),
        ("results.json", '{"schema": 1, "steps": 3, "trainable_parameters": "<b>", "seconds": 1}', "damaged"),
        ("results.json", "[]", "damaged"),
        ("config.toml", None, "unfinished"),
        ("config.toml", "steps = = 3", "damaged"),
        ("config.toml", "steps = 3\nseed = 0", "damaged"),
        ("config.toml", b"\xff\xfe", "damaged"),
        ("events.jsonl", None, "damaged"),
        ("events.jsonl", b"\xff", "damaged"),
        ("prompts.safetensors", None, "damaged"),
        ("prompts.safetensors", "changed by hand", "damaged"),
    ],
)
def test_what_is_not_whole_is_told_and_not_counted(
    name: str, content: str | bytes | None, kind: str, tmp_path: Path
) -> None:
    file = write_run(tmp_path / "run") / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    read = read_run(tmp_path / "run", "cell 1")
    assert isinstance(read, Unusable)
    assert (read.name, read.kind) == ("cell 1", kind)
    assert read.why


@pytest.mark.parametrize("name", ["config.toml", "results.json", "events.jsonl", "evaluations/val.csv"])
def test_a_pipe_in_place_of_a_file_is_told_and_not_waited_for(name: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_evaluation(folder / "evaluations/val.json", top1=0.5)
    assert readable(folder).evaluations["val"].classes
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with seconds(20):
        read = read_run(folder, "run")
    assert isinstance(read, Unusable) or (name.endswith(".csv") and not read.evaluations["val"].classes)


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "results.json").unlink()
    (folder / "failure.json").write_text(
        json.dumps({"schema": 1, "message": "the loss is NaN", "hint": "a lower rate"})
    )
    assert read_run(folder, "r") == Unusable("r", "failed", "the loss is NaN", "a lower rate")


def test_an_evaluation_comes_with_classes_and_the_credit_of_images(tmp_path: Path) -> None:
    file = tmp_path / "val.json"
    write_evaluation(file, top1=0.5)
    evaluation = read_evaluation(file, "val")
    assert evaluation is not None and evaluation.credits is not None and evaluation.template_credits is not None
    assert evaluation.figures["top1"] == pytest.approx(float(evaluation.credits.mean()))
    assert evaluation.template["top1"] == pytest.approx(float(evaluation.template_credits.mean()))
    assert evaluation.linear_credits is not None
    assert evaluation.linear["top1"] == pytest.approx(float(evaluation.linear_credits.mean()))
    assert np.mean([line.top1 for line in evaluation.classes]) == pytest.approx(evaluation.figures["macro"], abs=1e-4)
    assert all(line.template is not None for line in evaluation.classes)


@pytest.mark.parametrize("name", ["val.csv", "val.top1.npy", "val.template.top1.npy", "val.linear.top1.npy"])
@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", UNCLOSED, b"id,name\n1\n", b"\xff\xfe"])
def test_broken_files_beside_an_evaluation_leave_its_figures(name: str, content: bytes, tmp_path: Path) -> None:
    write_evaluation(tmp_path / "val.json", top1=0.5)
    (tmp_path / name).write_bytes(content)
    evaluation = read_evaluation(tmp_path / "val.json", "val")
    assert evaluation is not None and evaluation.n == PHOTOS
    assert evaluation.classes == () or name != "val.csv"


def test_credits_that_are_pickled_or_of_other_images_are_not_read(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "val.json", top1=0.5)
    np.save(tmp_path / "val.top1.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "val.template.top1.npy", np.ones(PHOTOS + 1, np.float32))
    evaluation = read_evaluation(tmp_path / "val.json", "val")
    assert evaluation is not None and evaluation.credits is None and evaluation.template_credits is None


@pytest.mark.parametrize("name", ["val.top1.npy", "val.template.top1.npy", "val.linear.top1.npy"])
def test_credits_that_are_not_of_the_recorded_figure_are_not_read(name: str, tmp_path: Path) -> None:
    """One image of 240 is more than rounding: another evaluation wrote the file, or another call of this one."""
    write_evaluation(tmp_path / "val.json", top1=0.5)
    credits = np.load(tmp_path / name)
    credits[np.flatnonzero(credits)[0]] = 0
    np.save(tmp_path / name, credits)
    evaluation = read_evaluation(tmp_path / "val.json", "val")
    assert evaluation is not None and len(evaluation.foreign) == 1 and name in evaluation.foreign[0]
    kept = (evaluation.credits, evaluation.template_credits, evaluation.linear_credits)
    assert [credits is None for credits in kept] == [name == f"val{ending}" for ending in list(BESIDE.values())[1:]]
    (tmp_path / name).unlink()  # what is not there is not damaged
    evaluation = read_evaluation(tmp_path / "val.json", "val")
    assert evaluation is not None and evaluation.foreign == ()


ODD = ("[" * 100_000, '{"schema": 1, "steps": 1%s}' % ("0" * 400), '{"schema": 1, "n": %s}' % ("9" * 5000))


@pytest.mark.parametrize("text", ODD, ids=["nested", "400 digits", "5,000 digits"])
@pytest.mark.parametrize("name", ["evaluations/val.json", "evaluations/val.csv", "events.jsonl", "failure.json"])
def test_a_damaged_file_costs_a_line_and_not_the_run(name: str, text: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_evaluation(folder / "evaluations/val.json", top1=0.5)
    write_evaluation(folder / "evaluations/pets.json", top1=0.5)
    if name == "events.jsonl":
        text = (folder / name).read_text() + text + "\n"
    (folder / name).write_text(text)
    run = readable(folder)
    assert "pets" in run.evaluations and run.loss.steps[-1] == 120
    sentences = [*run.damaged, *(why for evaluation in run.evaluations.values() for why in evaluation.foreign)]
    assert (len(sentences), all(Path(name).name in why for why in sentences)) == (name != "failure.json", True)


@pytest.mark.parametrize("name", ["results.json", "config.toml"])
@pytest.mark.parametrize("text", ODD, ids=["nested", "400 digits", "5,000 digits"])
def test_without_figures_or_config_a_run_is_listed_as_damaged(name: str, text: str, tmp_path: Path) -> None:
    (write_run(tmp_path / "run") / name).write_text(text if name == "results.json" else f"x = {text}")
    (tmp_path / "run/failure.json").write_text(text)
    read = read_run(tmp_path / "run", "r")
    assert isinstance(read, Unusable) and read.kind == "damaged"
    assert name in read.why and "failure.json is damaged" in read.why


def test_names_that_begin_like_a_formula_are_read_back_as_they_are(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "val.json", top1=0.5, names=("=1+1", "fox"))
    (tmp_path / "val.csv").write_bytes(csv_bytes([["id", "name", "n", "top1"], ["-x", "=1+1", 3, 0.5]]))
    evaluation = read_evaluation(tmp_path / "val.json", "val")
    assert evaluation is not None and [(line.id, line.name) for line in evaluation.classes] == [("-x", "=1+1")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"top1": 0.5}',
        '{"top1": "0.5", "n": 3}',
        '{"top1": NaN, "n": 3}',
        '{"top1": 0.5, "n": 3, "split": 7}',
        '{"top1": 0.5, "n": 3, "digests": ["x"]}',
    ],
)
def test_half_an_evaluation_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "val.json").write_text(text)
    assert read_evaluation(tmp_path / "val.json", "val") is None


def test_what_an_evaluation_was_measured_on_is_read_from_documents_of_any_version(tmp_path: Path) -> None:
    """Before there were several templates, the baseline named its one."""
    file = tmp_path / "val.json"
    document = {"top1": 0.5, "n": 4, "manifest": "m", "split": None, "baseline": {"template": "a {}."}}
    file.write_text(json.dumps(document))
    evaluation = read_evaluation(file, "val")
    assert evaluation is not None and evaluation.measured_on == MeasuredOn(manifest="m", templates=("a {}.",))
    file.write_text(json.dumps(document | {"templates": ["b {}.", "c {}."], "digests": {"samples": "s"}}))
    evaluation = read_evaluation(file, "val")
    assert evaluation is not None and evaluation.measured_on.templates == ("b {}.", "c {}.")
    assert evaluation.image_set == (4, "s", None)


def test_a_finished_run_says_which_of_its_files_was_changed(tmp_path: Path) -> None:
    """A changed evaluation or log costs one line and what it would say; changed results cost the run."""
    folder = write_run(tmp_path / "run", top1=0.45)
    write_evaluation(folder / "evaluations" / "val.json", top1=0.5)
    write_evaluation(folder / "evaluations" / "test.json", top1=0.6)
    files = RunFolder(folder)
    for name in ("val", "test"):
        file = files.evaluation(name)
        file.write_text(json.dumps(sealed(json.loads(file.read_text()))))
    results = files.read_results()
    assert results is not None
    files.write_results(dataclasses.replace(results, log=LogSeal.of(files.events)))
    assert readable(folder).damaged == () and len(readable(folder).evaluations) == 2
    files.evaluation("val").write_text(files.evaluation("val").read_text().replace('"top5": 0.8', '"top5": 0.9'))
    files.events.write_bytes(files.events.read_bytes().replace(b'"loss": ', b'"loss": 1', 1))
    run = readable(folder)
    assert list(run.evaluations) == ["test"] and run.results.held_out_top1 == 0.45
    assert [sentence.partition(" ")[0] for sentence in run.damaged] == ["events.jsonl", "evaluations/val.json"]
    assert len(run.loss.steps) == 0
    files.results.write_text(files.results.read_text().replace("0.45", "0.55"))
    damaged = read_run(folder, "run")
    assert isinstance(damaged, Unusable) and damaged.kind == "damaged" and "its digest differs" in damaged.why


@pytest.mark.parametrize("name", ["val.csv", "val.top1.npy", "val.template.top1.npy", "val.linear.top1.npy"])
def test_a_file_beside_an_evaluation_that_was_changed_is_not_read(name: str, tmp_path: Path) -> None:
    """Even where its mean is as it was."""
    file = tmp_path / "val.json"
    write_evaluation(file, top1=0.5)
    digests = {key: digest_of(tmp_path / f"val{ending}") for key, ending in BESIDE.items()}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"digests": digests}))
    whole = read_evaluation(file, "val")
    assert whole is not None and whole.classes and whole.credits is not None and whole.foreign == ()
    data = bytearray((tmp_path / name).read_bytes())
    data[-2:] = data[-2:][::-1] if name.endswith(".csv") else data[-2:]
    data[-1] ^= 1
    (tmp_path / name).write_bytes(data)
    changed = read_evaluation(file, "val")
    assert changed is not None and len(changed.foreign) == 1 and name in changed.foreign[0]
    parts = (changed.classes or None, changed.credits, changed.template_credits, changed.linear_credits)
    assert [part is None for part in parts] == [name == f"val{ending}" for ending in BESIDE.values()]
