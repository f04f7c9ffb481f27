"""The configuration of a training run: its keys in tables, and what they may be together.

At each key stand its range, the source of its default, and when it does nothing. It does not train and does not know
stores; every key here is an axis that a grid may vary. `config_file` reads a config from a file and from overrides. The
table of the prompts is in `models.prompts`, where the learners of the towers read it too.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from teachonce.core.digests import SHORT, canonical_digest
from teachonce.core.strict import (
    OURS,
    Above,
    AtLeast,
    AtMost,
    Below,
    Between,
    Idle,
    Source,
    Table,
    idle,
    idle_sentences,
    idle_unless,
    marks_of,
)
from teachonce.models.prompts import IMAGES, NOT_IMAGE, Prompts
from teachonce.models.spec import AskedPrecision

CHUNK_OF_CPU = 1024
"""What class_chunk = "auto" means without CUDA, and what the default was in versions that had no such word."""
LARGEST_RATE = 1e30  # beyond it, float32 overflows in the middle of an update
ONLY_SAMPLED = idle_unless(candidates="sampled")
NO_SOFT_LOSS = idle(supervision="hard")
WEIGHT_0 = idle(soft_weight=0)  # of the soft loss
ONLY_GAUSSIAN = idle_unless(averaging="gaussian")


def _never_beyond_warmup(values: Mapping[str, Any]) -> bool:
    return not values["epochs"] and bool(values["warmup_steps"] >= values["steps"])


@dataclass(frozen=True, kw_only=True)
class Loss(Table):
    """What a step minimises."""

    supervision: Annotated[
        Literal["hard", "hard+soft", "soft"],
        Source("RPP: soft labels of a zero-shot teacher in addition to the hard ones"),
    ] = "hard+soft"
    """hard: cross-entropy with the label. soft: KL to the stored teacher. hard+soft: their weighted sum."""
    soft_weight: Annotated[float, AtLeast(0), NO_SOFT_LOSS, OURS] = 1.0
    """lambda in CE + lambda * tau^2 * KL."""
    soft_schedule: Annotated[Literal["constant", "rise", "fall"], NO_SOFT_LOSS, WEIGHT_0, OURS] = "constant"
    """lambda over the run: as it is, linearly from 0, or linearly to 0."""
    temperature: Annotated[float, Above(0), NO_SOFT_LOSS, WEIGHT_0, OURS] = 1.0
    """tau: softens the student, and the teacher where `teacher_temperature` is 0, in the KL term."""
    teacher_temperature: Annotated[float, AtLeast(0), NO_SOFT_LOSS, WEIGHT_0, Source("ours: as temperature")] = 0.0
    """Softens the teacher; 0: as `temperature`. From stored top k it must be one that the store holds a tail for."""
    targets: Annotated[Literal["top-k", "embedding"], NO_SOFT_LOSS, WEIGHT_0, Source("ours: what every store has")] = (
        "top-k"
    )
    """top-k: the stored classes and a tail rule. embedding: exact teacher logits of any class, at any temperature."""
    tail: Annotated[
        Literal["ghost", "residual-uniform", "to-label", "renormalise"],
        NO_SOFT_LOSS,
        WEIGHT_0,
        idle(targets="embedding"),
        Source("ours: one lumped class for what the store does not name"),
    ] = "ghost"
    """top-k: what the teacher's mass outside its stored classes means: one lumped class; spread over all others; added
    to the label; or nothing (teacher and student over the stored classes only)."""
    label_smoothing: Annotated[float, Between(0, 1), OURS] = 0.0
    """Share of the hard label that is spread over the whole vocabulary."""
    hard_over: Annotated[Literal["all", "seen"], idle(supervision="soft"), OURS] = "all"
    """seen: only classes with samples compete in the hard loss; other names take part in the soft loss and in what
    follows, so that cross-entropy does not teach that they never occur."""
    anchor_weight: Annotated[
        float,
        AtLeast(0),
        NOT_IMAGE,
        Source("ours; KgCoOp (arXiv 2303.13283) uses 8. Holds unseen classes: docs/study.md"),
    ] = 5.0
    """mu: times the mean squared distance of class features from those of the template (KgCoOp, arXiv 2303.13283)."""
    consistency_weight: Annotated[float, AtLeast(0), Source("PromptSRC (arXiv 2307.06948); off")] = 0.0
    """beta: times KL from the frozen student's own zero-shot softmax (PromptSRC, arXiv 2307.06948)."""
    prograd: Annotated[bool, Source("ProGrad (arXiv 2205.14865); off")] = False
    """Drop the part of the hard loss's gradient that opposes the frozen student's (ProGrad, arXiv 2205.14865)."""

    @property
    def uses_frozen(self) -> bool:
        """Whether the frozen student's own zero-shot softmax takes part."""
        return self.prograd or self.consistency_weight > 0

    @property
    def tau_teacher(self) -> float:
        """The temperature of the teacher."""
        return self.teacher_temperature or self.temperature


