"""What a GPU computes is what the CPU computes: `pytest -m gpu` on a machine that has one; skipped everywhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import train_runs
from worlds import World, copy_store, teach_inline

from teachonce.evaluation.scores import outcomes
from teachonce.labels.store import LabelStore
from teachonce.models.clip import load_clip
from teachonce.teaching.teacher import exact_topk, soft_labels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of CUDA"),
]
GPU = torch.device("cuda", 0)


def test_bytes_are_scaled_to_the_same_bits(teacher: str) -> None:
    """All 256 values in all channels: dividing by a tensor is exact where dividing by a number is not."""
    clip = load_clip(teacher)
    levels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).T.reshape(1, 16, 16, 3).permute(0, 3, 1, 2)
    assert torch.equal(replace(clip, device=GPU).placed(levels).cpu(), clip.placed(levels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_top_k_is_the_same_with_ties_and_zeros_of_both_signs(dtype: torch.dtype) -> None:
    """Ids and values, bit for bit; hundreds of classes tie at the boundary."""
    logits = torch.randn(64, 21_841, generator=torch.Generator().manual_seed(0)).mul_(3).round_()
    logits = torch.where(torch.rand(logits.shape) < 0.3, -0.0, logits).to(dtype)
    ids, values = exact_topk(logits, 100)
    there_ids, there_values = exact_topk(logits.to(GPU), 100)
    assert torch.equal(there_ids.cpu(), ids) and torch.equal(there_values.cpu(), values)


def test_soft_labels_are_the_same_up_to_rounding() -> None:
    """Ids exactly; log-probabilities and tails to 1e-5 nats."""
    logits = torch.randn(32, 5000, generator=torch.Generator().manual_seed(1)).mul_(4)
    here, there = (soft_labels(where, 50, (1.0, 2.0, 4.0)) for where in (logits, logits.to(GPU)))
    assert np.array_equal(here.class_ids, there.class_ids)
    np.testing.assert_allclose(there.log_probs, here.log_probs, atol=1e-5)
    np.testing.assert_allclose(there.log_residual, here.log_residual, atol=1e-5)


def test_scores_are_the_same_up_to_rounding() -> None:
    """Images close to their class, so that no rounding decides: equal hits, equal NLL to 1e-4."""
    random = np.random.default_rng(0)
    classes = random.normal(size=(300, 64)).astype(np.float32)
    classes[10:20] = classes[:10]
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    labels = random.integers(0, 300, 2500)
    images = classes[labels] + 0.02 * random.normal(size=(2500, 64)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    here, there = (outcomes(images, classes, labels, 50.0, device) for device in (None, GPU))
    assert np.array_equal(here.top1, there.top1) and np.array_equal(here.predicted, there.predicted)
    assert set(np.unique(here.top1)) == {0.5, 1.0}
    np.testing.assert_allclose(there.nll, here.nll, atol=1e-4)


def test_features_are_those_of_the_cpu(teacher: str) -> None:
    """In fp32 without TF32, to 1e-5; in bf16 with a cosine above 0.999."""
    here, there = load_clip(teacher), load_clip(teacher, str(GPU))
    pixels = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    wanted = here.encode_images(pixels)
    torch.testing.assert_close(there.encode_images(pixels).cpu(), wanted, atol=1e-5, rtol=0)
    assert (there.encode_images(pixels, "bf16").cpu() * wanted).sum(1).min() > 0.999


def test_teach_writes_the_same_rows_twice(world: World, teacher: str, student: str, tmp_path: Path) -> None:
    """Two stores taught by the GPU hold equal features and ids; nothing in it depends on the order of kernels."""
    stores = []
    for name in ("a", "b"):
        teach_inline(world, tmp_path / f"{name}.zarr", teacher, students=(student,), top_k=5)
        stores.append(LabelStore.open(tmp_path / f"{name}.zarr"))
    for group in stores[0].groups:
        for chunk in range(stores[0].layout.chunks):
            first, second = (store.read_chunk(group, chunk) for store in stores)
            assert all(
                np.array_equal(first[name], second[name], equal_nan=first[name].dtype.kind == "f") for name in first
            )


@pytest.mark.parametrize("candidates", ["all", "sampled"])
def test_a_run_gives_the_same_prompts_twice(finished: Path, student: str, tmp_path: Path, candidates: str) -> None:
    """Two equal runs on the GPU, compared bit by bit."""
    labels, prompts = copy_store(finished, tmp_path / "labels.zarr"), []
    for name in ("a", "b"):
        keys = (f"candidates={candidates}", "sampled_top=2", "sampled_fill=2")
        train_runs.run(labels, student, tmp_path / name, *keys)
        prompts.append((tmp_path / name / "prompts.safetensors").read_bytes())
    assert prompts[0] == prompts[1]
