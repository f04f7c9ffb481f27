"""Views: the crop, flip and colour changes that make a row of an image, a pure function of seed, name and view number.

View 0 is each model's own evaluation transform. The others are random resized crops, which are drawn once for an image
and applied by every model at its own size. This module neither reads images nor runs models, and keeps no state.
docs/views.md describes views in full.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from teachonce.data.formats import PLAIN_ENDINGS, extension
from teachonce.data.places import name_bytes
from teachonce.data.view_policy import BINS, OPS, SIGNED, ViewPolicy
from teachonce.errors import IntegrityError

UNIT = 65535  # a box counts in 1/65535 of the image's width and height
NO_VIEW = 65535  # in all five fields where an image failed: no flip is 65535, so a hole never passes for a view
TRIES = 10  # as torchvision: crops that do not fit are drawn again, then the largest centred one is taken

_PERSON = b"teachonce views"
_OP_BLOCK = 16  # RandAugment's numbers come from blocks 16, 17, ...; crops use 0 to 9


@dataclass(frozen=True)
class View:
    """One view of an image."""

    box: tuple[int, int, int, int]
    """Left, top, right, bottom in 1/65535 of the image's width and height."""
    flip: bool
    ops: tuple[tuple[str, float], ...] = ()
    """RandAugment's operations, each with name and strength; translations are shares of the input's width or height."""
    evaluation: bool = False
    """Whether the view is the model's own evaluation transform, to which box, flip and operations do not apply."""

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the box in whole pixels of an image of this size: left, top, right, bottom; never empty.

        Below 65,535 pixels a side this is the drawn box exactly, because quantising moves an edge by less than half a
        pixel.
        """
        left, right = _pixel_span(self.box[0], self.box[2], width)
        top, bottom = _pixel_span(self.box[1], self.box[3], height)
        return left, top, right, bottom


EVALUATION = View((0, 0, UNIT, UNIT), False, (), True)
"""View 0: each model's own evaluation transform, verbatim."""


def sample_name(key: str) -> str:
    """Return the part of a sample's key that is the same in every layout: after the last `/`, without image extensions.

    `n01/n01_7` (tars), `n01_7` (WebDataset) and `n01/n01_7.JPEG` (folders) are all `n01_7`.
    """
    name = key.rpartition("/")[2]
    while True:
        stem = name.rpartition(".")[0]
        if not stem or extension(name) not in PLAIN_ENDINGS:
            return name
        name = stem


def uniforms(seed: int, name: str, view: int, block: int) -> list[float]:
    """Draw eight numbers in [0, 1) that depend on nothing but the arguments.

    They are the eight little-endian 64-bit words of BLAKE2b-512 over the name's bytes, with the seed as the key (8
    bytes), view and block as the salt (8 bytes each, all little-endian) and `teachonce views` as the personalisation;
    the upper 53 bits of each word are multiplied by 2^-53.
    """
    digest = hashlib.blake2b(
        name_bytes(name),
        key=seed.to_bytes(8, "little"),
        salt=view.to_bytes(8, "little") + block.to_bytes(8, "little"),
        person=_PERSON,
    ).digest()
    return [(int.from_bytes(digest[i : i + 8], "little") >> 11) * 2.0**-53 for i in range(0, 64, 8)]


def draw_view(policy: ViewPolicy, name: str, view: int, width: int, height: int) -> View:
    """Draw one view: a pure function of (seed, sample, view) and the image's size, whoever asks and in whatever order.

    The number of views of the policy does not matter, so a store with more views has the first ones unchanged.

    Args:
        policy: what to draw from.
        name: the sample's key or its name; only `sample_name` of it counts.
        view: the number of the view; 0 is `EVALUATION`.
        width: width of the decoded image in pixels, as it is stored (EXIF orientation is not applied).
        height: its height, likewise.
    """
    if view == 0:
        return EVALUATION
    name = sample_name(name)
    left, top, right, bottom = _crop(policy, name, view, width, height)
    across, down = _quantised(left, right, width), _quantised(top, bottom, height)
    flip = uniforms(policy.seed, name, view, 0)[4] < policy.flip
    return View((across[0], down[0], across[1], down[1]), flip, _ops(policy, name, view))


