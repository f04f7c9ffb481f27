"""What views look like: view 0 is open_clip's evaluation, others its training transform; RandAugment: torchvision."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torchvision.transforms.transforms as tv
from PIL import Image
from torchvision.transforms import RandAugment
from torchvision.transforms.autoaugment import _apply_op as torchvision_op
from worlds import encoded, make_photo

from teachonce.data.view_policy import OPS, ViewPolicy
from teachonce.data.views import EVALUATION, View, draw_view
from teachonce.models.clip import load_clip
from teachonce.models.view_transform import ViewTransform, apply_op

PLAIN = ViewPolicy(views=4)
STRONG = ViewPolicy(views=4, seed=7, scale=(0.5, 1.0), randaugment=(2, 9))
DRAWS = 6000
BLENDS = ("Brightness", "Color", "Contrast", "Sharpness")  # of two images, by a factor


def photo() -> Image.Image:
    """A photo with light, shade and colour, 61 by 47."""
    return make_photo(3, 1, (61, 47))


def kinds() -> list[Any]:
    """The same photo in every mode that decoders give."""
    image = photo()
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    of_kind = {mode: image.convert(mode) for mode in ("RGB", "L", "RGBA", "CMYK", "1", "LA")}
    of_kind |= {"P": palette, "I;16": deep, "lazy": Image.open(io.BytesIO(encoded(image)))}
    return [pytest.param(one, id=kind) for kind, one in of_kind.items()]


@pytest.mark.parametrize("image", kinds())
def test_view_0_is_the_evaluation_crop_of_the_model(image: Image.Image, teacher: str) -> None:
    """Bit for bit what `model.preprocess` makes, under every policy and for every kind of image."""
    clip = load_clip(teacher)
    _, evaluation = open_clip.create_model_from_pretrained(teacher)
    for policy in (ViewPolicy(), PLAIN, STRONG):
        view = draw_view(policy, "n", 0, *image.size)
        assert view is EVALUATION
        assert torch.equal(clip.prepare_view(image, view), evaluation(image))
    assert torch.equal(clip.prepare_view(image, EVALUATION), clip.preprocess(image))


SETTINGS: dict[str, dict[str, Any]] = {
    "openai": {"size": 32},
    "squash": {"size": 32, "resize_mode": "squash", "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3},
    "longest": {"size": 32, "resize_mode": "longest", "fill_color": 127},
    "not square": {"size": (24, 40), "mean": (0.0, 0.1, 0.9), "std": (1.0, 0.3, 0.7)},
}


@pytest.mark.parametrize("image", kinds())
@pytest.mark.parametrize("setting", SETTINGS)
def test_bytes_scaled_in_a_batch_are_the_transforms_own_floats(image: Image.Image, setting: str) -> None:
    """Bit for bit, for every view, whatever the image and the preprocessing; and only bytes travel to the device."""
    preprocess = SETTINGS[setting]
    named = {name: value for name, value in preprocess.items() if name != "size"}
    evaluation = open_clip.image_transform(preprocess["size"], is_train=False, **named)
    ours = ViewTransform(evaluation, preprocess)
    assert ours.scaling is not None
    views = [draw_view(policy, "n01_7", number, *image.size) for policy in (PLAIN, STRONG) for number in range(4)]
    pixels = torch.stack([ours.pixels(image, view) for view in views])
    assert pixels.dtype == torch.uint8
    scaled = ours.scaling(pixels.contiguous(memory_format=torch.channels_last))
    assert scaled.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(scaled, torch.stack([ours(image, view) for view in views]))
    assert torch.equal(scaled[0], evaluation(image))


def test_every_byte_is_scaled_as_torchvision_scales_it() -> None:
    """All 256 values in all channels, by the mean and the deviation of three families of models."""
    levels = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
    for mean, std in (
        (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.0,) * 3, (1.0,) * 3),
    ):
        evaluation = open_clip.image_transform(16, is_train=False, mean=mean, std=std)
        ours = ViewTransform(evaluation, {"size": 16, "mean": mean, "std": std})
        assert ours.scaling is not None
        assert torch.equal(ours.scaling(ours.pixels(levels, EVALUATION)[None])[0], evaluation(levels))


def test_a_transform_of_another_kind_is_used_as_it_is() -> None:
    """Steps behind the normalising, other channels or no known steps at all: the floats are the transform's own."""
    usual = open_clip.image_transform(32, is_train=False)
    longer = tv.Compose([*usual.transforms, lambda x: x + 1])
    for other in (longer, lambda image: usual(image) * 2, tv.Compose(usual.transforms[-2:])):
        ours = ViewTransform(other, {"size": 32})
        assert ours.scaling is None
        small = photo().resize((32, 32))
        assert torch.equal(ours.pixels(small, EVALUATION), other(small))


