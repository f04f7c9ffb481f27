"""The tables of GRID.toml that say on which rows cells train, on what they are evaluated, and by what to choose.

Values are checked one by one here; `runs.grid` reads the file, `runs.cells` checks the values of each cell together.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from teachonce.core.strict import Above, AtLeast, AtMost, Below, Table
from teachonce.data.vocabulary import require_template
from teachonce.errors import UsageError

HELD_OUT = "held_out"
SEEDED = ("shots_seed", "noise_seed")
"""Keys of [data] that are a number, or \"seed\": the seed of the cell."""
STORE = "store"
"""The manifest of an evaluation whose images are rows of a label store."""
UNSEEN, TRAINED, BOTH = "split:unseen", "split:trained", "split:all"
"""The parts of a split of classes, where an evaluation names classes."""


@dataclass(frozen=True, kw_only=True)
class DataKeys(Table):
    """Which rows and targets of the store a cell uses; what is empty or 0 is as the store has it."""

    top_k: Annotated[int, AtLeast(0)] = 0
    """Classes of each soft label."""
    shots: Annotated[int, AtLeast(0)] = 0
    """Samples of each class at most."""
    shots_seed: int | str = 0
    """Of the draw of shots; "seed": the seed of the cell."""
    classes: str = ""
    """A file of class ids, `base`, `novel` or timm:NAME: samples of these only, and their names only."""
    split: Annotated[int, AtLeast(0)] = 0
    """Number of a random split of the classes, as [splits] declares them: samples of its trained classes only, and
    their names only. 0: none."""
    all_names: bool = False
    """With `classes` or `split`: the names of the others stay in the softmax."""
    vocabulary: str = ""
    """Another class list; made from stored embeddings."""
    template: tuple[str, ...] = ()
    """Other sentences around a class name for the teacher; made from stored embeddings."""
    label_noise: Annotated[float, AtLeast(0), Below(1)] = 0.0
    """Share of labels that are made wrong, to see what a recipe stands; made from stored embeddings."""
    noise_seed: int | str = 0
    """Of the draw of wrong labels; "seed": the seed of the cell."""
    clean: bool = False
    """Without the samples that an audit of the cell's store leaves out."""

    def __post_init__(self) -> None:
        """Raises ValueError for a number out of range or a template without a place for the name."""
        super().__post_init__()
        if self.all_names and not self.classes and not self.split:
            raise ValueError("all_names keeps the names that `classes` leaves out, and there is no `classes`")
        if self.split and self.classes:
            raise ValueError("classes and split both say which classes are trained on: [splits] takes `classes`")
        for template in self.template:
            try:
                require_template(template)
            except UsageError as problem:
                raise ValueError(problem.message) from problem


@dataclass(frozen=True, kw_only=True)
class Evaluation(Table):
    """A data set on which cells are evaluated once they are trained."""

    name: str
    manifest: str
    """`store`: the images are rows of a label store, by the student's features that it keeps; no image is read."""
    store: str | None = None
    """With the manifest `store`: another label store; None: the one that cells are trained from."""
    split: str = "val"
    vocabulary: str | None = None
    classes: str | None = None
    """Images of these classes only: a file of class ids, `base`, `novel` or timm:NAME; with the manifest `store` also
    `split:trained`, `split:unseen` or `split:all`, parts of the cell's own split."""
    among: Literal["classes", "all", "split:all"] = "classes"
    """Whose names compete where `classes` is given; `split:all`: those of all classes that are split."""
    without: str | None = None
    """A file of classes whose names do not compete."""
    template: str | None = None
    """None: the manifest's."""
    wise: Annotated[float, AtLeast(0), AtMost(1)] = 1.0
    """Share of the prompts in the class features (WiSE-FT)."""
    root: str | None = None
    """Folder of the data; the command's --root where it is left out."""
    protocol: str | None = None
    """For people and reports, such as "cross-dataset"."""
    only: Literal["", "chosen"] = ""
    """chosen: not for every cell, but once for the chosen cells and the base, when all cells are finished."""

    def __post_init__(self) -> None:
        """Raises ValueError for a name that cannot be one of a file, or a share that is none."""
        # No dots: what lies beside a result, such as NAME.template.top1.npy, could be that of another evaluation.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", self.name):
            raise ValueError(f"name must be letters, digits, '-' or '_', at most 64, found {self.name!r}")
        if self.name == HELD_OUT:
            raise ValueError(f"the name '{HELD_OUT}' means the held-out samples of the training data")
        super().__post_init__()
        given = {key: getattr(self, key) for key in ("vocabulary", "root")}
        idle = [key for key, value in given.items() if value is not None] + ["split"] * (self.split != "val")
        if self.stored and idle:
            raise ValueError(f"{idle[0]} does nothing with manifest = '{STORE}': the store says it")
        if not self.stored and self.store is not None:
            raise ValueError(f"store is read with manifest = '{STORE}' only")
        if not self.stored and (self.among == BOTH or self.splits):
            raise ValueError(f"parts of a split are rows of the label store: set manifest = '{STORE}'")

    @property
    def stored(self) -> bool:
        """Whether the images are rows of a label store."""
        return self.manifest == STORE

    @property
    def splits(self) -> bool:
        """Whether it is about parts of the cell's split of classes."""
        return BOTH in (self.among, self.classes) or self.classes in (UNSEEN, TRAINED)


