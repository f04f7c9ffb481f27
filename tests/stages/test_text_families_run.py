"""Students of other families go the whole way: a store, training, evaluation, export, and what others load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from requests_of import evaluate_request
from text_families import family_clip, write_family_clip
from train_runs import config, run, steps_of
from worlds import NAMES, World

import teachonce
from teachonce.core.progress import Silent
from teachonce.errors import UsageError
from teachonce.stages.evaluate import evaluate
from teachonce.stages.export import ExportRequest, export
from teachonce.towers.text_tower import TextTower

QUICK, SLOW = ("siglip2", "mobileclip"), ("coca", "clipa", "metaclip2-mt5")
STUDENTS = (*QUICK, *(pytest.param(family, marks=pytest.mark.slow) for family in SLOW))


@pytest.fixture(scope="module", params=STUDENTS)
def taught(
    request: pytest.FixtureRequest, world: World, teacher: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str, Path]:
    """Family, spec and a store with the student's features."""
    torch.set_num_threads(1)
    family: str = request.param
    folder = tmp_path_factory.mktemp(family)
    spec = write_family_clip(folder / "clip", family)
    labels = folder / "labels.zarr"
    worlds.teach_inline(world, labels, teacher, students=(spec,), top_k=5)
    return family, spec, labels


def test_a_student_trains_is_evaluated_exported_and_loaded(
    taught: tuple[str, str, Path], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))
    family, spec, labels = taught
    run(labels, spec, tmp_path / "run", "structure=unshared", "depth=2")
    losses = [step["loss"] for step in steps_of(tmp_path / "run")]
    assert sum(losses[-5:]) < sum(losses[:5]), "nothing was learned"
    given: dict[str, Any] = {"manifest": world.manifest("tars"), "root": world.root, "threads": 1}
    result = evaluate(evaluate_request(run=tmp_path / "run", student=spec, **given), Silent())
    assert result.n == worlds.PHOTOS
    export(ExportRequest(run=tmp_path / "run", out=tmp_path / "share"), Silent())
    here = teachonce.load_prompts(tmp_path / "run").classifier(NAMES)
    there = teachonce.load_prompts(tmp_path / "share", model=spec).classifier(NAMES)
    assert torch.equal(here, there)
    model, tokenizer, _ = teachonce.prompted_model(tmp_path / "share", model=spec)
    with torch.no_grad():
        assert torch.equal(model.encode_text(tokenizer([name.lower() for name in NAMES])), here), family
    with pytest.raises(UsageError, match="cut or altered|more tokens"):
        model.encode_text(tokenizer(["fox " * 200]))


def test_chunks_of_names_bound_the_memory_and_change_only_the_order_of_summation(
    taught: tuple[str, str, Path], tmp_path: Path
) -> None:
    _, spec, labels = taught
    options = ("structure=qkvr", "depth=2", "steps=6")
    run(labels, spec, tmp_path / "one", *options)
    run(labels, spec, tmp_path / "three", *options, "class_chunk=3")
    one, three = ([step["loss"] for step in steps_of(tmp_path / name)] for name in ("one", "three"))
    assert three == pytest.approx(one, rel=2e-4)


def test_replacing_prompts_cannot_start_as_words_whose_states_depend_on_the_name(
    taught: tuple[str, str, Path], tmp_path: Path
) -> None:
    family, spec, labels = taught
    options = ("structure=unshared-replace", "steps=2")
    if family in ("coca", "metaclip2-mt5"):
        run(labels, spec, tmp_path / "run", *options)
        return
    with pytest.raises(UsageError, match="without a causal mask") as refusal:
        run(labels, spec, tmp_path / "run", *options)
    assert "init = 'words'" in refusal.value.hint
    run(labels, spec, tmp_path / "words", *options, "init=words")


def test_the_context_is_that_of_the_models_own_tokenizer() -> None:
    """Configs and runs name a context in words: how many slots it makes is the tokenizer's affair."""
    assert config().prompts.context == "a photo of a"
    for family in (*QUICK, *SLOW):
        model, words = family_clip(family)
        assert len(TextTower.from_clip(model, words).embed_words("a photo of a")) == 4
