"""Prompts start at the hand-written context, every part of them learns, and saved prompts come back whole or not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save as bytes_from_tensors
from torch import Tensor
from tower_reference import CONTEXT, NAMES, TOWERS, full_tokens, plain_features, tiny_clip, tokenizer

from teachonce.errors import EnvironmentFault, FingerprintError, IntegrityError, TeachOnceError, UsageError
from teachonce.files import atomic_write_bytes
from teachonce.prompts import (
    PromptLearner,
    PromptMeta,
    expected_parameters,
    load_prompts,
    save_prompts,
)
from teachonce.text_tower import SlotPrompts, TextTower


def make_tower(kind: str = "laion") -> TextTower:
    return TextTower.from_clip(tiny_clip(kind), tokenizer())


def meta(**changes: object) -> PromptMeta:
    """Metadata of prompts in all blocks of the `laion` tower."""
    values = {
        "structure": "unshared", "context": CONTEXT, "slots": 4, "depth": 0, "width": 48, "layers": 4,
        "student": "local-dir:student", "student_digest": "d" * 64, "suffix": ".", "version": "0.1.0",
    }  # fmt: skip
    return PromptMeta(**{**values, **changes})  # type: ignore[arg-type]


def trained(learner: PromptLearner) -> SlotPrompts:
    """The learner's prompts after something has been learned."""
    with torch.no_grad():
        for number, parameter in enumerate(learner.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(number))
    prompts: SlotPrompts = learner()
    return prompts


@pytest.mark.parametrize("structure", ["shared", "unshared"])
def test_before_the_first_step_the_prompts_are_the_hand_written_context(structure: str) -> None:
    model = tiny_clip("laion")
    tower = TextTower.from_clip(model, tokenizer())
    learner = PromptLearner(tower, structure, CONTEXT)  # type: ignore[arg-type]
    tokens = tower.tokenise(NAMES)
    at_start = tower.features(learner(), tokens)
    assert torch.equal(at_start, tower.features(SlotPrompts(tower.embed_words(CONTEXT)), tokens))
    theirs = model.encode_text(full_tokens(model, NAMES), normalize=True)  # type: ignore[operator]
    assert torch.allclose(at_start, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("structure", "depth", "expected"),
    [
        ("shared", 0, 4 * 48),
        ("shared", 3, 4 * 48),
        ("unshared", 0, 4 * 48 * (1 + 3 + 2 * 4)),
        ("unshared", 4, 4 * 48 * (1 + 3 + 2 * 4)),
        ("unshared", 3, 4 * 48 * (1 + 3 + 2 * 3)),
        ("unshared", 1, 4 * 48 * (1 + 1 + 2 * 1)),
    ],
)
def test_the_number_of_parameters(structure: str, depth: int, expected: int) -> None:
    learner = PromptLearner(make_tower(), structure, CONTEXT, depth)  # type: ignore[arg-type]
    assert learner.trainable_parameters() == expected
    assert expected_parameters(structure, 4, 48, 4, depth) == expected  # type: ignore[arg-type]


def test_a_tower_of_one_block_has_no_live_query() -> None:
    learner = PromptLearner(make_tower("one_block"), "unshared", CONTEXT)
    assert learner.query is None and learner().query is None
    assert learner.trainable_parameters() == 4 * 32 * 3


def test_a_depth_beyond_the_tower_is_refused() -> None:
    with pytest.raises(UsageError, match="depth 5 .*4 blocks"):
        PromptLearner(make_tower(), "unshared", CONTEXT, 5)


def test_a_count_that_disagrees_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teachonce.prompts.expected_parameters", lambda *sizes: 1)
    with pytest.raises(TeachOnceError, match="expected"):
        PromptLearner(make_tower(), "shared", CONTEXT)


