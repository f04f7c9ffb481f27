"""Training from a finished store: what is computed, what may vary, what survives an interruption, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import worlds
from safetensors import safe_open
from train_runs import STEPS, config, killed_before, run, steps_of

from teachonce.core.documents import SEAL, LogSeal, fault_of, read_events
from teachonce.core.progress import Silent
from teachonce.errors import DataError, FingerprintError, IncompleteError, IntegrityError, UsageError
from teachonce.labels.format import student_group
from teachonce.labels.store import LabelStore
from teachonce.recipe.config_file import load_train_config
from teachonce.runs import folder as run_folder
from teachonce.stages.train import TrainRequest, train


def prompts_bytes(out: Path) -> str:
    """SHA-256 of the trained prompts."""
    return hashlib.sha256((out / "prompts.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(finished: Path, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("train") / "whole"
    run(finished, student, out)
    return out


def test_the_first_loss_is_that_of_the_plain_template(finished: Path, student: str, tmp_path: Path) -> None:
    """At step 0 nothing is learned yet: hard loss equals CE of open_clip's own features over the same batch."""
    result = run(finished, student, tmp_path / "run", "supervision=hard", "batch_size=70", "steps=1")
    model, _ = open_clip.create_model_from_pretrained(student)
    tokenizer = open_clip.get_tokenizer(student)
    with torch.inference_mode():
        text = model.eval().encode_text(tokenizer([f"a photo of a {n}." for n in worlds.NAMES]), normalize=True)
    store = LabelStore.open(finished)
    group = next(name for name in store.groups if name != "labels")
    images = np.concatenate([store.read_chunk(group, c)[f"{group}/features"] for c in range(store.layout.chunks)])
    labels = np.concatenate([store.read_chunk("labels", c)["label"] for c in range(store.layout.chunks)])
    logits = float(model.logit_scale.detach().exp()) * images.astype(np.float64) @ text.double().numpy().T
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    matches = np.array([[n.lower() == worlds.NAMES[label].lower() for n in worlds.NAMES] for label in labels])
    expected = -np.log((np.exp(log_p) * matches).sum(1)).mean()  # classes that share the label's name count together
    assert result.final_loss == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "stop", [0, 4, 5, 17, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (1, 3, 6, 9, 10, 16))]
)
def test_a_killed_run_resumes_bit_for_bit(stop: int, whole: Path, finished: Path, student: str, tmp_path: Path) -> None:
    """First, last, both sides of a checkpoint and, slowly, epoch borders and others; then a second resume."""
    out = tmp_path / "run"
    for number, at in enumerate((stop, min(stop + 5, STEPS - 1))):
        with killed_before(at):
            run(finished, student, out, resume=number > 0)
    run(finished, student, out, resume=True)
    assert prompts_bytes(out) == prompts_bytes(whole)
    assert steps_of(out) == steps_of(whole)


@pytest.mark.parametrize(("structure", "expected"), [("shared", 4 * 32), ("unshared", 4 * 32 * (1 + 1 + 2 + 2))])
def test_only_the_prompts_are_trained(
    structure: str, expected: int, finished: Path, student: str, tmp_path: Path
) -> None:
    """The exact count (4 slots, width 32, 2 layers, no query in the last), and nothing else in the checkpoint."""
    result = run(finished, student, tmp_path / "run", f"structure={structure}", "optimizer=sgd")
    assert result.trainable_parameters == expected
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    with safe_open(newest, framework="pt") as opened:
        parameters = [opened.get_tensor(n).numel() for n in opened.keys() if n.startswith("parameter.")]  # noqa: SIM118
    assert sum(parameters) == expected


def test_chunks_of_classes_change_only_the_order_of_summation(
    whole: Path, finished: Path, student: str, tmp_path: Path
) -> None:
    """class_chunk bounds memory; the losses stay the same up to rounding."""
    run(finished, student, tmp_path / "run", "class_chunk=3")
    ours, theirs = ([step["loss"] for step in steps_of(out)] for out in (tmp_path / "run", whole))
    assert ours == pytest.approx(theirs, rel=2e-4)


@pytest.mark.parametrize(("rate", "steps"), [("1e30", 18), ("1e30", 1), ("1e25", 1)])
def test_a_run_that_diverges_keeps_its_last_good_checkpoint(
    rate: str, steps: int, finished: Path, student: str, tmp_path: Path
) -> None:
    """Also when only the very last update was too large: what is kept gives numbers, and resuming says so again."""
    out, wild = tmp_path / "run", (f"learning_rate={rate}", "warmup_steps=0", "optimizer=sgd", "checkpoint_every=1")
    for resume in (False, True):
        with pytest.raises(UsageError, match="nothing was updated|features that are not numbers") as caught:
            run(finished, student, out, *wild, f"steps={steps}", resume=resume)
        assert "learning_rate" in caught.value.hint
        assert not (out / "prompts.safetensors").exists() and not (out / "results.json").exists()
        newest = sorted((out / "checkpoints").iterdir())[-1]
        with safe_open(newest, framework="pt") as opened:
            kept = {name: opened.get_tensor(name) for name in opened.keys() if name.startswith("parameter.")}  # noqa: SIM118
        assert kept and all(bool(tensor.isfinite().all()) for tensor in kept.values())
        assert int(newest.stem.partition("-")[2]) == 0  # the first update is already too large


