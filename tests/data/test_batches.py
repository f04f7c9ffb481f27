"""Images are prepared once for all models that prepare them alike, and each model gets what it would get alone."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from worlds import World

from teachonce.core.progress import Silent
from teachonce.data.batches import ImageBatch, image_batches
from teachonce.data.index import SampleIndex, build_index
from teachonce.data.manifests import load_manifest
from teachonce.data.reader import ImageReader
from teachonce.data.view_policy import ViewPolicy
from teachonce.data.views import View
from teachonce.models.clip import LoadedClip, load_clip

Made = Counter[str]


@dataclass(frozen=True)
class Counting:
    """A model that counts the views that it prepares."""

    clip: LoadedClip
    name: str
    made: Made
    device: torch.device = torch.device("cpu")
    other: str = ""

    @property
    def preparation(self) -> str:
        """The model's own, or another one."""
        return self.clip.preparation + self.other

    def view_pixels(self, image: Image.Image, view: View) -> Tensor:
        """Count and prepare."""
        self.made[self.name] += 1
        return self.clip.view_pixels(image, view)


def _index(world: World) -> SampleIndex:
    return build_index(load_manifest(world.manifest()), "train", world.root, Silent())


def _batches(world: World, models: list[Counting], views: int) -> list[ImageBatch]:
    index = _index(world)
    with (
        ImageReader(index, world.root) as reader,
        image_batches(reader, len(index), models, 8, 2, ViewPolicy(views=views)) as batches,
    ):
        return list(batches)


@pytest.mark.parametrize("views", [1, 3])
def test_an_image_is_prepared_once_for_models_of_equal_preprocessing(world: World, teacher: str, views: int) -> None:
    """Three models, two of them alike: two preparations a view, one tensor of bytes for both."""
    clip, made = load_clip(teacher), Counter[str]()
    models = [Counting(clip, "first", made), Counting(clip, "odd", made, other="!"), Counting(clip, "like first", made)]
    batches = _batches(world, models, views)
    rows = sum(len(batch) - len(batch.failed) for batch in batches)
    assert made["odd"] == rows and made["first"] + made["like first"] == rows > 0
    for batch in batches:
        assert batch.pixels(0) is batch.pixels(2) and batch.prepared[0] == batch.prepared[2] != batch.prepared[1]
        first, odd = batch.pixels(0), batch.pixels(1)
        assert first is not None and odd is not None and first.dtype == torch.uint8 and torch.equal(first, odd)


def test_bytes_in_batches_give_the_features_of_floats(world: World, teacher: str) -> None:
    """Equal bits: what a batch brings, placed once for two models, and what each model prepares image by image."""
    clip = load_clip(teacher)
    index = _index(world)
    with (
        ImageReader(index, world.root) as reader,
        image_batches(reader, len(index), [clip, clip], 8, 1, ViewPolicy(views=2)) as batches,
    ):
        batch = next(batches)
        pixels = batch.pixels(1)
    assert pixels is not None
    floats = clip.placed(pixels)
    single = torch.cat([clip.placed(pixels[row : row + 1]) for row in range(len(pixels))])
    assert floats.dtype == torch.float32 and torch.equal(floats, single)
    assert torch.equal(clip.encode_images(floats), clip.encode_images(pixels))
    assert clip.placed(floats) is floats, "what is placed is not copied again"


def test_models_of_other_preprocessing_are_told_apart(teacher: str) -> None:
    """Another transform, or one whose words say nothing, is never taken for the model's own."""
    clip = load_clip(teacher)
    assert dataclasses.replace(clip, spec="other").preparation == clip.preparation
    unknown = [dataclasses.replace(clip, preprocess=lambda image, c=clip: c.preprocess(image)) for _ in range(2)]
    assert len({clip.preparation, *(one.preparation for one in unknown)}) == 3


def test_a_folder_of_a_model_is_prepared_as_its_twin(teacher: str, tmp_path: Path) -> None:
    """Two loads of one model have equal words, so that a worker's two models share their images."""
    assert load_clip(teacher).preparation == load_clip(teacher).preparation
