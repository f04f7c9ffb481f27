"""evaluate --protocol: the sets of a protocol one after the other with one loaded model, and one table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachonce.core.progress import Reporter
from teachonce.data.manifests import load_manifest, require_data, require_root
from teachonce.errors import DataError, IncompleteError
from teachonce.evaluation.protocols import (
    Protocol,
    ProtocolSet,
    averages,
    filled_in,
    harmonic_means,
    load_protocol,
    require_any,
)
from teachonce.evaluation.sets import open_set
from teachonce.stages.evaluate import EvaluateRequest, EvaluateResult, check, score_set, set_choice

if TYPE_CHECKING:
    from teachonce.evaluation.contender import Contender

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class ProtocolRequest:
    """What to evaluate under which protocol; see `teachonce evaluate --help`."""

    protocol: str
    run: Path | None
    student: str
    root: Path | None = None
    manifest: str | None = None
    """This and the next four go where the protocol asks for them, and nowhere else."""
    split: str | None = None
    vocabulary: str | None = None
    classes: str | None = None
    without: Path | None = None
    template: str | None = None
    """Takes the place of every set's own."""
    wise: float = 1.0
    per_class: Path | None = None
    """A folder for a SET.csv of each set."""
    credits: Path | None = None
    """A folder for SET.top1.npy and SET.template.top1.npy."""
    skip_missing: bool = False
    """Sets whose data are not there are no reason for another exit code."""
    cache: bool = True
    batch_size: int = 128
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class SetLine:
    """One line of the table; fractions."""

    set: str
    n: int
    classes: int
    """Names that compete."""
    top1: float
    template_top1: float | None
    """None without prompts: then top1 is the template's."""
    gain: float | None
    p: float | None
    """McNemar, exact."""
    macro: float
    ece: float
    nll: float


@dataclass(frozen=True, kw_only=True)
class ProtocolResult:
    """The table, its means, and what could not be evaluated."""

    protocol: str
    title: str
    run: str | None
    wise: float | None
    student_digest: str
    sets: tuple[SetLine, ...]
    means: tuple[dict[str, Any], ...]
    """Over sets with the same kind of classes and names, all sets counting alike."""
    harmonic: tuple[dict[str, Any], ...]
    """H of the means of base and novel, as published; top1 of the part `all` is the joint accuracy."""
    missing: tuple[dict[str, str], ...]
    """Sets whose data are not there: which file, where it comes from."""
    damaged: tuple[dict[str, str], ...]
    """Sets whose data are there and wrong."""
    left_out: tuple[str, ...]
    """Sets that need an option which was not given."""
    details: dict[str, dict[str, Any]]
    """Every set's whole result."""
    exit_code: int
    """0; 3 where data are damaged; 5 where data are missing, so that the same command may go on later."""
    schema: int = SCHEMA


def evaluate_protocol(request: ProtocolRequest, reporter: Reporter) -> ProtocolResult:
    """Evaluate every set whose data are there.

    Raises:
        UsageError: no such protocol, an option that it has no use for, or what `evaluate` refuses.
        DataError: no set is there, or none could be evaluated.
        FingerprintError: the prompts belong to another student.
    """
    protocol = load_protocol(request.protocol)
    ready, left_out = filled_in(protocol, _options(request))
    for name in left_out:
        reporter.note(f"{name} is left out: it needs an option that was not given")
    requests = {item.name: _request_of(item, protocol, request) for item in ready}
    for one in requests.values():
        check(one)
    ready, missing = _there(ready, requests)
    for line in missing:
        reporter.note(f"{line['set']}: " + line["problem"])
    require_any(missing, ready)
    from teachonce.evaluation.contender import load_contender  # heavy: only when there is something to evaluate

    who = load_contender(request.student, request.run, request.wise, request.threads)
    results, damaged = _evaluated(ready, requests, who, reporter)
    lines = [_line(item.name, results[item.name]) for item in ready if item.name in results]
    parts = [(item.part, _figures(results[item.name])) for item in ready if item.name in results]
    means = averages(parts)
    code = IncompleteError.exit_code if missing and not request.skip_missing else 0
    return ProtocolResult(
        protocol=protocol.name,
        title=protocol.title,
        run=None if request.run is None else str(request.run),
        wise=None if request.run is None else request.wise,
        student_digest=who.clip.digest,
        sets=tuple(lines),
        means=tuple(means),
        harmonic=tuple(harmonic_means(means)),
        missing=tuple(missing),
        damaged=tuple(damaged),
        left_out=tuple(left_out),
        details={name: asdict(result) for name, result in results.items()},
        exit_code=DataError.exit_code if damaged else code,
    )


