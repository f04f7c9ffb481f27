"""A head in the teacher's space through a whole run: resumed to the bit, kept, scored exactly, and for no new names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from requests_of import evaluate_request
from test_train_options import run
from train_runs import killed_before
from worlds import NAMES, World

from teachonce.core.progress import Silent
from teachonce.data.view_policy import ViewPolicy
from teachonce.errors import DataError, FingerprintError, UsageError
from teachonce.labels.store import LabelStore
from teachonce.models.prompt_files import LoadedPrompts, load_prompts
from teachonce.rows.working_set import open_working_set
from teachonce.stages.evaluate import evaluate

KEYS = ("tower=none", "head=teacher-space", "head_weight=0.4", "supervision=soft", "steps=6", "checkpoint_every=2")


@pytest.fixture(scope="module")
def labels(world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Soft labels, the teacher's embeddings and the student's features."""
    path = tmp_path_factory.mktemp("teacher-space") / "labels.zarr"
    policy = ViewPolicy(views=2, seed=5)
    worlds.teach_inline(
        world, path, teacher, students=(student,), top_k=4, embeddings="float16", views=policy, chunk_rows=20
    )
    return path


@pytest.fixture(scope="module")
def trained(labels: Path, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher-space-run") / "run"
    run(labels, student, out, *KEYS)
    return out


def plain_logits(loaded: LoadedPrompts, labels: Path, features: Any) -> Any:
    """(1 - w) s x f + w s_T norm(x A) t, from the kept matrix and the store's own class vectors, in float64."""
    from teachonce.models.classifier import template_features

    assert loaded.head is not None
    clip, store = worlds.loaded_once(loaded.model), LabelStore.open(labels)
    x, matrix = features.astype(np.float64), loaded.head.tensors()["matrix"].double().numpy()
    projected = x @ matrix
    projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    text = template_features(clip, NAMES, "a photo of a {}.").double().numpy()
    theirs = store.class_embeddings().astype(np.float64)
    scale = float(store.groups["labels"].fingerprint["logit_scale"])
    return 0.6 * clip.logit_scale * x @ text.T + 0.4 * scale * projected @ theirs.T


def test_what_is_kept_says_the_logits_of_the_store_s_names(trained: Path, labels: Path, student: str) -> None:
    """The mixture of both spaces from the stored class vectors; one vector a class cannot say it."""
    loaded = load_prompts(trained)
    clip = worlds.loaded_once(student)
    rows = open_working_set(LabelStore.open(labels), clip.digest, Silent())
    features = rows.batch(np.arange(8)).features
    rows.close()
    assert features is not None
    features = features.astype(np.float32)
    actual = loaded.bound_to(clip).logits(torch.from_numpy(features), NAMES).double().numpy()
    expected = plain_logits(loaded, labels, features)
    same_name = {name.lower(): i for i, name in reversed(list(enumerate(NAMES)))}
    first = [same_name[name.lower()] for name in NAMES]  # of equal names the first class's vector is kept
    assert np.abs(actual - expected[:, first]).max() < 1e-3
    with pytest.raises(UsageError, match="no class vectors stand for the head 'teacher-space'"):
        loaded.classifier(NAMES)


def test_a_name_that_the_store_lacks_needs_the_teacher(trained: Path, student: str) -> None:
    loaded = load_prompts(trained).bound_to(worlds.loaded_once(student))
    with pytest.raises(FingerprintError, match="not those of 'unheard of': new names need the teacher") as caught:
        loaded.logits(torch.ones(1, 12) / 12**0.5, [NAMES[0], "unheard of"])
    assert "relabel the store" in caught.value.hint


def test_evaluate_scores_it_among_the_store_s_names(trained: Path, student: str, world: World) -> None:
    request = evaluate_request(
        run=trained, student=student, manifest=world.manifest(), root=world.root, split="val", threads=1
    )
    assert evaluate(request, Silent()).n == worlds.PHOTOS


def test_a_stopped_run_goes_on_to_the_bit(trained: Path, labels: Path, student: str, tmp_path: Path) -> None:
    """The regression is computed anew; what was trained on top of it is in the checkpoint."""
    out = tmp_path / "run"
    with killed_before(4):
        run(labels, student, out, *KEYS)
    run(labels, student, out, *KEYS, resume=True)
    assert load_prompts(out).tensors_digest == load_prompts(trained).tensors_digest


def test_a_store_without_embeddings_and_weights_that_mean_nothing_are_refused(
    finished: Path, student: str, tmp_path: Path
) -> None:
    """The regression needs what the teacher made of the images, whatever the loss reads."""
    labels = worlds.copy_store(finished, tmp_path)
    with pytest.raises(DataError, match="embeddings"):
        run(labels, student, tmp_path / "run", *KEYS)
    with pytest.raises(UsageError, match="at most 1"):
        run(labels, student, tmp_path / "run", *KEYS, "head_weight=1.5")
    with pytest.raises(UsageError, match="text prompts take no part"):
        run(labels, student, tmp_path / "run", *KEYS, "head_weight=1", "tower=both")
