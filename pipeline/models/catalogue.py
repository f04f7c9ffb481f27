"""Which CLIPs open_clip releases, and what each can be here: teacher, student with text prompts or image prompts.

The list is a file of this package, so that it is read in milliseconds, offline and without torch. It is made by
`docs/make_models.py`, which builds every architecture; this module builds nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("assets") / "open_clip_models.json"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One of open_clip's architectures that have released weights."""

    name: str
    family: str
    weights: tuple[str, ...]
    """The tags of its releases: NAME/TAG is a model."""
    needs: str
    """The extra of this package without which it cannot be loaded (`hf`), or nothing."""
    teacher: str | None
    """Why it cannot teach; None: it can. So are the next two."""
    text_prompts: str | None
    image_prompts: str | None


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All architectures, by family and name, and the versions of the libraries that were asked."""

    open_clip: str
    timm: str
    architectures: tuple[Architecture, ...]


@cache
def catalogue() -> Catalogue:
    """Read the list that ships with the package."""
    document = json.loads(FILE.read_text(encoding="utf-8"))
    rows = [Architecture(**{**row, "weights": tuple(row["weights"])}) for row in document["architectures"]]
    return Catalogue(open_clip=document["open_clip"], timm=document["timm"], architectures=tuple(rows))
