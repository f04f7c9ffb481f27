"""relabel --head: the teacher's class vectors with a head that was trained for it, with or without prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_runs
import worlds
from relabel_reference import at_entropy, check_exact, log_softmax, logits_of
from worlds import World

from teachonce.core.progress import Silent
from teachonce.errors import UsageError
from teachonce.labels.format import EMBEDDING, LABELS
from teachonce.labels.store import LabelStore
from teachonce.models.prompt_files import load_prompts
from teachonce.stages.relabel import RelabelRequest, RelabelResult, relabel

SETTINGS = {
    "linear": ("head=linear", "tower=none", "head_rate=0.1"),
    "both": ("head=projection", "head_rate=0.1"),
    "prompts": (),
    "bias": ("head=bias", "tower=none", "head_rate=0.1"),
    "tip-adapter": ("head=tip-adapter", "tower=none"),
    "clip-adapter": ("head=clip-adapter", "tower=none", "head_rate=0.1"),
}


@pytest.fixture(scope="module")
def place(world: World, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, beside which `trained` lays runs of the teacher; never change it."""
    folder = tmp_path_factory.mktemp("heads")
    worlds.teach_inline(world, folder / "a.zarr", teacher, top_k=5, embeddings="float16")
    return folder


@pytest.fixture
def trained(place: Path, teacher: str) -> Callable[[str], Path]:
    """A run of the teacher by its name in `SETTINGS`, trained when it is first asked for."""

    def run_of(name: str) -> Path:
        if not (place / name).exists():
            with worlds.inline_tasks():
                train_runs.run(place / "a.zarr", teacher, place / name, "steps=3", "learning_rate=0.3", *SETTINGS[name])
        return place / name

    return run_of


def run(place: Path, labels: Path, **options: Any) -> RelabelResult:
    """Run `relabel` on the store in this process."""
    with worlds.inline_tasks():
        return relabel(RelabelRequest(parent=place / "a.zarr", labels=labels, threads=1, **options), Silent())


@pytest.mark.parametrize("name", ["linear", pytest.param("both", marks=pytest.mark.slow)])
def test_class_vectors_with_a_head(name: str, trained: Callable[[str], Path], place: Path, tmp_path: Path) -> None:
    """As the run classifies, in float64; embeddings stay, since the head is class vectors; the store says whose."""
    result = run(place, tmp_path / "child.zarr", head=trained(name))
    parent, child = LabelStore.open(place / "a.zarr"), LabelStore.open(tmp_path / "child.zarr")
    vectors = load_prompts(trained(name)).classifier(parent.vocabulary().names).double().numpy()
    assert np.abs(vectors - parent.class_embeddings()).max() > 0.01, "the head does something"
    check_exact(tmp_path / "child.zarr", log_softmax(logits_of(place / "a.zarr", vectors)))
    fingerprint = child.groups[LABELS].fingerprint
    assert EMBEDDING in child.groups and fingerprint["prompts"] == load_prompts(trained(name)).tensors_digest
    assert fingerprint["about"]["head"] == result.head == str(trained(name)) and result.prompts is None


@pytest.mark.parametrize(
    "name", ["tip-adapter", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bias", "clip-adapter"))]
)
def test_heads_on_images_and_logits(name: str, trained: Callable[[str], Path], place: Path, tmp_path: Path) -> None:
    """They act on stored embeddings; the store keeps the teacher's own vectors, no embeddings, and says the kind.

    Lost chunks are made again to the same bits, and it goes together with a temperature for each row.
    """
    result = run(place, tmp_path / "child.zarr", head=trained(name))
    parent, child = LabelStore.open(place / "a.zarr"), LabelStore.open(tmp_path / "child.zarr")
    loaded, names = load_prompts(trained(name)), parent.vocabulary().names
    images = np.concatenate([parent.embeddings(chunk) for chunk in range(parent.layout.chunks)])
    logits = loaded.logits(torch.from_numpy(images), names).double().numpy()
    bare = logits_of(place / "a.zarr", child.class_embeddings().astype(np.float64))
    assert np.abs(log_softmax(logits) - log_softmax(bare)).max() > 0.01, "the head does something"
    check_exact(tmp_path / "child.zarr", log_softmax(logits))
    assert child.groups[LABELS].fingerprint["head"] == name
    assert EMBEDDING not in child.groups and not result.embeddings_kept
    assert np.allclose(np.linalg.norm(child.class_embeddings(), axis=1), 1, atol=1e-5)
    LabelStore.open(tmp_path / "child.zarr", writable=True).drop(LABELS, 1)
    assert run(place, tmp_path / "child.zarr", head=trained(name)).store_id == result.store_id
    run(place, tmp_path / "warm.zarr", head=trained(name), entropy=1.0)
    check_exact(tmp_path / "warm.zarr", at_entropy(log_softmax(logits), 1.0))


def test_names_without_photos_keep_their_vectors(trained: Callable[[str], Path], place: Path, tmp_path: Path) -> None:
    """A linear head knows the classes with photos: all others are as the teacher has them, up to rounding."""
    run(place, tmp_path / "child.zarr", head=trained("linear"))
    parent, child = LabelStore.open(place / "a.zarr"), LabelStore.open(tmp_path / "child.zarr")
    meta = load_prompts(trained("linear")).meta.head
    assert meta is not None
    theirs = {name.lower() for name in meta.names}  # two spellings are one name to the tokenizer
    known = np.array([name.lower() in theirs for name in parent.vocabulary().names])
    assert 0 < known.sum() < len(known)
    same = np.isclose(parent.class_embeddings(), child.class_embeddings(), atol=1e-6).all(axis=1)
    assert same[~known].all() and not same[known].any()


@pytest.mark.parametrize(
    ("options", "said", "hint"),
    [
        ({"head": "prompts"}, "has no head", "`prompts` RUN"),
        ({"prompts": "linear"}, "has a linear head", "`head` RUN"),
        pytest.param(
            {"prompts": "both"}, "has a projection head beside its prompts", "`head` RUN", marks=pytest.mark.slow
        ),
        ({"prompts": "prompts", "head": "linear"}, "give one of them", "takes the prompts of RUN along"),
    ],
)
def test_the_wrong_kind_of_run_is_refused(
    options: dict[str, str], said: str, hint: str, trained: Callable[[str], Path], place: Path, tmp_path: Path
) -> None:
    """Which option takes it is in the hint; nothing is written."""
    with pytest.raises(UsageError, match=said) as problem:
        run(place, tmp_path / "child.zarr", **{key: trained(value) for key, value in options.items()})
    assert hint in problem.value.hint and not (tmp_path / "child.zarr").exists()
