"""subset: choose samples of a label store and write the choice to a small file; the store stays as it is."""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.data.vocabulary import read_class_ids
from teachonce.errors import UsageError
from teachonce.labels.selection import Rule, choose, save_selection
from teachonce.labels.store import LabelStore
from teachonce.phrases import option
from teachonce.stages.subset.request import SubsetRequest, SubsetResult

SHOWN = 10


def subset(request: SubsetRequest, reporter: Reporter) -> SubsetResult:
    """Write the selection file.

    Raises:
        UsageError: the request selects nothing, asks for more than the store holds, or --out is another file.
        DataError: not a label store, a class that is not in its vocabulary, or no sample is left.
        IncompleteError: the store is not complete.
        IncompleteError, EnvironmentFault: the file cannot be written.
    """
    if request.out.suffix != ".json":
        raise UsageError(option("out") + f" {request.out}: the name of a selection ends in .json")
    store = LabelStore.open(request.labels)
    classes = None if request.classes is None else read_class_ids(request.classes, store.vocabulary())
    rule = Rule(
        shots=request.shots, seed=request.seed, top_k=request.top_k, classes=classes, all_names=request.all_names
    )
    chosen = choose(store, rule, reporter)
    if chosen.short:
        reporter.note(f"{len(chosen.short)} classes have fewer than {request.shots} samples; all of theirs are taken")
    digest = save_selection(request.out, store, rule, chosen)
    return SubsetResult(
        samples=len(chosen.samples),
        rows=len(chosen.samples) * store.layout.views,
        classes=chosen.classes,
        classes_short=len(chosen.short),
        short=dict(chosen.short[:SHOWN]),
        digest=digest,
        out=str(request.out),
    )
