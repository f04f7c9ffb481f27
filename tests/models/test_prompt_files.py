"""Saved prompts come back whole or not at all, and give classifiers and image features in a few lines."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save as bytes_from_tensors
from torch import Tensor
from tower_reference import CONTEXT, full_tokens, plain_features, random_prompts, tiny_clip, tokenizer

import teachonce
from teachonce.core.files import atomic_write_bytes
from teachonce.errors import (
    EnvironmentFault,
    FingerprintError,
    IncompleteError,
    IntegrityError,
    TeachOnceError,
    UsageError,
)
from teachonce.models.clip import LoadedClip
from teachonce.models.prompt_files import LoadedPrompts, load_prompts, save_prompts
from teachonce.models.prompts import PromptMeta
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import Position, Structure
from teachonce.towers.text_tower import TextTower

STRUCTURES: tuple[Structure, ...] = get_args(Structure)


@functools.cache
def make_tower() -> TextTower:
    return TextTower.from_clip(tiny_clip("laion"), tokenizer())


def meta(**changes: object) -> PromptMeta:
    """Metadata of unshared prompts in all blocks of the `laion` tower."""
    values = {
        "structure": "unshared",
        "context": CONTEXT,
        "slots": 4,
        "depth": 0,
        "width": 48,
        "layers": 4,
        "student": "local-dir:student",
        "student_digest": "d" * 64,
        "suffix": ".",
        "version": "0.1.0",
    }
    return PromptMeta(**{**values, **changes})  # type: ignore[arg-type]


def image_prompts(structure: Structure, depth: int = 0) -> SlotPrompts:
    """Image prompts are of the same make as text prompts; these are for an image tower as large as the text tower."""
    return random_prompts(make_tower(), structure, depth, slots=5, seed=1)


IMAGE = {"image_slots": 5, "image_width": 48, "image_layers": 4}


def assert_same(actual: SlotPrompts | None, expected: SlotPrompts | None) -> None:
    assert (actual is None) == (expected is None)
    if actual is None or expected is None:
        return
    assert actual.replace == expected.replace and actual.tensors().keys() == expected.tensors().keys()
    for name, tensor in expected.tensors().items():
        x = actual.tensors()[name]
        assert x.dtype == torch.float32 and not x.requires_grad and torch.equal(x, tensor)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_comes_back_equal(structure: Structure, tmp_path: Path) -> None:
    tower = make_tower()
    for depth in (0, 1, 3):
        prompts = random_prompts(tower, structure, depth)
        described = meta(structure=structure, depth=depth, position="around", init="normal")
        save_prompts(tmp_path, prompts, None, described)
        loaded = load_prompts(tmp_path)
        assert loaded.meta == described and loaded.model == "local-dir:student"
        assert_same(loaded.text, prompts)
        assert loaded.image is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.json", "prompts.safetensors"]


@pytest.mark.parametrize("structure", ["shared", "qkvr", "unshared-replace"])
@pytest.mark.parametrize("gated", [False, True])
def test_prompts_of_the_image_tower_come_back_alone_and_beside_text_prompts(
    structure: Structure, gated: bool, tmp_path: Path
) -> None:
    image = image_prompts(structure, 2)
    if gated:
        image = SlotPrompts(**{"context": None, **image.tensors()}, replace=image.replace, gate=torch.rand(4))
    fields = {"structure": structure, **IMAGE, "image_depth": 2, "image_gate": gated}
    text = random_prompts(make_tower(), structure, 3)
    for tower, words in (("image", None), ("both", text)):
        described = meta(tower=tower, depth=3, **{"slots": 4 if words else 0, **fields})
        save_prompts(tmp_path, words, image, described)
        loaded = load_prompts(tmp_path)
        assert loaded.meta == described
        assert_same(loaded.image, image)
        assert_same(loaded.text, words)


def test_the_first_format_is_still_read(tmp_path: Path) -> None:
    """As version 0.1 of this project wrote it: no tower in the names, and less in the metadata."""
    prompts = random_prompts(make_tower(), "unshared", 2)
    data = bytes_from_tensors({name: x.detach() for name, x in prompts.tensors().items()})
    fields = {
        "structure": "unshared",
        "context": CONTEXT,
        "slots": 4,
        "depth": 2,
        "width": 48,
        "layers": 4,
        "student": "local-dir:student",
        "student_digest": "d" * 64,
        "suffix": ".",
        "version": "0.1.0",
    }
    body = {"format": "teachonce-prompts-1", "tensors_sha256": hashlib.sha256(data).hexdigest(), "meta": fields}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    (tmp_path / "prompts.safetensors").write_bytes(data)
    document = {**body, "document_sha256": hashlib.sha256(text.encode()).hexdigest()}
    (tmp_path / "prompts.json").write_text(json.dumps(document))
    loaded = load_prompts(tmp_path)
    assert loaded.meta == meta(depth=2) and loaded.meta.tower == "text" and loaded.meta.position == "before"
    assert_same(loaded.text, prompts)
    document["format"] = "teachonce-prompts-2"
    (tmp_path / "prompts.json").write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match="prompts.json"):
        load_prompts(tmp_path)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_prompts(tmp_path, random_prompts(make_tower(), "unshared", 0), None, meta())
    return tmp_path


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
    with pytest.raises(IntegrityError, match="not valid JSON") as caught:
        load_prompts(saved)
    assert "export it again" in caught.value.hint


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


@pytest.mark.parametrize(
    "place", ["", "a/b/c", "a/b@", "a/b@x@y", "a\0b", "x" * 5000, "a/" + "b" * 5000, "nowhere", "prompts.json"]
)
def test_what_is_neither_a_folder_nor_an_id_says_what_was_expected(
    place: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own error, whatever the text; it is short, and tells of both ways."""
    monkeypatch.chdir(saved)
    with pytest.raises(UsageError, match="cannot read prompts from .* nor is it an id OWNER/NAME") as caught:
        load_prompts(place)
    assert "teachonce train" in caught.value.hint and "OWNER/NAME@REVISION" in caught.value.hint
    assert len(caught.value.message) < 300 and "\0" not in caught.value.message


