"""Evaluations of a grid whose images are rows of a label store: which rows and names each cell is measured on.

No model is loaded here, so that what is missing is reported before anything heavy begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachonce.errors import TeachOnceError, UsageError
from teachonce.evaluation.choice import StoredChoice, TrainedOn
from teachonce.evaluation.sets import class_ids
from teachonce.evaluation.stored import features_group, split_of, stored_rows, templates_of
from teachonce.labels.store import LabelStore
from teachonce.objects.remote import location
from teachonce.runs.cells import Cell
from teachonce.runs.needs import Need
from teachonce.search.splits import ClassSplit
from teachonce.search.tables import BOTH, TRAINED, UNSEEN, Evaluation
from teachonce.stages.ablate.stores import Stores

if TYPE_CHECKING:
    from teachonce.models.clip import LoadedClip

Facts = Mapping[str, Any]
WORDS = (TRAINED, UNSEEN, BOTH)


def stored_choices(
    evaluations: Iterable[Evaluation], cell: Cell, need: Need, stores: Stores
) -> dict[str, StoredChoice]:
    """What a cell is measured on, by evaluation; of those only whose images are rows of a store.

    The rows are those of the grid's own store, whichever store a cell is trained from.

    Raises:
        UsageError: the evaluation is of a split that the cell or the store does not have, or the cell's prompts change
            images.
        DataError: a store or a class list is missing.
    """
    return {evaluation.name: _choice(evaluation, cell, need, stores) for evaluation in evaluations if evaluation.stored}


def _choice(evaluation: Evaluation, cell: Cell, need: Need, stores: Stores) -> StoredChoice:
    where = f"[[evaluate]] {evaluation.name}"
    if cell.config.prompts.tower in ("image", "both"):
        raise UsageError(
            f"{where}: a store keeps features of the bare student, and tower = '{cell.config.prompts.tower}' changes "
            "images",
            hint="evaluate on images: give manifest and root",
        )
    store = stores.grid if evaluation.store is None else LabelStore.open(location(evaluation.store))
    parts = _parts(evaluation, cell, need, where)
    vocabulary, labelled = store.vocabulary(), store.label_classes()
    classes: tuple[str, ...] | None = None
    if evaluation.classes in WORDS:
        classes = {TRAINED: parts.trained, UNSEEN: parts.unseen, BOTH: parts.both}[evaluation.classes]
    elif evaluation.classes is not None:
        classes = class_ids(evaluation.classes, labelled, vocabulary)
    names = classes
    if evaluation.among == BOTH:
        names = parts.both
    elif evaluation.among == "all":
        names = None
    elif classes is None:
        names = tuple(class_id for class_id in vocabulary.ids if class_id in labelled.index)
    rule = need.rule
    return StoredChoice(
        store=store.path.absolute(),
        classes=classes,
        names=names,
        without=Path(evaluation.without) if evaluation.without else None,
        trained=TrainedOn(
            store=stores.of(cell).path.absolute(),
            classes=None if rule is None else rule.classes,
            seed=cell.seed,
            held_out=cell.config.loop.held_out,
        ),
        in_words=_in_words(evaluation, cell, len(vocabulary) if names is None else len(names)),
    )


def _parts(evaluation: Evaluation, cell: Cell, need: Need, where: str) -> ClassSplit:
    """The parts of the cell's split; empty ones where the evaluation is about none."""
    if not evaluation.splits:
        return ClassSplit((), (), ())
    if need.parts is None:
        raise UsageError(
            f"{where} is about a split of classes, and the grid has none",
            hint='add [splits] with unseen = 0.25, and "data.split" = [1, 2, 3] in [axes]',
        )
    if evaluation.store is not None:
        raise UsageError(
            f"{where}: a split is one of the classes that cells are trained on, not of those in another store",
            hint="leave out `store`, or name classes of that store",
        )
    return need.parts


def _in_words(evaluation: Evaluation, cell: Cell, names: int) -> str:
    part = {
        TRAINED: f"trained classes of split {cell.data.split}",
        UNSEEN: f"unseen classes of split {cell.data.split}",
        BOTH: f"all classes of split {cell.data.split}",
    }
    which = "all classes" if evaluation.classes is None else f"classes of {Path(evaluation.classes).name}"
    whose = {"classes": "their own", "all": "all of the store's", BOTH: "all of the split's"}[evaluation.among]
    without = "" if evaluation.without is None else f", without those of {Path(evaluation.without).name} and homonyms"
    return f"{part.get(str(evaluation.classes), which)} among {whose} names ({names}){without}"


class StoredFacts:
    """What results of stored evaluations must state; cells that are measured on the same rows share the look."""

    def __init__(self) -> None:
        self._known: dict[StoredChoice, Facts] = {}

    def of(self, evaluation: Evaluation, choice: StoredChoice) -> Facts:
        """The facts of one evaluation of one cell.

        Raises:
            DataError: no row is left, or a class is not in the store; names the evaluation.
        """
        if choice not in self._known:
            try:
                rows = stored_rows(choice)
            except TeachOnceError as problem:
                raise problem.reworded(f"[[evaluate]] {evaluation.name}: " + problem.message) from problem
            self._known[choice] = {
                "images": rows.digest,
                "names": rows.candidates.digest,
                "split": split_of(rows.store),
            }
        templates = stored_templates(evaluation, choice)
        return {**self._known[choice], "templates": list(templates), "wise": evaluation.wise}


def stored_templates(evaluation: Evaluation, choice: StoredChoice) -> tuple[str, ...]:
    """The sentences around names: the evaluation's, or those that the store's teacher heard."""
    return (evaluation.template,) if evaluation.template is not None else templates_of(LabelStore.open(choice.store))


def require_features(choices: Iterable[StoredChoice], clip: LoadedClip) -> None:
    """Refuse stores that hold no image features of the student.

    Raises:
        DataError, FingerprintError: names the store, and the command that adds them.
    """
    for path in dict.fromkeys(choice.store for choice in choices):
        features_group(LabelStore.open(path), clip)
