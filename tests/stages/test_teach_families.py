"""teach: models of the families whose tokenizer or text tower comes from transformers teach, offline, from folders."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from hf_clips import make_hf_clip
from PIL import Image
from worlds import NAMES, TEMPLATE, Notes, World, teach_inline

from teachonce.core.progress import Silent
from teachonce.errors import UnsupportedModelError, UsageError
from teachonce.labels.format import LABELS
from teachonce.labels.store import LabelStore
from teachonce.stages.inspect import InspectRequest, inspect
from teachonce.stages.merge import MergeRequest, merge
from teachonce.stages.relabel import RelabelRequest, relabel
from teachonce.stages.teach import teach
from teachonce.stages.verify import VerifyRequest, verify

FAMILIES = ("siglip", "clipa", "metaclip2", "nllb", "roberta")  # the others differ from these in their tokenizer only
every_family = pytest.mark.parametrize("family", FAMILIES)
K = len(NAMES)  # all classes are kept: what is stored is the whole distribution


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The spec of a tiny random model of every family."""
    folder = tmp_path_factory.mktemp("families")
    return {family: make_hf_clip(folder / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def stores(models: dict[str, str], world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each of them teaches, with embeddings; never change it."""
    folder = tmp_path_factory.mktemp("taught")
    options: dict[str, Any] = {"top_k": K, "embeddings": "float16", "shots": 1, "chunk_rows": 8}
    for family, spec in models.items():
        teach_inline(world, folder / f"{family}.zarr", spec, **options)
    return {family: folder / f"{family}.zarr" for family in models}


def probabilities(path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The stored distributions of all rows, classes in their own order, [R, C]."""
    store = LabelStore.open(path)
    distributions = np.zeros((store.layout.rows, len(store.vocabulary())))
    row = 0
    for chunk in range(store.layout.chunks):
        labels = store.decode_labels(store.read_chunk(LABELS, chunk))
        for ids, log_probs in zip(labels.class_ids, labels.log_probs, strict=True):
            distributions[row, ids] = np.exp(log_probs.astype(np.float64))
            row += 1
    return distributions


def by_open_clip(spec: str, world: World, keys: list[str], template: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The same with open_clip alone: softmax over scale * cosine, without a bias, [R, C]."""
    import torch

    clip = worlds.loaded_once(spec)
    texts = clip.tokenizer([template.replace("{}", name) for name in NAMES])
    pixels = torch.stack([clip.preprocess(Image.open(io.BytesIO(world.photos[key]))) for key in keys])
    with torch.no_grad():
        images, names = clip.model.encode_image(pixels, normalize=True), clip.model.encode_text(texts, normalize=True)
        logits = clip.model.logit_scale.exp() * images @ names.T
    return logits.double().softmax(1).numpy()


def keys_of(path: Path) -> list[str]:
    """The photo of every row."""
    store = LabelStore.open(path)
    return [
        Path(store.index_of_chunk(chunk).key(row)).name.removesuffix(".jpg")
        for chunk in range(store.layout.chunks)
        for row in range(len(store.index_of_chunk(chunk)))
    ]


@every_family
def test_a_family_teaches_the_softmax_of_its_scaled_cosines(
    family: str, models: dict[str, str], stores: dict[str, Path], world: World
) -> None:
    """What open_clip gives by itself, one text and one photo at a time; features of different names differ."""
    wanted = by_open_clip(models[family], world, keys_of(stores[family]), TEMPLATE)
    np.testing.assert_allclose(probabilities(stores[family]), wanted, atol=0.02)
    assert wanted.std(0).max() > 0.01 and wanted.std(1).max() > 0.01, "the model tells photos and names apart"


@every_family
def test_labels_of_a_family_are_made_again_from_its_embeddings(
    family: str, models: dict[str, str], stores: dict[str, Path], world: World, tmp_path: Path
) -> None:
    """Another sentence, and no image is read."""
    template = "itap of my {}."
    with worlds.inline_tasks():
        relabel(RelabelRequest(parent=stores[family], labels=tmp_path / "a.zarr", templates=(template,)), Silent())
    wanted = by_open_clip(models[family], world, keys_of(stores[family]), template)
    np.testing.assert_allclose(probabilities(tmp_path / "a.zarr"), wanted, atol=0.03)


@pytest.mark.parametrize("family", ["siglip", "nllb"])
def test_the_images_give_the_same_labels_when_they_are_looked_at_again(
    family: str, models: dict[str, str], stores: dict[str, Path], world: World
) -> None:
    with worlds.inline_tasks():
        result = verify(VerifyRequest(labels=stores[family], teacher=models[family], root=world.root), Silent())
    assert result.ok and result.teacher


def test_teachers_of_two_families_are_merged(stores: dict[str, Path], tmp_path: Path) -> None:
    """The mean of their distributions."""
    parents = (stores["siglip"], stores["nllb"])
    with worlds.inline_tasks():
        merge(MergeRequest(parents=parents, labels=tmp_path / "both.zarr", calibrate=False, top_k=K), Silent())
    wanted = np.mean([probabilities(path) for path in parents], axis=0)
    np.testing.assert_allclose(probabilities(tmp_path / "both.zarr"), wanted, atol=0.02)


def test_a_bias_of_all_logits_changes_no_label_and_is_stated(
    models: dict[str, str], stores: dict[str, Path], world: World, tmp_path: Path
) -> None:
    """SigLIP's sigmoid was trained with one; the softmax of its soft labels is the same without it."""
    other = make_hf_clip(tmp_path / "m", "siglip", logit_bias=3.0)
    teach_inline(world, tmp_path / "a.zarr", other, top_k=K, shots=1, chunk_rows=8)
    np.testing.assert_array_equal(probabilities(tmp_path / "a.zarr"), probabilities(stores["siglip"]))
    stated = [
        inspect(InspectRequest(labels=path), Silent()).fingerprint["about"].get("logit_bias")
        for path in (tmp_path / "a.zarr", stores["siglip"], stores["clipa"])
    ]
    assert stated == [3.0, -9.5, None]


def test_teach_says_which_towers_of_a_student_can_carry_prompts(world: World, student: str, tmp_path: Path) -> None:
    notes = Notes()
    teach_noting(world, tmp_path / "a.zarr", notes, students=(student,))
    assert [line for line in notes.lines if "can carry prompts in both towers" in line and student in line]


def test_a_student_that_can_carry_no_prompts_is_refused_before_anything_is_written(
    models: dict[str, str], world: World, tmp_path: Path
) -> None:
    """With what is in the way of each tower; `features_only` keeps its features all the same, and says what for."""
    without = make_towerless(tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match="neither tower") as caught:
        teach_noting(world, tmp_path / "a.zarr", Notes(), students=(without,))
    assert "HFTextEncoder" in caught.value.message and "class ResNet" in caught.value.message
    assert "`features_only`" in caught.value.hint
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    notes = Notes()
    teach_noting(world, tmp_path / "a.zarr", notes, students=(without,), features_only=True)
    assert [line for line in notes.lines if "neither tower" in line and "evaluate" in line]
    assert len(LabelStore.open(tmp_path / "a.zarr").groups) == 2


def test_features_only_is_about_students(world: World, teacher: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`features_only` is about students"):
        teach_inline(world, tmp_path / "a.zarr", teacher, features_only=True)


def teach_noting(world: World, labels: Path, notes: Notes, **options: Any) -> None:
    """Run `teach` in this process on a few photos, without a teacher; keeps what it says."""
    with worlds.inline_tasks():
        teach(worlds.request_for(world, labels, None, shots=1, **options), notes)


def make_towerless(folder: Path) -> str:
    """A model with RoBERTa's text tower and an image tower of convolutions: prompts enter neither."""
    return make_hf_clip(folder, "roberta", timm_name="test_resnet")
