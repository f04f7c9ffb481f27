"""Zero-shot accuracy of a hand-written template, or of trained prompts with the template beside it, on one set."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from teachonce.core.files import atomic_write_bytes
from teachonce.core.progress import Reporter
from teachonce.evaluation.contender import Contender, judge, load_contender
from teachonce.evaluation.result import EvaluateResult
from teachonce.evaluation.scores import Labels, Outcomes, class_table, confused_pairs, figures, paired
from teachonce.evaluation.sets import EvaluationSet
from teachonce.evaluation.statistics import wilson
from teachonce.phrases import phrase
from teachonce.stages.evaluate.checks import next_step
from teachonce.stages.evaluate.request import EvaluateRequest


def load_and_score(request: EvaluateRequest, data: EvaluationSet, reporter: Reporter) -> EvaluateResult:
    """Load the student and score it on the set; raises what `load_contender` and `score_set` raise."""
    return score_set(request, data, load_contender(request.entrant, request.work.threads), reporter)


def score_set(request: EvaluateRequest, data: EvaluationSet, who: Contender, reporter: Reporter) -> EvaluateResult:
    """Score prompts and template, or the template alone, on one set, and write what was asked for.

    Raises:
        DataError: no image could be decoded, or features are not numbers.
        UsageError: a name or the template is too long.
    """
    template, work = request.entrant.template or data.manifest.template, request.work
    sides = [who] if who.prompts is None else [who.bare, who]
    with next_step(phrase("shorten {template}, or the names in {vocabulary}")):
        judged = judge(sides, data, template, work, reporter)
    good, ours = judged[-1].decoded, judged[-1].outcomes
    beside = judged[0].outcomes if len(sides) > 1 else None
    labels = data.labels[good]
    bare = len(data.candidates) - len(np.unique(labels))
    if bare and request.data.vocabulary is None and request.data.among == "classes":
        reporter.note(
            f"{bare} of {len(data.candidates)} classes have no image in '{data.split}'; their names compete "
            "all the same"
        )
    if request.files.per_class is not None:
        _write(request.files.per_class, class_table(ours, beside, labels, data.candidates))
    if request.files.credits is not None:
        _write_credits(request.files.credits, ours, beside)
    result = _result(request, data, who, template, labels, ours, beside)
    reporter.note(in_short(result))
    return result


def in_short(result: EvaluateResult) -> str:
    """What one wants to know first, on one line."""
    text = f"{result.manifest} {result.split}, {result.n:,} images, {result.classes:,} names: top-1 {result.top1:.1%}"
    if result.baseline is None or result.paired is None:
        return text
    return f"{text}, template {result.baseline['top1']:.1%}, McNemar p {result.paired['p']:.2g}"


def credit_file(path: Path, side: str = "") -> Path:
    """NAME.top1.npy, or NAME.template.top1.npy, beside each other, for NAME, NAME.npy or NAME.top1.npy."""
    stem = path.name.removesuffix(".npy").removesuffix(".top1")
    return path.with_name(f"{stem}{side}.top1.npy")


def _write_credits(path: Path, ours: Outcomes, beside: Outcomes | None) -> None:
    for side, side_outcomes in (("", ours), (".template", beside)):
        if side_outcomes is not None:
            buffer = io.BytesIO()
            np.save(buffer, side_outcomes.top1.astype(np.float32), allow_pickle=False)
            _write(credit_file(path, side), buffer.getvalue())


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(file, data)


def _result(
    request: EvaluateRequest,
    data: EvaluationSet,
    who: Contender,
    template: str,
    labels: Labels,
    ours: Outcomes,
    beside: Outcomes | None,
) -> EvaluateResult:
    names, prompted, scores = data.candidates, who.prompts is not None, figures(ours, labels)
    digests = {"student": who.clip.digest, "vocabulary": data.vocabulary.digest, "samples": data.samples.digest}
    digests |= {"prompts": who.prompts.tensors_digest} if who.prompts is not None else {}
    return EvaluateResult(
        top1=scores["top1"],
        top5=scores["top5"],
        macro=scores["macro"],
        ece=scores["ece"],
        nll=scores["nll"],
        n=len(labels),
        classes=len(names),
        classes_seen=len(np.unique(labels)),
        top1_interval=wilson(scores["top1"], len(labels)),
        tied_names=names.tied(),
        failed=len(data.rows) - len(labels),
        left_out=data.left_out,
        template=None if prompted else template,
        run=str(request.entrant.run) if prompted else None,
        wise=request.entrant.wise if prompted else None,
        baseline=None if beside is None else {**figures(beside, labels), "template": template},
        paired=None if beside is None else paired(ours, beside),
        protocol=request.protocol,
        manifest=data.manifest.name,
        split=data.split,
        chosen=data.in_words,
        templates=(template,),
        names_digest=names.digest,
        digests=digests,
        per_class=None if request.files.per_class is None else str(request.files.per_class),
        credits=None if request.files.credits is None else str(credit_file(request.files.credits)),
        confused=tuple(confused_pairs(ours, labels, names)),
    )