def _options(request: ProtocolRequest) -> dict[str, str | None]:
    names = ("manifest", "split", "vocabulary", "classes", "without")
    return {name: None if (value := getattr(request, name)) is None else str(value) for name in names}


def _request_of(item: ProtocolSet, protocol: Protocol, request: ProtocolRequest) -> EvaluateRequest:
    return EvaluateRequest(
        run=request.run,
        student=request.student,
        manifest=item.manifest,
        root=request.root,
        split=item.split,
        vocabulary=item.vocabulary,
        template=request.template or item.template,
        wise=request.wise,
        classes=item.classes,
        among=item.among,
        without=None if item.without is None else Path(item.without),
        per_class=None if request.per_class is None else request.per_class / f"{item.name}.csv",
        credits=None if request.credits is None else request.credits / f"{item.name}.top1.npy",
        protocol=protocol.name,
        cache=request.cache,
        batch_size=request.batch_size,
        threads=request.threads,
    )


def _there(
    sets: Sequence[ProtocolSet], requests: dict[str, EvaluateRequest]
) -> tuple[list[ProtocolSet], list[dict[str, str]]]:
    """The sets whose data are there, and what is said of the others."""
    ready, missing = [], []
    for item in sets:
        manifest = load_manifest(item.manifest)
        root = require_root(manifest, requests[item.name].root)
        try:
            require_data(manifest, item.split, root)
        except DataError as problem:
            missing.append({"set": item.name, "problem": problem.message, "get": problem.hint})
        else:
            ready.append(item)
    return ready, missing


def _evaluated(
    sets: Sequence[ProtocolSet], requests: dict[str, EvaluateRequest], who: Contender, reporter: Reporter
) -> tuple[dict[str, EvaluateResult], list[dict[str, str]]]:
    """The result of every set that can be read, and what is said of the others."""
    results: dict[str, EvaluateResult] = {}
    damaged: list[dict[str, str]] = []
    first: DataError | None = None
    for place, item in enumerate(sets):
        request = requests[item.name]
        reporter.progress("sets", place, len(sets), "sets")
        try:
            results[item.name] = score_set(request, open_set(set_choice(request), reporter), who, reporter)
        except DataError as problem:  # the other sets are none the worse for it
            reporter.note(f"{item.name}: " + problem.message)
            damaged.append({"set": item.name, "problem": problem.message, "next": problem.hint})
            first = first or problem
    reporter.progress("sets", len(sets), len(sets), "sets")
    if not results and first is not None:
        raise first
    return results, damaged


def _line(name: str, result: EvaluateResult) -> SetLine:
    figures = _figures(result)
    return SetLine(
        set=name,
        n=result.n,
        classes=result.classes,
        top1=result.top1,
        template_top1=figures["template_top1"],
        gain=figures["gain"],
        p=None if result.paired is None else result.paired["p"],
        macro=result.macro,
        ece=result.ece,
        nll=result.nll,
    )


def _figures(result: EvaluateResult) -> dict[str, Any]:
    template = None if result.baseline is None else result.baseline["top1"]
    gain = None if template is None else result.top1 - template
    own = {key: getattr(result, key) for key in ("top1", "top5", "macro", "ece", "nll")}
    return {**own, "template_top1": template, "gain": gain}
