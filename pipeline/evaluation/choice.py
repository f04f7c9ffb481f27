"""What an evaluation is asked for: who is evaluated, on what, and how. It imports no NumPy and no torch.

`sets` opens what is chosen here, `contender` loads it, `features` goes through the images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from teachonce.core.devices import AUTO

COLUMNS = (
    "id",
    "name",
    "n",
    "top1",
    "top5",
    "most_confused_with",
    "confused_share",
    "confused_id",
    "nll",
    "template_top1",
    "gain",
)
TABLE_HEADER = ",".join(COLUMNS)
"""First line of a table of classes, which tells it from other people's files."""
Among = Literal["classes", "all"]


@dataclass(frozen=True, kw_only=True)
class SetChoice:
    """Which part of which data set, and which names compete."""

    manifest: str
    root: Path | None
    split: str = "val"
    vocabulary: str | None = None
    """The names; None: the manifest's own class list."""
    classes: Path | str | None = None
    """Images of these classes only: a file of class ids, `base` or `novel` (halves of the split's own class list),
    `timm:NAME`, or `all`; None: all."""
    among: Among = "classes"
    """Whose names compete where `classes` is given: of these classes, or of the whole vocabulary."""
    without: Path | None = None
    """Classes whose names, and those of their homonyms, are taken out of the competition; with them their images."""


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """What a run has trained on, so that none of its photos are counted."""

    store: Path
    classes: tuple[str, ...] | None
    """Ids of the classes of which it saw photos; None: all."""
    seed: int
    held_out: float
    """Share of the samples that the seed keeps apart."""


@dataclass(frozen=True, kw_only=True)
class StoredChoice:
    """Which rows of a label store are classified, by the features of the student that the store keeps.

    Of a sample with several views the first counts, the whole image.
    """

    store: Path
    classes: tuple[str, ...] | None = None
    """Ids of the classes whose images are classified; None: all classes of the data."""
    names: tuple[str, ...] | None = None
    """Ids whose names compete; None: the whole vocabulary of the store."""
    without: Path | None = None
    """As in `SetChoice`."""
    trained: TrainedOn | None = None
    """Of classes that the run has trained on only the samples count that its seed keeps apart; None: all count."""
    in_words: str = ""
    """Which classes, among whose names, as results say it."""


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """Who is evaluated: a student with the prompts of a run, or with a hand-written template alone."""

    student: str
    run: Path | None = None
    templates: tuple[str, ...] = ()
    """Sentences around a class name, whose features are averaged; none: the manifest's."""
    wise: float = 1.0
    """Share of the prompts in class features mixed with the template's; 1: the prompts alone (WiSE-FT)."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """How images are gone through; it changes no feature."""

    batch_size: int = 128
    threads: int | None = None
    device: str = AUTO
    """What the student runs on, as `core.devices.pick_device` takes it."""
    cache: bool = True
    """Whether features may come from, and go to, the user's cache."""
