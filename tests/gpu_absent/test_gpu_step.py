"""A whole training step on a GPU that is not there: no tensor is in the wrong place, and the host hardly waits.

In bf16 on `cuda` the forward pass and all logic of the host are watched, in float32 on `fakegpu` the backward pass too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import worlds
from fake_gpu import TESTED, FakeGpu, Kind, is_tried, moved
from step_cases import BASE, CASES, STEP
from tally import HIDDEN_COPY
from worlds import World

from teachonce.core.progress import Silent
from teachonce.data.view_policy import ViewPolicy
from teachonce.labels.store import LabelStore
from teachonce.models.clip import LoadedClip
from teachonce.rows.images import ViewImages
from teachonce.rows.working_set import WorkingSet, open_working_set
from teachonce.training.config import TrainConfig
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
        trainer = Trainer(config, clip, ground.rows, None if config.prompts.tower == "text" else images)
        for step in range(first, first + steps):
            gpu.tally.clear()
            trainer.step(step)
    return trainer


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("kind", "precision"), [("cuda", "bf16"), ("fakegpu", "fp32")])
def test_a_step_has_every_tensor_in_its_place(case: str, kind: Kind, precision: str, ground: Ground) -> None:
    with FakeGpu(kind) as gpu:
        stepped(ground, gpu, **CASES[case], precision=precision)
        assert gpu.tally.launches > 100
        assert gpu.tally.asked[HIDDEN_COPY] == 0, gpu.tally.text()
