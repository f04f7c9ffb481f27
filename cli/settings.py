"""The settings that `--set key=value` may change: how a command runs, not what it computes.

It opens no file and checks only what can be known without a stage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from teachonce.core.strict import Above, AtLeast, AtMost, Table, decode, toml_value
from teachonce.data.view_policy import ViewPolicy
from teachonce.errors import UsageError, did_you_mean
from teachonce.models.spec import AskedPrecision, Resize
from teachonce.recipe.config_file import flat_key
from teachonce.stages.teach import Computing

T = TypeVar("T")
Count = Annotated[int, AtLeast(1)]
MaybeCount = Annotated[int | None, AtLeast(1)]


@dataclass(frozen=True, kw_only=True)
class TeachSettings(Table):
    """`teach --set`: how labels are computed, not of what."""

    batch_size: Count = 128
    threads: MaybeCount = None
    precision: AskedPrecision = "auto"
    compile: bool = False
    class_tile: MaybeCount = None
    resize: Resize = "pillow"
    seed: int = 0
    view_scale: float = 0.08
    randaugment_ops: int = 0
    randaugment_magnitude: int = 9
    max_failed_share: Annotated[float, AtLeast(0), AtMost(1)] = 0.01
    rehearsal_seconds: Annotated[float, Above(0)] = 30.0

    def view_policy(self, views: int) -> ViewPolicy:
        """How that many views of an image are drawn.

        Raises:
            UsageError: a value out of range.
        """
        ops = (self.randaugment_ops, self.randaugment_magnitude) if self.randaugment_ops else None
        return ViewPolicy(views=views, seed=self.seed, scale=(self.view_scale, 1.0), randaugment=ops)

    def computing(self, device: str) -> Computing:
        """How a worker computes, on what."""
        return Computing(
            device=device,
            batch_size=self.batch_size,
            threads=self.threads,
            precision=self.precision,
            compiled=self.compile,
            class_tile=self.class_tile,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Table):
    """`evaluate --set`."""

    batch_size: Count = 128
    threads: MaybeCount = None
    cache: bool = True


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Table):
    """`train --set`: the keys that are no part of the run's configuration, because they change no result's meaning."""

    threads: MaybeCount = None


@dataclass(frozen=True, kw_only=True)
class RelabelSettings(Table):
    """`relabel --set`."""

    threads: MaybeCount = None


@dataclass(frozen=True, kw_only=True)
class MergeSettings(Table):
    """`merge --set`."""

    calibrate: bool = True
    threads: MaybeCount = None


def settings(kind: type[T], overrides: Sequence[str]) -> T:
    """The dataclass `kind` with `key=value` overrides, values written as in TOML; a bare word is a string.

    Raises:
        UsageError: no `=`, a key given twice, an unknown key, a wrong type, a value out of range.
    """
    require_once(overrides)
    data: dict[str, Any] = {}
    keys = f"--set KEY=VALUE, with a key of {', '.join(keys_of(kind))}"
    for override in overrides:
        key, equals, text = (part.strip() for part in override.partition("="))
        if not equals:
            raise UsageError(f"--set {override}: expected key=value: {did_you_mean(key, keys_of(kind))}", hint=keys)
        data[key] = toml_value(text)
    return decode(kind, data, "--set", hint=keys)


def require_once(overrides: Sequence[str]) -> None:
    """Refuse two values for one key: only the last would be used.

    Args:
        overrides: `key=value`, of `--set`; an option that stands for such a key wins over it, as documented.

    Raises:
        UsageError: names the key.
    """
    keys = [flat_key(override.partition("=")[0].strip()) for override in overrides]
    for key in keys:
        if keys.count(key) > 1:
            raise UsageError(
                f"'{key}' is given {keys.count(key)} times, and only one value would be used", "give it once"
            )


def split_overrides(kind: type[Any], overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides whose key is one of `kind`, and the others.

    Raises:
        UsageError: a key is given twice.
    """
    require_once(overrides)
    known = keys_of(kind)
    ours = [override for override in overrides if override.partition("=")[0].strip() in known]
    return ours, [override for override in overrides if override not in ours]


def keys_of(kind: type[Any]) -> list[str]:
    """The names of a dataclass's fields."""
    return [field.name for field in dataclasses.fields(kind)]
