"""The files that `evaluate` leaves in a folder: a result, the table of classes and the credits of images beside it.

What is damaged or belongs to another result is told and not read.

Shapes: n images.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from teachonce.core.documents import cell_text, fault_of, read_json
from teachonce.core.outside import NO_ARRAY, open_plain, require_plain
from teachonce.core.sums import digest_of
from teachonce.errors import IntegrityError
from teachonce.evaluation.result import EvaluateResult, decode_result

ROUNDING = 1e-6  # tolerated in the mean of credits, since files hold credits as float32
BESIDE = {
    "per_class": ".csv",
    "credits": ".top1.npy",
    "template_credits": ".template.top1.npy",
    "linear_credits": ".linear.top1.npy",
}
"""The files beside NAME.json, by the key of their digest in it."""
MOST_IMAGES = 1 << 53  # whole numbers below it are exact as floats, too


@dataclass(frozen=True)
class ClassFigures:
    """One class of an evaluation."""

    id: str
    name: str
    n: int
    top1: float
    template: float | None
    """Top-1 of the bare student with the template."""


@dataclass(frozen=True, kw_only=True)
class MeasuredOn:
    """What an evaluation's figures were measured on, as far as its document says."""

    protocol: str | None = None
    manifest: str | None = None
    split: str | None = None
    chosen: str | None = None
    """Which classes, and among which names."""
    templates: tuple[str, ...] = ()
    classes: int | None = None
    """Names that compete."""
    names_digest: str | None = None
    samples_digest: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What `evaluate` said of a run on one set."""

    name: str
    figures: Mapping[str, float]
    """Those of `FIGURES` that are there, as fractions."""
    template: Mapping[str, float]
    """The same of the bare student with the hand-written template; empty if not there."""
    linear: Mapping[str, float] = field(default_factory=dict)
    """The same of the linear reference of the run; empty if not there."""
    n: int
    measured_on: MeasuredOn
    classes: tuple[ClassFigures, ...] = ()
    credits: npt.NDArray[np.float32] | None = None
    """[n] credit of each image."""
    template_credits: npt.NDArray[np.float32] | None = None
    linear_credits: npt.NDArray[np.float32] | None = None
    foreign: tuple[str, ...] = ()
    """Files beside it that are damaged or not its own, a sentence each; they are not read."""

    @property
    def image_set(self) -> tuple[int, str | None, str | None]:
        """What two evaluations must share to be compared image by image: images and competing names."""
        return self.n, self.measured_on.samples_digest, self.measured_on.names_digest


def read_evaluations(folder: Path) -> tuple[dict[str, Evaluation], list[str]]:
    """All whole evaluations in a folder, by name, and a sentence on each file that is none."""
    evaluations, damaged = {}, []
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        evaluation = read_evaluation(file, file.stem)
        if evaluation is not None:
            evaluations[file.stem] = evaluation
        else:
            fault = fault_of(file) or "is not what `evaluate` writes: it does not count"
            damaged.append(f"{folder.name}/{file.name} {fault}")
    return evaluations, damaged


def read_evaluation(file: Path, name: str) -> Evaluation | None:
    """One result of `evaluate` and what lies beside it; None if it is not whole."""
    try:
        result = decode_result(read_json(file), str(file))
    except IntegrityError:
        return None
    figures, template, n = result.figures, result.template_figures, result.n
    if not 0.0 <= figures.get("top1", -1.0) <= 1.0 or n < 1:
        return None
    beside = file.parent / file.stem
    files = {key: Path(f"{beside}{ending}") for key, ending in BESIDE.items()}
    changed = [key for key, path in files.items() if not _is_of(path, result.digests.get(key))]
    credits, foreign = _credits(files["credits"], n, figures["top1"])
    template_credits, more = _credits(files["template_credits"], n, template.get("top1"))
    classes = () if "per_class" in changed else _class_figures(files["per_class"])
    linear_credits, of_linear = _credits(files["linear_credits"], n, result.linear_figures.get("top1"))
    foreign += more + of_linear
    foreign += tuple(f"{files[key].name} is not what was written: its digest differs" for key in changed if not foreign)
    if classes is None:
        foreign += (f"{files['per_class'].name} is no table of classes: classes are not shown",)
    return Evaluation(
        name=name,
        figures=figures,
        template=template,
        linear=result.linear_figures,
        n=n,
        measured_on=_measured_on(result),
        classes=classes or (),
        credits=None if "credits" in changed else credits,
        template_credits=None if "template_credits" in changed else template_credits,
        linear_credits=None if "linear_credits" in changed else linear_credits,
        foreign=foreign,
    )


def _is_of(file: Path, digest: str | None) -> bool:
    """Whether a file is not there, or has the digest that the result beside it tells of; early results tell none."""
    return digest is None or not file.is_file() or digest_of(file) == digest


def _measured_on(result: EvaluateResult) -> MeasuredOn:
    """What a result of any version says; an early one names its one template in the baseline."""
    early = (result.baseline or {}).get("template")
    return MeasuredOn(
        protocol=result.protocol or None,
        manifest=result.manifest or None,
        split=result.split or None,
        chosen=result.chosen or None,
        templates=result.templates or ((early,) if isinstance(early, str) and early else ()),
        classes=result.classes or None,
        names_digest=result.names_digest or None,
        samples_digest=result.digests.get("samples"),
    )


def _class_figures(file: Path) -> tuple[ClassFigures, ...] | None:
    """The table of classes beside an evaluation; empty where there is none, None where it is damaged."""
    try:
        with io.TextIOWrapper(open_plain(file), encoding="utf-8", newline="") as stream:
            lines = csv.DictReader(stream)
            whole = {"id", "name", "n", "top1"} <= set(lines.fieldnames or ())
            return tuple(_figures_of(line) for line in lines) if whole else None
    except FileNotFoundError:
        return ()
    except (OSError, csv.Error, KeyError, TypeError, ValueError, AttributeError):
        return None


def _figures_of(line: Mapping[str, str]) -> ClassFigures:
    """Raises ValueError for what is no share of whole images."""
    n, top1, template = int(line["n"]), float(line["top1"]), line.get("template_top1")
    plain = float(template) if template else None
    if not 0 <= n < MOST_IMAGES or not 0.0 <= top1 <= 1.0 or not (plain is None or 0.0 <= plain <= 1.0):
        raise ValueError(f"{n} images, {top1}, {plain}")
    return ClassFigures(cell_text(line["id"]), cell_text(line["name"]), n, top1, plain)


_NOT_COMPARED = ": its images are not compared"


def _credits(file: Path, n: int, top1: float | None) -> tuple[npt.NDArray[np.float32] | None, tuple[str, ...]]:
    """The credit of each of n images, whose mean is `top1`; if the file does not fit, a sentence that says why."""
    try:
        require_plain(file)
        credits = np.array(np.load(file, mmap_mode="r", allow_pickle=False))  # a head may claim more than is there
    except FileNotFoundError:
        return None, ()
    except NO_ARRAY:
        return None, (f"{file.name} cannot be read{_NOT_COMPARED}",)
    if not isinstance(credits, np.ndarray) or credits.dtype.kind != "f" or credits.shape != (n,):
        return None, (f"{file.name} is not the credit of {n} images{_NOT_COMPARED}",)
    mean = float(credits.mean(dtype=np.float64))
    if top1 is None or not abs(mean - top1) <= ROUNDING:  # `not <=` also refuses a mean that is NaN
        said = "no top-1" if top1 is None else f"{top1:.6g}"
        return None, (f"{file.name} has the mean {mean:.6g}, and the result says {said}{_NOT_COMPARED}",)
    return credits.astype(np.float32), ()
