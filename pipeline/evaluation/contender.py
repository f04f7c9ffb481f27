"""How a student, with prompts or without, classifies the images of a set: read from the cache or computed.

This module counts no hits: `scores` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

import teachonce
from teachonce.core.devices import AUTO, pick_device
from teachonce.core.documents import read_object
from teachonce.core.machine import CACHE_VARIABLE, cache_problem, default_threads, package_versions
from teachonce.core.progress import Reporter
from teachonce.errors import DataError, TeachOnceError, UsageError
from teachonce.evaluation.cache import digest_key, keep_arrays, kept_arrays
from teachonce.evaluation.choice import Entrant, Work
from teachonce.evaluation.features import features_identity, image_identity, set_features
from teachonce.evaluation.scores import Outcomes, outcomes
from teachonce.evaluation.sets import EvaluationSet
from teachonce.models.classifier import ensemble_features, name_groups
from teachonce.models.clip import LoadedClip, load_clip, tune_process
from teachonce.models.prompt_files import LoadedPrompts, load_prompts
from teachonce.models.prompt_names import LINEAR_FOLDER, RESULTS_FILE
from teachonce.phrases import option, phrase

_FORM = 1  # of kept outcomes: raised when what is computed changes
_DECODED = "decoded"


@dataclass(frozen=True, eq=False)
class Contender:
    """A frozen student, and prompts for it or none."""

    clip: LoadedClip
    prompts: LoadedPrompts | None
    share: float
    """The share of the prompts in class features; the rest is the template's."""
    linear: Contender | None = None
    """The linear reference of the run; None where it has none, and without prompts."""
    linear_why: str = ""
    """Why a run has none."""
    known: dict[str, tuple[dict[str, int], npt.NDArray[np.float32]]] = field(default_factory=dict)
    """Names and their features by identity, as they were encoded last: sets of a protocol share many names."""

    @property
    def bare(self) -> Contender:
        """The same student without prompts."""
        return dataclasses.replace(self, prompts=None, linear=None, linear_why="")

    def known_names(self, names: Sequence[str]) -> int:
        """How many of some names its head has a vector of their own for."""
        prompts = self.prompts
        if prompts is None or prompts.meta.head is None:
            return 0
        theirs = prompts.meta.head.names
        numbers = name_groups(self.clip, [*theirs, *names], prompts.meta.template)
        return int(torch.isin(numbers[len(theirs) :], numbers[: len(theirs)]).sum())

    def identity(self, templates: Sequence[str]) -> list[Any]:
        """What the contender's class features depend on besides the student's weights and the names."""
        tokenizer = self.clip.behaviour["tokenizer"]
        if self.prompts is None:
            return [tokenizer, *templates]
        prompted = [tokenizer, self.prompts.tensors_digest, dataclasses.asdict(self.prompts.meta)]
        return prompted if self.share == 1 else [*prompted, self.share, *templates]

    def class_features(self, names: Sequence[str], templates: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit features of class names, [C, E]; known ones are used only for all names together.

        So names of equal tokens always come from one pass, and stay equal to the last bit.

        Raises:
            UsageError: a name is too long.
        """
        key = digest_key(self.identity(templates))
        place, features = self.known.get(key, ({}, np.empty((0, 0), np.float32)))
        if not place.keys() >= set(names):
            place, features = {name: row for row, name in enumerate(names)}, self._encoded(names, templates)
            self.known[key] = place, features
        return features[[place[name] for name in names]]

    def _encoded(self, names: Sequence[str], templates: Sequence[str]) -> npt.NDArray[np.float32]:
        trained = None if self.prompts is None else self.prompts.scoring_classes(names).cpu()
        if trained is not None and self.share == 1:
            return np.asarray(trained.numpy())
        plain = ensemble_features(self.clip, names, templates).cpu()
        return np.asarray((plain if trained is None else wise(plain, trained, self.share)).numpy())


@dataclass(frozen=True, eq=False)
class Judged:
    """What a contender made of the n images of a set."""

    decoded: npt.NDArray[np.bool_]
    """[n] Whether there was an image to classify."""
    outcomes: Outcomes
    """The outcomes of the decoded images."""


def load_contender(entrant: Entrant, threads: int | None, device: str = AUTO) -> Contender:
    """Load the student, and the prompts of a run.

    Raises:
        UsageError: no prompts in the folder, or a mixture of prompts or a head that change more than class vectors.
        FingerprintError: the prompts belong to another student.
    """
    tune_process(threads or default_threads(1))
    clip, run, share = load_clip(entrant.student, pick_device(device)), entrant.run, entrant.wise
    prompts = None if run is None else load_prompts(run).bound_to(clip)
    if prompts is not None and prompts.image is not None and share != 1:
        raise UsageError(
            option("wise") + f" {share:g} mixes class features only, and the prompts in {run} change images too",
            hint=phrase("leave {wise} out"),
        )
    if prompts is not None and share != 1 and prompts.meta.head is not None and not prompts.meta.head.is_class_vectors:
        raise UsageError(
            option("wise")
            + f" {share:g} mixes class vectors, and the head '{prompts.meta.head.kind}' in {run} is none",
            hint=phrase("leave {wise} out"),
        )
    linear, why = (None, "") if run is None else _reference(run, clip)
    return Contender(clip, prompts, share, linear, why)


def _reference(run: Path, clip: LoadedClip) -> tuple[Contender | None, str]:
    """The linear reference in a run folder, or why there is none."""
    folder, results = run / LINEAR_FOLDER, read_object(run / RESULTS_FILE) or {}
    if not folder.is_dir():
        return None, str(results.get("linear_why") or "") or f"{run.name} holds none: it is no run of this version"
    try:
        prompts = load_prompts(folder).bound_to(clip)
    except TeachOnceError as problem:
        return None, problem.message
    if results.get("linear_digest") != prompts.tensors_digest:
        return None, f"what lies in {folder} is not the reference that {RESULTS_FILE} tells of"
    return Contender(clip, prompts, 1.0), ""


def judge(
    sides: Sequence[Contender], data: EvaluationSet, templates: Sequence[str], work: Work, reporter: Reporter
) -> list[Judged]:
    """Let each side classify the set.

    Args:
        templates: sentences around a class name; the unit mean of their features stands for the class.

    Raises:
        DataError: no image could be decoded, or features are not numbers.
        UsageError: a name or the template is too long.
    """
    keys = [_key(side, data, templates) for side in sides]
    kept = [_kept(key) if work.cache else None for key in keys]
    if None not in kept:
        reporter.note(f"results on {len(data.rows)} images come from the cache")
    # Names before images: a template or a run that does not fit should not cost an hour of decoding first.
    names = [
        None if have is not None else side.class_features(data.candidates.names, templates)
        for side, have in zip(sides, kept, strict=True)
    ]
    if work.cache and None in kept and (problem := cache_problem()):
        reporter.note(
            f"nothing is kept for next time: {problem}; point {CACHE_VARIABLE} at a folder that can be written"
        )
    judged: list[Judged] = []
    features: dict[tuple[str, ...], npt.NDArray[np.float32]] = {}  # prompts for names leave images as they are
    for side, key, have, classes in zip(sides, keys, kept, names, strict=True):
        if have is None and classes is not None:
            tower = tuple(image_identity(side.clip, side.prompts))
            if tower not in features:
                features[tower] = set_features(data, side.clip, side.prompts, work, reporter)
            have = _classified(side, data, classes, features[tower])
            if work.cache:
                keep_arrays(key, {_DECODED: have.decoded, **have.outcomes.arrays()})
        judged += [have] if have is not None else []
    return judged


def _classified(
    side: Contender, data: EvaluationSet, classes: npt.NDArray[np.float32], features: npt.NDArray[np.float32]
) -> Judged:
    good = np.isfinite(features[:, 0])
    if not good.any():
        raise DataError(f"none of the {len(good)} images of '{data.split}' could be decoded")
    clip, seen = side.clip, features[good]
    if side.prompts is not None and side.prompts.head is not None:
        seen = np.asarray(side.prompts.scoring_images(torch.from_numpy(seen).to(clip.device)).cpu().numpy())
    return Judged(good, outcomes(seen, classes, data.labels[good], clip.logit_scale, clip.device))


def _kept(key: str) -> Judged | None:
    arrays = kept_arrays(key)
    return None if arrays is None else Judged(arrays.pop(_DECODED), Outcomes(**arrays))


def _key(side: Contender, data: EvaluationSet, templates: Sequence[str]) -> str:
    """Everything that outcomes depend on, by digest."""
    images = features_identity(data, side.clip, side.prompts)
    chosen = [data.samples.digest, data.candidates.digest, data.labels.tolist()]
    versions = {"teachonce": teachonce.__version__, **package_versions()}
    return digest_key(_FORM, images, chosen, side.identity(templates), versions)


def wise(frozen: Tensor, trained: Tensor, alpha: float) -> Tensor:
    """Mix unit features of the frozen and the trained student: norm((1 - alpha) f0 + alpha f).

    WiSE-FT (arXiv 2109.01903) in its form on the outputs; 0 is the frozen student, 1 the trained one.

    Args:
        frozen, trained: [C, E] unit.
        alpha: in [0, 1].

    Raises:
        UsageError: alpha is out of range.
    """
    if not 0 <= alpha <= 1:
        raise UsageError(
            f"the share of the trained features must be between 0 and 1, found {alpha}",
            hint="0 is the hand-written context, 1 the trained prompts",
        )
    return F.normalize(torch.lerp(frozen.float(), trained.float(), alpha), dim=-1)