@dataclass(frozen=True, kw_only=True)
class Candidates(Table):
    """Which classes compete in the softmax of a step."""

    candidates: Annotated[
        Literal["all", "sampled", "all-sampled"], Source("ours: the exact softmax; POMP samples 1,000 classes")
    ] = "all"
    """Classes in the softmax of a step: all; some; or all, of which a weighted sample carries the gradient."""
    sampled_fill: Annotated[int, AtLeast(0), ONLY_SAMPLED, Source("ours; POMP: 999")] = 256
    """sampled: classes drawn uniformly besides the labels and the teacher's best."""
    sampled_top: Annotated[
        int,
        AtLeast(0),
        ONLY_SAMPLED,
        Source("ours: a random fill misses nearly all classes the teacher speaks of"),
    ] = 8
    """sampled: each row's best teacher classes that are always candidates."""
    correction: Annotated[
        Literal["ln", "log10", "none"],
        ONLY_SAMPLED,
        idle(only="none", sampled_fill=0),
        Source("the importance weight of sampled softmax; POMP's code adds a log10"),
    ] = "ln"
    """sampled: what drawn classes gain inside the softmax. ln: the log of their inverse inclusion rate, unbiased.
    log10: POMP's rule, in which other rows' labels do not count. none: nothing."""
    sampled_backward: Annotated[int, Above(0), idle_unless(candidates="all-sampled"), OURS] = 1024
    """all-sampled: expected number of names whose features are computed with gradient."""


@dataclass(frozen=True, kw_only=True)
class Optimiser(Table):
    """How prompts move."""

    optimizer: Annotated[Literal["adamw", "sgd"], Source("ours; POMP: sgd, learning rate 0.002, momentum 0.9")] = (
        "adamw"
    )
    learning_rate: Annotated[
        float, Above(0), AtMost(LARGEST_RATE), Source("ours, in units of the slot states at each layer")
    ] = 0.03
    """In units of the slot states' size at each layer, so one value suits all structures and models."""
    momentum: Annotated[float, Between(0, 1), idle_unless(optimizer="sgd"), Source("POMP")] = 0.9
    """sgd only."""
    weight_decay: Annotated[float, AtLeast(0), Source("ours: LayerNorm makes prompts scale-free")] = 0.0
    """Pulls prompts towards where they started. Replaced ones have none: the norm behind them drops their scale."""
    clip_gradient: Annotated[float, AtLeast(0), Source("ours: no limit")] = 0.0
    """Largest norm of the whole gradient; 0: no limit."""
    schedule: Annotated[
        Literal["cosine", "constant"], Idle(("warmup_steps", "steps"), _never_beyond_warmup), Source("POMP")
    ] = "cosine"
    warmup: Annotated[Literal["linear", "constant"], idle(warmup_steps=0), OURS] = "linear"
    """linear: up to the learning rate. constant: `warmup_rate` throughout (POMP)."""
    warmup_steps: Annotated[int, AtLeast(0), OURS] = 20
    warmup_rate: Annotated[float, AtLeast(0), idle_unless(warmup="constant"), idle(warmup_steps=0), Source("POMP")] = (
        1e-5
    )
    """warmup = constant only."""
    averaging: Annotated[Literal["none", "ema", "gaussian"], OURS] = "none"
    """Which prompts are the result: the last, their moving average, or PromptSRC's Gaussian-weighted mean."""
    average_decay: Annotated[float, Above(0), Below(1), idle_unless(averaging="ema"), OURS] = 0.99
    """ema only."""
    average_mean: Annotated[float, AtLeast(0), ONLY_GAUSSIAN, OURS] = 0.75
    """gaussian: the share of the run at which prompts weigh most."""
    average_deviation: Annotated[float, Above(0), ONLY_GAUSSIAN, OURS] = 0.15
    """gaussian: the width of the weights, as a share of the run."""


