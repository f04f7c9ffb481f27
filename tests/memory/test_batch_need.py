"""The estimate of a worker's memory against real batches whose living storages are counted one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from living import Holds
from PIL import Image
from torch import Tensor
from worlds import loaded_once

from teachonce.data.views import EVALUATION
from teachonce.memory.batch import Batch, batch_need, smaller_batches
from teachonce.models.clip import LoadedClip
from teachonce.teaching.teacher import TeacherHead, begin_soft_labels, begin_tiled_soft_labels

LOW, HIGH = 0.9, 1.3  # of what real batches hold beside the weights
BATCH = Batch(
    images=24,
    precision="fp32",
    classes=5000,
    top_k=20,
    temperatures=(1.0, 2.0),
    tile=None,
    kept_rows=60,
    fidelity_rows=8,
)


def held(teacher: LoadedClip | None, students: tuple[LoadedClip, ...], batch: Batch) -> tuple[int, int]:
    """The most bytes that live in two real batches, as the task of a chunk runs them, and those of the weights."""
    models = ([] if teacher is None else [teacher]) + list(students)
    weights = [x for clip in models for x in (*clip.model.parameters(), *clip.model.buffers())]
    counted = Holds(weights)
    before, pending, head, kept = counted.now, None, None, []
    with counted:
        for _ in range(2):
            placed: dict[str, Tensor] = {}
            for clip in models:
                if clip.preparation not in placed:
                    one = clip.view_pixels(Image.new("RGB", (64, 64)), EVALUATION)
                    placed[clip.preparation] = clip.placed(torch.zeros(batch.images, *one.shape, dtype=one.dtype))
                features = clip.encode_images(placed[clip.preparation], batch.precision)
                if clip in students:
                    kept.append(features.clone())
                if clip is teacher:
                    if head is None:
                        random = torch.rand(batch.classes, features.shape[1])
                        head = TeacherHead(random, torch.arange(batch.classes), 1.0)
                        kept.append(torch.zeros(batch.fidelity_rows, batch.classes, dtype=torch.float64))
                    if batch.tile is None:
                        pending = begin_soft_labels(head.logits(features), batch.top_k, batch.temperatures)
                    else:
                        begin_tiled_soft_labels(head, features, batch.top_k, batch.temperatures, batch.tile)
    assert pending is None or pending.fetch()
    return counted.peak, before


CASES: dict[str, tuple[bool, int, dict[str, Any]]] = {
    "a teacher": (True, 0, {}),
    "a teacher and its student": (True, 1, {}),
    "few classes": (True, 1, {"classes": 40}),
    "tiles": (True, 0, {"tile": 1000}),
    "half precision": (True, 1, {"precision": "bf16", "classes": 40}),
    "students alone": (False, 1, {"classes": 0}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_estimate_is_near_what_batches_hold(case: str, teacher: str, student: str) -> None:
    teaches, students, changes = CASES[case]
    batch = replace(BATCH, **changes)
    first = loaded_once(teacher) if teaches else None
    others = (loaded_once(student),) * students
    peak, weights = held(first, others, batch)
    estimated = batch_need(first, others, batch, gpu=False) - weights
    assert LOW * (peak - weights) <= estimated <= HIGH * (peak - weights), estimated / (peak - weights)


def test_advised_keys_need_less_as_real_batches_do(teacher: str) -> None:
    clip, batch = loaded_once(teacher), replace(BATCH, images=64)
    need = batch_need(clip, (), batch)
    ways = smaller_batches(clip, (), batch, need)
    assert set(ways) == {("batch_size", 16), ("class_tile", 4096)} or set(ways) == {("batch_size", 16)}
    real = held(clip, (), batch)[0]
    for (key, value), less in ways.items():
        changed = replace(batch, images=value) if key == "batch_size" else replace(batch, tile=value)
        assert less < need and held(clip, (), changed)[0] < real, key
