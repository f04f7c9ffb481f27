"""Image prompts of models whose text tower cannot carry any, through train, load_prompts and evaluate."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import worlds
from image_reference import TIMM, randomise
from PIL import Image
from safetensors.torch import save_file
from test_evaluate import run as evaluate_run
from test_train_options import losses_of, run
from worlds import IDS, NAMES, World

from teachonce.data.view_policy import ViewPolicy
from teachonce.errors import UnsupportedModelError
from teachonce.models.classifier import name_groups
from teachonce.models.clip import load_clip
from teachonce.models.prompt_files import load_prompts

KINDS = ("siglip", pytest.param("pe", marks=pytest.mark.slow))
TEMPLATE = "a photo of a {}."


def write_student(kind: str, folder: Path) -> str:
    """Write a random CLIP of a small timm image tower, and of a text tower whose blocks no prompt can enter."""
    vision = TIMM[kind][2]
    text = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2, "qk_norm": True}
    body = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model: Any = open_clip.CustomTextCLIP(24, dict(vision), dict(text), init_logit_scale=np.log(8.0))
        randomise(model.visual)
    folder.mkdir(parents=True)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"model_cfg": {**body, "custom_text": True}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


@pytest.fixture(scope="module", params=KINDS)
def image_only(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student that can carry image prompts only."""
    return write_student(request.param, tmp_path_factory.mktemp("image-only") / request.param)


@pytest.fixture(scope="module")
def labels(image_only: str, world: World, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Soft labels of a teacher, and the student's own features."""
    path = tmp_path_factory.mktemp("image-only-labels") / "labels.zarr"
    worlds.teach_inline(
        world, path, teacher, students=(image_only,), top_k=4, views=ViewPolicy(views=2, seed=5), chunk_rows=20
    )
    return path


@pytest.fixture(scope="module")
def trained(labels: Path, image_only: str, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of its image tower."""
    out = tmp_path_factory.mktemp("image-only-run") / "run"
    run(labels, image_only, out, "tower=image", "steps=6", root=world.root)
    return out


def test_image_prompts_are_trained_where_the_text_tower_can_carry_none(
    trained: Path, labels: Path, image_only: str, world: World, tmp_path: Path
) -> None:
    """With closed gates the first loss is that of the frozen student, and it falls."""
    losses = losses_of(trained)
    assert losses[-1] < losses[0]
    meta = load_prompts(trained).meta
    assert (meta.width, meta.layers, meta.slots) == (0, 0, 0) and meta.image_slots == 2
    for tower in ("text", "both"):
        with pytest.raises(UnsupportedModelError, match="text tower cannot carry prompts"):
            run(labels, image_only, tmp_path / tower, f"tower={tower}", root=world.root)
        assert not (tmp_path / tower).exists()


def test_class_features_beside_image_prompts_are_the_students_own(trained: Path, image_only: str) -> None:
    model, _ = open_clip.create_model_from_pretrained(image_only)
    tokens = open_clip.get_tokenizer(image_only)([TEMPLATE.replace("{}", name) for name in NAMES])
    with torch.no_grad():
        theirs = model.eval().encode_text(tokens, normalize=True)
    ours = load_prompts(trained).classifier(NAMES)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    assert not ours.is_inference(), "they may become part of somebody's model"


def test_they_are_evaluated_as_one_would_by_hand(trained: Path, image_only: str, world: World, tmp_path: Path) -> None:
    result = evaluate_run(world, image_only, run=trained)
    prompts = load_prompts(trained)
    _, preprocess = open_clip.create_model_from_pretrained(image_only)
    classes, right = prompts.classifier(NAMES), []
    for name, photo in world.photos.items():
        features = prompts.image_features(preprocess(Image.open(io.BytesIO(photo)))[None])
        best, label = int((features @ classes.T).argmax()), IDS.index(name[:3])
        same = [c for c in range(len(NAMES)) if NAMES[c].lower() == NAMES[label].lower()]
        right.append((best in same) / len(same))
    assert result.top1 == pytest.approx(np.mean(right), abs=1e-9)


def test_names_have_one_number_where_they_have_one_text(image_only: str, student: str) -> None:
    """Whether the text tower is one that carries prompts or not."""
    names = [*NAMES, "cup  of tea", NAMES[0]]
    for spec in (image_only, student):
        assert name_groups(load_clip(spec), names, TEMPLATE).tolist() == [0, 1, 2, 3, 4, 3, 5, 6, 5, 0]
