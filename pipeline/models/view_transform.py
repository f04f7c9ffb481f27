"""What a model does with a view of an image: crop, resize, flip, colours, scale and normalise.

`data.views` draws views as plain numbers; this module applies one with the transforms that open_clip builds for the
model, or with their sizes and crops and torchvision's resize of tensors, which is faster and differs by rounding. There
an image becomes RGB first, where open_clip resizes a palette or 16 bits before. Scaling and normalising may be left to
the device, which then gets the bytes of the pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from teachonce.data.view_policy import OPS
from teachonce.data.views import View
from teachonce.errors import UsageError
from teachonce.models.spec import Resize
from teachonce.phrases import phrase

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Step = Callable[["Tensor"], "Tensor"]
FOR_TENSORS = ("bilinear", "bicubic")  # what torchvision does to tensors as Pillow does it to images, antialiased


class ViewTransform:
    """Turns views of decoded images into one model's inputs; threads may share it.

    Resizing, conversion to RGB, scaling and normalising are the objects that open_clip itself builds for the model, in
    the order of its evaluation transform, so that every kind of image (palette, 16-bit, CMYK) is treated alike.
    """

    def __init__(
        self, evaluation: Any, preprocess: Mapping[str, Any], resize: Resize = "pillow", spec: str = "the model"
    ) -> None:
        """Take a model's evaluation transform and open_clip's `model.visual.preprocess_cfg`.

        Raises:
            UsageError: `resize` is "tensor", and the transform has a step that can only be done to images.
        """
        import open_clip

        # "squash" resizes exactly to the input's size, which is what a random resized crop does.
        built = open_clip.image_transform(
            preprocess["size"],
            is_train=False,
            mean=preprocess.get("mean"),
            std=preprocess.get("std"),
            interpolation=preprocess.get("interpolation"),
            resize_mode="squash",
        )
        self._evaluation = evaluation
        self._resize, self._convert, self._scale, self._normalise = built.transforms
        self._before_scaling, self.scaling = _split(evaluation)
        if self.scaling is not None and self.scaling.values != _values(self._normalise):
            self.scaling = None  # the model's own transform and its settings do not agree: each is used as it is
        self._tensors = None if resize == "pillow" else self._of_tensors(spec)

    def _of_tensors(self, spec: str) -> _Tensors:
        try:
            if self.scaling is None:
                raise ValueError("its transform is not made of open_clip's own steps alone")
            return _Tensors(on_tensors(self._before_scaling), resizer(self._resize))
        except ValueError as problem:
            raise UsageError(
                f"images of '{spec}' cannot be resized as tensors: {problem}",
                hint=phrase("leave {resize=tensor} out: the transform is then used as it is"),
            ) from None

    def __call__(self, image: Image.Image, view: View) -> Tensor:
        """Return one view of an image, [3, H, W] float32."""
        if self._tensors is not None and self.scaling is not None:
            return self.scaling(self._tensors(image, view)[None])[0]
        if view.evaluation:
            pixels: Tensor = self._evaluation(image)
            return pixels
        drawn: Tensor = self._normalise(self._scale(self._colours(image, view)))
        return drawn

    def pixels(self, image: Image.Image, view: View) -> Tensor:
        """Return one view as `scaling` takes it, [3, H, W] uint8, channels last; without it, what a call returns."""
        import torch

        if self.scaling is None:
            return self(image, view)
        if self._tensors is not None:
            return self._tensors(image, view)
        if view.evaluation:
            colours = image
            for step in self._before_scaling:
                colours = step(colours)
        else:
            colours = self._colours(image, view)
        return torch.from_numpy(np.array(colours)).permute(2, 0, 1)

    def _colours(self, image: Image.Image, view: View) -> Image.Image:
        """Return a drawn view as an RGB image of the input's size."""
        resized: Image.Image = self._resize(image.crop(view.pixels(*image.size)))
        if view.flip:
            resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        colours: Image.Image = self._convert(resized)
        for op, strength in view.ops:
            colours = apply_op(colours, op, strength)
        return colours


