"""Coupled prompts through a whole run: trained in both towers, resumed to the bit, saved as slots, and a start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import worlds
from test_train_options import losses_of, run
from train_runs import killed_before
from worlds import World

from teachonce.models.prompt_files import load_prompts

KEYS = ("tower=both", "coupled=true", "structure=shared-replace", "init=normal", "depth=1", "anchor_weight=0")


@pytest.fixture(scope="module")
def labels(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return worlds.copy_store(finished, tmp_path_factory.mktemp("coupled"))


def test_a_run_is_saved_as_slots_resumes_to_the_bit_and_starts_another(
    labels: Path, student: str, world: World, tmp_path: Path
) -> None:
    """MaPLe's recipe in short; `image_length` and `image_depth` follow the text slots."""
    steps = ("steps=6", "checkpoint_every=2")
    whole, killed, after = (tmp_path / name for name in ("whole", "killed", "after"))
    run(labels, student, whole, *KEYS, *steps, root=world.root)
    losses = losses_of(whole)
    assert losses[-1] < losses[0]
    with killed_before(4):
        run(labels, student, killed, *KEYS, *steps, root=world.root)
    run(labels, student, killed, *KEYS, *steps, root=world.root, resume=True)
    assert load_prompts(killed).tensors_digest == load_prompts(whole).tensors_digest
    trained = load_prompts(whole)
    assert (trained.meta.image_slots, trained.meta.image_depth) == (4, 1), "BASE asks for two slots"
    assert trained.image is not None
    run(labels, student, after, *KEYS, "steps=1", "learning_rate=1e-12", root=world.root, init=whole)
    begun = load_prompts(after).image
    assert begun is not None
    for name, x in trained.image.tensors().items():
        assert torch.allclose(begun.tensors()[name], x, atol=1e-4 * float(x.abs().max())), name
