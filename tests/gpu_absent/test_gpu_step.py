"""A whole training step on a GPU that is not there: no tensor is in the wrong place, and the host hardly waits.

In bf16 on `cuda` the forward pass and all logic of the host are watched, in float32 on `fakegpu` the backward pass too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import worlds
from fake_gpu import TESTED, FakeGpu, Kind, is_tried, moved
from step_cases import BASE, CASES, STEP
from tally import HIDDEN_COPY, WAITS_FOR_AN_EVENT
from worlds import World

from teachonce.core.progress import Silent
from teachonce.data.view_policy import ViewPolicy
from teachonce.errors import UsageError
from teachonce.labels.store import LabelStore
from teachonce.models.clip import LoadedClip
from teachonce.recipe.config import TrainConfig
from teachonce.rows import resident
from teachonce.rows.images import ViewImages
from teachonce.rows.working_set import WorkingSet, open_working_set
from teachonce.towers.text_parts import TextParts
from teachonce.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not is_tried(), reason=f"the guard was tried with PyTorch {', '.join(TESTED)} only")


@dataclass(frozen=True, eq=False)
class Ground:
    """What every step works on; the student is on the CPU."""

    clip: LoadedClip
    rows: WorkingSet
    store: LabelStore
    world: World


@pytest.fixture(scope="module")
def ground(world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Two views of each photo, soft labels, the teacher's embeddings and the student's features."""
    path = tmp_path_factory.mktemp("gpu") / "rich.zarr"
    worlds.teach_inline(
        world,
        path,
        teacher,
        students=(student,),
        top_k=4,
        embeddings="float16",
        views=ViewPolicy(views=2, seed=5),
        chunk_rows=20,
    )
    clip, store = worlds.loaded_once(student), LabelStore.open(path)
    rows = open_working_set(store, clip.digest, Silent(), embeddings=True)
    yield Ground(clip, rows, store, world)
    rows.close()


def stepped(ground: Ground, gpu: FakeGpu, steps: int = 1, **options: Any) -> Trainer:
    """Take steps of a run; the tally is of the last."""
    chosen = BASE | options
    first = chosen.pop("step", STEP)
    config, clip = TrainConfig.of(**chosen), moved(ground.clip, gpu, copy.deepcopy, replace)
    with ViewImages(ground.store, ground.world.root, clip, threads=1) as images:
        trainer = Trainer(config, clip, ground.rows, None if not config.prompts.in_images else images)
        for step in range(first, first + steps):
            gpu.tally.clear()
            trainer.step(step)
    return trainer


STEPS = [
    *(("cuda", "bf16", case) for case in CASES),
    *(pytest.param("fakegpu", "fp32", case, marks=[pytest.mark.slow] * (n % 2)) for n, case in enumerate(CASES)),
]
"""Every second backward pass is left to the slow tests: the kernels of losses and towers come in other cases too."""


@pytest.mark.parametrize(("kind", "precision", "case"), STEPS)
def test_a_step_has_every_tensor_in_its_place(kind: Kind, precision: str, case: str, ground: Ground) -> None:
    with FakeGpu(kind) as gpu:
        stepped(ground, gpu, **CASES[case], precision=precision)
        assert gpu.tally.launches > 100
        assert gpu.tally.asked[HIDDEN_COPY] == 0, gpu.tally.text()


LAYERS = 2  # of the student's text tower
BUDGETS: dict[str, tuple[dict[str, Any], int, int]] = {
    "all": ({}, 1, 440),
    "sampled": ({"candidates": "sampled", "batch_size": 3, "sampled_top": 1, "sampled_fill": 2}, 1, 443),
    "all-sampled": ({"candidates": "all-sampled", "class_chunk": 2, "sampled_backward": 3}, 2, 870),
}


@pytest.mark.parametrize("case", BUDGETS)
def test_the_host_waits_once_a_step_and_for_no_copy(case: str, ground: Ground) -> None:
    options, waits, _ = BUDGETS[case]
    with FakeGpu("cuda") as gpu:
        stepped(ground, gpu, steps=2, **options, precision="bf16")
        assert gpu.tally.blocking == 0, gpu.tally.text()
        assert gpu.tally.asked.total() == waits and gpu.tally.asked[WAITS_FOR_AN_EVENT] == 1, gpu.tally.text()


@pytest.mark.parametrize("case", BUDGETS)
def test_a_small_step_launches_no_more_kernels_than_it_did(case: str, ground: Ground) -> None:
    options, _, kernels = BUDGETS[case]
    with FakeGpu("fakegpu") as gpu:
        stepped(ground, gpu, steps=2, **options)
        assert gpu.tally.launches <= kernels, gpu.tally.text()


def test_a_step_sends_the_numbers_of_its_rows_and_picks_the_rows_on_the_gpu(ground: Ground) -> None:
    """Of `all`, nothing else is sent: candidates and layouts of names are there since the first step."""
    with FakeGpu("cuda") as gpu:
        stepped(ground, gpu, steps=2, batch_size=24, precision="bf16")
        assert gpu.tally.copied == 8 * 24 and gpu.tally.copies.total() == 1, gpu.tally.text()


@pytest.mark.parametrize("case", ["all", "sampled"])
def test_the_host_waits_no_more_where_the_rows_do_not_fit(
    case: str, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features, labels and soft labels then come from pinned memory, which a thread filled."""
    monkeypatch.setattr(resident, "stay_on_device", lambda *sizes: False)
    options, waits, _ = BUDGETS[case]
    with FakeGpu("cuda") as gpu:
        trainer = stepped(ground, gpu, steps=2, **options, precision="bf16")
        assert type(trainer.source) is resident.RowsAhead
        assert gpu.tally.blocking == 0 and gpu.tally.asked.total() == waits, gpu.tally.text()


@pytest.mark.parametrize("wrong", [math.nan, 0.0])
def test_a_gpu_that_was_a_step_ahead_does_not_say_that_nothing_was_updated(wrong: float, ground: Ground) -> None:
    """Bad numbers arrive when the update is made; the CPU refuses them before."""
    with FakeGpu("cuda") as gpu:
        trainer = Trainer(TrainConfig.of(**BASE), moved(ground.clip, gpu, copy.deepcopy, replace), ground.rows)
        report = trainer.begin(0)
        report._numbers.fill_(wrong)
        with pytest.raises(UsageError, match="already made this update.* last checkpoint is kept") as caught:
            report.read()
        assert "nothing was updated" not in caught.value.message


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_update_of_all_parameters_is_one_kernel(optimizer: str, ground: Ground) -> None:
    with FakeGpu("cuda") as gpu:
        stepped(ground, gpu, steps=2, optimizer=optimizer, precision="bf16")
        assert gpu.tally.kernels[f"_fused_{optimizer}_.default"] == 1, gpu.tally.text()


def test_frozen_matrices_are_cast_once(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first step; each of the five matrices of a block and its bias would be cast again in every step."""

    def casts() -> int:
        with FakeGpu("cuda") as gpu:
            stepped(ground, gpu, steps=2, precision="bf16")
            return gpu.tally.kernels["_to_copy.default"]

    once = casts()
    monkeypatch.setattr(TextParts, "prepared", lambda parts: parts)
    assert once + 2 * 5 * LAYERS <= casts()


def test_a_chunk_takes_every_name_where_the_gpu_has_room(ground: Ground) -> None:
    with FakeGpu("cuda") as gpu:
        assert stepped(ground, gpu).class_chunk >= len(ground.rows.vocabulary)
