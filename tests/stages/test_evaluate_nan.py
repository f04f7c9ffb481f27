"""An image whose features are not numbers is not one that could not be decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from requests_of import evaluate_request
from worlds import World

from teachonce.core.progress import Silent
from teachonce.errors import DataError
from teachonce.models import clip as clip_models
from teachonce.stages.evaluate import evaluate


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("undecodable", [False, True])
def test_features_that_are_not_numbers_are_the_models_fault(
    bad: float, undecodable: bool, world: World, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said at the first such image, also beside images that cannot be decoded; nothing is cached."""
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))
    if undecodable:
        world = worlds.make_world(tmp_path / "w", world.photos | {next(iter(world.photos)): b"broken"})
    real = clip_models.LoadedClip.encode_images

    def broken(self: Any, pixels: torch.Tensor, *given: Any) -> torch.Tensor:
        features = real(self, pixels, *given).clone()
        features[-1, -1] = bad
        return features

    monkeypatch.setattr(clip_models.LoadedClip, "encode_images", broken)
    request = evaluate_request(run=None, student=student, manifest=world.manifest(), root=world.root, threads=1)
    for _ in range(2):
        with pytest.raises(DataError, match="can be decoded, and its image features are not numbers") as caught:
            evaluate(request, Silent())
        assert "weights" in caught.value.hint
