"""The evaluation sets of a grid: there before anything starts, and the same ones for every result that is kept.

A result is kept under the name of its evaluation. A class file that was edited under its name, other images, or an
evaluation that was taken out and put back changed, would put figures of different sets side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from teachonce.core.progress import Reporter
from teachonce.errors import FingerprintError, TeachOnceError
from teachonce.evaluation.choice import Entrant, SetChoice, StoredChoice, Work
from teachonce.evaluation.result import EvaluateResult, read_result
from teachonce.evaluation.sets import open_set
from teachonce.phrases import Option, respelled
from teachonce.runs.grid_folder import GridFolder
from teachonce.search.tables import Evaluation
from teachonce.stages.ablate.stored import stored_templates
from teachonce.stages.evaluate import EvaluateRequest, Files
from teachonce.stages.evaluate.checks import check

# Options of `evaluate` that are keys of a grid; the root is an option of `ablate` too.
_KEYS = ("manifest", "split", "vocabulary", "classes", "among", "without", "template", "wise")


def open_sets(
    evaluations: Iterable[Evaluation], student: str, root: Path | None, file: Path, reporter: Reporter
) -> dict[str, dict[str, Any]]:
    """Open every evaluation set of images once, so that missing data are reported before hours of training.

    Args:
        evaluations: the evaluations of the grid.
        student: the model, as a person names it.
        root: the folder of the data, for evaluations that name none.
        file: the file of the grid.
        reporter: told about progress.

    Returns:
        By evaluation, the facts that its results must state.

    Raises:
        TeachOnceError: as `evaluate` would; names the evaluation.
    """
    expected = {}
    for evaluation in evaluations:
        if evaluation.stored:
            continue
        wanted = evaluate_request(evaluation, student, root)
        try:
            check(wanted)
            data = open_set(wanted.data, reporter)
        except TeachOnceError as problem:
            said, hint = respelled(problem.message, _as_key), respelled(problem.hint, _as_key)
            where = f" (in that [[evaluate]] of {file})" if hint != problem.hint else ""
            raise problem.reworded(f"[[evaluate]] {evaluation.name}: " + said, hint + where) from problem
        expected[evaluation.name] = {
            "images": data.samples.digest,
            "names": data.candidates.digest,
            "split": data.split,
            "templates": [evaluation.template or data.manifest.template],
            "wise": evaluation.wise,
        }
    return expected


def evaluate_request(
    evaluation: Evaluation,
    student: str,
    root: Path | None,
    run: Path | None = None,
    file: Path | None = None,
    threads: int | None = None,
    stored: StoredChoice | None = None,
) -> EvaluateRequest:
    """The request for `evaluate`; `run` and `file` are left out where sets are checked before any cell has run."""
    share = 1.0 if run is None else evaluation.wise
    if stored is not None:
        templates = stored_templates(evaluation, stored)
    else:
        templates = () if evaluation.template is None else (evaluation.template,)
    return EvaluateRequest(
        entrant=Entrant(student=student, run=run, templates=templates, wise=share),
        data=SetChoice(
            manifest=evaluation.manifest,
            root=Path(evaluation.root) if evaluation.root else root,
            split=evaluation.split,
            vocabulary=evaluation.vocabulary,
            classes=evaluation.classes,
            among="all" if evaluation.among == "all" and stored is None else "classes",
            without=Path(evaluation.without) if evaluation.without else None,
        ),
        files=Files(per_class=file.with_suffix(".csv"), credits=file.with_suffix(".npy")) if file else Files(),
        work=Work(threads=threads),
        protocol=evaluation.protocol,
    )


def _as_key(named: Option) -> str | Option:
    """An option of `evaluate` as the key of a grid that stands for it."""
    return f"`{named.name} =`" if named.name in _KEYS else named


def require_measured_so(
    folder: GridFolder,
    evaluations: Iterable[Evaluation],
    sets: Mapping[str, Mapping[str, Mapping[str, Any]]],
    rungs: Sequence[int] = (),
) -> None:
    """Refuse results of cells that are of other images, names, templates or shares than the grid asks for.

    Args:
        folder: of the grid.
        evaluations: of the grid.
        sets: for each cell, by digest, the facts that the results of its evaluations must state.
        rungs: steps after which a search measures cells, too.

    Raises:
        FingerprintError: names the first such file and what differs.
        IntegrityError: a file is not what `evaluate` writes.
    """
    for evaluation in evaluations:
        for digest, facts in sets.items():
            cell = folder.cell(digest)
            files = [cell.evaluation(evaluation.name), *(cell.rung(step).evaluation(evaluation.name) for step in rungs)]
            for file in [folder.final(evaluation.name, digest)] if evaluation.only else files:
                _require_so(file, evaluation, facts[evaluation.name])


def _require_so(file: Path, evaluation: Evaluation, wanted: Mapping[str, Any]) -> None:
    result = read_result(file)
    if result is None:
        return
    recorded = _recorded(result)
    different = [
        f"{key}: there {_short(recorded[key])}, here {_short(wanted[key])}"
        for key in wanted
        if recorded[key] != wanted[key]
    ]
    if different:
        raise FingerprintError(
            f"{file} is not of the evaluation '{evaluation.name}' as the grid has it now:\n  " + "\n  ".join(different),
            hint="give the changed evaluation a new name; or take the old results away from all cells, and "
            "they are evaluated again",
        )


def _recorded(result: EvaluateResult) -> dict[str, Any]:
    return {
        "images": result.digests.get("samples"),
        "names": result.names_digest or None,
        "split": result.split or None,
        "templates": list(result.templates),
        "wise": result.wise,
    }


def _short(value: Any) -> str:
    return str(value)[:40]