def test_an_infinite_loss_updates_nothing(finished: Path, student: str, tmp_path: Path) -> None:
    """NaN in the loss: the parameters and the optimiser keep their bits, whether the step is logged or not."""
    from teachonce.losses.row_losses import hard_rows

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UsageError, match="nothing was updated"):
        calls = []

        def broken(*given: Any) -> torch.Tensor:
            calls.append(1)
            return hard_rows(*given) * (float("nan") if len(calls) == 3 else 1.0)

        patch.setattr("teachonce.training.objective.hard_rows", broken)
        run(finished, student, tmp_path / "run", "checkpoint_every=1", "log_every=5", "supervision=hard")
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    assert newest.stem == "step-00000002"


def test_what_cannot_be_resumed_is_refused(whole: Path, finished: Path, student: str, tmp_path: Path) -> None:
    """Nothing there; another config; a folder that holds something; nothing is overwritten."""
    with pytest.raises(UsageError, match="nothing to resume"):
        run(finished, student, tmp_path / "none", resume=True)
    before = prompts_bytes(whole)
    with pytest.raises(FingerprintError, match="learning_rate: there 0.03, here 0.5"):
        run(finished, student, whole, "learning_rate=0.5", resume=True)
    with pytest.raises(UsageError, match="holds a run"):
        run(finished, student, whole)
    assert prompts_bytes(whole) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty and holds no run"):
        run(finished, student, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_run_killed_before_its_first_step_starts_again(
    whole: Path, finished: Path, student: str, tmp_path: Path
) -> None:
    """What it left without a config.toml holds nothing: the same command begins anew and gives the same prompts."""
    out = tmp_path / "run"
    with killed_before(0):
        run(finished, student, out)
    (out / "config.toml").unlink()
    run(finished, student, out)
    assert prompts_bytes(out) == prompts_bytes(whole)
    assert steps_of(out) == steps_of(whole)


def test_a_run_whose_config_is_lost_keeps_its_checkpoints(
    whole: Path, finished: Path, student: str, tmp_path: Path
) -> None:
    """Neither --resume nor a new start touches them."""
    out = tmp_path / "run"
    shutil.copytree(whole / "checkpoints", out / "checkpoints")
    shutil.copy(whole / "events.jsonl", out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    for resume in (True, False):
        with pytest.raises(IntegrityError, match=r"at step 18 whose config\.toml is lost"):
            run(finished, student, out, resume=resume)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_a_run_that_another_process_works_on_is_left_alone(
    whole: Path, finished: Path, student: str, tmp_path: Path
) -> None:
    """Also where it began while this one was loading; nothing is left of the lock."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for resume in (True, False):
        with run_folder.only_writer(out), pytest.raises(IncompleteError, match=f"process {os.getpid()} on"):
            run(finished, student, out, resume=resume)
    late = tmp_path / "late"
    real = run_folder.only_writer
    with pytest.MonkeyPatch.context() as patch, real(late), pytest.raises(IncompleteError):
        there = Path.exists
        patch.setattr(Path, "exists", lambda self, **more: self != late and there(self, **more))
        run(finished, student, late)
    assert not (out / run_folder.LOCK).exists() and list(late.iterdir()) == []


def test_resuming_a_finished_run_changes_nothing(whole: Path, finished: Path, student: str, tmp_path: Path) -> None:
    """The recorded result comes back; other prompts, or none, are written again."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    result = run(finished, student, out, resume=True)
    assert result.seconds == json.loads(before["results.json"])["seconds"] and result.out == str(out)
    assert {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()} == before
    (out / "prompts.safetensors").write_bytes(b"damaged")
    run(finished, student, out, resume=True)
    assert prompts_bytes(out) == prompts_bytes(whole)


def test_a_run_without_its_log_has_no_last_loss(whole: Path, finished: Path, student: str, tmp_path: Path) -> None:
    """null in results.json, which other programs can parse; the prompts are the same."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "events.jsonl").unlink()
    (out / "results.json").unlink()
    assert run(finished, student, out, resume=True).final_loss is None
    assert json.loads((out / "results.json").read_text())["final_loss"] is None
    assert prompts_bytes(out) == prompts_bytes(whole)


def test_seconds_are_those_of_all_calls(finished: Path, student: str, tmp_path: Path) -> None:
    """What was done up to the last checkpoint before a kill is in the sum."""
    out = tmp_path / "run"
    with killed_before(10):
        run(finished, student, out)
    earlier = sum(e["seconds"] for e in read_events(out / "events.jsonl") if e["event"] == "checkpoint")
    began = time.monotonic()
    result = run(finished, student, out, resume=True)
    assert 0 < earlier < result.seconds < earlier + time.monotonic() - began + 0.01


def test_prompts_that_do_not_fit_are_refused_by_folder_and_tower(
    whole: Path, finished: Path, student: str, tmp_path: Path
) -> None:
    """`--init` of a run with more letters than this one."""
    request = TrainRequest(
        labels=finished, student=student, out=tmp_path / "run", config=config("structure=shared"), threads=1, init=whole
    )
    with pytest.raises(UsageError, match=f"the prompts in {whole}, text tower: .*cannot start"):
        train(request, Silent())
    assert not (tmp_path / "run").exists()


def test_an_image_depth_out_of_range_is_called_by_its_key(
    world: Any, finished: Path, student: str, tmp_path: Path
) -> None:
    """Not `depth`, which is the text tower's."""
    request = TrainRequest(
        labels=finished,
        student=student,
        out=tmp_path / "run",
        threads=1,
        root=world.root,
        config=config("tower=image", "image_depth=9"),
    )
    with pytest.raises(UsageError, match="image_depth") as caught:
        train(request, Silent())
    assert caught.value.hint.startswith("set image_depth") and not (tmp_path / "run").exists()


def test_what_has_no_effect_is_told_and_logged(finished: Path, student: str, tmp_path: Path) -> None:
    """Keys that do nothing, and a warm-up that is never over."""
    notes, chosen = worlds.Notes(), config("momentum=0.5", "warmup_steps=50", "steps=2")
    train(TrainRequest(labels=finished, student=student, out=tmp_path / "run", config=chosen, threads=1), notes)
    text = "\n".join(notes.lines)
    assert "momentum has no effect" in text and "it never reaches 0.03" in text
    assert read_events(tmp_path / "run" / "events.jsonl")[0]["no_effect"] == chosen.without_effect() != []


def test_a_run_belongs_to_its_store(whole: Path, world: Any, teacher: str, student: str, tmp_path: Path) -> None:
    """Resuming on a store with other content is refused and names the store; the run stays as it was."""
    copy, other = tmp_path / "run", tmp_path / "other.zarr"
    shutil.copytree(whole, copy)
    worlds.teach_inline(world, other, teacher, students=(student,), top_k=4)
    before = {file.name: file.read_bytes() for file in copy.iterdir() if file.is_file()}
    with pytest.raises(FingerprintError, match="another store"):
        run(other, student, copy, resume=True)
    assert {file.name: file.read_bytes() for file in copy.iterdir() if file.is_file()} == before


def test_a_store_must_hold_what_the_config_needs(finished: Path, student: str, teacher: str, tmp_path: Path) -> None:
    """A temperature without a stored tail, and a student without stored features: refused with the way out."""
    with pytest.raises(UsageError, match=r"temperature = 3\.0.*1\.0, 2\.0, 4\.0"):
        run(finished, student, tmp_path / "a", "temperature=3")
    with pytest.raises(DataError, match="no image features of this student") as caught:
        run(finished, teacher, tmp_path / "b")
    assert "`student`" in caught.value.hint
    assert student_group("0" * 64) not in LabelStore.open(finished).groups


@pytest.mark.parametrize("lost", ["prompts.json", "prompts.safetensors", "results.json"])
def test_what_a_finished_run_has_lost_is_written_again(
    lost: str, whole: Path, finished: Path, student: str, tmp_path: Path
) -> None:
    """From its last checkpoint, the same bytes; results tell of the log as it is then."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / lost).unlink()
    result = run(finished, student, out, resume=True)
    assert prompts_bytes(out) == prompts_bytes(whole) == result.prompts_digest
    assert (out / "prompts.json").read_bytes() == (whole / "prompts.json").read_bytes()
    kept, again = (json.loads((folder / "results.json").read_text()) for folder in (whole, out))
    of_the_call: dict[str, Any] = {"out": "", "seconds": 0, "log": {}, SEAL: ""}
    assert again | of_the_call == kept | of_the_call
    assert fault_of(out / "results.json") == "" and LogSeal(**again["log"]).holds(out / "events.jsonl")


def test_the_run_folder_tells_all(whole: Path) -> None:
    """config.toml, events.jsonl, results.json and the prompts are there and agree."""
    results = json.loads((whole / "results.json").read_text())
    assert results["prompts_digest"] == prompts_bytes(whole)
    assert results["steps"] == STEPS == steps_of(whole)[-1]["step"]
    assert load_train_config(whole / "config.toml") == config().changed(precision="fp32")  # what auto became
    first = read_events(whole / "events.jsonl")[0]
    assert first["event"] == "start" and first["store_digest"] == results["store_id"]


@pytest.mark.parametrize("name", ["checkpoints/my-model.pt", "events.jsonl"])
def test_files_that_only_have_a_runs_names_are_not_removed(
    name: str, finished: Path, student: str, tmp_path: Path
) -> None:
    """Somebody else's checkpoints or log: refused, and still there."""
    mine = tmp_path / "mine" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    with pytest.raises(UsageError, match="not empty and holds no run"):
        run(finished, student, tmp_path / "mine")
    assert mine.read_text() == "precious"
