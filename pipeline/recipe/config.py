"""The configuration of a training run: its tables of keys, and what they may be together.

It does not train and does not know stores; every key here is an axis that a grid may vary. `config_file` reads a config
from a file and from overrides. The keys stand in `loss_table`, `head_table` and `tables`, those of the prompts in
`models.prompts`, where the learners of the towers read them too.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from teachonce.core.digests import SHORT, canonical_digest
from teachonce.core.strict import Later, idle_sentences, marks_of
from teachonce.heads.kinds import CACHES
from teachonce.models.prompts import Prompts
from teachonce.recipe.head_table import Head
from teachonce.recipe.loss_table import Loss
from teachonce.recipe.tables import Candidates, Loop, Optimiser

CHUNK_OF_CPU = 1024
"""What class_chunk = "auto" means without CUDA, and what the default was in versions that had no such word."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides the result of a run, given a label store and a student.

    No two tables have a key of the same name: `tail` and `loss.tail` are the same key to a file, a grid and `--set`.
    Sources: the idea is RPP's (arXiv 2409.06166), on the ground of POMP (arXiv 2304.04704). Of RPP's paper we had the
    abstract and what third parties report of its structure; nothing else of its recipe is known to us. Defaults are
    ours.
    """

    prompts: Prompts = Prompts()
    loss: Loss = Loss()
    head: Head = Head()
    candidates: Candidates = Candidates()
    optimiser: Optimiser = Optimiser()
    loop: Loop = Loop()

    def __post_init__(self) -> None:
        """Raises ValueError for values that exclude each other, or with which nothing would be learned."""
        if not self.prompts.context.strip():
            raise ValueError("context must hold at least one word: its tokens are the slots")
        self._check_loss()
        self._check_towers()
        self._check_learns()

    @classmethod
    def of(cls, **values: Any) -> TrainConfig:
        """The defaults, but for these keys.

        Raises:
            ValueError: as of the tables and of the whole.
            TypeError: a key that there is not.
        """
        return cls().changed(**values)

    def changed(self, **values: Any) -> TrainConfig:
        """The same with other values of these keys, whatever tables they are in; raises as `of`."""
        unknown = sorted(values.keys() - table_of().keys())
        if unknown:
            raise TypeError(f"no such key: {', '.join(unknown)}")
        tables = {
            name: dataclasses.replace(getattr(self, name), **{k: v for k, v in values.items() if table_of()[k] == name})
            for name in {table_of()[key] for key in values}
        }
        return dataclasses.replace(self, **tables)

    def _check_loss(self) -> None:
        loss, candidates = self.loss, self.candidates
        sampled = candidates.candidates == "sampled"
        if loss.label_smoothing and loss.supervision == "soft":
            raise ValueError("label_smoothing changes the hard loss; supervision = 'soft' has none")
        if loss.label_smoothing and sampled and candidates.correction != "ln":
            raise ValueError("label_smoothing is a mean over the vocabulary, which only correction = 'ln' estimates")
        if loss.label_smoothing and loss.hard_over == "seen":
            raise ValueError("label_smoothing spreads over the whole vocabulary; hard_over = 'seen' leaves some out")
        if loss.label_smoothing and loss.hard_loss == "gce":
            raise ValueError("label_smoothing is a share of cross-entropy; hard_loss = 'gce' is another loss")
        holes = loss.targets == "top-k" and loss.tail == "to-label" and loss.supervision != "hard"
        if holes and loss.soft_loss in ("reverse-kl", "symmetric"):
            raise ValueError(
                f"soft_loss = '{loss.soft_loss}' divides by the teacher's probabilities; tail = 'to-label' leaves "
                "classes that are not stored with none"
            )
        if candidates.candidates == "teacher":
            self._check_teacher_classes()
        if loss.prograd and loss.supervision == "soft":
            raise ValueError("prograd changes the gradient of the hard loss; supervision = 'soft' has none")
        if loss.prograd and candidates.candidates == "all-sampled":
            raise ValueError("prograd compares exact gradients; candidates = 'all-sampled' has estimates")
        for template in loss.bare_sentences:
            if template.count("{}") != 1:
                raise ValueError(f"bare_templates must have one {{}} in each template, found {template!r}")
        if sampled and candidates.correction == "log10" and loss.uses_frozen:
            raise ValueError("correction = 'log10' is no estimate of a sum over all classes, as self-consistency needs")

    def _check_teacher_classes(self) -> None:
        loss = self.loss
        if loss.supervision == "hard":
            raise ValueError("candidates = 'teacher' are the teacher's classes; supervision = 'hard' reads no teacher")
        if loss.label_smoothing:
            raise ValueError(
                "label_smoothing is a mean over the vocabulary, of which candidates = 'teacher' is no sample"
            )
        if loss.uses_frozen:
            raise ValueError(
                "candidates = 'teacher' is no estimate of a sum over all classes, as self-consistency needs"
            )

    def _check_towers(self) -> None:
        tower = self.prompts.tower
        if self.optimiser.weight_decay and self.prompts.replaces:
            raise ValueError("weight_decay means nothing to replaced prompts: the norm behind them drops their scale")
        if not self.prompts.in_text and self.candidates.candidates == "all-sampled":
            raise ValueError(f"candidates = 'all-sampled' saves text gradients; with tower = '{tower}' there are none")
        if self.loop.compile and not self.prompts.in_images:
            raise ValueError(f"compile is for the image tower; tower = '{tower}' runs none")
        if tower == "none" and self.head.head == "none":
            raise ValueError("tower = 'none' trains no prompts and head = 'none' no head: nothing would be learned")
        if self.head.head == "teacher-space" and self.head.head_weight > 1:
            raise ValueError(
                f"head_weight = {self.head.head_weight:g}: the share of the teacher's space in the logits is at most 1"
            )
        if self.head.head == "teacher-space" and self.head.head_weight == 1 and self.prompts.in_text:
            raise ValueError(
                "head_weight = 1 leaves all logits to the teacher's space, where text prompts take no part: "
                "set tower = 'none' or 'image', or a smaller head_weight"
            )
        if tower != "none" and self.head.head in CACHES and self.head.head_learn == "together":
            raise ValueError(
                f"head = '{self.head.head}' holds the rows that prompts are trained on, and so their answers: with "
                "prompts it needs head_learn = 'after'"
            )

    def _check_learns(self) -> None:
        """Refuse values with which every loss is a constant, whatever the prompts are."""
        loss, correction = self.loss, self.candidates.correction
        if loss.supervision == "soft" and not (loss.soft_weight or loss.consistency_weight):
            raise ValueError("soft_weight = 0 with supervision = 'soft' leaves no loss: nothing would be learned")
        if self._sees_only_labels:
            beside = "batch_size = 1" if correction != "log10" else "correction = 'log10'"
            raise ValueError(
                f"sampled_fill = 0 and sampled_top = 0 with {beside} leave each row its own label as the "
                "only candidate: nothing would be learned"
            )

    @property
    def _sees_only_labels(self) -> bool:
        """Whether a row's label is its only candidate, so that every loss over candidates is a constant.

        With ln and none, the labels of a step's other samples are candidates too; views of one sample share their own.
        """
        chosen = self.candidates
        nothing_drawn = chosen.candidates == "sampled" and not chosen.sampled_fill and not chosen.sampled_top
        return nothing_drawn and (chosen.correction == "log10" or self.loop.batch_size == 1)

    def without_effect(self) -> list[str]:
        """One sentence a key that is not at its default and has no effect beside the others.

        These are no errors: a base config that a grid varies may set them all. Neither the store nor the student is
        known here, which can leave a key without effect too.
        """
        return idle_sentences(marks(), self.to_dict(), TrainConfig().to_dict())

    @property
    def anchors(self) -> bool:
        """Whether class features are held near the template's; without prompts for names they do not move."""
        return self.loss.anchor_weight > 0 and self.prompts.in_text

    @property
    def head_after(self) -> bool:
        """Whether there is a head that is trained, or filled, behind the prompts."""
        return self.prompts.tower != "none" and self.head.head != "none" and self.head.head_learn == "after"

    @property
    def learns(self) -> bool:
        """Whether steps move something; a tip-adapter alone takes none."""
        return self.prompts.tower != "none" or self.head.is_trained

    def to_dict(self) -> dict[str, Any]:
        """All keys and values without their tables, in the order of declaration."""
        return {key: value for table in dataclasses.asdict(self).values() for key, value in table.items()}

    @classmethod
    def as_written(cls) -> dict[str, Any]:
        """What a run of the defaults writes down on a CPU: its `to_dict` once `auto` has become something."""
        return cls.of(precision="fp32").to_dict()

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON of all values, without their tables."""
        return config_digest(self.to_dict())


TABLES: Mapping[str, type[Any]] = {
    "prompts": Prompts,
    "loss": Loss,
    "head": Head,
    "candidates": Candidates,
    "optimiser": Optimiser,
    "loop": Loop,
}


@functools.cache
def table_of() -> dict[str, str]:
    """Key -> the table that it is in, in the order of declaration."""
    return {key: name for name, kind in TABLES.items() for key in marks_of(kind)}


@functools.cache
def marks() -> dict[str, tuple[Any, ...]]:
    """Key -> its range, its source and when it is idle."""
    return {key: mark for kind in TABLES.values() for key, mark in marks_of(kind).items()}


@functools.cache
def key_types() -> dict[str, Any]:
    """Key -> its type."""
    return {key: hint for kind in TABLES.values() for key, hint in typing.get_type_hints(kind).items()}


@functools.cache
def later_defaults() -> dict[str, Any]:
    """Key -> its default, of the keys that came after runs and grids that people keep.

    A new key is marked `LATER`: what was written without it is a config with its default, and has the same digest.
    """
    defaults = TrainConfig().to_dict()
    return {
        key: defaults[key] for key, key_marks in marks().items() if any(isinstance(mark, Later) for mark in key_marks)
    }


def config_digest(values: Mapping[str, Any]) -> str:
    """`TrainConfig.digest` of values as a file holds them, without tables, whichever version wrote them.

    Two defaults count as what they are on a CPU, which early versions wrote, so that runs which began then go on. A run
    takes its digest when it knows what `precision = "auto"` became. A later key at its default does not count.
    """
    later = later_defaults()
    values = {key: value for key, value in values.items() if key not in later or value != later[key]}
    if values.get("class_chunk") == "auto":
        values = {**values, "class_chunk": CHUNK_OF_CPU}
    if values.get("precision") == "auto":
        values = {**values, "precision": "fp32"}
    return canonical_digest(values, SHORT, foreign_as_text=True)