@pytest.mark.parametrize("kind", sorted(TOWERS))
@pytest.mark.parametrize("depth", [0, 1])
def test_every_layer_letter_and_slot_learns_from_the_first_step(kind: str, depth: int) -> None:
    tower = make_tower(kind)
    learner = PromptLearner(tower, "unshared", CONTEXT, depth)
    features = tower.features(learner(), tower.tokenise(["tench", "great white shark", "o'clock"]))
    (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None
        per_slot = parameter.grad.norm(dim=-1)
        assert (per_slot > 1e-6).all(), f"{name}: {per_slot}"


def test_prompts_are_measured_in_the_slots_own_size() -> None:
    tower = make_tower()
    learner = PromptLearner(tower, "unshared", CONTEXT, 2)
    prompts, scales = trained(learner), tower.slot_scales(CONTEXT)
    assert prompts.key is not None and learner.key is not None
    assert torch.allclose(prompts.key[1], scales[1] * learner.key[1])
    assert torch.allclose(prompts.context, tower.embed_words(CONTEXT) + scales[0] * learner.context)
    assert sorted(learner.state_dict()) == ["context", "key", "query", "value"], (
        "what follows from the student is not kept"
    )


def test_trained_prompts_equal_the_plain_reference() -> None:
    model = tiny_clip("laion")
    tower = TextTower.from_clip(model, tokenizer())
    prompts = trained(PromptLearner(tower, "unshared", CONTEXT))
    ours = tower.features(prompts, tower.tokenise(NAMES))
    assert torch.allclose(ours, plain_features(model, prompts, NAMES), rtol=0, atol=1e-5)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_prompts(tmp_path, trained(PromptLearner(make_tower(), "unshared", CONTEXT)), meta())
    return tmp_path


def test_saved_prompts_come_back_equal(saved: Path) -> None:
    prompts = trained(PromptLearner(make_tower(), "unshared", CONTEXT))
    loaded = load_prompts(saved)
    assert loaded.meta == meta() and loaded.model == "local-dir:student"
    for name, tensor in vars(prompts).items():
        found = getattr(loaded.prompts, name)
        assert found.dtype == torch.float32 and torch.equal(found, tensor)
    assert sorted(path.name for path in saved.iterdir()) == ["prompts.json", "prompts.safetensors"]


def test_shared_prompts_come_back_without_letters(tmp_path: Path) -> None:
    save_prompts(tmp_path, PromptLearner(make_tower(), "shared", CONTEXT)(), meta(structure="shared"))
    loaded = load_prompts(str(tmp_path)).prompts
    assert loaded.query is None and loaded.key is None and loaded.value is None and loaded.context.shape == (4, 48)


@pytest.mark.parametrize("file", ["prompts.safetensors", "prompts.json"])
def test_every_flipped_byte_is_noticed(saved: Path, file: str) -> None:
    path = saved / file
    data = path.read_bytes()
    for position in range(0, len(data), max(1, len(data) // 40)):
        changed = bytearray(data)
        changed[position] ^= 1
        path.write_bytes(changed)
        try:
            same = load_prompts(saved).meta == meta() and json.loads(changed) == json.loads(data)
        except IntegrityError as problem:
            same = file in str(problem)
        assert same, f"byte {position}"  # white space in the JSON is all that may change unnoticed


def test_a_cut_file_is_refused_with_both_digests(saved: Path) -> None:
    path = saved / "prompts.safetensors"
    expected = json.loads((saved / "prompts.json").read_text())["tensors_sha256"]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(IntegrityError, match=f"prompts.safetensors .*should be {expected} and is [0-9a-f]{{64}}"):
        load_prompts(saved)
    (saved / "prompts.json").write_text((saved / "prompts.json").read_text()[:100])
    with pytest.raises(IntegrityError, match="not valid JSON"):
        load_prompts(saved)


@pytest.mark.parametrize("key", ["student_digest", "suffix", "slots", "structure"])
def test_edited_metadata_are_refused(saved: Path, key: str) -> None:
    document = json.loads((saved / "prompts.json").read_text())
    document["meta"][key] = 3 if key == "slots" else "other"
    (saved / "prompts.json").write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match=r"prompts.json .*should be [0-9a-f]{64} and is [0-9a-f]{64}"):
        load_prompts(saved)


def test_foreign_files_are_refused(saved: Path) -> None:
    (saved / "prompts.safetensors").write_bytes(bytes_from_tensors({"context": torch.zeros(4, 48)}))
    with pytest.raises(IntegrityError, match=r"prompts\.safetensors"):
        load_prompts(saved)
    for text in ("[]", "{}", '{"format": "another"}'):
        (saved / "prompts.json").write_text(text)
        with pytest.raises(IntegrityError, match="not a description of prompts"):
            load_prompts(saved)


def test_missing_prompts_are_a_usage_error_with_a_hint(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere") as problem:
        load_prompts(tmp_path / "nowhere")
    assert "teachonce train" in problem.value.hint
    (saved / "prompts.safetensors").unlink()
    with pytest.raises(UsageError, match=r"prompts\.safetensors"):
        load_prompts(saved)


def test_prompts_that_are_not_what_the_metadata_say_are_not_saved(tmp_path: Path) -> None:
    prompts = PromptLearner(make_tower(), "unshared", CONTEXT, 2)()
    for wrong in (meta(), meta(structure="shared"), meta(depth=2, slots=5)):
        with pytest.raises(TeachOnceError, match="are not what"):
            save_prompts(tmp_path, prompts, wrong)
    save_prompts(tmp_path, prompts, meta(depth=2))


def fake_loader(monkeypatch: pytest.MonkeyPatch, digest: str) -> list[str]:
    """Let `load_clip` give the tiny model; returns the specs it is asked for."""
    asked: list[str] = []

    def load_clip(spec: str, device: str = "cpu") -> SimpleNamespace:
        asked.append(spec)
        return SimpleNamespace(model=tiny_clip("laion"), tokenizer=tokenizer(), digest=digest, spec=spec)

    monkeypatch.setattr("teachonce.clip_models.load_clip", load_clip)
    return asked


def test_a_classifier_for_own_names(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_loader(monkeypatch, "d" * 64)
    loaded = load_prompts(saved)
    assert not asked, "loading prompts must not load a model"
    names = ["tench", "great white shark", "Tench"]
    features: Tensor = loaded.classifier(names)
    assert features.shape == (3, 32) and not features.requires_grad
    assert torch.allclose(features, plain_features(tiny_clip("laion"), loaded.prompts, names), rtol=0, atol=1e-5)
    assert torch.allclose(features.norm(dim=1), torch.ones(3))
    loaded.classifier(["shark"])
    assert asked == ["local-dir:student"], "the student is loaded once"


def test_another_student_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_loader(monkeypatch, "e" * 64)
    with pytest.raises(FingerprintError, match="d{64}.*e{64}"):
        load_prompts(saved, model="local-dir:elsewhere").classifier(["tench"])
    assert asked == ["local-dir:elsewhere"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    atomic_write_bytes(path, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EnvironmentFault, match="No space left"):
        atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and [x.name for x in tmp_path.iterdir()] == ["file"]
    with pytest.raises(EnvironmentFault, match="nowhere"):
        atomic_write_bytes(tmp_path / "nowhere" / "file", b"")
