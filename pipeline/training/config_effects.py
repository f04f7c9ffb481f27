"""Which keys of a training config do nothing beside the others: what a user should hear of, and is no error.

It knows rules between values only: neither the store nor the student, which can leave a key without effect too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """Keys that are not read, or change no result, where other keys have certain values."""

    keys: tuple[str, ...]
    beside: tuple[str, ...]
    """The keys whose values are the reason."""
    holds: Callable[[Values], bool]
    only: Any = None
    """The one value of the keys that does nothing; None: whatever they are."""


_SOFT = ("soft_schedule", "temperature", "teacher_temperature", "targets", "tail")
RULES = (
    Rule(("soft_weight", *_SOFT), ("supervision",), lambda v: v["supervision"] == "hard"),
    Rule(_SOFT, ("soft_weight",), lambda v: v["soft_weight"] == 0),
    Rule(("hard_over",), ("supervision",), lambda v: v["supervision"] == "soft"),
    Rule(("anchor_weight",), ("tower",), lambda v: v["tower"] == "image"),
    Rule(("tail",), ("targets",), lambda v: v["targets"] == "embedding"),
    Rule(("correction", "sampled_fill", "sampled_top"), ("candidates",), lambda v: v["candidates"] != "sampled"),
    Rule(("correction",), ("sampled_fill",), lambda v: v["sampled_fill"] == 0, only="none"),  # nothing to correct
    Rule(("sampled_backward",), ("candidates",), lambda v: v["candidates"] != "all-sampled"),
    Rule(("image_length", "image_depth"), ("tower",), lambda v: v["tower"] == "text"),
    Rule(("length", "depth", "position", "class_chunk"), ("tower",), lambda v: v["tower"] == "image"),
    Rule(("depth", "image_depth"), ("structure",), lambda v: v["structure"] == "shared"),
    # The template's words are all of the slots, so words and template are the same start.
    Rule(
        ("init",),
        ("tower", "length"),
        only="words",
        holds=lambda v: (
            (v["tower"], v["length"]) == ("text", 0)
            and (v["structure"] != "unshared-replace" or v["position"] == "before")
        ),
    ),
    Rule(("momentum",), ("optimizer",), lambda v: v["optimizer"] != "sgd"),
    Rule(("warmup_rate",), ("warmup",), lambda v: v["warmup"] != "constant"),
    Rule(("warmup", "warmup_rate"), ("warmup_steps",), lambda v: v["warmup_steps"] == 0),
    Rule(("schedule",), ("warmup_steps", "steps"), lambda v: not v["epochs"] and v["warmup_steps"] >= v["steps"]),
    Rule(("average_decay",), ("averaging",), lambda v: v["averaging"] != "ema"),
    Rule(("average_mean", "average_deviation"), ("averaging",), lambda v: v["averaging"] != "gaussian"),
    Rule(("steps",), ("epochs",), lambda v: v["epochs"] > 0),
    Rule(("evaluate_every",), ("held_out",), lambda v: v["held_out"] == 0),
)


def without_effect(values: Values, defaults: Values) -> list[str]:
    """One sentence a key that is not at its default and does nothing, in the order of the keys.

    Args:
        values: of all keys.
        defaults: likewise.

    Returns:
        Such as "momentum has no effect with optimizer = 'adamw'".
    """
    found: dict[str, str] = {}
    for rule in RULES:
        if not rule.holds(values):
            continue
        reason = " and ".join(f"{key} = {values[key]!r}" for key in rule.beside)
        for key in rule.keys:
            if values[key] != defaults[key] and rule.only in (None, values[key]):
                what = key if rule.only is None else f"{key} = {rule.only!r}"
                found.setdefault(key, f"{what} has no effect with {reason}")
    return [found[key] for key in values if key in found]
