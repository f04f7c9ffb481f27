"""Imported prompts classify as CoOp's own forward pass on open_clip does, and other stages take them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import dassl_files
import open_clip
import pytest
import torch
import worlds
from requests_of import evaluate_request
from torch import Tensor, nn

from teachonce import load_prompts
from teachonce.core.documents import sealed
from teachonce.core.progress import Silent
from teachonce.errors import (
    DataError,
    EnvironmentFault,
    FingerprintError,
    IncompleteError,
    UnsupportedModelError,
    UsageError,
)
from teachonce.models.clip import load_clip
from teachonce.recipe.config_file import load_train_config
from teachonce.stages.evaluate import evaluate
from teachonce.stages.import_ import ImportRequest, ImportResult, import_
from teachonce.stages.train import TrainRequest, train

NAMES = ("red fox", "blue jay", "green snake", "crane")
SLOTS = 5  # an odd number: CoOp's middle rounds down


def checkpoint_of(student: str, folder: Path, **options: Any) -> Path:
    """What CoOp leaves of a run on the student with classes of its own."""
    clip = load_clip(student)
    filler = " ".join("X" * SLOTS)
    tokens = open_clip.SimpleTokenizer()([f"{filler} {name}." for name in ("oak", "tea cup")], 32)
    return dassl_files.saved(folder, dassl_files.dassl_checkpoint(clip.model, tokens, SLOTS), **options)


def imported(student: str, folder: Path, **options: Any) -> ImportResult:
    """Import a fresh checkpoint into `folder/out`."""
    file = checkpoint_of(student, folder)
    return import_(ImportRequest(checkpoint=file, student=student, out=folder / "out", **options), Silent())


def coop_features(student: str, context: Tensor, position: str) -> Tensor:
    """CoOp's forward pass: embed `X X X name.`, put the context in the X's places, run all of open_clip's tower."""
    model, tokenizer = load_clip(student).model, open_clip.SimpleTokenizer()
    filler = " ".join("X" * len(context))
    rows = []
    for name in NAMES:
        tokens = tokenizer([f"{filler} {name}."], 32)
        with torch.no_grad():
            words = model.token_embedding(tokens)  # type: ignore[operator]
        first, end = 1 + len(context), 1 + len(context) + len(tokenizer.encode(name))
        start, name_tokens, rest = words[0, :1], words[0, first:end], words[0, end:]
        half = len(context) // 2
        parts = {
            "before": [start, context, name_tokens, rest],
            "around": [start, context[:half], name_tokens, context[half:], rest],
            "after": [start, name_tokens, context, rest],
        }[position]
        whole = torch.cat(parts)[None]
        handle = model.token_embedding.register_forward_hook(lambda *given, whole=whole: whole)  # type: ignore[union-attr]
        with torch.no_grad():
            rows.append(model.encode_text(tokens))  # type: ignore[operator]
        handle.remove()
    return nn.functional.normalize(torch.cat(rows), dim=-1)


@pytest.mark.parametrize("position", ["before", "around", "after"])
def test_the_classifier_is_that_of_coop(position: Any, student: str, tmp_path: Path) -> None:
    """[SOS] context name . [EOS] through the whole of open_clip's own tower, in all of CoOp's three places."""
    result = imported(student, tmp_path, position=position)
    context = torch.load(result.checkpoint, weights_only=False)["state_dict"]["ctx"]
    assert (result.slots, result.width, result.epoch, result.student_proved) == (SLOTS, 32, 50, True)
    features = load_prompts(tmp_path / "out").classifier(NAMES)
    expected = coop_features(student, context, position)
    assert torch.allclose(features, expected, atol=2e-6, rtol=0)
    assert (expected[:, None] - expected[None]).norm(dim=-1).fill_diagonal_(1).min() > 0.05, "names differ clearly"


def test_the_folder_tells_where_it_is_from(student: str, tmp_path: Path) -> None:
    """Digests of the file and of the prompts; what cannot be known is not made up."""
    result = imported(student, tmp_path)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == sealed({"schema": 1, **vars(result)})
    loaded = load_prompts(tmp_path / "out")
    assert loaded.tensors_digest == result.prompts_digest and len(result.checkpoint_digest) == 64
    assert loaded.meta.structure == "shared" and loaded.meta.context == "" and loaded.meta.student == student


def test_evaluate_and_train_take_it(student: str, world: worlds.World, finished: Path, tmp_path: Path) -> None:
    """It is scored like a run, and a run of any structure starts from it."""
    imported(student, tmp_path)
    out = tmp_path / "out"
    scored = evaluate(
        evaluate_request(run=out, student=student, manifest=world.manifest(), root=world.root, split="val", threads=1),
        Silent(),
    )
    assert scored.n == worlds.PHOTOS
    labels = worlds.copy_store(finished, tmp_path)
    for structure in ("shared", "unshared"):
        config = load_train_config(
            None,
            [
                "steps=1",
                "learning_rate=1e-12",
                f"structure={structure}",
                f"length={SLOTS}",
                "init=normal",
                "warmup_steps=0",
            ],
        )
        run = tmp_path / structure
        train(TrainRequest(labels=labels, student=student, out=run, config=config, threads=1, init=out), Silent())
        begun, trained = (load_prompts(folder).classifier(NAMES) for folder in (run, out))
        assert torch.allclose(begun, trained, atol=1e-5)


