"""The estimate of a training step's memory against a real step whose living storages are counted one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
import worlds
from living import Holds
from step_cases import BASE, CASES
from torch import Tensor
from worlds import World

from teachonce.core.progress import Silent
from teachonce.data.view_policy import ViewPolicy
from teachonce.labels.store import LabelStore
from teachonce.memory.step import StepNeed, step_need
from teachonce.models.clip import LoadedClip
from teachonce.recipe.config import TrainConfig
from teachonce.rows.images import ViewImages
from teachonce.rows.working_set import WorkingSet, open_working_set
from teachonce.towers import packing, text_parts
from teachonce.training.trainer import Trainer

LOW, HIGH = 0.9, 1.3  # of what a real step holds beside its weights


@dataclass(frozen=True, eq=False)
class Ground:
    """What every step works on."""

    clip: LoadedClip
    rows: WorkingSet


@pytest.fixture(scope="module")
def ground(world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Two views of each photo, soft labels, the teacher's embeddings and the student's features."""
    path = tmp_path_factory.mktemp("need") / "rich.zarr"
    views = ViewPolicy(views=2, seed=5)
    worlds.teach_inline(
        world, path, teacher, students=(student,), top_k=4, embeddings="float16", views=views, chunk_rows=20
    )
    clip, store = worlds.loaded_once(student), LabelStore.open(path)
    rows = open_working_set(store, clip.digest, Silent(), embeddings=True)
    yield Ground(clip, rows)
    rows.close()


class Black:
    """Real pixels, made where the count sees them."""

    def __init__(self, clip: LoadedClip) -> None:
        self.size = clip.model.visual.image_size  # type: ignore[union-attr]

    def pixels(self, rows: Any) -> Tensor:
        height, width = cast(Any, self.size)
        return torch.zeros(len(rows), 3, height, width).contiguous(memory_format=torch.channels_last)

    def prefetch(self, rows: Any) -> None: ...


def held(ground: Ground, config: TrainConfig) -> tuple[int, int]:
    """The most bytes that live in a real step, and those of the weights."""
    model = ground.clip.model
    counted = Holds([*model.parameters(), *model.buffers()])
    weights = counted.now
    images = None if not config.prompts.in_images else cast(ViewImages, Black(ground.clip))
    with counted:
        trainer = Trainer(config, ground.clip, ground.rows, images)
        if config.prompts.tower == "none":
            _ = trainer.student.frozen_classes  # computed once in a run, which is no part of a step
        counted.peak = 0
        trainer.step(trainer.first_complete_step)
    return counted.peak, weights


def asked(case: dict[str, Any], **changes: Any) -> TrainConfig:
    """The configuration of a case."""
    keys = {key: value for key, value in {**BASE, **case, **changes}.items() if key != "step"}
    return TrainConfig.of(**keys)


def within(need: StepNeed, real: tuple[int, int]) -> None:
    """The estimate is near the count, weights left out on both sides."""
    estimated, counted = need.peak - need.weights, real[0] - real[1]
    assert need.weights == real[1]
    assert LOW * counted <= estimated <= HIGH * counted, f"{estimated / counted:.3f}"


SOME = ["sampled ln", "image tower", "micro-batches"]  # one for each kind of step; the rest are left to the slow tests


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * (c not in SOME)) for c in CASES])
def test_an_estimate_is_near_what_a_step_holds(case: str, ground: Ground) -> None:
    config = asked(CASES[case])
    within(step_need(config, ground.clip, ground.rows, gpu=False), held(ground, config))


@pytest.mark.parametrize(
    ("case", "precision"),
    [
        ("soft", "bf16"),
        *(pytest.param("both towers", p, marks=pytest.mark.slow) for p in ("fp32", "bf16")),
    ],
)
def test_so_it_is_with_names_laid_out_as_on_a_gpu(
    case: str, precision: str, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = asked(CASES[case], precision=precision)
    need = step_need(config, ground.clip, ground.rows)
    monkeypatch.setattr(packing, "merges_lengths", lambda device: True)
    monkeypatch.setattr(text_parts, "fuses_activations", lambda device: True)
    within(need, held(ground, config))


@pytest.mark.parametrize(("key", "value"), [pytest.param("class_chunk", 2, marks=pytest.mark.slow), ("micro_batch", 4)])
def test_a_smaller_key_needs_less(key: str, value: int, ground: Ground) -> None:
    """As a real step does."""
    whole, smaller = asked({"tower": "both"}), asked({"tower": "both"}, **{key: value})
    needs = [step_need(config, ground.clip, ground.rows, gpu=False) for config in (whole, smaller)]
    real = [held(ground, config) for config in (whole, smaller)]
    assert needs[1].peak < needs[0].peak and real[1][0] < real[0][0]
    within(needs[1], real[1])


def test_nothing_of_the_run_changes(ground: Ground) -> None:
    """The weights are real after an estimate, and so are the next step's numbers."""
    config = asked({})
    before = Trainer(config, ground.clip, ground.rows).step(0)
    step_need(config, ground.clip, ground.rows)
    assert Trainer(config, ground.clip, ground.rows).step(0) == before
