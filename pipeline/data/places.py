"""Where images lie: what a scan of any layout gives, and which file endings are images.

This module opens nothing: `layouts`, `listed_images` and `parquet` do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
UNKNOWN = -1  # the label of a sample whose class nobody states


class ImagePlace(NamedTuple):
    """One image as a scan meets it; the index turns it into columns at once."""

    key: str
    offset: int
    """Where the image's bytes begin in the archive; in parquet files the number of the image's row."""
    size: int
    """Number of bytes; 0 in parquet files, where only reading the image would tell."""
    label: int


@dataclass(frozen=True)
class Part:
    """What is scanned in one go: an archive, a tar inside a tar, or a class folder."""

    archive: Path
    name: str
    """The part's own name, without extension. It is the class id where the layout says so."""
    start: int = 0
    end: int | None = None
    """The part ends before this byte of the archive; None: it reaches to the archive's end."""

    def __str__(self) -> str:
        return str(self.archive) if self.end is None else f"{self.archive} ({self.name}.tar in it)"


def extension(name: str) -> str:
    """Return what follows the last dot, in lower case."""
    return name.rpartition(".")[2].lower()
