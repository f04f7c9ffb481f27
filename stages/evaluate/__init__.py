"""evaluate: zero-shot accuracy of a hand-written template, or of trained prompts with the template beside it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from teachonce.core.files import atomic_write_bytes
from teachonce.core.progress import Reporter
from teachonce.data.manifests import load_manifest
from teachonce.data.vocabulary import require_template
from teachonce.errors import UsageError
from teachonce.evaluation.scores import TABLE_HEADER, Labels, Outcomes, class_table, confused_pairs, figures, paired
from teachonce.evaluation.sets import Among, EvaluationSet, SetChoice, open_set
from teachonce.models.spec import parse_spec
from teachonce.phrases import option, phrase

if TYPE_CHECKING:
    from teachonce.evaluation.contender import Contender

SCHEMA = 1
SHOWN = 8  # splits in a hint


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What to evaluate on what; see `teachonce evaluate --help`."""

    run: Path | None
    student: str
    manifest: str
    root: Path | None = None
    split: str = "val"
    vocabulary: str | None = None
    template: str | None = None
    """None: the manifest's."""
    wise: float = 1.0
    """Share of the prompts in class features mixed with the template's; 1: the prompts alone (WiSE-FT)."""
    classes: Path | str | None = None
    """Images of these classes only: a file of ids, `base`, `novel`, `timm:NAME`, or `all`."""
    among: Among = "classes"
    """Whose names compete where `classes` is given: theirs, or those of the whole vocabulary."""
    without: Path | None = None
    """Classes whose names compete no more, nor those of their homonyms."""
    per_class: Path | None = None
    credits: Path | None = None
    """Write each image's credit to NAME.top1.npy, with prompts also the template's to NAME.template.top1.npy."""
    protocol: str | None = None
    """Of which protocol this is a part, for the result."""
    cache: bool = True
    """Whether features and outcomes may come from, and go to, the user's cache."""
    batch_size: int = 128
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """Shares are fractions of the `n` images that could be decoded."""

    top1: float
    top5: float
    macro: float
    """Mean over classes with images of their top-1."""
    ece: float
    """Expected calibration error at the model's own logit scale, 15 bins of equally many images."""
    nll: float
    """Mean -ln p of the image's class, nats."""
    n: int
    classes: int
    """Names that compete."""
    classes_seen: int
    """Of these, with at least one image."""
    top1_interval: tuple[float, float]
    """Wilson, 95 %."""
    tied_names: int
    """Classes that share their name with another: m of them share the credit, 1/m each."""
    failed: int
    """Images that could not be decoded; they are not in n."""
    left_out: int
    """Images of the split that were not asked for: of other classes, of names taken out, without a class."""
    template: str | None
    run: str | None
    wise: float | None
    """Share of the prompts in the class features; None without prompts."""
    baseline: dict[str, Any] | None
    """With prompts: top1, top5, macro, ece, nll and the template of the bare student on the same images."""
    paired: dict[str, float | int] | None
    """With prompts: images that only they, or only the template, got right, and McNemar's exact p."""
    protocol: str | None
    manifest: str
    split: str
    chosen: str
    """Which classes, and among which names."""
    templates: tuple[str, ...]
    names_digest: str
    """Of the ids and names that compete."""
    digests: dict[str, str]
    """Of the student's weights, the whole vocabulary, the classified samples, the prompts."""
    per_class: str | None
    credits: str | None
    confused: tuple[dict[str, Any], ...]
    """The classes most often taken for one other, with the share of their images."""
    schema: int = SCHEMA


def evaluate(request: EvaluateRequest, reporter: Reporter) -> EvaluateResult:
    """Classify images of a split among the names that compete.

    Raises:
        UsageError: unknown split, bad template, options that would do nothing.
        DataError: missing or broken data, a class of the split that the vocabulary lacks.
        FingerprintError: the prompts belong to another student.
    """
    check(request)
    with _next_step(phrase("{vocabulary} takes a TSV file of ids and names, or timm:NAME")):
        data = open_set(set_choice(request), reporter)
    from teachonce.evaluation.contender import load_contender  # heavy: only when the data is in order

    who = load_contender(request.student, request.run, request.wise, request.threads)
    return score_set(request, data, who, reporter)


