"""How many views an image has, and what they are drawn from: values and their ranges, without NumPy.

`views` draws by such a policy. docs/views.md says it all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from teachonce.core.strict import decode
from teachonce.errors import IntegrityError, UsageError

FUNCTION = 1  # of the draw; another number is another function, and its views are other views
MAX_VIEWS = 255  # view numbers are stored in one byte, and 255 is no number
BINS = 30  # the strongest magnitude, as in torchvision's 31 bins
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
OPS = ("Identity", *SIGNED, "Posterize", "Solarize", "AutoContrast", "Equalize")
"""RandAugment's operations in torchvision's order."""


@dataclass(frozen=True, kw_only=True)
class ViewPolicy:
    """How many views an image has, and what they are drawn from.

    Raises:
        UsageError: a value out of range.
    """

    views: int = 1
    seed: int = 0
    scale: tuple[float, float] = (0.08, 1.0)
    """Area of a crop as a share of the image's, least and most; the default is torchvision's, CoOp's and POMP's."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a crop in pixels, least and most."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    randaugment: tuple[int, int] | None = None
    """Number of operations and magnitude (0 to 30)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if not 1 <= self.views <= MAX_VIEWS:
            raise UsageError(f"views must be between 1 and {MAX_VIEWS}, found {self.views}")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"the seed of views must be between 0 and 2^64 - 1, found {self.seed}")
        for name, values, most in (("scale", self.scale, 1.0), ("ratio", self.ratio, 1e4)):
            if len(values) != 2 or not 1 / 1e4 <= values[0] <= values[1] <= most:
                raise UsageError(f"{name} of views must be two rising numbers from 0.0001 to {most:g}, found {values}")
        if not 0 <= self.flip <= 1:
            raise UsageError(f"flip of views is a probability, found {self.flip}")
        if self.randaugment is not None:
            number, magnitude = self.randaugment if len(self.randaugment) == 2 else (0, 0)
            if not (1 <= number <= len(OPS) and 0 <= magnitude <= BINS):
                raise UsageError(
                    f"randaugment of views is a number of operations (1 to {len(OPS)}) and a magnitude (0 to {BINS}), "
                    f"found {self.randaugment}"
                )

    def to_dict(self) -> dict[str, Any]:
        """What views depend on, for JSON; with one view nothing is drawn and nothing else matters."""
        if self.views == 1:
            return {"views": 1}
        return {"function": FUNCTION} | {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_dict(fields: Mapping[str, Any], where: str) -> ViewPolicy:
        """The policy that `to_dict` described.

        Args:
            fields: from a store's fingerprint.
            where: the store, for messages.

        Raises:
            IntegrityError: unknown or missing fields, or another version of the function drew the views.
        """
        fields = dict(fields)
        if fields.get("views") != 1 and fields.pop("function", None) != FUNCTION:
            raise IntegrityError(
                f"{where}: its views were drawn by another version of the function than {FUNCTION}",
                hint="install the version of teachonce that wrote it; boxes and flips are stored and stay readable",
            )
        try:
            return decode(ViewPolicy, fields, where, IntegrityError)
        except UsageError as problem:
            raise IntegrityError(f"{where}: {problem.message}") from problem
