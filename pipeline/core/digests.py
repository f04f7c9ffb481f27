"""The name of a document: the SHA-256 of its canonical JSON, the same whatever order its keys were written in.

Stores, working sets, selections, prompts, runs and grids are told apart by these digests, so the bytes that are hashed
never change: what a parameter does here, files that exist already depend on. `sums` digests whole files.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

SHORT = 16
"""Hex digits of the digests that name configs and cells of grids."""
MIDDLE = 32
"""Hex digits of the digests that name working sets, kept evaluations and contents of stores."""


def canonical_json(
    document: Any, *, spaced: bool = False, in_order: bool = False, foreign_as_text: bool = False
) -> str:
    """The one text of a document: keys sorted, letters beyond ASCII escaped.

    Args:
        document: what JSON can hold.
        spaced: write a space after `,` and `:`. The digests of manifests, of made-up worlds and of kept evaluations,
            and the identity inside a checkpoint, were first written so.
        in_order: leave the keys in their order. The names of kept evaluations were first written so; those of a
            dataclass are always in one order.
        foreign_as_text: take the text of a value that JSON does not know, such as a date in a config.toml; without it
            such a value is refused, because two values may have the same text.

    Raises:
        TypeError: a value that JSON does not know.
    """
    return json.dumps(
        document,
        sort_keys=not in_order,
        separators=(", ", ": ") if spaced else (",", ":"),
        default=str if foreign_as_text else None,
    )


def canonical_digest(document: Any, digits: int = 64, **spelling: bool) -> str:
    """The first hex digits of the SHA-256 of `canonical_json(document, **spelling)`; all 64 by default."""
    return hashlib.sha256(canonical_json(document, **spelling).encode()).hexdigest()[:digits]