def check(request: EvaluateRequest) -> None:
    """Refuse what can be refused before any data is looked at.

    Raises:
        UsageError: no such model, template or run, a mixture without prompts, or a file that would be overwritten.
    """
    parse_spec(request.student)
    if request.template is not None:
        require_template(request.template)
    if request.run is None and request.wise != 1:
        raise UsageError(
            phrase("{wise} mixes prompts with the template, and no RUN was given"), hint="give a run folder"
        )
    if request.run is not None and not request.run.is_dir():
        raise UsageError(
            f"{request.run} is not a run folder", hint=phrase("give the {out} folder of `teachonce train`")
        )
    with _next_step(phrase("{manifest} takes a TOML file, or the name of a shipped manifest")):
        manifest = load_manifest(request.manifest)
    with _next_step(option("split") + f" {' or '.join(list(manifest.splits)[:SHOWN])}"):
        manifest.split(request.split)
    if request.per_class is not None:
        _require_ours(request.per_class)


def _require_ours(table: Path) -> None:
    """Refuse to write a table of classes over anything but one."""
    head = b""
    if table.is_file():
        with open(table, "rb") as file:
            head = file.readline(len(TABLE_HEADER) + 2)
    if table.exists() and head.strip() != TABLE_HEADER.encode():
        raise UsageError(
            option("per_class") + f" {table}: this is there already, and no table of classes; nothing was changed",
            hint="give the path of a new .csv",
        )


@contextlib.contextmanager
def _next_step(hint: str) -> Iterator[None]:
    """Say what to do about an error of a part that does not know the options of this command."""
    try:
        yield
    except UsageError as problem:
        if problem.hint:
            raise
        raise problem.reworded(hint=hint) from problem


def set_choice(request: EvaluateRequest) -> SetChoice:
    """The part of a request that says what is classified among what."""
    return SetChoice(
        manifest=request.manifest,
        root=request.root,
        split=request.split,
        vocabulary=request.vocabulary,
        classes=request.classes,
        among=request.among,
        without=request.without,
    )


def score_set(request: EvaluateRequest, data: EvaluationSet, who: Contender, reporter: Reporter) -> EvaluateResult:
    """Score prompts and template, or the template alone, on one set, and write what was asked for.

    Raises:
        DataError: no image could be decoded, or features are not numbers.
        UsageError: a name or the template is too long.
    """
    from teachonce.evaluation.contender import judge
    from teachonce.evaluation.features import Work

    template = request.template or data.manifest.template
    work = Work(batch_size=request.batch_size, threads=request.threads, cache=request.cache)
    sides = [who] if who.prompts is None else [who.bare, who]
    with _next_step(phrase("shorten {template}, or the names in {vocabulary}")):
        judged = judge(sides, data, template, work, reporter)
    good, ours = judged[-1].decoded, judged[-1].outcomes
    beside = judged[0].outcomes if len(sides) > 1 else None
    labels = data.labels[good]
    bare = len(data.candidates) - len(np.unique(labels))
    if bare and request.vocabulary is None and request.among == "classes":
        reporter.note(
            f"{bare} of {len(data.candidates)} classes have no image in '{data.split}'; their names compete "
            "all the same"
        )
    if request.per_class is not None:
        _write(request.per_class, class_table(ours, beside, labels, data.candidates))
    if request.credits is not None:
        _write_credits(request.credits, ours, beside)
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
    for side, found in (("", ours), (".template", beside)):
        if found is not None:
            buffer = io.BytesIO()
            np.save(buffer, found.top1.astype(np.float32), allow_pickle=False)
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
    from teachonce.evaluation.statistics import wilson

    names, prompted, found = data.candidates, who.prompts is not None, figures(ours, labels)
    digests = {"student": who.clip.digest, "vocabulary": data.vocabulary.digest, "samples": data.samples.digest}
    digests |= {"prompts": who.prompts.tensors_digest} if who.prompts is not None else {}
    return EvaluateResult(
        top1=found["top1"],
        top5=found["top5"],
        macro=found["macro"],
        ece=found["ece"],
        nll=found["nll"],
        n=len(labels),
        classes=len(names),
        classes_seen=len(np.unique(labels)),
        top1_interval=wilson(found["top1"], len(labels)),
        tied_names=names.tied(),
        failed=len(data.rows) - len(labels),
        left_out=data.left_out,
        template=None if prompted else template,
        run=str(request.run) if prompted else None,
        wise=request.wise if prompted else None,
        baseline=None if beside is None else {**figures(beside, labels), "template": template},
        paired=None if beside is None else paired(ours, beside),
        protocol=request.protocol,
        manifest=data.manifest.name,
        split=data.split,
        chosen=data.in_words,
        templates=(template,),
        names_digest=names.digest,
        digests=digests,
        per_class=None if request.per_class is None else str(request.per_class),
        credits=None if request.credits is None else str(credit_file(request.credits)),
        confused=tuple(confused_pairs(ours, labels, names)),
    )