@pytest.mark.parametrize("image", kinds())
@pytest.mark.parametrize("size", [32, (24, 40)], ids=str)
def test_other_views_are_open_clips_training_transform(
    image: Image.Image, size: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """open_clip's own training transform, told where to crop, gives the same bits; a flip mirrors them."""
    mean, std = (0.48, 0.45, 0.40), (0.27, 0.26, 0.28)
    theirs = open_clip.image_transform(size, is_train=True, mean=mean, std=std)
    evaluation = open_clip.image_transform(size, is_train=False, mean=mean, std=std)
    ours = ViewTransform(evaluation, {"size": size, "mean": mean, "std": std, "interpolation": "bicubic"})
    for number in range(1, 12):
        view = draw_view(PLAIN, "n01_7", number, *image.size)
        left, top, right, bottom = view.pixels(*image.size)
        box = (top, left, bottom - top, right - left)
        monkeypatch.setattr(tv.RandomResizedCrop, "get_params", staticmethod(lambda *_, box=box: box))
        wanted = theirs(image)
        assert torch.equal(ours(image, View(view.box, False)), wanted)
        if image.mode not in ("P", "1"):  # those are resized by picking pixels, and the pick is not symmetric
            assert torch.equal(ours(image, View(view.box, True)), wanted.flip(-1))
        assert ours(image, view).shape == (3, *(size if isinstance(size, tuple) else (size, size)))


# RandAugment: torchvision's.


@pytest.mark.parametrize("op", OPS)
def test_operations_equal_torchvisions_at_every_magnitude(op: str) -> None:
    """Its own table of magnitudes (float32) and its own function, both signs: to the pixel, blends to one level."""
    image = photo()
    space = RandAugment()._augmentation_space(31, (image.height, image.width))
    assert tuple(space) == OPS
    table, signed = space[op]
    for magnitude in range(31):
        theirs = float(table[magnitude]) if table.ndim else 0.0
        for strength in drawn_strengths(op, magnitude):
            wanted = torchvision_op(image, op, math.copysign(theirs, strength), tv.InterpolationMode.NEAREST, None)
            ours, expected = np.asarray(apply_op(image, op, strength)).astype(int), np.asarray(wanted).astype(int)
            assert np.abs(ours - expected).max() <= (op in BLENDS), (magnitude, strength)
        assert len(drawn_strengths(op, magnitude)) == (2 if signed and magnitude else 1)


def drawn_strengths(op: str, magnitude: int, names: int = 400) -> set[float]:
    """Every strength that views get of an operation at a magnitude."""
    policy = ViewPolicy(views=2, randaugment=(14, magnitude))
    strengths: set[float] = set()
    for i in range(names):
        strengths |= {strength for name, strength in draw_view(policy, f"n{i}", 1, 9, 9).ops if name == op}
        if len(strengths) == 2:
            break
        if i > 20 and (strengths == {0.0} or op in ("Posterize", "Solarize")):
            break
    return strengths


def test_translations_are_torchvisions_pixels_at_every_size() -> None:
    """150 of 331 pixels and all the others: a share that rounds just below a whole pixel must not lose it."""
    shift: list[int] = []
    for size in [*range(1, 700, 3), 331, 662, 224, 256, 288, 336, 384, 448]:
        space = RandAugment()._augmentation_space(31, (1, size))
        image = Image.fromarray(np.arange(1, size + 1, dtype=np.uint32).view(np.uint8).reshape(1, size, 4), "RGBA")
        for magnitude in (1, 9, 11, 17, 21, 22, 30):
            moved = apply_op(image, "TranslateX", magnitude / 30 * 150 / 331)
            black_pixels = int((np.asarray(moved)[..., :3] == 0).all(axis=-1).sum())
            assert black_pixels == int(space["TranslateX"][0][magnitude].item()), (size, magnitude)
            shift.append(black_pixels)
    assert max(shift) > 300


def test_solarize_turns_the_same_pixels_at_every_magnitude() -> None:
    """All 256 greys: the threshold is a whole number for every second magnitude, where rounding would show."""
    greys = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(3, axis=0)).convert("RGB")
    table = RandAugment()._augmentation_space(31, (1, 1))["Solarize"][0]
    for magnitude in range(31):
        (strength,) = drawn_strengths("Solarize", magnitude)
        wanted = torchvision_op(greys, "Solarize", float(table[magnitude]), tv.InterpolationMode.NEAREST, None)
        assert apply_op(greys, "Solarize", strength).tobytes() == wanted.tobytes(), magnitude


