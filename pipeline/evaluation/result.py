"""What `evaluate` says of one set: the document that it writes, and that reports, exports and grids read.

It computes nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teachonce.core.documents import is_as_written, number, read_object
from teachonce.core.strict import decode_known
from teachonce.errors import IntegrityError

SCHEMA = 1
FIGURES = ("top1", "top5", "macro", "ece", "nll")


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """Figures of one set; shares are fractions of the `n` images that could be decoded.

    `evaluate` gives every field. A default is what a reader finds where the document of an earlier version does not
    have the field, or has null in the place of a figure that is no number.
    """

    top1: float = math.nan
    top5: float = math.nan
    macro: float = math.nan
    """Mean over classes with images of their top-1."""
    ece: float = math.nan
    """Expected calibration error at the model's own logit scale, 15 bins of equally many images."""
    nll: float = math.nan
    """Mean -ln p of the image's class, nats."""
    n: int = 0
    classes: int = 0
    """Names that compete."""
    classes_seen: int = 0
    """Competing classes with at least one image."""
    top1_interval: tuple[float, ...] = ()
    """Lower and upper end: Wilson, 95 %."""
    tied_names: int = 0
    """Classes that share their name with another: m of them share the credit, 1/m each."""
    failed: int = 0
    """Images that could not be decoded; they are not in n."""
    left_out: int = 0
    """Images of the split that were not asked for: of other classes, of names taken out, without a class."""
    template: str | None = None
    """The sentence around a name, of several all, with ` + ` between them; None with prompts, see `templates`."""
    run: str | None = None
    wise: float | None = None
    """Share of the prompts in the class features; None without prompts."""
    baseline: dict[str, Any] | None = None
    """With prompts: top1, top5, macro, ece, nll and the template of the bare student on the same images."""
    paired: dict[str, Any] | None = None
    """With prompts: images that only they, or only the template, got right, and McNemar's exact p."""
    linear: dict[str, Any] | None = None
    """With the prompts of a run: the figures of its linear reference on the same images. `names` says how many of the
    competing names it has a vector for. `gain` and `paired` compare it with the template, `prompts_gain` and
    `prompts_paired` compare the prompts with it."""
    linear_why: str = ""
    """Why there is no linear reference; empty where there is one, and without prompts."""
    protocol: str | None = None
    manifest: str = ""
    split: str = ""
    chosen: str = ""
    """Which classes, and among which names."""
    templates: tuple[str, ...] = ()
    names_digest: str = ""
    """The digest of the ids and names that compete."""
    digests: dict[str, str] = field(default_factory=dict)
    """Digests of the student's weights, the whole vocabulary, the classified samples and the prompts."""
    per_class: str | None = None
    credits: str | None = None
    confused: tuple[dict[str, Any], ...] = ()
    """The classes most often taken for one other, with the share of their images."""
    schema: int = SCHEMA

    @property
    def figures(self) -> dict[str, float]:
        """Those of `FIGURES` that are numbers."""
        return known_figures(vars(self))

    @property
    def template_figures(self) -> dict[str, float]:
        """The same of the bare student with the hand-written template; empty without prompts."""
        return known_figures(self.baseline or {})

    @property
    def linear_figures(self) -> dict[str, float]:
        """The same of the linear reference; empty where there is none."""
        return known_figures(self.linear or {})


def known_figures(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of `FIGURES` that are numbers."""
    return {key: value for key in FIGURES if (value := number(values.get(key))) is not None}


def decode_result(document: Any, where: str) -> EvaluateResult:
    """The result that a document holds, whichever version wrote it.

    Args:
        document: parsed JSON.
        where: the file, for messages.

    Raises:
        IntegrityError: `evaluate` of no version has written it.
    """
    damaged = functools.partial(IntegrityError, hint="restore it, or take it away and evaluate again")
    if not isinstance(document, Mapping) or document.get("schema", SCHEMA) != SCHEMA:
        raise damaged(f"{where} is not what `evaluate` writes: expected an object with schema {SCHEMA}")
    if not is_as_written(document):
        raise damaged(f"{where} is not what `evaluate` wrote: its digest differs")
    said = {key: value for key, value in document.items() if value is not None}
    return decode_known(EvaluateResult, said, where, damaged)


def read_result(file: Path) -> EvaluateResult | None:
    """The result in a file; None where the file is not there or not whole.

    Raises:
        IntegrityError: as `decode_result`.
    """
    document = read_object(file, SCHEMA)
    return None if document is None else decode_result(document, str(file))
