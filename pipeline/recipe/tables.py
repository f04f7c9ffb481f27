"""The keys of `[candidates]`, `[optimiser]` and `[loop]`: which classes compete, how prompts move, what steps see.

At each key stand its range, the source of its default, and when it does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from teachonce.core.strict import (
    LATER,
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
    idle_unless,
)
from teachonce.models.prompts import IMAGES, NO_PROMPTS, NOT_IMAGE
from teachonce.models.spec import AskedPrecision

LARGEST_RATE = 1e30  # beyond it, float32 overflows in the middle of an update
ONLY_SAMPLED = idle_unless(candidates="sampled")
ONLY_GAUSSIAN = idle_unless(averaging="gaussian")


def _never_beyond_warmup(values: Mapping[str, Any]) -> bool:
    by_steps = not (values["epochs"] or values["warmup_epochs"])
    return by_steps and bool(values["warmup_steps"] >= values["steps"])


def _counts_epochs(values: Mapping[str, Any]) -> bool:
    return bool(values["warmup_epochs"] > 0)


def _no_warmup(values: Mapping[str, Any]) -> bool:
    return not (values["warmup_steps"] or values["warmup_epochs"])


WITHOUT_KEYS = ("shared", "q", "r", "qr", "accumulate")
"""The structures without key and value prompts."""
NO_KEYS = Idle(("structure",), lambda values: values["structure"] in WITHOUT_KEYS)
NO_WARMUP = Idle(("warmup_steps", "warmup_epochs"), _no_warmup)


@dataclass(frozen=True, kw_only=True)
class Candidates(Table):
    """Which classes compete in the softmax of a step."""

    candidates: Annotated[
        Literal["all", "sampled", "all-sampled", "teacher"],
        Source("ours: the exact softmax; POMP samples 1,000 classes"),
    ] = "all"
    """Classes in the softmax of a step: all; some; all, of which a weighted sample carries the gradient; or those to
    which the teacher gives most over the step's rows (KDPL without class names, arXiv 2407.03056)."""
    teacher_names: Annotated[int, Above(0), idle_unless(candidates="teacher"), Source("KDPL"), LATER] = 1000
    """teacher: how many classes, labels not counted. The teacher, where it is exact, is renormalised over them."""
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

    @property
    def vary(self) -> bool:
        """Whether each step has classes of its own."""
        return self.candidates in ("sampled", "teacher")


@dataclass(frozen=True, kw_only=True)
class Optimiser(Table):
    """How prompts move."""

    optimizer: Annotated[Literal["adamw", "sgd"], Source("ours; POMP: sgd, learning rate 0.002, momentum 0.9")] = (
        "adamw"
    )
    learning_rate: Annotated[
        float, Above(0), AtMost(LARGEST_RATE), NO_PROMPTS, Source("ours, in units of the slot states at each layer")
    ] = 0.03
    """In units of the slot states' size at each layer, so one value suits all structures and models."""
    momentum: Annotated[float, Between(0, 1), idle_unless(optimizer="sgd"), Source("POMP")] = 0.9
    """sgd only."""
    weight_decay: Annotated[float, AtLeast(0), NO_PROMPTS, Source("ours: LayerNorm makes prompts scale-free")] = 0.0
    """Pulls prompts towards where they started; a head has `head_penalty`. Replaced ones have none: the norm behind
    them drops their scale."""
    clip_gradient: Annotated[float, AtLeast(0), Source("ours: no limit")] = 0.0
    """Largest norm of the whole gradient; 0: no limit."""
    schedule: Annotated[
        Literal["cosine", "constant"], Idle(("warmup_steps", "steps"), _never_beyond_warmup), Source("POMP")
    ] = "cosine"
    warmup: Annotated[Literal["linear", "constant"], NO_WARMUP, OURS] = "linear"
    """linear: up to the learning rate. constant: `warmup_rate` throughout (POMP)."""
    warmup_steps: Annotated[int, AtLeast(0), Idle(("warmup_epochs",), _counts_epochs), OURS] = 20
    warmup_epochs: Annotated[float, AtLeast(0), Source("ours: steps decide; CoOp and its kin: 1"), LATER] = 0.0
    """Passes over the samples, of the warm-up; above 0 it decides its steps (rounded up), whatever the store's size."""
    warmup_rate: Annotated[float, AtLeast(0), idle_unless(warmup="constant"), NO_WARMUP, Source("POMP")] = 1e-5
    """warmup = constant only."""
    mask_dimensions: Annotated[
        float, Between(0, 1), NO_PROMPTS, NO_KEYS, Source("ours: none; MSP (IEEE TIP 34, 5978) masks some"), LATER
    ] = 0.0
    """The share of the dimensions of key and value prompts that each step leaves at their start, drawn anew."""
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
