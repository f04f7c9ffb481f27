"""Views: drawn as torchvision draws, by numbers that depend on seed, name and view alone."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.transforms as tv

from teachonce.data.views import (
    TRIES,
    UNIT,
    View,
    ViewPolicy,
    draw_view,
    sample_name,
    uniforms,
)

PLAIN = ViewPolicy(views=4)
STRONG = ViewPolicy(views=4, seed=7, scale=(0.5, 1.0), randaugment=(2, 9))
LAST = ViewPolicy(views=255, seed=2**64 - 1)
DRAWS = 6000
SIZES = [
    (500, 375),
    (375, 500),
    (64, 64),
    (32, 400),
    (900, 60),
    (1, 1),
    (1, 9),
    (9, 1),
    (1, 5000),
    (4000, 3),
    (2, 3),
    (65535, 7),
    (7, 65535),
]
WIDE = [(65536, 40), (70000, 900), (3, 200_000), (1_000_000, 1), (1, 1_000_000)]


# What is drawn: torchvision's rule.


class FedTorch:
    """Stands for `torch` in torchvision's code: the same functions in float64, and our numbers for its draws."""

    def __init__(self, seed: int, name: str, view: int) -> None:
        blocks = [uniforms(seed, name, view, block) for block in range(TRIES)]
        self._shapes = iter([number for block in blocks for number in block[:2]])
        self._places = [block[2:4] for block in blocks]
        self._drawn = 0

    tensor, log, exp = staticmethod(np.array), staticmethod(np.log), staticmethod(np.exp)

    def empty(self, count: int) -> FedTorch:
        """Something with `uniform_`."""
        assert count == 1
        return self

    def uniform_(self, low: float, high: float) -> np.float64:
        """Torchvision draws area, then log of the ratio, in each attempt."""
        self._drawn += 1
        return np.float64(low + next(self._shapes) * (high - low))

    def randint(self, low: int, high: int, size: Sequence[int]) -> np.float64:
        """Only an attempt that fits draws a place: top, then left."""
        assert low == 0 and tuple(size) == (1,)
        return np.float64(int(self._places[self._drawn // 2 - 1].pop(0) * high))


def torchvisions_box(
    monkeypatch: pytest.MonkeyPatch, policy: ViewPolicy, name: str, view: int, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom that torchvision's own `get_params` makes of our numbers."""
    nothing = torch.empty(1).expand(3, size[1], size[0])
    with monkeypatch.context() as patch:
        patch.setattr(tv, "torch", FedTorch(policy.seed, name, view))
        top, left, h, w = tv.RandomResizedCrop.get_params(nothing, list(policy.scale), list(policy.ratio))
    return int(left), int(top), int(left + w), int(top + h)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_torchvisions_own_code_with_our_numbers_gives_our_crop(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the pixel, also where no crop fits and where the store's 1/65535 lie between."""
    for policy in (PLAIN, STRONG, LAST):
        for view in range(1, 60):
            ours = draw_view(policy, "n01_7", view, *size).pixels(*size)
            assert ours == torchvisions_box(monkeypatch, policy, "n01_7", view, size)


def our_boxes(policy: ViewPolicy, size: tuple[int, int], count: int = DRAWS) -> np.ndarray[Any, Any]:
    """[count, 4] left, top, right, bottom in pixels, of many samples and views."""
    views = 4
    return np.array(
        [
            draw_view(policy, f"n{sample}", view, *size).pixels(*size)
            for sample in range(count // views)
            for view in range(1, views + 1)
        ]
    )


def their_boxes(policy: ViewPolicy, size: tuple[int, int], count: int = DRAWS) -> np.ndarray[Any, Any]:
    """The same from torchvision with its own random numbers."""
    nothing, boxes = torch.empty(1).expand(3, size[1], size[0]), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(count):
            top, left, h, w = tv.RandomResizedCrop.get_params(nothing, list(policy.scale), list(policy.ratio))
            boxes.append((left, top, left + w, top + h))
    return np.array(boxes)


def traits(boxes: np.ndarray[Any, Any], size: tuple[int, int]) -> dict[str, np.ndarray[Any, Any]]:
    """Area share, aspect ratio, and where the crop lies in the room it has; each [count]."""
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    room_x, room_y = np.maximum(size[0] - w, 1), np.maximum(size[1] - h, 1)
    return {
        "area": w * h / (size[0] * size[1]),
        "ratio": w / h,
        "left": boxes[:, 0] / room_x,
        "top": boxes[:, 1] / room_y,
    }


def distance(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """Kolmogorov and Smirnov's: the largest gap between two cumulative distributions."""
    at = np.sort(np.concatenate([one, other]))
    shares = [np.searchsorted(np.sort(x), at, side="right") / len(x) for x in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


LIMIT = 2.2 * math.sqrt(2 / DRAWS)  # exceeded by chance once in 8,000 for equal distributions


@pytest.mark.parametrize("policy", [PLAIN, ViewPolicy(seed=3, views=4, scale=(0.4, 0.9), ratio=(0.5, 3.0))])
@pytest.mark.parametrize("size", [(500, 375), (200, 640)], ids=str)
def test_crops_are_distributed_as_torchvisions(policy: ViewPolicy, size: tuple[int, int]) -> None:
    """Area, shape and place over thousands of draws, against torchvision's own random numbers."""
    ours, theirs = (traits(draw(policy, size), size) for draw in (our_boxes, their_boxes))
    for name in ours:
        assert distance(ours[name], theirs[name]) < LIMIT, name
        assert abs(ours[name].mean() - theirs[name].mean()) < 0.02 * max(1.0, policy.ratio[1]), name


def test_the_tolerance_tells_a_wrong_rule() -> None:
    """Ratios drawn evenly instead of their logarithms, sides instead of areas, or other scales: too far."""
    size = (500, 500)
    truth = traits(their_boxes(PLAIN, size), size)
    rng = np.random.default_rng(0)
    assert distance(truth["ratio"], rng.uniform(3 / 4, 4 / 3, DRAWS)) > LIMIT
    assert distance(truth["area"], rng.uniform(0.08**0.5, 1, DRAWS) ** 2) > LIMIT
    assert distance(truth["area"], traits(our_boxes(ViewPolicy(scale=(0.2, 1.0)), size), size)["area"]) > LIMIT


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_flips_come_as_often_as_asked(share: float) -> None:
    """Five standard deviations of 6,000 draws; 0 and 1 are exact. A flip says nothing about where the crop lies."""
    policy = ViewPolicy(views=4, flip=share)
    drawn = [draw_view(policy, f"n{i}", 1 + i % 4, 300, 200) for i in range(DRAWS)]
    flips = np.array([view.flip for view in drawn])
    spread = 5 * math.sqrt(share * (1 - share) / DRAWS)
    assert abs(flips.mean() - share) <= spread
    if 0 < share < 1:
        left = np.array([view.box[0] for view in drawn])
        assert abs(np.corrcoef(flips, left)[0, 1]) < 5 / math.sqrt(DRAWS)


def test_views_of_a_photo_are_independent() -> None:
    """Crops of two views, of two seeds and of two photos have nothing in common."""

    def lefts(policy: ViewPolicy, view: int, prefix: str = "n") -> np.ndarray[Any, Any]:
        return np.array([draw_view(policy, f"{prefix}{i}", view, 4000, 4000).box[0] for i in range(DRAWS // 2)])

    first = lefts(PLAIN, 1)
    others = lefts(PLAIN, 2), lefts(ViewPolicy(seed=1), 1), lefts(PLAIN, 1, "m")
    for other in others:
        assert abs(np.corrcoef(first, other)[0, 1]) < 5 / math.sqrt(DRAWS // 2)
        assert (first == other).mean() < 0.01


# Which numbers: fixed for ever, whoever asks.

GOLDEN: list[tuple[ViewPolicy, str, int, int, int, View]] = [
    (PLAIN, "n01440764_18", 1, 500, 375, View((45088, 15029, 64355, 46137), False)),
    (PLAIN, "n01440764_18", 2, 500, 375, View((21889, 15554, 59375, 58370), True)),
    (PLAIN, "n01440764_18", 1, 375, 500, View((38797, 18481, 64486, 41811), False)),
    (PLAIN, "ä", 3, 1, 1, View((0, 0, UNIT, UNIT), True)),
    (PLAIN, "x", 1, 4000, 3, View((32735, 0, 32800, UNIT), False)),
    (PLAIN, "x", 254, 70000, 900, View((32206, 0, 33329, UNIT), False)),
    (LAST, "n01440764_18", 1, 500, 375, View((5505, 0, 63831, 62215), True)),
    (LAST, "n01440764_18", 2, 500, 375, View((26607, 30233, 43384, 53477), False)),
    (
        STRONG,
        "n01440764_18",
        1,
        500,
        375,
        View((11272, 1223, 51642, 55399), True, (("ShearX", 0.09), ("Brightness", 0.27))),
    ),
    (
        STRONG,
        "n01440764_18",
        2,
        500,
        375,
        View((20578, 699, 59375, 63438), True, (("Sharpness", 0.27), ("Rotate", 9.0))),
    ),
    (
        STRONG,
        "x",
        254,
        70000,
        900,
        View((32206, 0, 33329, UNIT), True, (("Posterize", 7.0), ("TranslateX", 0.3 * 150 / 331))),
    ),
]


@pytest.mark.parametrize(("policy", "name", "view", "width", "height", "wanted"), GOLDEN)
def test_golden_draws(policy: ViewPolicy, name: str, view: int, width: int, height: int, wanted: View) -> None:
    """Whoever changes the rule must give `FUNCTION` another number: stores hold labels of these very crops."""
    draw = draw_view(policy, name, view, width, height)
    assert (draw.box, draw.flip, draw.evaluation) == (wanted.box, wanted.flip, False)
    assert [op for op, _ in draw.ops] == [op for op, _ in wanted.ops]
    assert [strength for _, strength in draw.ops] == pytest.approx([strength for _, strength in wanted.ops], rel=1e-15)


def test_a_draw_depends_on_nothing_else() -> None:
    """Not on order, repetition, threads, the number of views, the process or its hash seed."""
    asked = [(f"n{i}", view) for i in range(40) for view in range(4)]

    def draw(ask: tuple[str, int]) -> View:
        return draw_view(STRONG, *ask, 500, 375)

    serial = [draw(ask) for ask in asked]
    assert [draw(ask) for ask in reversed(asked)][::-1] == serial
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, asked)) == serial
    more = ViewPolicy(views=9, seed=7, scale=(0.5, 1.0), randaugment=(2, 9))
    assert [draw_view(more, *ask, 500, 375) for ask in asked] == serial
    code = (
        "from teachonce.data.view_policy import ViewPolicy\nfrom teachonce.data.views import draw_view\n"
        "p = ViewPolicy(views=4, seed=7, scale=(0.5, 1.0), randaugment=(2, 9))\n"
        "print([draw_view(p, f'n{i}', v, 500, 375) for i in range(40) for v in range(4)])"
    )
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == repr(serial)


def test_seeds_samples_and_views_differ() -> None:
    """Thousands of draws on a large image, all different."""
    drawn = [
        draw_view(ViewPolicy(seed=seed), f"n{i}", view, 30000, 30000).box
        for seed in (0, 1, 2**63)
        for i in range(40)
        for view in (1, 2, 254)
    ]
    assert len(set(drawn)) == len(drawn)
    assert uniforms(0, "a", 1, 0) != uniforms(0, "a", 0, 1), "view and block are apart"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("n01/n01_7", "n01_7"),
        ("n01_7", "n01_7"),
        ("n01/n01_7.JPEG", "n01_7"),
        ("a/b/x.png.webp", "x"),
        (".jpg", ".jpg"),
        ("v1.2", "v1.2"),
        ("v1.2.jpg", "v1.2"),
        ("a/", ""),
        ("ä/ö.jpeg", "ö"),
    ],
)
def test_the_layout_of_archives_does_not_count(key: str, name: str) -> None:
    """The same photo has the same views in tars, WebDataset and folders."""
    assert sample_name(key) == name
    assert draw_view(PLAIN, key, 1, 500, 375) == draw_view(PLAIN, name, 1, 500, 375)


# Boxes and what a store keeps of them.


@pytest.mark.parametrize("size", SIZES + WIDE, ids=str)
def test_a_crop_lies_inside_the_image(size: tuple[int, int]) -> None:
    """Never empty, never beyond the edge, its stored form too; also where a 65,535th is more than a pixel."""
    for policy in (PLAIN, ViewPolicy(scale=(1e-4, 1e-4), ratio=(1e-4, 1e4)), ViewPolicy(scale=(1.0, 1.0))):
        for view in range(1, 40):
            drawn = draw_view(policy, "n", view, *size)
            left, top, right, bottom = drawn.pixels(*size)
            assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
            assert 0 <= drawn.box[0] < drawn.box[2] <= UNIT and 0 <= drawn.box[1] < drawn.box[3] <= UNIT


@pytest.mark.parametrize("size", WIDE, ids=str)
def test_sides_beyond_65535_pixels_lose_less_than_one_unit(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored crop is near torchvision's, and it is what is computed: both come from the same `View`."""
    units = [math.ceil(side / UNIT) for side in size]
    for view in range(1, 40):
        ours = draw_view(PLAIN, "n", view, *size).pixels(*size)
        theirs = torchvisions_box(monkeypatch, PLAIN, "n", view, size)
        assert all(abs(a - b) <= units[i % 2] for i, (a, b) in enumerate(zip(ours, theirs, strict=True)))


def test_a_box_smaller_than_a_pixel_is_one_pixel() -> None:
    """Wherever it lies, also at the far edges: a view is never empty."""
    for size in (1, 2, 3, 10, 1000):
        for unit in (0, 1, 9, UNIT // 2, UNIT - 2, UNIT - 1):
            left, top, right, bottom = View((unit, unit, unit + 1, unit + 1), False).pixels(size, size)
            assert (left, right) == (top, bottom) and right == left + 1
            assert left == min(size - 1, math.floor(unit * size / UNIT + 0.5))
