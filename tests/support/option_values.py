"""Values of the keys of a training's configuration that tests try one by one. It tests nothing."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from teachonce.recipe.config import key_types

# What else must be said for a value to do its work.
BESIDE = {
    ("structure", "accumulate"): ["init=words"],
    ("coupled", "true"): ["tower=both"],
    ("tower", "none"): ["head=linear"],
    ("head", "tip-adapter"): ["head_learn=after"],
    ("head", "tip-adapter-f"): ["tower=none"],
    ("head", "teacher-space"): ["tower=none"],
    ("head_learn", "*"): ["head=linear", "head_steps=2"],
    ("head_penalty", "*"): ["head=projection", "tower=none"],
    ("correction", "*"): ["candidates=sampled"],
    ("candidates", "all-sampled"): ["class_chunk=2"],
    ("candidates", "teacher"): ["teacher_names=3", "batch_size=3"],
    ("warmup", "constant"): ["warmup_rate=0.01"],
    ("soft_schedule", "*"): ["supervision=soft"],
    ("prograd", "*"): ["supervision=hard"],
    ("kl_mean", "*"): ["supervision=soft"],
}
NUMBERS = (
    "length=6 init=words",
    "length=3 init=normal",
    "depth=1",
    "depth=1 structure=unshared-replace",
    "image_depth=1 image_length=1 tower=image",
    "image_depth=1 tower=both structure=unshared-replace init=normal",
    "soft_weight=0.5",
    "temperature=2",
    "teacher_temperature=2",
    "temperature=3 targets=embedding",
    "temperature=3 tail=renormalise",
    "label_smoothing=0.1",
    "gce_q=0.3 hard_loss=gce supervision=hard",
    "image_noise=0.5",
    "name_noise=0.5",
    "anchor_weight=8",
    "consistency_weight=1",
    "anchor_weight=1 consistency_weight=1 prograd=true tower=both",
    "sampled_fill=0 candidates=sampled",
    "sampled_top=3 candidates=sampled",
    "head_weight=0.5 head=linear",
    "head_weight=0.5 head=teacher-space",
    "head_penalty=0.3 head_rate=0.01 head=bias",
    "head_steps=1 head_learn=after head=projection",
    "tip_alpha=2 tip_beta=1 tower=none head=tip-adapter-f",
    "adapter_ratio=0.5 adapter_width=2 tower=none head=clip-adapter",
    "momentum=0 optimizer=sgd",
    "weight_decay=0.1",
    "mask_dimensions=0.5",
    "clip_gradient=0.01",
    "warmup_steps=0",
    "warmup_epochs=0.5",
    "bare_templates=the-{}",
    "average_decay=0.5 averaging=ema",
    "average_mean=0.5 average_deviation=1 averaging=gaussian",
    "epochs=0.5",
    "batch_size=7",
    "views_per_step=2",
    "micro_batch=5",
    "held_out=0.3",
    "class_chunk=2",
    "seed=3",
    "context=an image of the",
)


def choices(hint: Any) -> Iterator[Any]:
    """The words that a key takes, also where it takes numbers besides."""
    for part in typing.get_args(hint):
        if typing.get_origin(part) is typing.Literal:
            yield from typing.get_args(part)
        elif not isinstance(part, type):
            yield part


def literal_values() -> Iterator[str]:
    """`key=value`, with what belongs to it, for every allowed value of every option that is a choice."""
    for name, hint in key_types().items():
        values = ("false", "true") if hint is bool else choices(hint)
        for value in values if name != "compile" else ("false",):  # true: in the slow set
            beside = BESIDE.get((name, value), BESIDE.get((name, "*"), []))
            yield " ".join([f"{name}={value}", *beside])
