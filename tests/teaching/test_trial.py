"""A model shows that it works before a store is made, and features are looked at before a chunk is committed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from worlds import CHUNK_ROWS, World, teach_inline

from teachonce.errors import DataError, EnvironmentFault
from teachonce.labels.format import LABELS
from teachonce.labels.store import LabelStore
from teachonce.models.clip import LoadedClip, load_clip
from teachonce.stages.teach.loading import load_models
from teachonce.teaching.trial import TRIED, require_unit


@pytest.mark.parametrize(
    ("length", "said"),
    [(np.nan, "are NaN or infinite"), (np.inf, "are NaN or infinite"), (0.0, "length 0"), (2.0, "length 2")],
)
def test_features_that_are_no_unit_vectors_are_said_with_model_place_and_row(length: float, said: str) -> None:
    lengths, status = np.ones(4, np.float32), np.zeros(4, np.uint8)
    lengths[[1, 2]], status[1] = length, 1
    require_unit("M", np.where(status, 1, 1.0), status, "chunk 3", str)
    with pytest.raises(DataError, match=rf"'M' .*{said}.*chunk 3, row 2 \('2'\); 1 of 3 rows"):
        require_unit("M", lengths, status, "chunk 3", str)


def spoilt(monkeypatch: pytest.MonkeyPatch, spec: str, from_call: int, spoil: Any) -> None:
    """From a call on, one model's image features are what `spoil` makes of them; loading it does not count."""
    worlds.loaded_once(spec)
    real, calls = LoadedClip.encode_images, [0]

    def encode(self: LoadedClip, pixels: torch.Tensor, *given: Any) -> torch.Tensor:
        features = real(self, pixels, *given)
        if self.spec != spec:
            return features
        calls[0] += 1
        return spoil(features.clone()) if calls[0] > from_call else features

    monkeypatch.setattr(LoadedClip, "encode_images", encode)


def with_nan(features: torch.Tensor) -> torch.Tensor:
    """The last row's are not numbers."""
    features[-1, 0] = float("nan")
    return features


def test_a_students_features_that_are_not_numbers_are_not_committed(
    world: World, teacher: str, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are the labels of the same chunk: the error says model, chunk and image; mended, the same command ends."""
    store = tmp_path / "a.zarr"
    with monkeypatch.context() as patch:
        spoilt(patch, student, 3, with_nan)  # after the trial and the width
        with pytest.raises(DataError, match=rf"{student}.* are NaN or infinite: chunk \d, row \d") as caught:
            teach_inline(world, store, teacher, students=(student,), top_k=5)
    assert "nothing of them is kept" in caught.value.message
    held = LabelStore.open(store)
    (group,) = [name for name in held.groups if name.startswith("students/")]
    assert held.committed(group) == held.committed(LABELS)
    done = teach_inline(world, store, teacher, students=(student,), top_k=5)
    assert done.rows_ok == worlds.PHOTOS


def failing(features: torch.Tensor) -> torch.Tensor:
    """What a model of another image size does with every real image."""
    raise RuntimeError("The size of tensor a (49) must match the size of tensor b (196)")


@pytest.mark.parametrize(
    ("spoil", "kind", "said"),
    [
        (failing, EnvironmentFault, "could not run"),
        (lambda features: features * float("nan"), DataError, "the first images, row 0"),
    ],
)
def test_a_model_that_fails_on_every_image_leaves_no_store(
    spoil: Any,
    kind: type[Exception],
    said: str,
    world: World,
    teacher: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever reads the message sees the model's folder, and not that the same command should be run again."""
    spoilt(monkeypatch, teacher, 0, spoil)
    with pytest.raises(kind, match=said) as caught:
        teach_inline(world, tmp_path / "a.zarr", teacher, top_k=5)
    assert teacher in str(caught.value) and not (tmp_path / "a.zarr").exists()
    assert TRIED <= CHUNK_ROWS


def test_two_students_of_equal_weights_and_another_preprocessing_are_refused(
    student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store keeps features by weights: one would have taken the place of the other. The same one twice is one."""
    from requests_of import teach_request

    from teachonce.core.progress import Silent
    from teachonce.errors import UsageError

    first = load_clip(student)
    second = LoadedClip("other", first.model, first.tokenizer, first.preprocess, first.digest, first.device)
    monkeypatch.setattr("teachonce.models.clip.load_clip", lambda spec, device: first if spec == "first" else second)
    request = teach_request(labels=Path("a.zarr"), manifest="m", students=("first", "other"))
    assert len(load_models(request, Silent(), "cpu")) == 1
    second.__dict__["behaviour"] = dict(first.behaviour) | {"preprocess": "another"}
    with pytest.raises(UsageError, match="same weights and another preprocessing"):
        load_models(request, Silent(), "cpu")
