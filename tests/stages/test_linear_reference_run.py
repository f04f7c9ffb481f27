"""The linear reference of runs: kept in the folder, shown by evaluate beside the template, shared among cells."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from requests_of import evaluate_request
from train_runs import config
from worlds import IDS, NAMES, PHOTOS, Notes, World

from teachonce.core.progress import Silent
from teachonce.evaluation.result import decode_result
from teachonce.models.classifier import template_features
from teachonce.models.clip import load_clip
from teachonce.models.prompt_files import load_prompts
from teachonce.reports.folder import HELD_OUT, read_folder
from teachonce.reports.tables import measures
from teachonce.runs.folder import RunFolder
from teachonce.stages.evaluate import EvaluateResult, evaluate
from teachonce.stages.train import TrainRequest, TrainResult, train
from teachonce.training import linear_reference

LINEAR = "linear"


def run(labels: Path, student: str, out: Path, *overrides: str, **options: Any) -> TrainResult:
    """Train four steps in this process."""
    made = config("steps=4", "checkpoint_every=2", "warmup_steps=1", *overrides)
    reporter = options.pop("reporter", Silent())
    return train(TrainRequest(labels=labels, student=student, out=out, config=made, threads=1, **options), reporter)


@pytest.fixture(scope="module")
def trained(finished: Path, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with held-out samples."""
    out = tmp_path_factory.mktemp("reference") / "run"
    run(finished, student, out, "held_out=0.2")
    return out


def measured(world: World, student: str, folder: Path, reporter: Any = None, **options: Any) -> EvaluateResult:
    """What evaluate says of a run."""
    request = evaluate_request(
        student=student, run=folder, manifest=world.manifest("tars"), root=world.root, threads=1, **options
    )
    return evaluate(request, reporter or Silent())


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))


def test_a_run_keeps_its_reference_as_a_head_that_can_be_loaded(trained: Path, student: str) -> None:
    """Names with photos have vectors of their own; the others keep the template's, to the last bit."""
    results = RunFolder(trained).read_results()
    loaded = load_prompts(trained / LINEAR).bound_to(load_clip(student))
    assert results is not None and results.linear_digest == loaded.tensors_digest and results.linear_why == ""
    assert loaded.text is None and loaded.image is None and loaded.meta.head is not None
    assert set(loaded.meta.head.names) <= set(NAMES)
    asked = [*NAMES, "a name of nobody"]
    fitted, plain = loaded.classifier(asked), template_features(load_clip(student), asked, "a photo of a {}.")
    moved = (fitted != plain).any(dim=1).tolist()
    with_photos = {NAMES[IDS.index(class_id)].lower() for class_id in loaded.meta.head.ids}
    assert moved == [name.lower() in with_photos for name in asked] and 0 < sum(moved) < len(asked)
    assert fitted.norm(dim=1).tolist() == pytest.approx([1.0] * len(asked), abs=1e-6)


def test_held_out_figures_are_those_of_a_count_by_hand(
    trained: Path, finished: Path, student: str, world: World
) -> None:
    """The reference is never fitted on samples that the run keeps apart."""
    results = RunFolder(trained).read_results()
    assert results is not None and results.linear_held_out_top1 is not None
    said = json.loads((trained / LINEAR / "reference.json").read_text())
    (event,) = [
        json.loads(line) for line in (trained / "events.jsonl").read_text().splitlines() if '"held_out"' in line
    ][-1:]
    assert said["rows"] + event["rows"] == PHOTOS
    (table,) = [table for table in measures(read_folder(trained)) if table.key == HELD_OUT]
    assert table.references[0].summary.mean == results.linear_held_out_top1
    assert table.template["top1"] == results.template_held_out_top1


