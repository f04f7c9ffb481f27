"""The configuration of a training run: what may vary, what it may be, and how a file and `--set` change it.

It does not train and does not know stores; every key here is an axis that a grid may vary.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from teachonce.core.digests import SHORT, canonical_digest
from teachonce.core.strict import decode, toml_value
from teachonce.errors import UsageError, did_you_mean
from teachonce.models.spec import Precision
from teachonce.models.structures import Init, Position, Structure
from teachonce.training.config_effects import without_effect

NEXT = (
    "--set KEY=VALUE changes one key; `teachonce train --print-config` lists them all, docs/training.md explains them"
)
POSITIVE = (
    "temperature",
    "learning_rate",
    "steps",
    "batch_size",
    "views_per_step",
    "evaluate_every",
    "checkpoint_every",
    "log_every",
    "class_chunk",
    "sampled_backward",
    "image_length",
    "average_deviation",
    "average_decay",
)
LARGEST_RATE = 1e30  # beyond it, float32 overflows in the middle of an update
NOT_NEGATIVE = (
    "length",
    "depth",
    "image_depth",
    "soft_weight",
    "teacher_temperature",
    "anchor_weight",
    "consistency_weight",
    "sampled_fill",
    "sampled_top",
    "weight_decay",
    "clip_gradient",
    "warmup_steps",
    "warmup_rate",
    "average_mean",
    "epochs",
    "micro_batch",
    "seed",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides the result of a run, given a label store and a student.

    Sources: the method is RPP (arXiv 2409.06166), on the ground of POMP (arXiv 2304.04704); defaults are ours.
    """

    tower: Literal["text", "image", "both"] = "text"
    """Which of the student's towers carries prompts. image, both: images are read in training (`--root`)."""
    structure: Structure = "unshared"
    """shared: context vectors at the input (CoOp, POMP). unshared: query/key/value prompts in each layer (RPP), on top
    of the slot states; unshared-replace: in their place. Letters (q, k, v, r for the residual) are its ablations."""
    context: str = "a photo of a"
    """Words whose token embeddings initialise the slots. Step 0 is this template where init = "template"."""
    length: int = 0
    """Slots in the text tower; 0: as many as the context has tokens."""
    depth: int = 0
    """The first `depth` layers of the text tower carry prompts; 0 means all."""
    init: Init = "template"
    """template: step 0 is the hand-written template exactly. words: as it, further slots are noise. normal: noise."""
    layer_scale: bool = True
    """Measure prompts in units of the slot states at each layer, so that one learning rate suits all of them."""
    position: Position = "before"
    """Where the slots stand, seen from the class name (CoOp: end, middle, front)."""
    image_length: int = 4
    """Slots in the image tower."""
    image_depth: int = 0
    """The first `image_depth` layers of the image tower carry prompts; 0 means all."""

    supervision: Literal["hard", "hard+soft", "soft"] = "hard+soft"
    """hard: cross-entropy with the label. soft: KL to the stored teacher. hard+soft: their weighted sum."""
    soft_weight: float = 1.0
    """lambda in CE + lambda * tau^2 * KL."""
    soft_schedule: Literal["constant", "rise", "fall"] = "constant"
    """lambda over the run: as it is, linearly from 0, or linearly to 0."""
    temperature: float = 1.0
    """tau: softens the student, and the teacher where `teacher_temperature` is 0, in the KL term."""
    teacher_temperature: float = 0.0
    """Softens the teacher; 0: as `temperature`. From stored top k it must be one that the store holds a tail for."""
    targets: Literal["top-k", "embedding"] = "top-k"
    """top-k: the stored classes and a tail rule. embedding: exact teacher logits of any class, at any temperature."""
    tail: Literal["ghost", "residual-uniform", "to-label", "renormalise"] = "ghost"
    """top-k: what the teacher's mass outside its stored classes means: one lumped class; spread over all others; added
    to the label; or nothing (teacher and student over the stored classes only)."""
    label_smoothing: float = 0.0
    """Share of the hard label that is spread over the whole vocabulary."""

    hard_over: Literal["all", "seen"] = "all"
    """seen: only classes with samples compete in the hard loss; other names take part in the soft loss and in what
    follows, so that cross-entropy does not teach that they never occur."""

    anchor_weight: float = 5.0
    """mu: times the mean squared distance of class features from those of the template (KgCoOp, arXiv 2303.13283)."""
    consistency_weight: float = 0.0
    """beta: times KL from the frozen student's own zero-shot softmax (PromptSRC, arXiv 2307.06948)."""
    prograd: bool = False
    """Drop the part of the hard loss's gradient that opposes the frozen student's (ProGrad, arXiv 2205.14865)."""

    candidates: Literal["all", "sampled", "all-sampled"] = "all"
    """Classes in the softmax of a step: all; some; or all, of which a weighted sample carries the gradient."""
    sampled_fill: int = 256
    """sampled: classes drawn uniformly besides the labels and the teacher's best."""
    sampled_top: int = 8
    """sampled: each row's best teacher classes that are always candidates."""
    correction: Literal["ln", "log10", "none"] = "ln"
    """sampled: what drawn classes gain inside the softmax. ln: the log of their inverse inclusion rate, unbiased.
    log10: POMP's rule, in which other rows' labels do not count. none: nothing."""
    sampled_backward: int = 1024
    """all-sampled: expected number of names whose features are computed with gradient."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 0.03
    """In units of the slot states' size at each layer, so one value suits all structures and models."""
    momentum: float = 0.9
    """sgd only."""
    weight_decay: float = 0.0
    """Pulls prompts towards where they started. Replaced ones have none: the norm behind them drops their scale."""
    clip_gradient: float = 0.0
    """Largest norm of the whole gradient; 0: no limit."""
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Literal["linear", "constant"] = "linear"
    """linear: up to the learning rate. constant: `warmup_rate` throughout (POMP)."""
    warmup_steps: int = 20
    warmup_rate: float = 1e-5
    """warmup = constant only."""
    averaging: Literal["none", "ema", "gaussian"] = "none"
    """Which prompts are the result: the last, their moving average, or PromptSRC's Gaussian-weighted mean."""
    average_decay: float = 0.99
    """ema only."""
    average_mean: float = 0.75
    """gaussian: the share of the run at which prompts weigh most."""
    average_deviation: float = 0.15
    """gaussian: the width of the weights, as a share of the run."""

    steps: int = 600
    epochs: float = 0.0
    """Passes over the samples; above 0 it decides the steps."""
    batch_size: int = 256
    """Samples of a step."""
    views_per_step: int = 1
    """Views of each sample in a step, drawn anew in each epoch."""
    micro_batch: int = 0
    """Rows whose logits, and images, are in memory at once; 0: all of the step. Changes no result beyond rounding."""
    held_out: float = 0.0
    """Share of the samples that is never trained on and measured every `evaluate_every` steps."""
    evaluate_every: int = 100
    seed: int = 0
    checkpoint_every: int = 100
    """Steps between checkpoints; one is always written at the end."""
    log_every: int = 10
    """Steps between lines in events.jsonl."""
    class_chunk: int = 1024
    """Names whose text features are computed with gradient at once; bounds the memory, not the result."""
    precision: Precision = "fp32"
    """Of the student's towers, under autocast; prompts, logits and losses are float32 in any case."""
    tf32: bool = False
    """CUDA: matrix products of float32 in TF32."""
    compile: bool = False
    """Run the image tower under torch.compile: seconds to begin with, faster steps after that."""

    def __post_init__(self) -> None:
        """Raises ValueError for a number out of range, or values that exclude each other."""
        for name in POSITIVE:
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be above 0 and finite, found {getattr(self, name)}")
        for name in NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2^63, found {self.seed}")
        for name in ("momentum", "label_smoothing", "average_decay", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), found {getattr(self, name)}")
        if not self.context.strip():
            raise ValueError("context must hold at least one word: its tokens are the slots")
        self._check_together()
        self._check_learns()

    def _check_together(self) -> None:
        """Values that would be without effect, or without meaning, beside another."""
        if self.learning_rate > LARGEST_RATE:
            raise ValueError(f"learning_rate must be at most {LARGEST_RATE:g}, found {self.learning_rate}")
        if self.label_smoothing and self.supervision == "soft":
            raise ValueError("label_smoothing changes the hard loss; supervision = 'soft' has none")
        if self.label_smoothing and self.candidates == "sampled" and self.correction != "ln":
            raise ValueError("label_smoothing is a mean over the vocabulary, which only correction = 'ln' estimates")
        if self.weight_decay and self.structure == "unshared-replace":
            raise ValueError("weight_decay means nothing to replaced prompts: the norm behind them drops their scale")
        if self.prograd and self.supervision == "soft":
            raise ValueError("prograd changes the gradient of the hard loss; supervision = 'soft' has none")
        if self.label_smoothing and self.hard_over == "seen":
            raise ValueError("label_smoothing spreads over the whole vocabulary; hard_over = 'seen' leaves some out")
        if self.tower == "image" and self.candidates == "all-sampled":
            raise ValueError("candidates = 'all-sampled' saves text gradients; with tower = 'image' there are none")
        if self.compile and self.tower == "text":
            raise ValueError("compile is for the image tower; tower = 'text' runs none")
        if self.candidates == "all-sampled" and self.prograd:
            raise ValueError("prograd compares exact gradients; candidates = 'all-sampled' has estimates")
        if self.candidates == "sampled" and self.correction == "log10" and self.uses_frozen:
            raise ValueError("correction = 'log10' is no estimate of a sum over all classes, as self-consistency needs")

    def _check_learns(self) -> None:
        """Values with which every loss is a constant, whatever the prompts."""
        if self.supervision == "soft" and not (self.soft_weight or self.consistency_weight):
            raise ValueError("soft_weight = 0 with supervision = 'soft' leaves no loss: nothing would be learned")
        if self._sees_only_labels:
            beside = "batch_size = 1" if self.correction != "log10" else "correction = 'log10'"
            raise ValueError(
                f"sampled_fill = 0 and sampled_top = 0 with {beside} leave each row its own label as the "
                "only candidate: nothing would be learned"
            )

    @property
    def _sees_only_labels(self) -> bool:
        """Whether a row's label is its only candidate, so that every loss over candidates is a constant.

        With ln and none, the labels of a step's other samples are candidates too; views of one sample share their own.
        """
        nothing_drawn = self.candidates == "sampled" and not self.sampled_fill and not self.sampled_top
        return nothing_drawn and (self.correction == "log10" or self.batch_size == 1)

    def without_effect(self) -> list[str]:
        """One sentence a key that is not at its default and has no effect beside the others.

        These are no errors: a base config that a grid varies may set them all.
        """
        return without_effect(self.to_dict(), TrainConfig().to_dict())

    @property
    def anchors(self) -> bool:
        """Whether class features are held near the template's; with image prompts alone they do not move."""
        return self.anchor_weight > 0 and self.tower != "image"

    @property
    def uses_frozen(self) -> bool:
        """Whether the frozen student's own zero-shot softmax takes part."""
        return self.prograd or self.consistency_weight > 0

    @property
    def tau_teacher(self) -> float:
        """The temperature of the teacher."""
        return self.teacher_temperature or self.temperature

    @property
    def soft_tail(self) -> bool:
        """Whether the stored mass outside the top k is read, so that its temperature must be a stored one."""
        return self.supervision != "hard" and self.targets == "top-k" and self.tail != "renormalise"

    def to_dict(self) -> dict[str, Any]:
        """All keys and values, in the order of declaration."""
        return dataclasses.asdict(self)

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON of all values."""
        return config_digest(self.to_dict())


def config_digest(values: Mapping[str, Any]) -> str:
    """`TrainConfig.digest` of values as a file holds them, whichever version wrote it."""
    return canonical_digest(values, SHORT, foreign_as_text=True)


def load_train_config(file: Path | None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Defaults, then the TOML file or the shipped recipe of that name, then `key=value` overrides.

    Raises:
        UsageError: file missing or not TOML, unknown key, wrong type, value out of range.
    """
    data: dict[str, Any] = {}
    where = "--set"
    if file is not None:
        file = shipped_config(file)
        where = str(file)
        data = _read_toml(file)
        decode(TrainConfig, data, where, hint=NEXT)  # what is wrong in the file is reported as the file's
        where = "--set"
    for override in overrides:
        key, value = _parse_override(override)
        data[key] = value
    return decode(TrainConfig, data, where, hint=NEXT)