def _crop(policy: ViewPolicy, name: str, view: int, width: int, height: int) -> tuple[int, int, int, int]:
    """Draw torchvision's RandomResizedCrop with our numbers: left, top, right, bottom in pixels."""
    low, high = (math.log(ratio) for ratio in policy.ratio)
    for attempt in range(TRIES):
        area, shape, down, across = uniforms(policy.seed, name, view, attempt)[:4]
        area = width * height * (policy.scale[0] + area * (policy.scale[1] - policy.scale[0]))
        ratio = math.exp(low + shape * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(down * (height - h + 1)), int(across * (width - w + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < policy.ratio[0]:
        h = max(1, round(width / policy.ratio[0]))
    elif width / height > policy.ratio[1]:
        w = max(1, round(height * policy.ratio[1]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _ops(policy: ViewPolicy, name: str, view: int) -> tuple[tuple[str, float], ...]:
    """Draw RandAugment's operations. They do not depend on the image, so a stored box suffices to recover a view."""
    if policy.randaugment is None:
        return ()
    number, magnitude = policy.randaugment
    drawn = []
    for block in range(_OP_BLOCK, _OP_BLOCK + number):
        which, sign = uniforms(policy.seed, name, view, block)[:2]
        op = OPS[int(which * len(OPS))]
        strength = _strength(op, magnitude)
        drawn.append((op, -strength if op in SIGNED and sign < 0.5 else strength))
    return tuple(drawn)


def _strength(op: str, magnitude: int) -> float:
    """Return torchvision's strength of an operation at this magnitude of 31 (translations: as a share of the side)."""
    share = magnitude / BINS
    most = {"ShearX": 0.3, "ShearY": 0.3, "TranslateX": 150 / 331, "TranslateY": 150 / 331, "Rotate": 30.0}
    if op == "Posterize":
        return 8.0 - round(share * 4)
    if op == "Solarize":
        # This is computed exactly: a threshold just above 170 would leave pixels of 170 alone.
        return 255.0 * (BINS - magnitude) / BINS
    return share * most.get(op, 0.9) if op in SIGNED else 0.0


def _quantised(start: int, stop: int, size: int) -> tuple[int, int]:
    """Return a span of pixels in units, rounded half up in whole numbers; it is never empty, even on long sides."""
    first, last = ((2 * at * UNIT + size) // (2 * size) for at in (start, stop))
    return (first, last) if first < last else (min(first, UNIT - 1), min(first, UNIT - 1) + 1)


def _pixel_span(start: int, stop: int, size: int) -> tuple[int, int]:
    first, last = ((2 * at * size + UNIT) // (2 * UNIT) for at in (start, stop))
    first = min(first, size - 1)
    return first, max(first + 1, last)


def view_params(view: View) -> npt.NDArray[np.uint16]:
    """Return what a store keeps of a view: left, top, right, bottom, flip; [5]."""
    return np.array([*view.box, int(view.flip)], dtype=np.uint16)


def view_from_params(params: Sequence[int] | npt.NDArray[np.uint16], policy: ViewPolicy, name: str, view: int) -> View:
    """Return the view that a store recorded.

    Box and flip are stored; RandAugment's operations follow from seed, name and number.

    Args:
        params: left, top, right, bottom, flip; [5].
        policy: the policy of the store.
        name: the sample's key or name.
        view: the number of the view.

    Raises:
        IntegrityError: no view has these values (`NO_VIEW` marks an image that failed).
    """
    left, top, right, bottom, flip = (int(value) for value in params)
    if not (left < right and top < bottom and flip <= 1):
        raise IntegrityError(f"view {view} of '{name}': {[left, top, right, bottom, flip]} are the fields of no view")
    if view > 0:
        return View((left, top, right, bottom), bool(flip), _ops(policy, sample_name(name), view))
    if ((left, top, right, bottom), bool(flip)) != (EVALUATION.box, EVALUATION.flip):
        raise IntegrityError(f"view 0 of '{name}' is the whole image, found {[left, top, right, bottom, flip]}")
    return EVALUATION