@dataclass(frozen=True)
class _Tensors:
    """Views of images by torchvision's resize of tensors."""

    evaluation: tuple[Step, ...]
    resize: Step
    """To the input's size exactly."""

    def __call__(self, image: Image.Image, view: View) -> Tensor:
        """Return one view of an image, [3, H, W] uint8, channels last."""
        if view.evaluation:
            pixels = bytes_of(image)
            for step in self.evaluation:
                pixels = step(pixels)
            return pixels
        pixels = self.resize(bytes_of(image.crop(view.pixels(*image.size))))
        pixels = pixels.flip(-1) if view.flip else pixels
        if not view.ops:
            return pixels
        colours = image_of(pixels)
        for op, strength in view.ops:
            colours = apply_op(colours, op, strength)
        return bytes_of(colours)


class Scaling:
    """What makes a model's input of the bytes of pixels: torchvision's `ToTensor` and `Normalize`, on any device.

    The operations and their order are torchvision's, so the results are equal to the bit.
    """

    def __init__(self, values: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
        """Take the mean and the standard deviation of the three channels, for pixels from 0 to 1."""
        self.values = values
        self._known: dict[tuple[torch.device, int], tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the model's input, [B, 3, H, W] float32, channels last, for pixels [B, 3, H, W] uint8."""
        import torch

        batch, channels, height, width = pixels.shape
        most, mean, deviation = self._on(pixels.device, width)
        # Rows of pixels lie in memory as they are here, so that the CPU works on long runs and not on three numbers.
        rows = pixels.permute(0, 2, 3, 1).reshape(batch * height, width * channels).to(torch.float32)
        scaled = rows.div_(most).sub_(mean).div_(deviation)
        return scaled.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def _on(self, device: torch.device, width: int) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        key = device, width
        if key not in self._known:
            mean, deviation = (torch.tensor(part, dtype=torch.float32).repeat(width) for part in self.values)
            # 255 is a tensor, because CUDA divides by a plain number by multiplying with its rounded reciprocal.
            most = torch.tensor(255.0)
            self._known[key] = most.to(device), mean.to(device), deviation.to(device)
        return self._known[key]


def _split(evaluation: Any) -> tuple[tuple[Any, ...], Scaling | None]:
    """Split an evaluation transform into what makes an RGB image, and the rest; no rest where it is of another kind."""
    from open_clip.transform import MaybeConvertMode
    from torchvision.transforms import Compose, ToTensor

    steps = tuple(evaluation.transforms) if isinstance(evaluation, Compose) else ()
    values = _values(steps[-1]) if len(steps) >= 3 else None
    if values is None or not isinstance(steps[-2], ToTensor) or not isinstance(steps[-3], MaybeConvertMode):
        return (), None
    return (steps[:-2], Scaling(values)) if steps[-3].mode == "RGB" else ((), None)


def _values(step: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and standard deviation of a `Normalize` of three channels, else None."""
    from torchvision.transforms import Normalize

    if type(step) is not Normalize or len(step.mean) != 3 or len(step.std) != 3:
        return None
    return tuple(map(float, step.mean)), tuple(map(float, step.std))


def bytes_of(image: Image.Image) -> Tensor:
    """Return the pixels of an image as RGB, [3, H, W] uint8, channels last."""
    import torch

    colours = image if image.mode == "RGB" else image.convert("RGB")  # which copies whatever the mode
    return torch.from_numpy(np.array(colours)).permute(2, 0, 1)


def image_of(pixels: Tensor) -> Image.Image:
    """Return pixels, [3, H, W] uint8, as an RGB image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def on_tensors(steps: Sequence[Any]) -> tuple[Step, ...]:
    """Return what the steps of open_clip's transform do to images, for tensors [3, H, W] uint8.

    Args:
        steps: those before the pixels become floats.

    Raises:
        ValueError: a step is of another kind, or interpolates in a way that torchvision has not for tensors.
    """
    return tuple(made for step in steps if (made := _on_tensor(step)) is not None)


def resizer(step: Any) -> Step:
    """Return what torchvision's `Resize` does to images, for tensors.

    Raises:
        ValueError: as `on_tensors`.
    """
    size = [step.size] if isinstance(step.size, int) else list(step.size)
    return _resize(step, lambda pixels: size, step.max_size)


def _on_tensor(step: Any) -> Step | None:
    """Return one step for tensors; None where RGB images stay as they are."""
    from open_clip.transform import CenterCropOrPad, MaybeConvertMode, ResizeKeepRatio
    from torchvision.transforms import CenterCrop, Resize

    if isinstance(step, MaybeConvertMode) and step.mode == "RGB":
        return None
    if type(step) is Resize:
        return resizer(step)
    if type(step) is ResizeKeepRatio and not step.random_scale_prob and not step.random_aspect_prob:
        return _resize(step, lambda pixels: _kept_ratio(step, pixels))
    if type(step) in (CenterCrop, CenterCropOrPad):
        cut: Step = step
        return cut
    raise ValueError(f"its transform has the step {type(step).__name__}, which is known for images only")


def _resize(step: Any, size: Callable[[Tensor], list[int]], most: int | None = None) -> Step:
    """Return a resize to the size that follows from the pixels; `most` bounds the longer side."""
    from torchvision.transforms.v2 import functional

    if step.interpolation.value not in FOR_TENSORS:
        raise ValueError(
            f"it interpolates by '{step.interpolation.value}'; torchvision has {' and '.join(FOR_TENSORS)} for tensors "
            "as Pillow has them for images"
        )

    def resized(pixels: Tensor) -> Tensor:
        changed: Tensor = functional.resize(pixels, size(pixels), step.interpolation, max_size=most, antialias=True)
        return changed

    return resized


def _kept_ratio(step: Any, pixels: Tensor) -> list[int]:
    """Return height and width that open_clip's `ResizeKeepRatio` gives an image of this size."""
    height, width = pixels.shape[-2:]
    sides = [int(side) for side in step.get_params(SimpleNamespace(size=(width, height)), step.size, step.longest)]
    if min(sides) < 1:
        raise ValueError(f"height and width must be above 0, found {sides}")  # as Pillow says it
    return sides


def apply_op(image: Image.Image, op: str, strength: float) -> Image.Image:
    """Apply one operation of RandAugment to an RGB image, by torchvision's functions; nearest pixel, black outside.

    Raises:
        ValueError: the operation is not in `OPS`.
    """
    import torchvision.transforms.functional as functional

    if op in ("ShearX", "ShearY", "TranslateX", "TranslateY"):
        angle = math.degrees(math.atan(strength))
        # Cut to whole pixels as torchvision does; rounding first gives 150 and not 149 for 150 / 331 of 331.
        across, down = (int(round(strength * side, 4)) for side in image.size)
        shift = {"TranslateX": [across, 0], "TranslateY": [0, down]}.get(op, [0, 0])
        shear = {"ShearX": [angle, 0.0], "ShearY": [0.0, angle]}.get(op, [0.0, 0.0])
        corner = [0, 0] if op.startswith("Shear") else None
        changed = functional.affine(image, angle=0.0, translate=shift, scale=1.0, shear=shear, center=corner)
    elif op == "Rotate":
        changed = functional.rotate(image, strength)
    elif op in ("Brightness", "Color", "Contrast", "Sharpness"):
        name = {"Color": "saturation"}.get(op, op.lower())
        changed = getattr(functional, f"adjust_{name}")(image, 1.0 + strength)
    elif op == "Posterize":
        changed = functional.posterize(image, int(strength))
    elif op == "Solarize":
        changed = functional.solarize(image, strength)
    elif op in ("AutoContrast", "Equalize"):
        changed = getattr(functional, op.lower())(image)
    elif op == "Identity":
        changed = image
    else:
        raise ValueError(f"'{op}' is no operation of RandAugment: {', '.join(OPS)}")
    result: Image.Image = changed
    return result