def shipped_config(file: Path) -> Path:
    """The file itself, or, where there is none and it is a bare name, the shipped recipe or grid of that name.

    A folder is no file: `ablate study-small --out study-small` is run a second time beside what it wrote.
    """
    if (file.exists() and not file.is_dir()) or len(file.parts) > 1:
        return file
    found = Path(str(resources.files("teachonce.configs"))) / f"{file.name.removesuffix('.toml')}.toml"
    return found if found.is_file() else file


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UsageError(
            f"cannot read the config {file}: {problem.strerror or problem}",
            hint="`teachonce train --print-config > FILE.toml` writes one",
        ) from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise UsageError(
            f"{file} is not valid TOML: {problem}", hint="`teachonce train --print-config` shows how one is written"
        ) from problem


def _parse_override(override: str) -> tuple[str, Any]:
    """`key=value` where value is written as in TOML; a bare word counts as a string."""
    key, equals, text = override.partition("=")
    if not equals:
        raise UsageError(f"--set {override}: expected key=value", hint=NEXT)
    key = key.strip()
    known = [field.name for field in dataclasses.fields(TrainConfig)]
    if key not in known:
        raise UsageError(f"--set {override}: unknown key '{key}': {did_you_mean(key, known)}", hint=NEXT)
    return key, toml_value(text)