@dataclass(frozen=True, kw_only=True)
class Loop(Table):
    """What steps see, how many there are, what is written on the way, and what bounds the memory."""

    steps: Annotated[int, Above(0), Idle(("epochs",), lambda values: values["epochs"] > 0), OURS] = 600
    epochs: Annotated[float, AtLeast(0), Source("ours: steps decide")] = 0.0
    """Passes over the samples; above 0 it decides the steps."""
    batch_size: Annotated[int, Above(0), Source("POMP: 32 on each of 8 GPUs")] = 256
    """Samples of a step."""
    views_per_step: Annotated[int, Above(0), Source("ours; POMP: 4")] = 1
    """Views of each sample in a step, drawn anew in each epoch."""
    micro_batch: Annotated[int, AtLeast(0), Source("ours: bounds memory, changes no result")] = 0
    """Rows whose logits, and images, are in memory at once; 0: all of the step. Changes no result beyond rounding."""
    held_out: Annotated[float, Between(0, 1), Source("ours: nothing is kept apart")] = 0.0
    """Share of the samples that is never trained on and measured every `evaluate_every` steps."""
    evaluate_every: Annotated[
        int, Above(0), Idle(("held_out",), lambda values: values["held_out"] == 0, needs="held_out"), OURS
    ] = 100
    seed: Annotated[int, AtLeast(0), Below(2**63, "2^63"), OURS] = 0
    checkpoint_every: Annotated[int, Above(0), OURS] = 100
    """Steps between checkpoints; one is always written at the end."""
    log_every: Annotated[int, Above(0), OURS] = 10
    """Steps between lines in events.jsonl."""
    class_chunk: Annotated[
        int | Literal["auto"], Above(0), NOT_IMAGE, Source("ours: bounds memory, changes no result")
    ] = "auto"
    """Names whose text features are computed with gradient at once; bounds the memory, not the result. auto: on CUDA as
    many as its free memory takes, elsewhere 1,024."""
    precision: Annotated[AskedPrecision, Source("ours: bf16 on a GPU that has it, else fp32")] = "auto"
    """Of the student's towers, under autocast; prompts, logits and losses are float32 in any case. A run writes down
    what auto became."""
    tf32: Annotated[bool, Source("ours; true on a GPU loses some digits for speed")] = False
    """CUDA: matrix products of float32 in TF32."""
    compile: Annotated[bool, Source(f"ours; only with {IMAGES}")] = False
    """Run the image tower under torch.compile: seconds to begin with, faster steps after that."""


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
        if loss.prograd and loss.supervision == "soft":
            raise ValueError("prograd changes the gradient of the hard loss; supervision = 'soft' has none")
        if loss.prograd and candidates.candidates == "all-sampled":
            raise ValueError("prograd compares exact gradients; candidates = 'all-sampled' has estimates")
        if sampled and candidates.correction == "log10" and loss.uses_frozen:
            raise ValueError("correction = 'log10' is no estimate of a sum over all classes, as self-consistency needs")

    def _check_towers(self) -> None:
        tower = self.prompts.tower
        if self.optimiser.weight_decay and self.prompts.structure == "unshared-replace":
            raise ValueError("weight_decay means nothing to replaced prompts: the norm behind them drops their scale")
        if tower == "image" and self.candidates.candidates == "all-sampled":
            raise ValueError("candidates = 'all-sampled' saves text gradients; with tower = 'image' there are none")
        if self.loop.compile and tower == "text":
            raise ValueError("compile is for the image tower; tower = 'text' runs none")

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
        """Whether class features are held near the template's; with image prompts alone they do not move."""
        return self.loss.anchor_weight > 0 and self.prompts.tower != "image"

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


def config_digest(values: Mapping[str, Any]) -> str:
    """`TrainConfig.digest` of values as a file holds them, without tables, whichever version wrote them.

    Two defaults count as what they are on a CPU, which early versions wrote, so that runs which began then go on. A run
    takes its digest when it knows what `precision = "auto"` became.
    """
    if values.get("class_chunk") == "auto":
        values = {**values, "class_chunk": CHUNK_OF_CPU}
    if values.get("precision") == "auto":
        values = {**values, "precision": "fp32"}
    return canonical_digest(values, SHORT, foreign_as_text=True)
