"""What the other stages compute with a model or a head, on a GPU that is not there: every tensor in its place.

Commands read and write files around these calls; on the GPU they do nothing else.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_gpu import TESTED, FakeGpu, is_tried, moved
from PIL import Image
from tally import HIDDEN_COPY, WAITS_FOR_A_TENSOR
from worlds import NAMES, World, loaded_once

from teachonce.core.progress import Silent
from teachonce.data.index import build_index
from teachonce.data.manifests import load_manifest
from teachonce.data.views import EVALUATION
from teachonce.evaluation.choice import Work
from teachonce.evaluation.features import encode_all
from teachonce.models.classifier import template_features
from teachonce.models.prompt_files import LoadedPrompts, load_prompts, save_prompts
from teachonce.recipe.config import TrainConfig
from teachonce.teaching import recheck
from teachonce.teaching.ensemble import calibrate, merged_log_probs
from teachonce.teaching.teacher import TeacherHead, begin_soft_labels, begin_tiled_soft_labels, head_of
from teachonce.training.student import PromptedStudent

pytestmark = pytest.mark.skipif(not is_tried(), reason=f"the guard was tried with PyTorch {', '.join(TESTED)} only")

ROWS, WIDTH, CLASSES = 6, 16, 9
TAUS = (1.0, 2.0)


def saved(student: str, folder: Path, tower: Any) -> LoadedPrompts:
    """Prompts of a tower, read from a folder."""
    ours = PromptedStudent(TrainConfig.of(tower=tower, image_length=2), loaded_once(student), NAMES)
    save_prompts(folder, ours.prompts("text"), ours.prompts("image"), ours.meta())
    return load_prompts(folder)


@pytest.mark.parametrize("tower", ["text", "image", "both"])
def test_saved_prompts_meet_names_and_images(tower: str, student: str, tmp_path: Path) -> None:
    """As `load_prompts`, `evaluate` and `export` use them: once a call prompts go there and features come back."""
    prompts = saved(student, tmp_path, tower)
    with FakeGpu("cuda") as gpu:
        clip = moved(loaded_once(student), gpu, copy.deepcopy, replace)
        bound = replace(prompts, student=clip)  # `bound_to` reads values of the model, which the guard has none of
        classes = bound.classifier(NAMES)
        images = bound.image_features(torch.ones(3, *clip.prepare(Image.new("RGB", (40, 30))).shape))
        assert classes.device == images.device == gpu.device
        gpu.tally.clear()
        bound.classifier(NAMES).cpu()
        assert gpu.tally.blocking <= 5 and gpu.tally.asked.total() <= 2, gpu.tally.text()


def test_an_evaluation_encodes_its_images_and_its_template(world: World, student: str) -> None:
    """One wait a batch, for its features; one copy blocks, of the blank image by which their width is known."""
    index = build_index(load_manifest(world.manifest()), "train", world.root, Silent())
    with FakeGpu("cuda") as gpu:
        clip = moved(loaded_once(student), gpu, copy.deepcopy, replace)
        template_features(clip, NAMES, "a photo of a {}.")
        work = Work(batch_size=32, threads=1)
        encode_all(clip, clip.encode_images, index, world.root, work, Silent())
        gpu.tally.clear()
        features = encode_all(clip, clip.encode_images, index, world.root, work, Silent())
        batches = -(-len(index) // 32)
        assert features.shape[0] == len(index)
        assert gpu.tally.blocking == 1 and gpu.tally.asked == {WAITS_FOR_A_TENSOR: batches}, gpu.tally.text()


def relabelled(head: TeacherHead, images: torch.Tensor) -> None:
    begin_soft_labels(head.logits(images), 3, TAUS).fetch()


def relabelled_in_tiles(head: TeacherHead, images: torch.Tensor) -> None:
    begin_tiled_soft_labels(head, images, 3, TAUS, 4).fetch()


def merged(head: TeacherHead, images: torch.Tensor) -> None:
    calibrate(head, images, torch.arange(ROWS).to(images.device))
    begin_soft_labels(merged_log_probs([head, head], [images, images], [0.5, 0.5]), 3, TAUS).fetch()


def rechecked(head: TeacherHead, images: torch.Tensor) -> None:
    for kind in (None, "float16", "int8"):
        recheck._log_probs(head, images[:1], kind, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("work", [relabelled, relabelled_in_tiles, merged, rechecked])
def test_labels_are_made_of_stored_embeddings(work: Callable[[TeacherHead, torch.Tensor], None]) -> None:
    """For relabel, merge and verify: with two classes of one name, which tie."""
    embeddings = np.eye(CLASSES, WIDTH, dtype=np.float32)
    embeddings[-1] = embeddings[-2]
    with FakeGpu("cuda") as gpu:
        head = head_of(embeddings, 50.0, str(gpu.device))
        images = torch.eye(ROWS, WIDTH).to(gpu.device)
        gpu.tally.clear()
        work(head, images)
        assert gpu.tally.launches and gpu.tally.asked[HIDDEN_COPY] == 0, gpu.tally.text()


def test_a_recheck_looks_at_an_image_anew(teacher: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (50, 40), "red").save(file, "PNG")
    with FakeGpu("cuda") as gpu:
        clip = moved(loaded_once(teacher), gpu, copy.deepcopy, replace)
        features = recheck._features(clip, file.getvalue(), EVALUATION, "fp32")
        assert features is not None and features.device == gpu.device
        assert gpu.tally.asked[HIDDEN_COPY] == 0, gpu.tally.text()
