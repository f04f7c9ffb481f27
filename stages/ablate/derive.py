"""What cells need and the label store lacks, made from the store once and shared: stores, selections, working sets.

No image is read; the teacher's text tower runs only for names or templates that the store does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from teachonce.core.progress import Reporter
from teachonce.errors import TeachOnceError, UsageError
from teachonce.labels.selection import Selection, choose, load_selection, save_selection
from teachonce.labels.store import LabelStore
from teachonce.recipe.requirements import Requirements, requirements
from teachonce.rows.working_set import WorkingSet, open_working_set
from teachonce.runs.grid_folder import GridFolder
from teachonce.runs.needs import Derivation
from teachonce.stages.ablate.prepare import Planned, Prepared
from teachonce.stages.audit import left_out_of
from teachonce.stages.relabel import RelabelRequest, relabel
from teachonce.training.trainer import Trainer

MOST_NAMES = 4096  # a cell with a larger vocabulary is not tried: encoding it takes as long as the cell


@dataclass(frozen=True)
class Source:
    """Where a cell's rows come from."""

    labels: Path
    selection: Path | None


def wanted(planned: Sequence[Planned], folder: GridFolder) -> list[str]:
    """A line for each store and selection that these cells need and that is not derived yet."""
    stores = {p.need.derivation.digest: p.need.derivation for p in planned if p.need.derivation}
    missing = [
        f"store {folder.store(digest).name}: {derivation.words()}"
        for digest, derivation in stores.items()
        if not folder.store(digest).exists()
    ]
    rules = {p.need.selection_digest: p.need.rule for p in planned if p.need.selection_digest and p.need.rule}
    for digest, rule in rules.items():
        if not folder.selection(str(digest)).exists():
            said = {"shots": rule.shots, "top_k": rule.top_k, "classes": rule.classes and len(rule.classes)}
            words = ", ".join(f"{key} {value}" for key, value in said.items() if value)
            words += ", without what an audit lists" if rule.clean else ""
            missing.append(f"selection {digest}.json: {words}{', all names' if rule.all_names else ''}")
    return missing


@contextmanager
def derived(
    prepared: Prepared, todo: Sequence[Planned], root: Path | None, reporter: Reporter, tried: set[Any] | None = None
) -> Iterator[list[Source]]:
    """Make what these cells need and try every setting on it; inside, the working sets are kept from being cleared.

    Args:
        prepared: the grid.
        todo: the cells.
        root: the folder of the data.
        reporter: told about progress.
        tried: settings that an earlier call of the same grid has tried; this call adds its own.

    Yields:
        The source of each cell.

    Raises:
        UsageError: a cell's config does not go with its rows.
        DataError, IntegrityError, FingerprintError, IncompleteError: as `relabel`, `choose`, `open_working_set`.
    """
    with ExitStack() as stack:
        opened: dict[tuple[str, str | None, bool, bool], WorkingSet] = {}
        made: dict[str, LabelStore] = {}
        sources = []
        tried = set() if tried is None else tried
        for planned in todo:
            derivation, config = planned.need.derivation, planned.cell.config
            store = planned.store
            if derivation is not None:
                if derivation.digest not in made:
                    made[derivation.digest] = _store(prepared, store, derivation, root, reporter)
                store = made[derivation.digest]
            selection, file = _selection(prepared, planned, store, reporter)
            run = requirements(config)
            key = (str(store.path), planned.need.selection_digest, run.features, run.embeddings)
            if key not in opened:
                opened[key] = _rows(prepared, store, selection, run, reporter)
                stack.callback(opened[key].close)
            setting = (key, config.changed(seed=0), planned.cell.prompts)
            if setting not in tried:
                tried.add(setting)
                _try(prepared, planned, opened[key])
            sources.append(Source(store.path, file))
        yield sources


def _store(
    prepared: Prepared, parent: LabelStore, derivation: Derivation, root: Path | None, reporter: Reporter
) -> LabelStore:
    path = prepared.folder.store(derivation.digest)
    reporter.note(f"making the store {path.name}: {derivation.words()}")
    relabel(
        RelabelRequest(
            parent=parent.path,
            labels=path,
            vocabulary=derivation.vocabulary,
            templates=derivation.templates,
            top_k=derivation.top_k,
            temperatures=derivation.temperatures,
            label_noise=None if derivation.label_noise is None else derivation.label_noise[0],
            noise_seed=0 if derivation.label_noise is None else derivation.label_noise[1],
            root=root,
        ),
        reporter,
    )
    return LabelStore.open(path)


def _selection(
    prepared: Prepared, planned: Planned, store: LabelStore, reporter: Reporter
) -> tuple[Selection | None, Path | None]:
    digest, rule = planned.need.selection_digest, planned.need.rule
    if digest is None or rule is None:
        return None, None
    file = prepared.folder.selection(digest)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        left_out: tuple[int, ...] = ()
        if rule.clean:
            listed = left_out_of(store, reporter)
            reporter.note(f"{store.path.name}: an audit leaves {len(listed.samples)} samples out")
            rule, left_out = replace(rule, clean=listed.digest), listed.samples
        chosen = choose(store, rule, reporter, left_out)
        if chosen.short:
            reporter.note(
                f"cell '{planned.cell.name}': {len(chosen.short)} classes have fewer than {rule.shots} "
                "samples; all of theirs are taken"
            )
        save_selection(file, store, rule, chosen)
    return load_selection(file, store), file


def _rows(
    prepared: Prepared,
    store: LabelStore,
    selection: Selection | None,
    run: Requirements,
    reporter: Reporter,
) -> WorkingSet:
    digest = prepared.clip.digest if run.features else None
    return open_working_set(store, digest, reporter, selection, run.embeddings)


def _try(prepared: Prepared, planned: Planned, rows: WorkingSet) -> None:
    """Set a cell up as its run will, but for the seed: what then fails would fail in a worker.

    Raises:
        UsageError: names the cell.
    """
    config = planned.cell.config
    if len(rows.vocabulary) > MOST_NAMES and (config.loss.uses_frozen or config.loss.anchor_weight):
        return
    try:
        if requirements(config).hard_labels and not rows.has_labels:
            raise UsageError(
                "no row has a class of its vocabulary: there are no hard labels to train on",
                hint="set supervision = 'soft', or other classes",
            )
        Trainer(config.changed(compile=False), prepared.clip, rows)
    except TeachOnceError as problem:
        raise problem.reworded(
            f"cell '{planned.cell.name}' cannot run; nothing was started: " + problem.message
        ) from problem