def test_missing_prompts_are_a_usage_error_with_a_hint(saved: Path, tmp_path: Path) -> None:
    missing = tmp_path / ("deep" * 30) / "nowhere"
    with pytest.raises(UsageError, match=f"from '{re.escape(str(missing))}'") as problem:
        load_prompts(missing)
    assert "teachonce train" in problem.value.hint
    (saved / "prompts.safetensors").unlink()
    with pytest.raises(UsageError, match=r"prompts\.safetensors"):
        load_prompts(saved)


def test_prompts_that_are_not_what_the_metadata_say_are_not_saved(tmp_path: Path) -> None:
    text, image = random_prompts(make_tower(), "unshared", 2), image_prompts("unshared")
    for wrong in (
        meta(),
        meta(structure="shared"),
        meta(depth=2, slots=5),
        meta(depth=2, width=24),
        meta(depth=5),
        meta(depth=2, tower="both", **IMAGE),
        meta(tower="image", slots=0, **IMAGE),
        meta(depth=2, structure="kv"),
    ):
        with pytest.raises(TeachOnceError, match="are not what"):
            save_prompts(tmp_path, text, None, wrong)
    with pytest.raises(TeachOnceError, match="are not what"):
        save_prompts(tmp_path, text, image, meta(depth=2))
    with pytest.raises(TeachOnceError, match="are not what"):
        save_prompts(tmp_path, None, image, meta(tower="image", image_gate=True, **IMAGE))
    assert not list(tmp_path.iterdir())
    save_prompts(tmp_path, text, None, meta(depth=2))


def fake_loader(monkeypatch: pytest.MonkeyPatch, digest: str) -> list[str]:
    """Let `load_clip` give the tiny model; returns the specs it is asked for."""
    asked: list[str] = []

    def load_clip(spec: str, device: str = "cpu") -> LoadedClip:
        asked.append(spec)
        model = tiny_clip("laion")
        return LoadedClip(spec, model, tokenizer(), None, digest, torch.device(device))

    monkeypatch.setattr("teachonce.models.clip.load_clip", load_clip)
    return asked


NAMES = ["tench", "great white shark", "Tench"]


