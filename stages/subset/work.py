"""The work of `subset`. The docstring of the package says what the stage promises."""

from __future__ import annotations

from teachonce.audit.findings import read_left_out
from teachonce.core.progress import Reporter
from teachonce.data.vocabulary import read_class_ids
from teachonce.errors import UsageError
from teachonce.labels.selection import Rule, choose, save_selection
from teachonce.labels.store import LabelStore
from teachonce.phrases import option
from teachonce.stages.subset.request import SubsetRequest, SubsetResult

SHOWN = 10


def subset(request: SubsetRequest, reporter: Reporter) -> SubsetResult:
    """Write the selection file. The stage's `subset` says what is raised."""
    if request.out.suffix != ".json":
        raise UsageError(option("out") + f" {request.out}: the name of a selection ends in .json")
    store = LabelStore.open(request.labels)
    classes = None if request.classes is None else read_class_ids(request.classes, store.vocabulary())
    listed = None if request.clean is None else read_left_out(request.clean, store)
    rule = Rule(
        shots=request.shots,
        seed=request.seed,
        top_k=request.top_k,
        classes=classes,
        all_names=request.all_names,
        clean=None if listed is None else listed.digest,
    )
    chosen = choose(store, rule, reporter, () if listed is None else listed.samples)
    if chosen.short:
        reporter.note(f"{len(chosen.short)} classes have fewer than {request.shots} samples; all of theirs are taken")
    digest = save_selection(request.out, store, rule, chosen, reporter)
    return SubsetResult(
        samples=len(chosen.samples),
        rows=len(chosen.samples) * store.layout.views,
        classes=chosen.classes,
        classes_short=len(chosen.short),
        short=dict(chosen.short[:SHOWN]),
        left_out=0 if listed is None else len(listed.samples),
        digest=digest,
        out=str(request.out),
    )
