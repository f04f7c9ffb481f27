"""The documents in the folder of a grid, each as the dataclass that writes it and that it is read into.

    grid.json       GridDocument, with its cells and the evaluations and the choice that it declares
    cell.json       CellDocument
    failure.json    CellFailure
    results.json    GridResults, with the choices made
    search.json     SearchDocument

What an earlier version did not write has its default. This module opens no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from teachonce.core.documents import SEAL, LogSeal, is_as_written, mapping
from teachonce.core.strict import decode_known
from teachonce.errors import IntegrityError
from teachonce.phrases import from_json, to_json
from teachonce.search.halving import Decision
from teachonce.search.tables import Choose, DataKeys, Evaluation, Search, Splits

SCHEMA = 1
LATER_OF_DATA = ("split", "label_noise", "noise_seed", "clean")
LATER_OF_CHOICE = ("against", "short")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CellDocument:
    """A cell as grid.json lists it; cell.json says the same."""

    digest: str
    name: str
    group: str
    """The name without split and seed."""
    changes: dict[str, Any] = field(default_factory=dict)
    """What differs from the base, but for split and seed."""
    seed: int = 0
    split: int = 0
    """Number of the split of classes; 0: none."""
    is_base: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    """`TrainConfig.to_dict()` of the version that wrote it."""
    data: DataKeys = DataKeys()
    prompts: str | None = None
    """Folder of the prompts that the run starts from."""
    labels: str | None = None
    """Where its label store was, if not the grid's own."""
    content_id: str | None = None
    """Digest of that store's labels and embeddings."""
    no_effect: tuple[str, ...] = ()
    """What of the config does nothing, a sentence a key."""

    def document(self) -> dict[str, Any]:
        """The document in cell.json."""
        return {"schema": SCHEMA, **_cell_said(asdict(self))}


@dataclass(frozen=True, kw_only=True)
class GridDocument:
    """The grid as it was last run. A digest is None where an earlier version did not write it."""

    title: str = ""
    question: str = ""
    design: str = ""
    grid_digest: str | None = None
    labels: str | None = None
    """Where the label store was."""
    store_id: str | None = None
    content_id: str | None = None
    student: str | None = None
    student_digest: str | None = None
    student_behaviour: dict[str, str] = field(default_factory=dict)
    """The student's tokenizer, preprocessing and pooling; empty where an earlier version wrote it."""
    base: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, Any] = field(default_factory=dict)
    """Key -> list of its values."""
    cells: tuple[CellDocument, ...]
    splits: Splits | None = None
    evaluations: tuple[Evaluation, ...] = ()
    choose: Choose | None = None
    search: Search | None = None

    def names(self, late: bool) -> list[str]:
        """The evaluations that every cell gets, or, `late`, those that only the chosen cells and the base get."""
        return [evaluation.name for evaluation in self.evaluations if bool(evaluation.only) is late]

    def groups(self) -> dict[str, list[str]]:
        """The digests of the cells of each setting."""
        by_setting: dict[str, list[str]] = {}
        for cell in self.cells:
            by_setting.setdefault(cell.group, []).append(cell.digest)
        return by_setting

    def document(self) -> dict[str, Any]:
        """The document in grid.json."""
        said = _said(asdict(self), "splits", "search")
        said["cells"] = [_cell_said(cell) for cell in said["cells"]]
        said["choose"] = said["choose"] and _said(said["choose"], "against", "least")
        said["evaluations"] = [_said(evaluation, "store") for evaluation in said["evaluations"]]
        return {"schema": SCHEMA, **said}


