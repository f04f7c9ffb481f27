"""Stage one and scores on a GPU that is not there: every tensor in its place, and the host waits for no batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import fake_gpu
import numpy as np
import pytest
import torch
from worlds import World, loaded_once

from teachonce.core.progress import Silent
from teachonce.data.batches import ImageBatch, image_batches
from teachonce.data.index import build_index
from teachonce.data.manifests import load_manifest
from teachonce.data.reader import ImageReader
from teachonce.evaluation.scores import outcomes
from teachonce.models import classifier
from teachonce.teaching.chunk import _features
from teachonce.teaching.teacher import TeacherHead, begin_soft_labels

guard: Any = fake_gpu
pytestmark = pytest.mark.skipif(not guard.is_tried(), reason="the guard was not tried with this version of PyTorch")

INVERSE = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8])  # classes of one name tie in every row


def _batches(world: World, models: list[Any]) -> Iterator[ImageBatch]:
    index = build_index(load_manifest(world.manifest()), "train", world.root, Silent())
    with ImageReader(index, world.root) as reader, image_batches(reader, 24, models, 8, 1) as batches:
        yield from batches


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_batch_for_two_models_is_one_copy_of_bytes_and_no_wait(
    world: World, teacher: str, student: str, precision: Any
) -> None:
    """From pinned memory, without a stop, with ties in all rows: the host is free to give the GPU its next batch."""
    with guard.FakeGpu("cuda") as gpu:
        models = [guard.moved(loaded_once(spec), gpu, copy.deepcopy, replace) for spec in (teacher, student)]
        head = TeacherHead(torch.zeros(9, 16).to(gpu.device), INVERSE.to(gpu.device), 50.0)
        for batch in _batches(world, models):
            gpu.tally.clear()
            placed: dict[int, torch.Tensor] = {}
            features = [_features(model, batch, number, precision, placed) for number, model in enumerate(models)]
            begin_soft_labels(head.logits(features[0]), 3, (1.0, 2.0))
        tally = gpu.tally  # of the last batch: the first one sets up constants
        assert not tally.waits, tally.text()
        assert sum(tally.copies.values()) == 1 and not any(copy.blocks for copy in tally.copies), tally.text()
        assert tally.copied == 8 * 3 * 32 * 32, "the bytes of the pixels, once for both models"


def test_scores_stay_on_the_device_until_all_images_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many waits for three blocks of images as for one; features of the guard are no numbers, so it is not asked."""
    monkeypatch.setattr(classifier, "int", lambda x: 0 if getattr(x, "is_cuda", False) else int(x), raising=False)
    classes = np.eye(16, dtype=np.float32)
    waits = []
    for images in (1000, 3000):
        labels = np.arange(images) % 16
        with guard.FakeGpu("cuda") as gpu:
            outcomes(classes[labels], classes, labels, 50.0, gpu.device)
            waits.append(gpu.tally.waits.total())
    assert waits[0] == waits[1] <= 8