def test_another_student_is_refused_and_nothing_is_written(student: str, teacher: str, tmp_path: Path) -> None:
    """The teacher has the same width of text: only the start token tells."""
    file = checkpoint_of(student, tmp_path)
    request = ImportRequest(checkpoint=file, student=teacher, out=tmp_path / "out")
    with pytest.raises(FingerprintError, match="trained on another student: the start token's embedding differs"):
        import_(request, Silent())
    assert not (tmp_path / "out").exists()


def test_a_student_that_is_not_proved_is_said(student: str, tmp_path: Path) -> None:
    file, notes = dassl_files.saved(tmp_path, {"state_dict": {"ctx": torch.zeros(4, 32)}}), worlds.Notes()
    result = import_(ImportRequest(checkpoint=file, student=student, out=tmp_path / "out"), notes)
    assert not result.student_proved and result.epoch is None
    assert len(notes.lines) == 1 and "only the width (32)" in notes.lines[0]


def test_a_folder_with_anything_in_it_is_left_alone(student: str, tmp_path: Path) -> None:
    """Said before a model is loaded; an empty folder is used."""
    out = tmp_path / "out"
    out.mkdir()
    imported(student, tmp_path)
    before = {file: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(UsageError, match="is not empty"):
        imported(student, tmp_path)
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="file is a file; `out` is a folder"):
        import_(ImportRequest(checkpoint=tmp_path / "x", student=student, out=tmp_path / "file"), Silent())
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(EnvironmentFault, match="cannot write") as caught:
        import_(
            ImportRequest(
                checkpoint=checkpoint_of(student, tmp_path), student=student, out=tmp_path / "file" / "deep" / "er"
            ),
            Silent(),
        )
    assert caught.value.hint and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("largest", [1e30, 3e38])
def test_a_context_that_makes_no_numbers_is_refused(largest: float, student: str, tmp_path: Path) -> None:
    """Every entry is finite, and the features of a name behind it are NaN: said before the folder is made."""
    context = torch.full((4, 32), largest) * torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).sign()
    file = dassl_files.saved(tmp_path, {"state_dict": {"ctx": context}})
    with pytest.raises(DataError, match="class features of .* are not numbers") as caught:
        import_(ImportRequest(checkpoint=file, student=student, out=tmp_path / "deep" / "out"), Silent())
    assert "earlier checkpoint" in caught.value.hint and not (tmp_path / "deep").exists()


def test_slots_that_leave_no_room_for_name_and_full_stop_are_refused(student: str, tmp_path: Path) -> None:
    """One slot fewer than positions would leave room for a name without its full stop."""
    file = dassl_files.saved(tmp_path, {"state_dict": {"ctx": torch.ones(29, 32)}})
    with pytest.raises(DataError, match="29 slots leave no room for a name") as caught:
        import_(ImportRequest(checkpoint=file, student=student, out=tmp_path / "out"), Silent())
    assert caught.value.hint and not (tmp_path / "out").exists()


@pytest.mark.parametrize("failing", ["prompts.safetensors", "prompts.json", "results.json"])
@pytest.mark.parametrize("there", [False, True])
def test_a_failed_write_leaves_nothing(
    failing: str, there: bool, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at any of the three files: an empty folder stays and is empty, folders that were made go."""
    out = tmp_path / "deep" / "out"
    if there:
        out.mkdir(parents=True)
    file, replace = checkpoint_of(student, tmp_path), os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == failing:
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(IncompleteError, match="No space left"):
            import_(ImportRequest(checkpoint=file, student=student, out=out), Silent())
    assert (list(out.iterdir()) == []) if there else not (tmp_path / "deep").exists()
    assert import_(ImportRequest(checkpoint=file, student=student, out=out), Silent()).slots == SLOTS


def test_a_context_for_each_class_is_refused(student: str, tmp_path: Path) -> None:
    file = dassl_files.saved(tmp_path, {"state_dict": {"ctx": torch.zeros(3, 4, 32)}})
    with pytest.raises(DataError, match="other names have none"):
        import_(ImportRequest(checkpoint=file, student=student, out=tmp_path / "out"), Silent())
    assert not (tmp_path / "out").exists()


def test_a_student_whose_text_tower_cannot_carry_prompts_is_refused(tmp_path: Path) -> None:
    """The same refusal as in training."""
    spec = worlds.make_clip(tmp_path / "clip", 5)
    config = tmp_path / "clip" / "open_clip_config.json"
    changed = json.loads(config.read_text())
    changed["model_cfg"]["text_cfg"]["pool_type"] = "last"
    config.write_text(json.dumps(changed))
    file = dassl_files.saved(tmp_path, {"state_dict": {"ctx": torch.zeros(4, 32)}})
    with pytest.raises(UnsupportedModelError):
        import_(ImportRequest(checkpoint=file, student=spec, out=tmp_path / "out"), Silent())