@pytest.mark.parametrize("op", OPS)
def test_every_operation_does_something(op: str) -> None:
    """All but Identity change a photo, and two of them never do the same."""
    dull = photo().point(lambda value: 40 + value // 2)  # leaves AutoContrast something to do
    results = {name: apply_op(dull, name, *drawn_of(name)).tobytes() for name in OPS}
    assert (results[op] == dull.tobytes()) == (op == "Identity")
    assert Counter(results.values())[results[op]] == 1
    assert apply_op(dull, op, *drawn_of(op)).size == dull.size and dull.mode == "RGB"
    with pytest.raises(ValueError, match="no operation"):
        apply_op(dull, op + "2", 0.0)


def drawn_of(op: str) -> tuple[float]:
    """A strength that a view gets at magnitude 15."""
    return (max(drawn_strengths(op, 15)),)


def test_operations_and_signs_are_drawn_evenly() -> None:
    """Fourteen operations in both places, and both signs: five standard deviations."""
    policy = ViewPolicy(views=2, randaugment=(2, 9))
    drawn = [draw_view(policy, f"n{i}", 1, 9, 9).ops for i in range(DRAWS)]
    for place in range(2):
        counts = Counter(ops[place][0] for ops in drawn)
        spread = 5 * math.sqrt(DRAWS * (1 / 14) * (13 / 14))
        assert set(counts) == set(OPS) and all(abs(count - DRAWS / 14) < spread for count in counts.values())
    assert abs(np.mean([ops[0][0] == ops[1][0] for ops in drawn]) - 1 / 14) < 5 * math.sqrt(1 / 14 / DRAWS)
    signs = [strength > 0 for ops in drawn for name, strength in ops if name == "Rotate"]
    assert abs(np.mean(signs) - 0.5) < 5 * math.sqrt(0.25 / len(signs))


def _colours(image: Image.Image, view: View, act: Callable[[Image.Image], Image.Image]) -> torch.Tensor:
    """A view written out: crop, resize, mirror, colours, [-1, 1]."""
    small = image.crop(view.pixels(*image.size)).resize((32, 32), Image.Resampling.BICUBIC)
    if view.flip:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(act(small), dtype=np.float32) / 255
    return torch.from_numpy((pixels - 0.5) / 0.5).permute(2, 0, 1)


def test_operations_follow_each_other_on_the_resized_crop() -> None:
    """Crop, resize, flip, then each operation in its order, then normalise."""
    image, half = photo(), (0.5, 0.5, 0.5)
    evaluation = open_clip.image_transform(32, is_train=False, mean=half, std=half)
    ours = ViewTransform(evaluation, {"size": 32, "mean": half, "std": half, "interpolation": "bicubic"})
    policy, changed = ViewPolicy(views=2, randaugment=(3, 20)), 0
    for i in range(60):
        view = draw_view(policy, f"n{i}", 1, *image.size)

        def all_ops(small: Image.Image, view: View = view) -> Image.Image:
            for op, strength in view.ops:
                magnitude = strength * (32 if op.startswith("Translate") else 1)
                small = torchvision_op(small, op, magnitude, tv.InterpolationMode.NEAREST, None)
            return small

        pixels = ours(image, view)
        assert torch.allclose(pixels, _colours(image, view, all_ops), atol=1e-6)
        changed += not torch.allclose(pixels, _colours(image, view, lambda small: small), atol=1e-2)
    assert changed > 50
