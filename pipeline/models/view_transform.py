"""What a model does with a view of an image: crop, resize, flip, colours, scale and normalise.

`data.views` draws views as plain numbers; this module applies one with the transforms that open_clip builds for the
model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image

from teachonce.data.view_policy import OPS
from teachonce.data.views import View

if TYPE_CHECKING:
    from torch import Tensor


class ViewTransform:
    """Turns views of decoded images into one model's inputs; threads may share it.

    Resizing, conversion to RGB, scaling and normalising are the objects that open_clip itself builds for the model, in
    the order of its evaluation transform, so that every kind of image (palette, 16-bit, CMYK) is treated alike.
    """

    def __init__(self, evaluation: Any, preprocess: Mapping[str, Any]) -> None:
        """Take a model's evaluation transform and open_clip's `model.visual.preprocess_cfg`."""
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

    def __call__(self, image: Image.Image, view: View) -> Tensor:
        """Return one view of an image, [3, H, W] float32."""
        if view.evaluation:
            pixels: Tensor = self._evaluation(image)
            return pixels
        resized: Image.Image = self._resize(image.crop(view.pixels(*image.size)))
        if view.flip:
            resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        colours: Image.Image = self._convert(resized)
        for op, strength in view.ops:
            colours = apply_op(colours, op, strength)
        drawn: Tensor = self._normalise(self._scale(colours))
        return drawn


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
