"""What `pack` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PackRequest:
    """What to pack, check or unpack."""

    source: Path
    out: Path | None = None
    check: bool = False
    unpack: bool = False


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """What is in the pack. It was read again, and every file agreed with its digest."""

    kind: Literal["label-store", "prompts"]
    name: str
    id: str
    """`store_id` of a store; SHA-256 of prompts.safetensors."""
    files: int
    bytes: int
    """The sizes of the files added up, without the tar around them."""
    digest: str
    """SHA-256 of the pack's SHA256SUMS: a receiver who knows this digest can tell the pack from any other."""
    out: str | None