def test_evaluate_shows_the_reference_beside_the_template(
    trained: Path, student: str, world: World, tmp_path: Path
) -> None:
    """Its figures are those of its folder alone; its tests are counted on images; credits lie beside the others."""
    notes = Notes()
    result = measured(world, student, trained, notes, credits=tmp_path / "val")
    alone = measured(world, student, _finished_alone(trained, tmp_path / "alone"), credits=tmp_path / "alone.npy")
    assert result.linear is not None and result.linear_why == ""
    assert {key: result.linear[key] for key in ("top1", "top5", "macro", "ece", "nll")} == pytest.approx(alone.figures)
    prompts, template, linear = (np.load(tmp_path / f"val{side}.top1.npy") for side in ("", ".template", ".linear"))
    assert linear.mean() == pytest.approx(result.linear["top1"])
    assert result.linear["gain"] == pytest.approx(linear.mean() - template.mean(), abs=1e-6)
    assert result.linear["prompts_gain"] == pytest.approx(prompts.mean() - linear.mean(), abs=1e-6)
    whole = np.isin(linear, (0, 1)) & np.isin(template, (0, 1))
    pair = result.linear["paired"]
    assert pair["only_linear"] == int((linear[whole] > template[whole]).sum()) and pair["n"] == int(whole.sum())
    assert result.digests["linear"] == load_prompts(trained / LINEAR).tensors_digest
    assert "linear reference" in notes.lines[-1]
    assert decode_result(dataclasses.asdict(result), "result").linear_figures["top1"] == result.linear["top1"]


def _finished_alone(trained: Path, out: Path) -> Path:
    """The reference as a folder of prompts of its own."""
    shutil.copytree(trained / LINEAR, out)
    return out


def test_a_run_without_a_reference_says_why(trained: Path, student: str, world: World, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(trained, changed)
    (changed / LINEAR / "prompts.safetensors").write_bytes(b"other")
    result = measured(world, student, changed)
    assert result.linear is None and "prompts.safetensors" in result.linear_why
    shutil.rmtree(changed / LINEAR)
    shutil.copytree(_other(trained, tmp_path), changed / LINEAR)
    assert "is not the reference that results.json tells of" in measured(world, student, changed).linear_why
    shutil.rmtree(changed / LINEAR)
    assert measured(world, student, changed).linear_why


def _other(trained: Path, tmp_path: Path) -> Path:
    """Sound prompts that are no reference of the run: the run's own."""
    other = tmp_path / "other"
    other.mkdir()
    for name in ("prompts.json", "prompts.safetensors"):
        shutil.copy(trained / name, other / name)
    return other


def test_image_prompts_have_no_reference(finished: Path, student: str, world: World, tmp_path: Path) -> None:
    notes = Notes()
    run(finished, student, tmp_path / "run", "tower=image", "batch_size=8", root=world.root, reporter=notes)
    results = RunFolder(tmp_path / "run").read_results()
    assert results is not None and results.linear_digest is None and "image tower" in results.linear_why
    assert any("no linear reference" in note for note in notes.lines)
    assert not (tmp_path / "run" / LINEAR).exists()


@pytest.mark.slow  # whole runs of several trainings or stores
def test_runs_on_the_same_rows_share_one_fit(
    finished: Path, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another learning rate or seed leaves the rows as they are; held-out samples are drawn by the seed."""
    fits = []
    real = linear_reference.fit_linear
    monkeypatch.setattr(linear_reference, "fit_linear", lambda *given: (fits.append(1), real(*given))[1])
    shared, digests = tmp_path / "references", []
    cells = [(), ("learning_rate=0.02",), ("seed=3",), ("held_out=0.2",), ("held_out=0.2", "seed=3")]
    for number, overrides in enumerate(cells):
        out = tmp_path / f"cell-{number}"
        run(finished, student, out, *overrides, shared=shared)
        results = RunFolder(out).read_results()
        assert results is not None
        digests.append(results.linear_digest)
        assert load_prompts(out / LINEAR).tensors_digest == results.linear_digest
    assert len(fits) == 3 and len(list(shared.iterdir())) == 3
    assert digests[0] == digests[1] == digests[2] and len(set(digests)) == 3
    for file in shared.glob("*/prompts.safetensors"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    run(finished, student, tmp_path / "again", shared=shared)  # a damaged one is passed over
    assert len(fits) == 4
    again = RunFolder(tmp_path / "again").read_results()
    assert again is not None and again.linear_digest == digests[0]


def test_twins_of_one_name_stay_tied(trained: Path, student: str) -> None:
    """Two classes of one name have one residual, on whichever of them the photos are."""
    vectors = load_prompts(trained / LINEAR).bound_to(load_clip(student)).classifier([NAMES[3], NAMES[5]])
    assert NAMES[3].lower() == NAMES[5].lower() and torch.equal(vectors[0], vectors[1])
