"""The configuration of a training run: what may vary, what it may be, and how a file and `--set` change it.

It does not train and does not know stores; every key here is an axis that a grid may vary.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from teachonce.errors import UsageError, did_you_mean
from teachonce.strict import decode


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides the result of a run, given a label store and a student.

    Sources: the method is RPP (arXiv 2409.06166), on the ground of POMP (arXiv 2304.04704); defaults are ours.
    """

    structure: Literal["shared", "unshared"] = "unshared"
    """shared: context vectors at the input (CoOp, POMP). unshared: query/key/value prompts in each layer (RPP)."""
    context: str = "a photo of a"
    """Words whose token embeddings initialise the slots; there are as many slots as tokens. Step 0 is this template."""
    depth: int = 0
    """unshared: the first `depth` layers carry prompts; 0 means all."""
    supervision: Literal["hard", "hard+soft", "soft"] = "hard+soft"
    """hard: cross-entropy with the label. soft: KL to the stored teacher. hard+soft: their weighted sum."""
    soft_weight: float = 1.0
    """lambda in CE + lambda * tau^2 * KL."""
    temperature: float = 1.0
    """tau: softens teacher and student in the KL term. The store must hold the tail sum of this temperature."""
    tail: Literal["ghost", "renormalise"] = "ghost"
    """What the teacher's mass outside its stored classes means: one lumped class, or nothing."""
    candidates: Literal["all", "sampled"] = "all"
    """Classes whose text features enter the softmax of a step."""
    sampled_fill: int = 256
    """sampled: classes drawn uniformly besides the labels and the teacher's best."""
    sampled_top: int = 8
    """sampled: each row's best teacher classes that are always candidates."""
    correction: Literal["ln", "none"] = "ln"
    """sampled: ln adds the log of the inverse inclusion rate to the filled-in classes inside the softmax."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 0.03
    """In units of the slot states' size at each layer, so one value suits all structures and models."""
    momentum: float = 0.9
    """sgd only."""
    weight_decay: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 20
    steps: int = 600
    batch_size: int = 256
    seed: int = 0
    checkpoint_every: int = 100
    """Steps between checkpoints; one is always written at the end."""
    log_every: int = 10
    """Steps between lines in events.jsonl."""
    class_chunk: int = 1024
    """Classes whose text features are computed with gradient at once; bounds the memory, not the result."""

    def __post_init__(self) -> None:
        """Raises ValueError for a number out of range."""
        positive = (
            "temperature",
            "learning_rate",
            "steps",
            "batch_size",
            "checkpoint_every",
            "log_every",
            "class_chunk",
        )
        for name in positive:
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be above 0 and finite, found {getattr(self, name)}")
        for name in ("depth", "soft_weight", "sampled_fill", "sampled_top", "weight_decay", "warmup_steps", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2^63, found {self.seed}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), found {self.momentum}")
        if not self.context.strip():
            raise ValueError("context must hold at least one word: its tokens are the slots")

    def to_dict(self) -> dict[str, Any]:
        """All keys and values, in the order of declaration."""
        return dataclasses.asdict(self)

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON of all values."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_train_config(file: Path | None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Defaults, then the TOML file, then `key=value` overrides.

    Raises:
        UsageError: file missing or not TOML, unknown key, wrong type, value out of range.
    """
    data: dict[str, Any] = {}
    where = "--set"
    if file is not None:
        where = str(file)
        data = _read_toml(file)
        decode(TrainConfig, data, where)  # what is wrong in the file is reported as the file's
        where = "--set"
    for override in overrides:
        key, value = _parse_override(override)
        data[key] = value
    return decode(TrainConfig, data, where)


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UsageError(f"cannot read the config {file}: {problem.strerror or problem}") from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise UsageError(f"{file} is not valid TOML: {problem}") from problem


def _parse_override(override: str) -> tuple[str, Any]:
    """`key=value` where value is written as in TOML; a bare word counts as a string."""
    key, equals, text = override.partition("=")
    if not equals:
        raise UsageError(f"--set {override}: expected key=value")
    key = key.strip()
    known = [field.name for field in dataclasses.fields(TrainConfig)]
    if key not in known:
        raise UsageError(f"--set {override}: unknown key '{key}': {did_you_mean(key, known)}")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, text.strip()