def test_a_classifier_for_own_names(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_loader(monkeypatch, "d" * 64)
    loaded: LoadedPrompts = teachonce.load_prompts(saved)
    assert not asked, "loading prompts must not load a model"
    features: Tensor = loaded.classifier(NAMES)
    assert features.shape == (3, 32) and not features.requires_grad and loaded.text is not None
    assert torch.allclose(features, plain_features(tiny_clip("laion"), loaded.text, NAMES), rtol=0, atol=1e-5)
    assert torch.allclose(features.norm(dim=1), torch.ones(3))
    loaded.classifier(["shark"])
    assert asked == ["local-dir:student"], "the student is loaded once"


@pytest.mark.parametrize("position", ["around", "after"])
def test_a_classifier_has_its_slots_where_they_were_trained(
    position: Position, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_loader(monkeypatch, "d" * 64)
    prompts = random_prompts(make_tower(), "unshared-replace", 2)
    save_prompts(tmp_path, prompts, None, meta(structure="unshared-replace", depth=2, position=position))
    expected = plain_features(tiny_clip("laion"), prompts, NAMES, position)
    assert torch.allclose(load_prompts(tmp_path).classifier(NAMES), expected, rtol=0, atol=1e-5)


def test_image_prompts_alone_go_with_the_hand_written_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_loader(monkeypatch, "d" * 64)
    save_prompts(tmp_path, None, image_prompts("shared"), meta(tower="image", structure="shared", slots=0, **IMAGE))
    model = tiny_clip("laion")
    expected = model.encode_text(full_tokens(model, NAMES), normalize=True)  # type: ignore[operator]
    assert torch.allclose(load_prompts(tmp_path).classifier(NAMES), expected, rtol=0, atol=1e-5)


def test_image_prompts_trained_beside_slots_elsewhere_have_the_context_in_front_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`position` is about text slots. Training classified by the hand-written context before the names."""
    fake_loader(monkeypatch, "d" * 64)
    fields = meta(tower="image", structure="shared", slots=0, position="after", **IMAGE)
    save_prompts(tmp_path, None, image_prompts("shared"), fields)
    model = tiny_clip("laion")
    expected = model.encode_text(full_tokens(model, NAMES), normalize=True)  # type: ignore[operator]
    assert torch.allclose(load_prompts(tmp_path).classifier(NAMES), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("tench", "found one str 'tench'"),
        (b"tench", "found one bytes"),
        (None, "found NoneType"),
        (3, "found int"),
        ([], "found none"),
        (iter(()), "found none"),
        (["tench", 3], "class name 1 is no text: found int 3"),
        ([None], "class name 0 is no text"),
        (["tench", " \n"], "class name 1 is blank"),
        ([""], "class name 0 is blank"),
        (["\u200b"], "class name 0 is .*invisible: .*u200b"),
        (["\u200b \u2060"], "invisible"),
        (["\x00"], "class name 0 .* is empty"),
        (["&nbsp;"], "is empty"),
        (["<end_of_text>"], "special token"),
        (["very " * 80], "takes 82 tokens"),
    ],
)
def test_what_is_no_list_of_names_is_refused(
    names: Any, words: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text would count as its letters; the hint shows what to write."""
    fake_loader(monkeypatch, "d" * 64)
    with pytest.raises(UsageError, match=words) as caught:
        load_prompts(saved).classifier(names)
    assert caught.value.hint
    if names == "tench":
        assert caught.value.hint == "classifier(['tench'])"


def test_odd_characters_and_any_iterable_make_finite_features(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other scripts, emoji, accents, line breaks, half a surrogate pair: all are tokens of their bytes."""
    fake_loader(monkeypatch, "d" * 64)
    odd = ["日本", "\U0001f600", "é", "a\nb", "tench\tfish", "a\u200bb", "\ud800", "Ωmega", "x" * 30, "it's", '"']
    loaded = load_prompts(saved)
    features = loaded.classifier(odd)
    assert features.shape == (len(odd), 32) and bool(features.isfinite().all())
    assert torch.equal(loaded.classifier(name for name in odd), features)
    assert torch.equal(loaded.classifier(["a\nb"]), loaded.classifier(("a b",)))


def test_image_features_are_the_students_own_without_image_prompts(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_loader(monkeypatch, "d" * 64)
    model = tiny_clip("laion")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = model.encode_image(pixels, normalize=True)  # type: ignore[operator]
    assert torch.allclose(load_prompts(saved).image_features(pixels), expected, rtol=0, atol=1e-6)


def test_image_features_with_image_prompts_are_the_image_towers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from teachonce.towers.image_tower import ImageTower

    fake_loader(monkeypatch, "d" * 64)
    tower = ImageTower.from_clip(tiny_clip("laion"))
    prompts = SlotPrompts(torch.randn(5, tower.width, generator=torch.Generator().manual_seed(0)))
    fields = {"image_slots": 5, "image_width": tower.width, "image_layers": tower.layers}
    save_prompts(tmp_path, None, prompts, meta(tower="image", structure="shared", slots=0, **fields))
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = load_prompts(tmp_path).image_features(pixels)
    assert not features.requires_grad
    assert torch.allclose(features, tower.features(prompts, pixels), rtol=0, atol=1e-6)
    assert not torch.allclose(features, tower.features(None, pixels), rtol=0, atol=1e-3)


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
    with pytest.raises(IncompleteError, match="No space left"):
        atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and [x.name for x in tmp_path.iterdir()] == ["file"]
    with pytest.raises(EnvironmentFault, match="nowhere"):
        atomic_write_bytes(tmp_path / "nowhere" / "file", b"")


def test_a_run_that_is_not_finished_says_so(tmp_path: Path) -> None:
    """To whoever asks for its prompts: they come once it has ended."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.toml").write_text("seed = 0\n")
    with pytest.raises(IncompleteError, match="not finished") as caught:
        load_prompts(tmp_path)
    assert "`resume`" in caught.value.hint
