"""torchvision's resize of tensors: Pillow's sizes and crops, and pixels that differ from Pillow's by rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torchvision.transforms.transforms as tv
from PIL import Image
from torchvision.transforms import InterpolationMode
from worlds import make_photo

from teachonce.data.view_policy import ViewPolicy
from teachonce.data.views import EVALUATION, View, draw_view
from teachonce.errors import UsageError
from teachonce.models.clip import load_clip
from teachonce.models.view_transform import ViewTransform

SETTINGS: dict[str, dict[str, Any]] = {
    "shortest": {"size": 32},
    "bilinear": {"size": 40, "interpolation": "bilinear"},
    "squash": {"size": 32, "resize_mode": "squash", "mean": (0.5,) * 3, "std": (0.5,) * 3},
    "longest": {"size": 48, "resize_mode": "longest", "fill_color": 127},
    "not square": {"size": (24, 40)},
    "larger than the photo": {"size": 200},
}
SIZES = [(61, 47), (47, 61), (150, 50), (32, 32), (33, 200)]
PLAIN = ViewPolicy(views=4, seed=3)
STRONG = ViewPolicy(views=4, seed=3, randaugment=(2, 9))


def pair(setting: str) -> tuple[ViewTransform, ViewTransform]:
    """The transform by Pillow and by tensors."""
    preprocess = SETTINGS[setting]
    named = {name: value for name, value in preprocess.items() if name != "size"}
    evaluation = open_clip.image_transform(preprocess["size"], is_train=False, **named)
    return ViewTransform(evaluation, preprocess), ViewTransform(evaluation, preprocess, "tensor")


def views_of(image: Image.Image) -> list[View]:
    """View 0, and drawn ones."""
    return [draw_view(PLAIN, "n01_7", number, *image.size) for number in range(4)]


@pytest.fixture
def rows_first(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes Pillow resize rows before columns, as it always did before version 13; now it chooses by size."""
    real = Image.Image.resize

    def resize(image: Image.Image, size: tuple[int, int], *how: Any) -> Image.Image:
        return real(real(image, (size[0], image.height), *how), size, *how)

    return lambda: monkeypatch.setattr(Image.Image, "resize", resize)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
def test_pixels_are_pillows_within_rounding(
    setting: str, size: tuple[int, int], rows_first: Callable[[], None]
) -> None:
    """For view 0 and crops with flips: two grey levels off at most, a tenth of one in the mean, in equal order."""
    pillow, tensor = pair(setting)
    photo = make_photo(3, 1, size)
    views = views_of(photo)
    ours, by_pillow = ([one.pixels(photo, view) for view in views] for one in (tensor, pillow))
    rows_first()
    for view, pixels, here, theirs in zip(
        views, ours, by_pillow, (pillow.pixels(photo, view) for view in views), strict=True
    ):
        assert pixels.dtype == torch.uint8 and pixels.shape == theirs.shape
        off, off_here = ((pixels.int() - others.int()).abs().float() for others in (theirs, here))
        assert off.max() <= 2 and off.mean() < 0.1, (view, off.max(), off.mean())
        assert off_here.max() <= 3 and off_here.mean() < 0.5, (view, off_here.max(), off_here.mean())
        assert tensor.scaling is not None
        assert torch.equal(tensor(photo, view), tensor.scaling(pixels[None])[0])


def test_it_does_other_work_than_pillow() -> None:
    """Some pixels round to the other side; if none did, the option would have been lost on the way."""
    pillow, tensor = pair("shortest")
    photos = [make_photo(number, 1, (150, 110)) for number in range(8)]
    assert any(not torch.equal(tensor.pixels(one, EVALUATION), pillow.pixels(one, EVALUATION)) for one in photos)


def test_colours_change_after_the_resize() -> None:
    """RandAugment's operations work on the resized crop, as they do on Pillow's."""
    pillow, tensor = pair("shortest")
    photo = make_photo(3, 1, (61, 47))
    for number in range(1, 4):
        view = draw_view(STRONG, "n01_7", number, *photo.size)
        off = (tensor.pixels(photo, view).int() - pillow.pixels(photo, view).int()).abs().float()
        assert view.ops and off.mean() < 1
        plain = View(view.box, view.flip)
        assert not torch.equal(tensor.pixels(photo, view), tensor.pixels(photo, plain))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_images_of_every_mode_become_rgb_first(mode: str) -> None:
    _, tensor = pair("shortest")
    photo = make_photo(3, 1, (61, 47)).convert(mode)
    for view in views_of(photo):
        assert torch.equal(tensor.pixels(photo, view), tensor.pixels(photo.convert("RGB"), view))


def test_a_transform_that_is_known_for_images_only_is_refused() -> None:
    """Another interpolation, an unknown step, a whole that is not open_clip's: each is named."""
    usual = open_clip.image_transform(32, is_train=False)
    lanczos = tv.Compose([tv.Resize(32, InterpolationMode.LANCZOS), *usual.transforms[1:]])
    turned = tv.Compose([tv.RandomRotation(5), *usual.transforms])
    for evaluation, said in ((lanczos, "'lanczos'"), (turned, "RandomRotation"), (lambda image: usual(image), "own")):
        ViewTransform(evaluation, {"size": 32})
        with pytest.raises(UsageError, match="cannot be resized as tensors.*" + said) as caught:
            ViewTransform(evaluation, {"size": 32}, "tensor")
        assert "`resize=tensor`" in caught.value.hint


def test_an_image_that_vanishes_is_a_fault_of_the_image() -> None:
    """One pixel high after `longest`: the same kind of error as from Pillow, which the reader counts."""
    pillow, tensor = pair("longest")
    thin = Image.new("RGB", (1000, 1))
    for transform in (pillow, tensor):
        with pytest.raises(ValueError, match="must be > 0|above 0"):
            transform.pixels(thin, EVALUATION)


def test_a_model_prepares_as_it_is_told(teacher: str) -> None:
    """Its digest and behaviour stay; images of the two kinds are never shared."""
    clip = load_clip(teacher)
    other = clip.resized_by("tensor")
    assert other.resized_by("pillow").preparation == clip.preparation != other.preparation
    assert clip.resized_by("pillow") is clip and other.resized_by("tensor") is other
    assert (other.digest, other.behaviour) == (clip.digest, clip.behaviour)
    photo = make_photo(5, 1, (150, 110))
    assert torch.equal(other.prepare(photo), other.prepare_view(photo, EVALUATION))
    assert torch.equal(other.prepare(photo), other.placed(other.view_pixels(photo, EVALUATION)[None])[0])
    here, there = (one.encode_images(one.prepare(photo)[None]).numpy() for one in (clip, other))
    assert float(np.sum(here * there)) > 0.9999
