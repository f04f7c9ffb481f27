"""evaluate --protocol: the sets of a protocol one after the other with one loaded model, and one table of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from teachonce.core.progress import Reporter
from teachonce.errors import DataError, IncompleteError
from teachonce.evaluation.contender import Contender, load_contender
from teachonce.evaluation.protocols import averages, harmonic_means
from teachonce.evaluation.result import FIGURES, EvaluateResult
from teachonce.evaluation.sets import open_set
from teachonce.stages.evaluate.checks import ReadySets
from teachonce.stages.evaluate.request import EvaluateRequest, ProtocolRequest, ProtocolResult, SetLine
from teachonce.stages.evaluate.scoring import score_set


def evaluate_sets(request: ProtocolRequest, ready: ReadySets, reporter: Reporter) -> ProtocolResult:
    """Evaluate the sets whose data are there.

    Raises:
        DataError: none could be evaluated.
        FingerprintError: the prompts belong to another student.
    """
    entrant = request.entrant
    who = load_contender(entrant, request.work.threads, request.work.device)
    results, damaged = _evaluated(ready.requests, who, reporter)
    damaged = [*ready.damaged, *damaged]
    means = averages([(ready.parts[name], _figures(result)) for name, result in results.items()])
    code = IncompleteError.exit_code if ready.missing and not request.skip_missing else 0
    return ProtocolResult(
        protocol=ready.protocol.name,
        title=ready.protocol.title,
        run=None if entrant.run is None else str(entrant.run),
        wise=None if entrant.run is None else entrant.wise,
        student_digest=who.clip.digest,
        sets=tuple(_line(name, result) for name, result in results.items()),
        means=tuple(means),
        harmonic=tuple(harmonic_means(means)),
        missing=tuple(ready.missing),
        damaged=tuple(damaged),
        left_out=tuple(ready.left_out),
        details={name: asdict(result) for name, result in results.items()},
        exit_code=DataError.exit_code if damaged else code,
    )


def _evaluated(
    requests: dict[str, EvaluateRequest], who: Contender, reporter: Reporter
) -> tuple[dict[str, EvaluateResult], list[dict[str, str]]]:
    """The result of every set that can be read, and what is said of the others."""
    results: dict[str, EvaluateResult] = {}
    damaged: list[dict[str, str]] = []
    first: DataError | None = None
    for place, (name, request) in enumerate(requests.items()):
        reporter.progress("sets", place, len(requests), "sets")
        try:
            results[name] = score_set(request, open_set(request.data, reporter), who, reporter)
        except DataError as problem:  # the other sets can be evaluated all the same
            reporter.note(f"{name}: {problem.message}")
            damaged.append({"set": name, "problem": problem.message, "next": problem.hint})
            first = first or problem
    reporter.progress("sets", len(requests), len(requests), "sets")
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
        linear_top1=figures["linear_top1"],
        linear_gain=figures["linear_gain"],
        linear_p=None if result.linear is None else result.linear["paired"]["p"],
        macro=result.macro,
        ece=result.ece,
        nll=result.nll,
    )


def _figures(result: EvaluateResult) -> dict[str, Any]:
    template = None if result.baseline is None else result.baseline["top1"]
    gain = None if template is None else result.top1 - template
    measures = {key: getattr(result, key) for key in FIGURES}
    linear = result.linear or {}
    beside = {"linear_top1": linear.get("top1"), "linear_gain": linear.get("gain")}
    return {**measures, "template_top1": template, "gain": gain, **beside}
