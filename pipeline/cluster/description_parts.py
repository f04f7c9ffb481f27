"""What the descriptions of all kinds of cluster have in common: keys, times, and what is refused everywhere."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_SECRET = re.compile(r"(?i)\b\w*(SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY)\w*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DURATION = re.compile(r"(\d+)\s*(s|m|h|d|seconds?|minutes?|hours?|days?)")


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Bounds between which the number of workers follows the amount of work."""

    minimum: int = 0
    maximum: int

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum or self.maximum < 1:
            raise ValueError(f"expected 0 <= minimum <= maximum and maximum >= 1, found {self.minimum}, {self.maximum}")


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every description may hold."""

    patience: str | None = None
    """How long a run goes on without any worker, such as "30 minutes"."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the worker processes, in addition to the allocator settings that every worker has."""

    def __post_init__(self) -> None:
        if self.patience is not None:
            duration_seconds(self.patience)
        for name, value in self.environment.items():
            if not _NAME.fullmatch(name) or "\0" in value:
                raise ValueError(f"environment: {name!r} and its value {value!r} are nothing that an environment holds")
            refuse_secret(name, "environment")


def duration_seconds(text: str) -> int:
    """Read a time such as "90 s", "30 minutes", "2h".

    Raises:
        ValueError: the text is no such time.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'{text!r} is not a time such as "90 s", "30 minutes" or "2h"')
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2][0]]


def one_of(*, needed: bool, adaptive: Adaptive | None, **fixed: int | None) -> None:
    """Refuse a fixed number together with bounds, neither where one is needed, and a number below 1.

    Raises:
        ValueError: says which keys.
    """
    ((name, count),) = fixed.items()
    if count is not None and adaptive is not None:
        raise ValueError(f"'{name}' and 'adaptive' exclude each other")
    if needed and count is None and adaptive is None:
        raise ValueError(f"give '{name}' or 'adaptive'")
    if count is not None and count < 1:
        raise ValueError(f"{name} must be at least 1, found {count}")


def refuse_secret(text: str, where: str) -> None:
    """Refuse a secret: this text goes into a job script, which others on the cluster may read.

    Raises:
        ValueError: names it.
    """
    secret = _SECRET.search(text)
    if secret:
        raise ValueError(
            f"{where} names {secret[0]}: a secret does not belong into a job script; let the workers find it in a file "
            "that only you can read (~/.aws/credentials)"
        )
