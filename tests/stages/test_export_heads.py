"""Heads leave the house: class weights, model cards, open_clip's interface, and starts of other runs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from train_runs import config
from worlds import NAMES, Notes, World

import teachonce
from teachonce.core.documents import read_object
from teachonce.core.progress import Silent
from teachonce.errors import UsageError
from teachonce.models.classifier import template_features
from teachonce.models.clip import load_clip
from teachonce.stages.export import ExportRequest, export
from teachonce.stages.train import TrainRequest, train

SHORT = ("steps=6", "checkpoint_every=3", "warmup_steps=1", "head_rate=0.05", "supervision=hard")


def run(labels: Path, student: str, out: Path, *overrides: str, **options: Any) -> Path:
    """Train six steps."""
    made, reporter = config(*SHORT, *overrides), options.pop("reporter", Silent())
    train(TrainRequest(labels=labels, student=student, out=out, config=made, threads=1, **options), reporter)
    return out


@pytest.fixture(scope="module")
def heads(finished: Path, student: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind of head, alone."""
    folder = tmp_path_factory.mktemp("heads")
    return {
        kind: run(finished, student, folder / kind, "tower=none", f"head={kind}")
        for kind in ("linear", "clip-adapter", "bias")
    }


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The names of the store, and one that no run knows."""
    file = tmp_path_factory.mktemp("classes") / "classes.tsv"
    file.write_text("".join(f"c{i}\t{name}\n" for i, name in enumerate([*NAMES, "a stranger"])))
    return file


def exported(folder: Path, student: str, out: Path, classes: Path | None) -> Path:
    export(
        ExportRequest(run=folder, out=out, classes=None if classes is None else str(classes), student=student), Silent()
    )
    return out


def test_class_weights_are_template_and_residual(
    heads: dict[str, Path], student: str, classes: Path, tmp_path: Path
) -> None:
    """In plain NumPy from the kept tensors; a name that the head does not know keeps the template's vector."""
    out = exported(heads["linear"], student, tmp_path / "shared", classes)
    weights = np.load(out / "class_weights.npy")
    document = read_object(out / "prompts.json")
    assert document is not None
    known = [name.lower() for name in document["meta"]["head"]["names"]]
    residual = load_file(out / "prompts.safetensors")["head.residual"].double().numpy()
    plain = template_features(load_clip(student), [*NAMES, "a stranger"], "a photo of a {}.").double().numpy()
    for row, name in enumerate([*NAMES, "a stranger"]):
        expected = plain[row] + (residual[known.index(name.lower())] if name.lower() in known else 0)
        assert weights[row] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)
    card, facts = (out / "README.md").read_text(), read_object(out / "export.json")
    assert facts is not None and facts["head"]["kind"] == "linear" and len(facts["head"]["names"]) == len(known)
    assert "head behind the towers" in card and f"knows the {len(known)} classes" in card


@pytest.mark.parametrize("kind", ["clip-adapter", "bias"])
def test_heads_that_are_no_class_vectors_have_no_class_weights(
    kind: str, heads: dict[str, Path], student: str, classes: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"'{kind}'"):
        exported(heads[kind], student, tmp_path / "shared", classes)
    assert not (tmp_path / "shared").exists()
    out = exported(heads[kind], student, tmp_path / "shared", None)
    prompts, images = teachonce.load_prompts(out, student), torch.nn.functional.normalize(torch.randn(3, 12), dim=1)
    before = teachonce.load_prompts(heads[kind], student).logits(images, NAMES)
    assert torch.equal(prompts.logits(images, NAMES), before)
    assert "prompts.logits(image_features" in (out / "README.md").read_text()


def test_open_clips_interface_has_heads_on_images(heads: dict[str, Path], student: str) -> None:
    """Unit features of both sides give the logits of the head; a head that adds to logits is refused by name."""
    model, tokenizer, _ = teachonce.prompted_model(heads["clip-adapter"], student)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    prompts = teachonce.load_prompts(heads["clip-adapter"], student)
    images, texts, scale = model(pixels, tokenizer(["red fox", "blue jay"]))
    assert images is not None and texts is not None and scale is not None
    expected = prompts.logits(prompts.image_features(pixels), ["red fox", "blue jay"])
    assert scale * images @ texts.T == pytest.approx(expected.numpy(), abs=1e-4)
    assert images.norm(dim=1).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    with pytest.raises(UsageError, match="'bias'"):
        teachonce.prompted_model(heads["bias"], student)


def test_a_run_starts_from_a_head_of_the_same_classes(
    heads: dict[str, Path], finished: Path, student: str, world: World, tmp_path: Path
) -> None:
    """At a rate of almost nothing it stays where the other run ended; without a head it is refused."""
    notes, slow = Notes(), ("tower=none", "head=linear", "head_rate=1e-12", "steps=1")
    again = run(finished, student, tmp_path / "again", *slow, init=heads["linear"], reporter=notes)
    before, after = (load_file(folder / "prompts.safetensors")["head.residual"] for folder in (heads["linear"], again))
    assert after == pytest.approx(before.numpy(), abs=1e-6) and before.abs().max() > 0.01
    assert not any("begins anew" in line for line in notes.lines)
    with pytest.raises(UsageError, match="the head 'linear'"):
        run(finished, student, tmp_path / "other", "tower=none", "head=bias", init=heads["linear"])
    run(finished, student, tmp_path / "new", *slow, "head_weight=0.5", init=heads["linear"], reporter=notes)
    assert any("begins anew" in line for line in notes.lines)


def test_a_handicap_is_in_the_logits_and_a_warning_says_that_class_vectors_lack_it(
    finished: Path, student: str, tmp_path: Path
) -> None:
    """Among known names alone, or strangers alone, it changes nothing, and nothing is said."""
    folder = run(finished, student, tmp_path / "run", "tower=none", "head=linear", "head_handicap=1.5")
    prompts = teachonce.load_prompts(folder).bound_to(load_clip(student))
    names, images = (
        [NAMES[0], "a stranger"],
        torch.nn.functional.normalize(torch.ones(2, prompts.meta.head.width), dim=1),
    )
    with pytest.warns(UserWarning, match=r"take 1\.5 nats"):
        vectors = prompts.classifier(names)
    plain = prompts.student.logit_scale * images @ vectors.T
    torch.testing.assert_close(prompts.logits(images, names), plain - torch.tensor([1.5, 0.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for alone in (NAMES[:2], ["a stranger", "another"]):
            torch.testing.assert_close(prompts.classifier(alone).norm(dim=1), torch.ones(2))
