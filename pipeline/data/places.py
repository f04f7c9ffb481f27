"""Where images lie: what a scan of any layout gives, and the tally of what the scan passed over.

This module opens no file: `layouts`, `listed_images`, `tars` and `parquet` do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from teachonce.core.documents import readable
from teachonce.data.formats import extension, is_image_kind, kind_of, plugin_for
from teachonce.data.spelling import one_form

UNKNOWN = -1  # the label of a sample whose class nobody states
EXAMPLES = 3  # names kept of each reason
MOST_ENDINGS = 64  # distinct endings that are counted one by one
_ENDING = re.compile(r"[a-z0-9_+-]{1,12}")

REASONS: Mapping[str, str] = {
    "links": "links",
    "devices": "devices or pipes",
    "sparse": "sparse files",
    "other_endings": "other endings",
    "sub_folders": "in sub-folders",
    "outside_classes": "outside class folders",
    "no_class": "folders of no class",
    "side_images": "side images of samples",
    "no_label": "images without a label",
    "no_image": "labels without an image",
    "not_listed": "in no list",
    "other_archives": "archives of other names",
    "leftovers": "system leftovers",
}
"""Why something that lies there is no sample: the reason's name in JSON, and how the reason is said behind a number."""


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


@dataclass(frozen=True, kw_only=True)
class PassedOver:
    """What lies in a split and is no sample, counted by reason."""

    counts: dict[str, int] = field(default_factory=dict)
    """How often each of REASONS applied; reasons that never applied are left out."""
    endings: dict[str, int] = field(default_factory=dict)
    """How many files of each ending were passed over for it, the most frequent first."""
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The first names of each reason."""

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        """`passed over: 2 links, 3 other endings (.heic 2, .gif 1), 8 in sub-folders; 5 system leftovers`."""
        counted = [self.said(reason) for reason in self.counts if reason != "leftovers"]
        leftovers = [self.said("leftovers")] if "leftovers" in self.counts else []
        return f"passed over: {'; '.join([', '.join(counted)] * bool(counted) + leftovers)}{self._advice()}"

    def said(self, reason: str) -> str:
        """Return the number and the words of a reason."""
        endings = f" ({', '.join(f'{name} {n:,}' for name, n in self.endings.items())})" if self.endings else ""
        return f"{self.counts[reason]:,} {REASONS[reason]}{endings if reason == 'other_endings' else ''}"

    def facts(self) -> dict[str, dict[str, int]]:
        """Return the numbers alone, without names of files, for what is given to others."""
        return {"counts": self.counts, **({"endings": self.endings} if self.endings else {})}

    def _advice(self) -> str:
        plugins = {plugin.package for ending in self.endings if (plugin := plugin_for(ending.lstrip(".")))}
        return "".join(f"; `pip install {package}` would read some" for package in sorted(plugins))


class Tally:
    """What a scan passes over, counted as the scan goes.

    Args:
        look_inside: also count the images whose first bytes are of no image format.
    """

    def __init__(self, look_inside: bool = False) -> None:
        self.look_inside = look_inside
        self.foreign: Counter[str] = Counter()
        """Images whose first bytes are of no image format, by what the bytes are."""
        self.foreign_examples: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()
        self._endings: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def pass_over(self, reason: str, name: str, count: int = 1) -> None:
        """Count something that is no sample, for one of REASONS."""
        if count:
            self._counts[reason] += count
            examples = self._examples.setdefault(reason, [])
            if len(examples) < EXAMPLES:
                examples.append(printable(name))

    def pass_over_ending(self, name: str) -> None:
        """Count a file that is no image by its ending."""
        self.pass_over("other_endings", name)
        ending = extension(name) if "." in name.rpartition("/")[2] else ""
        shown = f".{ending}" if _ENDING.fullmatch(ending) else "none"
        self._endings[shown if shown in self._endings or len(self._endings) < MOST_ENDINGS else "others"] += 1

    def look(self, name: str, head: bytes) -> None:
        """Count an image whose first bytes are of no image format; an empty image is counted elsewhere."""
        if self.look_inside and head:
            kind = kind_of(head)
            if not is_image_kind(kind):
                self.note_foreign(kind, name)

    def note_foreign(self, kind: str, name: str, count: int = 1) -> None:
        """Count images whose bytes are of a kind that is no image."""
        if count:
            self.foreign[kind] += count
            examples = self.foreign_examples.setdefault(kind, [])
            if len(examples) < EXAMPLES:
                examples.append(printable(name))

    def passed_over(self) -> PassedOver:
        """Return what was counted so far."""
        return PassedOver(
            counts={reason: self._counts[reason] for reason in REASONS if reason in self._counts},
            endings=dict(sorted(self._endings.items(), key=lambda ending: (-ending[1], ending[0]))),
            examples={reason: tuple(self._examples[reason]) for reason in REASONS if reason in self._examples},
        )


def printable(name: str) -> str:
    """Return a name with escapes for what cannot be shown or encoded, such as bytes that are no UTF-8."""
    shown = readable(name)
    return shown if shown.isprintable() else repr(name)[1:-1]


def name_bytes(name: str) -> bytes:
    """Return the bytes of a file, member or folder name: names are bytes, and need not be UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def name_of(data: bytes) -> str:
    """Return the name of these bytes as Python's file functions know it; `name_bytes` gives the same bytes back."""
    return data.decode("utf-8", "surrogateescape")


def as_on_disk(path: Path) -> Path:
    """Return the path, or the one in its folder whose name differs only in its Unicode form, if that one exists."""
    if path.name.isascii() or path.exists() or not path.parent.is_dir():
        return path
    wanted = one_form(path.name)
    return next((other for other in path.parent.iterdir() if one_form(other.name) == wanted), path)