@dataclass(frozen=True, kw_only=True)
class CellFailure:
    """Why the last attempt of a cell failed."""

    kind: str = ""
    """The class of the error."""
    message: str = ""
    hint: str = ""
    ours: bool = False
    """Whether this package raised the error."""
    time: float = 0.0
    """Seconds since 1970."""

    def document(self) -> dict[str, Any]:
        """The document in failure.json; `parts` keeps the options that the texts name."""
        parts = {"message": to_json(self.message), "hint": to_json(self.hint)}
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "message": self.message,
            "hint": self.hint,
            "parts": parts,
            "ours": self.ours,
            "time": self.time,
        }


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The best setting. Of a choice that is not whole only the setting is known."""

    group: str
    value: float = 0.0
    """Its measure: a mean over seeds, a fraction."""
    by: dict[str, float] = field(default_factory=dict)
    """Measure -> share."""
    metric: str = ""
    against: str = ""
    """template: the figures are differences to the template's."""
    figures: dict[str, float] = field(default_factory=dict)
    """Each measure by itself."""
    cells: tuple[str, ...] = ()
    """Digests of its cells."""
    ranking: dict[str, float] = field(default_factory=dict)
    """The measure of every setting, best first."""
    short: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Settings that cannot be chosen -> the measures in which they miss what the rule asks for at least."""


@dataclass(frozen=True, kw_only=True)
class FailedCell:
    """A cell that failed, is damaged, or lacks what only chosen cells get."""

    name: str
    digest: str
    message: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class FinalFigure:
    """An evaluation that only chosen cells and the base get, of one of them."""

    evaluation: str
    group: str
    seed: int
    digest: str
    top1: float | None
    """None: not made yet."""
    file: str
    """Below the folder of the grid."""


@dataclass(frozen=True, kw_only=True)
class GridOutcome:
    """What became of the cells."""

    cells: dict[str, int] = field(default_factory=dict)
    """`finished` in this call, `skipped` because they were finished before, `failed`, `missing`: not run to their
    end, and `damaged`: no longer what their run wrote; those are left as they are."""
    failures: tuple[FailedCell, ...] = ()
    chosen: Choice | None = None
    """The best setting by the declared measure, once all cells are finished."""
    final: tuple[FinalFigure, ...] = ()
    """Evaluations that only chosen cells and the base get."""
    seconds: float = 0.0
    out: str = ""
    next: str = ""
    """What to run: what is left to do, else what shows the results."""


@dataclass(frozen=True, kw_only=True)
class GridResults(GridOutcome):
    """What came out of the last call, and what had been chosen before."""

    earlier_choices: tuple[Choice, ...] = ()
    """The choices that the latest replaced, oldest first."""
    log: LogSeal = LogSeal()
    """Of events.jsonl, when the call had ended."""

    def choices(self) -> tuple[Choice, ...]:
        """All choices, the latest last."""
        return (*self.earlier_choices, *([self.chosen] if self.chosen else []))

    def document(self) -> dict[str, Any]:
        """The document in results.json."""
        said = asdict(self)
        said["chosen"] = said["chosen"] and _said(said["chosen"], *LATER_OF_CHOICE)
        said["earlier_choices"] = [_said(choice, *LATER_OF_CHOICE) for choice in said["earlier_choices"]]
        return {"schema": SCHEMA, **said}


@dataclass(frozen=True, kw_only=True)
class SearchDocument:
    """What the rungs of a search have decided so far."""

    rungs: tuple[int, ...] = ()
    keep: float = 0.0
    decisions: tuple[Decision, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)
    """Digest of a cell that ends early -> the step of the rung."""

    def document(self) -> dict[str, Any]:
        """The document in search.json."""
        return {"schema": SCHEMA, **asdict(self)}


def decode_search(document: Any, where: str) -> SearchDocument:
    """The decisions that a document holds.

    Raises:
        IntegrityError: as `decode_grid`.
    """
    return _decoded(SearchDocument, document, where)


def _said(table: Mapping[str, Any], *later: str) -> dict[str, Any]:
    """A table without keys that came later and say nothing here: what earlier versions wrote stays what it was."""
    return {key: value for key, value in table.items() if key not in later or value}


def _cell_said(cell: Mapping[str, Any]) -> dict[str, Any]:
    return _said(cell, "split", "labels", "content_id") | {"data": _said(cell["data"], *LATER_OF_DATA)}


def decode_grid(document: Any, where: str) -> GridDocument:
    """The grid that a document holds.

    Args:
        document: parsed JSON.
        where: the file, for messages.

    Raises:
        IntegrityError: `ablate` of no version has written it.
    """
    try:
        return _decoded(GridDocument, document, where)
    except IntegrityError as problem:
        raise IntegrityError(
            f"{where} is damaged: it is not what `ablate` writes",
            hint="restore it; the runs below cells/ are not touched",
        ) from problem


def decode_cell(document: Any, where: str) -> CellDocument:
    """The cell that a document holds.

    Raises:
        IntegrityError: as `decode_grid`.
    """
    said = {"schema": SCHEMA, **document} if isinstance(document, Mapping) else None
    return _decoded(CellDocument, said, where)


def decode_failure(document: Any, where: str) -> CellFailure:
    """The failure that a document holds, its texts with the options that they name.

    Raises:
        IntegrityError: as `decode_grid`.
    """
    said = {"schema": SCHEMA, **_unchanged(document, where)}
    try:
        texts = {key: from_json(part) for key, part in mapping(said.get("parts")).items()}
    except ValueError as problem:
        raise IntegrityError(f"{where} is not what `ablate` writes: {problem}") from problem
    return _decoded(CellFailure, said | texts if isinstance(document, Mapping) else None, where)


def decode_grid_results(document: Any, where: str) -> GridResults:
    """The results that a document holds; of a choice that is not whole, the setting.

    Raises:
        IntegrityError: as `decode_grid`.
    """
    said = _unchanged(document, where)
    chosen, earlier = said.pop("chosen", None), said.pop("earlier_choices", None)
    results = _decoded(GridResults, said, where)
    choices = tuple(_choice(choice, where) for choice in earlier) if isinstance(earlier, list) else ()
    return replace(results, chosen=_choice(chosen, where) if chosen else None, earlier_choices=choices)


def _unchanged(document: Any, where: str) -> dict[str, Any]:
    """The keys of a document, without its digest, which must hold; none where it is no object."""
    if isinstance(document, Mapping) and not is_as_written(document):
        raise IntegrityError(f"{where} is not what `ablate` wrote: its digest differs")
    return {key: value for key, value in mapping(document).items() if key != SEAL}


def _choice(document: Any, where: str) -> Choice:
    said = mapping(document)
    try:
        return decode_known(Choice, said, where, IntegrityError)
    except IntegrityError:
        return Choice(group=str(said.get("group")))


def _decoded(kind: type[T], document: Any, where: str) -> T:
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        raise IntegrityError(f"{where} is not what `ablate` writes: expected an object with schema {SCHEMA}")
    return decode_known(kind, _unchanged(document, where), where, IntegrityError)
