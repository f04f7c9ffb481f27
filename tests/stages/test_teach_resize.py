"""teach with `resize = "tensor"`: the store says so, goes on only so, and everything that reads images anew follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import World, all_arrays, copy_store, inline_tasks, loaded_once, teach_inline

from teachonce.core.progress import Silent
from teachonce.data.view_policy import ViewPolicy
from teachonce.errors import DataError, FingerprintError
from teachonce.evaluation.features import image_identity
from teachonce.labels.format import EMBEDDING, LABELS, student_group
from teachonce.labels.ledger import resize_of
from teachonce.labels.store import LabelStore
from teachonce.rows.images import ViewImages
from teachonce.stages.inspect import InspectRequest, inspect
from teachonce.stages.merge import MergeRequest, merge
from teachonce.stages.relabel import RelabelRequest, relabel
from teachonce.stages.verify import VerifyRequest, verify

VIEWS = ViewPolicy(views=2, seed=5)
OPTIONS = {"top_k": 5, "views": VIEWS, "embeddings": "float16", "shots": 3}


@pytest.fixture(scope="module")
def folder(world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pillow.zarr` and `tensor.zarr`, of two views of a few photos, with a student's features."""
    folder = tmp_path_factory.mktemp("resize")
    teach_inline(world, folder / "pillow.zarr", teacher, students=(student,), **OPTIONS)
    teach_inline(world, folder / "tensor.zarr", teacher, students=(student,), resize="tensor", **OPTIONS)
    return folder


def test_the_store_says_who_resized_and_differs(folder: Path, student: str) -> None:
    """In all three groups, and to `inspect`; one by Pillow says nothing, as stores of earlier versions."""
    tensor, pillow = (LabelStore.open(folder / f"{name}.zarr") for name in ("tensor", "pillow"))
    features = student_group(loaded_once(student).digest)
    for group in (LABELS, EMBEDDING, features):
        assert tensor.groups[group].fingerprint["resize"] == "tensor"
        assert "resize" not in pillow.groups[group].fingerprint
    assert inspect(InspectRequest(labels=folder / "tensor.zarr"), Silent()).fingerprint["resize"] == "tensor"
    ours, theirs = all_arrays(folder / "tensor.zarr"), all_arrays(folder / "pillow.zarr")
    assert np.array_equal(ours["view_params"], theirs["view_params"])
    off = np.abs(ours[f"{features}/features"].astype(np.float32) - theirs[f"{features}/features"].astype(np.float32))
    assert 0 < off.max() < 0.05, "other pixels by rounding, not other images"
    assert tensor.store_id() != pillow.store_id()


@pytest.mark.parametrize(("store", "asked"), [("tensor", "pillow"), ("pillow", "tensor")])
def test_the_other_value_is_refused_by_name(
    store: str, asked: str, folder: Path, world: World, teacher: str, student: str
) -> None:
    """With the teacher and for a student that is added later; the same value goes on."""
    path = folder / f"{store}.zarr"
    for models in ({"teacher": teacher}, {"teacher": None, "students": (student,)}):
        options = {**OPTIONS, "embeddings": None} if models["teacher"] is None else OPTIONS
        with pytest.raises(FingerprintError, match=f"resize: stored '{store}', asked for '{asked}'"):
            teach_inline(world, path, **models, **options, resize=asked)  # type: ignore[arg-type]
        assert teach_inline(world, path, **models, **options, resize=store).chunks_written == 0  # type: ignore[arg-type]


def test_the_teacher_is_run_again_on_the_same_pixels(folder: Path, world: World, teacher: str) -> None:
    path = folder / "tensor.zarr"
    report = verify(VerifyRequest(labels=path, teacher=teacher, sample=99, root=world.root), Silent())
    assert (
        report.ok
        and report.teacher["rows"] == LabelStore.open(path).layout.rows
        and report.teacher["least_overlap"] == 1.0
    )


@torch.inference_mode()
def test_image_prompts_train_on_the_same_pixels(folder: Path, world: World, student: str) -> None:
    """The images of a training step are resized as the store's were."""
    clip, store = loaded_once(student), LabelStore.open(folder / "tensor.zarr")
    features = all_arrays(folder / "tensor.zarr")[f"{student_group(clip.digest)}/features"]
    rows = np.arange(12)
    with ViewImages(store, world.root, clip, threads=1) as images:
        seen = images.pixels(rows)
    with ViewImages(LabelStore.open(folder / "pillow.zarr"), world.root, clip, threads=1) as images:
        assert not torch.equal(images.pixels(rows), seen)
    assert np.abs(clip.encode_images(seen).numpy() - features[rows].astype(np.float32)).max() < 1e-3


def test_children_keep_it_and_mixtures_are_refused(folder: Path, tmp_path: Path) -> None:
    """relabel and merge; two stores of different pixels are not the same rows."""
    tensor, pillow = folder / "tensor.zarr", folder / "pillow.zarr"
    with inline_tasks():
        relabel(RelabelRequest(parent=tensor, labels=tmp_path / "child.zarr", top_k=3), Silent())
        other = copy_store(tensor, tmp_path)
        merge(MergeRequest(parents=(tensor, other), labels=tmp_path / "mean.zarr", calibrate=False), Silent())
        with pytest.raises(FingerprintError, match="resize: 'tensor' and 'pillow'"):
            merge(MergeRequest(parents=(tensor, pillow), labels=tmp_path / "both.zarr"), Silent())
    for name in ("child", "mean"):
        assert resize_of(LabelStore.open(tmp_path / f"{name}.zarr").groups[LABELS].fingerprint) == "tensor"


def test_a_way_that_is_not_known_is_refused_and_features_are_cached_apart(student: str) -> None:
    assert resize_of({}) == "pillow"
    with pytest.raises(DataError, match="'nvjpeg', which this version does not know: pillow, tensor"):
        resize_of({"resize": "nvjpeg"})
    clip = loaded_once(student)
    assert image_identity(clip, None) != image_identity(clip.resized_by("tensor"), None)