@dataclass(frozen=True, kw_only=True)
class Choose:
    """By what the best setting is chosen: the mean over splits and seeds of one measure, or of several with weights."""

    by: str | None = None
    weights: dict[str, float] = field(default_factory=dict)
    metric: Literal["top1", "top5", "macro"] = "top1"
    against: Literal["", "template"] = ""
    """template: each measure counts by its difference to the bare student with the template on the same images."""
    least: dict[str, float] = field(default_factory=dict)
    """Percentage points against the template that a setting must reach in a measure to be chosen; a measure that has no
    weight is looked at for this alone."""

    def __post_init__(self) -> None:
        """Raises ValueError unless exactly one way is given."""
        if (self.by is None) != bool(self.weights):
            raise ValueError('give either by = "NAME" or weights = {NAME = 1, ...}')
        if any(not 0 < weight < float("inf") for weight in self.weights.values()):
            raise ValueError("weights must be above 0 and finite")
        if self.weights and not sum(self.weights.values()) < float("inf"):
            raise ValueError("weights add up to infinity: only their ratios count, so use smaller ones")
        if any(not -100 <= points <= 100 for points in self.least.values()):
            raise ValueError("least is in percentage points, from -100 to 100")
        if HELD_OUT in self.measures and self.metric != "top1":
            raise ValueError(f"of the held-out samples there is top1 only, found metric = '{self.metric}'")
        if HELD_OUT in self.least or (self.against and HELD_OUT in self.measures):
            raise ValueError(
                f"{HELD_OUT} is measured without the template beside it: evaluate the held-out samples with "
                f'[[evaluate]] manifest = "{STORE}", and name that evaluation'
            )

    @property
    def measures(self) -> dict[str, float]:
        """Measure -> its share; the shares add up to 1."""
        given = self.weights or {str(self.by): 1.0}
        return {name: weight / sum(given.values()) for name, weight in given.items()}

    @property
    def named(self) -> tuple[str, ...]:
        """Every measure that the rule reads."""
        return tuple(dict.fromkeys((*self.measures, *self.least)))


@dataclass(frozen=True, kw_only=True)
class Search(Table):
    """Successive halving: settings that do worse than others after some steps are not trained to their end."""

    rungs: tuple[int, ...]
    """Steps after which settings are compared, rising; each cell's last step is beyond them."""
    keep: Annotated[float, Above(0), Below(1)] = 0.5
    """Share of the settings that go on after each rung, rounded up; the base always goes on."""

    def __post_init__(self) -> None:
        """Raises ValueError for rungs that do not rise from 1."""
        super().__post_init__()
        steps = (0, *self.rungs)
        if not self.rungs or any(later <= earlier for earlier, later in itertools.pairwise(steps)):
            raise ValueError(f"rungs must be steps that rise from 1, found {list(self.rungs)}")


@dataclass(frozen=True, kw_only=True)
class Splits(Table):
    """Random splits of classes, so that no single one decides: `data.split` is the number of one."""

    unseen: Annotated[float, Above(0), Below(1)]
    """Share of the classes that a split keeps from training, rounded to whole classes, at least one."""
    classes: str = ""
    """Which classes are split: a file of class ids, or timm:NAME; empty: all classes of the data."""
