"""relabel --head: the teacher's class vectors with a head that was trained for it, with or without prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import train_runs
import worlds
from relabel_reference import check_exact, log_softmax, logits_of
from worlds import World

from teachonce.core.progress import Silent
from teachonce.errors import UsageError
from teachonce.labels.format import EMBEDDING, LABELS
from teachonce.labels.store import LabelStore
from teachonce.models.prompt_files import load_prompts
from teachonce.stages.relabel import RelabelRequest, RelabelResult, relabel


@pytest.fixture(scope="module")
def place(world: World, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and three runs of the teacher on it: a head alone, prompts with a head, prompts; never change it."""
    folder = tmp_path_factory.mktemp("heads")
    worlds.teach_inline(world, folder / "a.zarr", teacher, top_k=5, embeddings="float16")
    runs = {
        "linear": ("head=linear", "tower=none", "head_rate=0.1"),
        "both": ("head=projection", "head_rate=0.1"),
        "prompts": (),
    }
    with worlds.inline_tasks():
        for name, settings in runs.items():
            train_runs.run(folder / "a.zarr", teacher, folder / name, "steps=3", "learning_rate=0.3", *settings)
    return folder


def run(place: Path, labels: Path, **options: Any) -> RelabelResult:
    """Run `relabel` on the store in this process."""
    with worlds.inline_tasks():
        return relabel(RelabelRequest(parent=place / "a.zarr", labels=labels, threads=1, **options), Silent())


@pytest.mark.parametrize("name", ["linear", "both"])
def test_class_vectors_with_a_head(name: str, place: Path, tmp_path: Path) -> None:
    """As the run classifies, in float64; embeddings stay, since the head is class vectors; the store says whose."""
    result = run(place, tmp_path / "child.zarr", head=place / name)
    parent, child = LabelStore.open(place / "a.zarr"), LabelStore.open(tmp_path / "child.zarr")
    vectors = load_prompts(place / name).classifier(parent.vocabulary().names).double().numpy()
    assert np.abs(vectors - parent.class_embeddings()).max() > 0.01, "the head does something"
    check_exact(tmp_path / "child.zarr", log_softmax(logits_of(place / "a.zarr", vectors)))
    fingerprint = child.groups[LABELS].fingerprint
    assert EMBEDDING in child.groups and fingerprint["prompts"] == load_prompts(place / name).tensors_digest
    assert fingerprint["about"]["head"] == result.head == str(place / name) and result.prompts is None


def test_names_without_photos_keep_their_vectors(place: Path, tmp_path: Path) -> None:
    """A linear head knows the classes with photos: all others are as the teacher has them, up to rounding."""
    run(place, tmp_path / "child.zarr", head=place / "linear")
    parent, child = LabelStore.open(place / "a.zarr"), LabelStore.open(tmp_path / "child.zarr")
    meta = load_prompts(place / "linear").meta.head
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
        ({"prompts": "both"}, "has a projection head beside its prompts", "`head` RUN"),
        ({"prompts": "prompts", "head": "both"}, "give one of them", "takes the prompts of RUN along"),
    ],
)
def test_the_wrong_kind_of_run_is_refused(
    options: dict[str, str], said: str, hint: str, place: Path, tmp_path: Path
) -> None:
    """Which option takes it is in the hint; nothing is written."""
    with pytest.raises(UsageError, match=said) as problem:
        run(place, tmp_path / "child.zarr", **{key: place / value for key, value in options.items()})
    assert hint in problem.value.hint and not (tmp_path / "child.zarr").exists()
