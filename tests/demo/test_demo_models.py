"""The shipped demo models: small, whole, loadable by plain open_clip, as good as stated; and their recipe still runs.

It does not repeat the whole recipe, which takes many minutes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from teachonce.core.progress import Silent
from teachonce.demo.models import CONTEXT_LENGTH, DemoModels, model_config, pack_model, unpack_model, unpack_models
from teachonce.demo.training import (
    STUDENT_CAPTIONS,
    TEMPLATE,
    TrainSizes,
    demo_token_ids,
    image_features,
    prepare,
    text_features,
    train_demo_models,
)
from teachonce.demo.world import render_image, seen_classes, unseen_classes
from teachonce.errors import DataError

NAMES = ("teacher", "student")
FRESH = 20_000  # image numbers from here on were met by nobody


def packed(name: str) -> Path:
    return Path(str(files("teachonce.demo") / "assets" / f"demo-{name}.safetensors"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> DemoModels:
    return unpack_models(tmp_path_factory.mktemp("models"))


def folder(name: str) -> Path:
    return Path(name.removeprefix("local-dir:"))


def top1(spec: str, *, seen: bool) -> float:
    """Zero-shot top-1 over all seen or all held-out names on 320 fresh images, all through plain open_clip."""
    model, transform = open_clip.create_model_from_pretrained(spec)
    model.eval()
    classes = seen_classes() if seen else unseen_classes()
    labels = [index * len(classes) // 320 for index in range(320)]
    pixels = [render_image(classes[label], FRESH + i, split="recipe") for i, label in enumerate(labels)]
    tokens = open_clip.get_tokenizer(spec)([TEMPLATE.replace("{}", item.name) for item in classes])
    with torch.inference_mode():
        texts = model.encode_text(tokens, normalize=True)
        images = model.encode_image(torch.stack([transform(Image.fromarray(p)) for p in pixels]), normalize=True)
    return ((images @ texts.T).argmax(dim=1) == torch.tensor(labels)).float().mean().item()


def test_together_under_five_megabytes() -> None:
    assert sum(packed(name).stat().st_size for name in NAMES) < 5_000_000


# On 320 images the standard error is at most 0.028; the bounds are about three of them from the measured values.
@pytest.mark.slow
@pytest.mark.parametrize(("seen", "low", "high"), [(True, 0.78, 0.94), (False, 0.71, 0.92)])
def test_the_teacher_is_good(models: DemoModels, seen: bool, low: float, high: float) -> None:
    assert low < top1(models.teacher, seen=seen) < high


@pytest.mark.slow
@pytest.mark.parametrize(("seen", "low", "high"), [(True, 0.42, 0.65), (False, 0.38, 0.59)])
def test_the_student_is_much_weaker_but_far_above_chance(
    models: DemoModels, seen: bool, low: float, high: float
) -> None:
    assert low < top1(models.student, seen=seen) < high


def test_the_usual_wording_is_not_the_student_s_best(models: DemoModels) -> None:
    """Prompts have room: another context of the same length reads the same images better."""
    model, _ = open_clip.create_model_from_pretrained(models.student)
    model.eval()
    tokenizer = open_clip.get_tokenizer(models.student)
    classes = seen_classes()
    labels = torch.arange(len(classes)).repeat(2)
    drawn = [render_image(classes[label], FRESH + i, split="recipe") for i, label in enumerate(labels.tolist())]
    pixels = prepare(np.stack(drawn), 32)
    accuracies = []
    with torch.inference_mode():
        images = image_features(model, pixels)
        for template in (TEMPLATE, STUDENT_CAPTIONS.exact[0]):
            texts = text_features(model, tokenizer([template.replace("{}", item.name) for item in classes]))
            accuracies.append(((images @ texts.T).argmax(dim=1) == labels).float().mean().item())
    assert accuracies[1] > accuracies[0] + 0.02


@pytest.mark.parametrize("name", NAMES)
def test_pack_undoes_unpack(models: DemoModels, name: str, tmp_path: Path) -> None:
    source = folder(getattr(models, name))
    pack_model(source, demo_token_ids(), tmp_path / "packed.safetensors")
    assert (tmp_path / "packed.safetensors").read_bytes() == packed(name).read_bytes()
    unpack_model(tmp_path / "packed.safetensors", tmp_path / "again")
    for file in ("open_clip_config.json", "open_clip_model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (source / file).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_unpacked_folders_are_plain_open_clip_models(models: DemoModels, name: str) -> None:
    source = folder(getattr(models, name))
    assert json.loads((source / "open_clip_config.json").read_text()) == model_config(name)
    state = load_file(source / "open_clip_model.safetensors")
    assert state["token_embedding.weight"].shape[0] == 49408
    assert {tensor.dtype for tensor in state.values()} <= {torch.float32, torch.int64}
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_every_word_of_the_demo_has_a_trained_row() -> None:
    texts = [
        f"{start} {item.name}{end}"
        for item in seen_classes()
        for start, end in (("a photo of a", "."), ("an image of", ""), ("a picture of the", "."))
    ]
    tokens = open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)(texts)
    assert set(tokens.unique().tolist()) <= set(demo_token_ids())
    assert {49406, 49407} <= set(demo_token_ids())


def test_unpacking_twice_keeps_the_folder_and_refuses_another_model(tmp_path: Path) -> None:
    unpack_model(packed("student"), tmp_path / "model")
    before = (tmp_path / "model" / "open_clip_model.safetensors").stat().st_mtime_ns
    unpack_model(packed("student"), tmp_path / "model")
    assert (tmp_path / "model" / "open_clip_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="is not the model of demo-teacher"):
        unpack_model(packed("teacher"), tmp_path / "model")


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(packed("student").read_bytes()[:5000])
    with pytest.raises(DataError, match="not a packed demo model"):
        unpack_model(tmp_path / "bad.safetensors", tmp_path / "model")
    with pytest.raises(DataError, match="not a readable open_clip model folder"):
        pack_model(tmp_path, demo_token_ids(), tmp_path / "packed.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_s_shortcuts_equal_open_clip(models: DemoModels, name: str) -> None:
    """Trimmed texts and batched preprocessing give what encode_text and the model's own transform give."""
    spec = getattr(models, name)
    model, transform = open_clip.create_model_from_pretrained(spec)
    model.eval()
    tokens = open_clip.get_tokenizer(spec)(["a photo of a red solid circle.", "teal checkered star"])
    pixels = render_image(seen_classes()[0], FRESH, split="recipe")
    with torch.inference_mode():
        assert torch.allclose(text_features(model, tokens), model.encode_text(tokens, normalize=True), atol=1e-5)
    size = model_config(name)["model_cfg"]["vision_cfg"]["image_size"]
    # Pillow rounds to whole grey levels between its two passes.
    assert torch.allclose(prepare(pixels[None], size)[0], transform(Image.fromarray(pixels)), atol=2.5 / 127.5)


@pytest.mark.slow  # the demo itself runs in CI
def test_the_recipe_still_runs_and_learns(tmp_path: Path) -> None:
    sizes = TrainSizes(
        images_per_class=1,
        teacher_warm_up=2,
        teacher_contrast=5,
        student_warm_up=2,
        student_contrast=5,
        batch=32,
        check_images_per_class=1,
    )
    state = torch.get_rng_state()
    made = train_demo_models(tmp_path / "one", sizes, Silent())
    again = train_demo_models(tmp_path / "two", sizes, Silent())
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are left alone
    for name, model, twin in zip(NAMES, made, again, strict=True):
        assert model.file == tmp_path / "one" / f"demo-{name}.safetensors"
        assert model.last_loss < model.first_loss
        assert 0 <= model.seen_top1 <= 1
        assert model.file.read_bytes() == twin.file.read_bytes()
        unpack_model(model.file, tmp_path / name)
        open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / name}")
