"""Zero-shot accuracy of a hand-written template, or of trained prompts with the template beside it, on one set."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from teachonce.core.devices import device_explained
from teachonce.core.files import atomic_write_bytes
from teachonce.core.progress import Reporter
from teachonce.evaluation.contender import Contender, judge, load_contender
from teachonce.evaluation.result import EvaluateResult
from teachonce.evaluation.scores import Labels, Outcomes, class_table, confused_pairs, figures, paired
from teachonce.evaluation.sets import EvaluationSet
from teachonce.evaluation.statistics import wilson
from teachonce.phrases import phrase
from teachonce.stages.evaluate.checks import next_step
from teachonce.stages.evaluate.request import EvaluateRequest, Files

SMALLER = phrase("a smaller {batch_size=32}; `nvidia-smi` shows who else uses the GPU")
TOGETHER = " + "  # between templates whose features are averaged


def load_and_score(request: EvaluateRequest, data: EvaluationSet, reporter: Reporter) -> EvaluateResult:
    """Load the student and score it on the set; raises what `load_contender` and `score_set` raise."""
    return score_set(
        request, data, load_contender(request.entrant, request.work.threads, request.work.device), reporter
    )


def score_set(request: EvaluateRequest, data: EvaluationSet, who: Contender, reporter: Reporter) -> EvaluateResult:
    """Score prompts beside template and linear reference, or the template alone, and write what was asked for.

    Raises:
        DataError: no image could be decoded, or features are not numbers.
        UsageError: a name or the template is too long.
    """
    templates, work = request.entrant.templates or (data.manifest.template,), request.work
    sides = [who] if who.prompts is None else [who, who.bare, *([] if who.linear is None else [who.linear])]
    with next_step(phrase("shorten {template}, or the names in {vocabulary}")), device_explained(SMALLER):
        judged = judge(sides, data, templates, work, reporter)
    good, ours, others = judged[0].decoded, judged[0].outcomes, [side.outcomes for side in judged[1:]]
    beside, linear = others[0] if others else None, others[1] if others[1:] else None
    labels = data.labels[good]
    bare = len(data.candidates) - len(np.unique(labels))
    if bare and request.data.vocabulary is None and request.data.among == "classes":
        reporter.note(
            f"{bare} of {len(data.candidates)} classes have no image in '{data.split}'; their names compete "
            "all the same"
        )
    result = _result(request, data, who, templates, labels, ours, beside)
    if linear is not None and beside is not None and who.linear is not None:
        result = replace(
            result,
            linear=_linear(who.linear, data, labels, linear, ours, beside),
            digests=result.digests | _digest_of(who.linear, "linear"),
        )
    table = b"" if request.files.per_class is None else class_table(ours, beside, labels, data.candidates)
    result = replace(result, digests=result.digests | _written(request.files, table, ours, beside, linear))
    reporter.note(in_short(result))
    return result


def in_short(result: EvaluateResult) -> str:
    """What one wants to know first, on one line."""
    text = f"{result.manifest} {result.split}, {result.n:,} images, {result.classes:,} names: top-1 {result.top1:.1%}"
    if result.baseline is None or result.paired is None:
        return text
    text += f", template {result.baseline['top1']:.1%}, McNemar p {result.paired['p']:.2g}"
    if result.linear is None:
        return text
    p = result.linear["paired"]["p"]
    return text + f"; linear reference {result.linear['top1']:.1%}, to the template p {p:.2g}"


def credit_file(path: Path, side: str = "") -> Path:
    """NAME.top1.npy, or with a side NAME.SIDE.top1.npy beside it, for NAME, NAME.npy or NAME.top1.npy."""
    stem = path.name.removesuffix(".npy").removesuffix(".top1")
    return path.with_name(f"{stem}{side}.top1.npy")


def _written(
    files: Files, table: bytes, ours: Outcomes, beside: Outcomes | None, linear: Outcomes | None
) -> dict[str, str]:
    """Write the files that were asked for; returns the SHA-256 of each, by what it holds."""
    contents: dict[str, tuple[Path, bytes]] = {}
    if files.per_class is not None:
        contents["per_class"] = files.per_class, table
    sides = (("credits", "", ours), ("template_credits", ".template", beside), ("linear_credits", ".linear", linear))
    for key, side, credited in sides:
        if files.credits is not None and credited is not None:
            buffer = io.BytesIO()
            np.save(buffer, credited.top1.astype(np.float32), allow_pickle=False)
            contents[key] = credit_file(files.credits, side), buffer.getvalue()
    for file, data in contents.values():
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(file, data)
    return {key: hashlib.sha256(data).hexdigest() for key, (_, data) in contents.items()}


def _result(
    request: EvaluateRequest,
    data: EvaluationSet,
    who: Contender,
    templates: tuple[str, ...],
    labels: Labels,
    ours: Outcomes,
    beside: Outcomes | None,
) -> EvaluateResult:
    template = TOGETHER.join(templates)
    names, prompted, scores = data.candidates, who.prompts is not None, figures(ours, labels)
    digests = {"student": who.clip.digest, "vocabulary": data.vocabulary.digest, "samples": data.samples.digest}
    digests |= _digest_of(who, "prompts")
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
        linear_why=who.linear_why if prompted else "",
        protocol=request.protocol,
        manifest=data.manifest.name,
        split=data.split,
        chosen=data.in_words,
        templates=templates,
        names_digest=names.digest,
        digests=digests,
        per_class=None if request.files.per_class is None else str(request.files.per_class),
        credits=None if request.files.credits is None else str(credit_file(request.files.credits)),
        confused=tuple(confused_pairs(ours, labels, names)),
    )


def _digest_of(side: Contender, key: str) -> dict[str, str]:
    return {} if side.prompts is None else {key: side.prompts.tensors_digest}


def _linear(
    side: Contender, data: EvaluationSet, labels: Labels, linear: Outcomes, ours: Outcomes, template: Outcomes
) -> dict[str, Any]:
    """What the result says of the linear reference."""
    return {
        **figures(linear, labels),
        "names": side.known_names(data.candidates.names),
        "gain": float(linear.top1.mean() - template.top1.mean()),
        "paired": paired(linear, template, ("linear", "template")),
        "prompts_gain": float(ours.top1.mean() - linear.top1.mean()),
        "prompts_paired": paired(ours, linear, ("prompts", "linear")),
    }
