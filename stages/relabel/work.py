"""The work of `relabel`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import time

from teachonce.core.locks import owned
from teachonce.core.progress import Reporter
from teachonce.labels.create import create_child
from teachonce.labels.derived import copy_groups, fill, open_child, open_parent
from teachonce.labels.format import EMBEDDING
from teachonce.labels.size import bytes_per_row
from teachonce.stages.relabel.class_vectors import class_vectors
from teachonce.stages.relabel.labels import LabelMaker
from teachonce.stages.relabel.plan import check, make_plan
from teachonce.stages.relabel.request import RelabelRequest, RelabelResult


def relabel(request: RelabelRequest, reporter: Reporter) -> RelabelResult:
    """Complete the store that the request describes. The stage's `relabel` says what is raised."""
    began = time.monotonic()
    check(request)
    parent = open_parent(request.parent, request.labels)
    plan = make_plan(request, parent)
    for remark in plan.vocabulary.remarks():
        reporter.note(remark)
    with owned(request.labels, reporter, request.force_unlock) as token:
        child = open_child(request.labels, plan.fingerprint, reporter)
        if child is None:
            features, spec = class_vectors(request, parent, plan, reporter)
            made = plan.fingerprint | {"about": plan.fingerprint["about"] | {"teacher": spec}}
            child = create_child(request.labels, parent, plan.layout, made, plan.vocabulary, features, reporter)
        groups = list(copy_groups(child, [parent], lambda name: plan.keeps_embeddings or name != EMBEDDING))
        maker = LabelMaker(parent, child, plan, request, reporter)
        filled = fill(child, groups, token, maker.make, reporter)
        return RelabelResult(
            rows_ok=filled.rows_ok,
            rows_failed=filled.rows_failed,
            classes=len(plan.vocabulary),
            top_k=plan.layout.top_k,
            temperatures=plan.layout.temperatures,
            templates=plan.templates,
            chunks_written=filled.written,
            chunks_skipped=filled.skipped,
            seconds=time.monotonic() - began,
            bytes_per_row=bytes_per_row(child),
            parent=str(request.parent),
            labels=str(request.labels),
            store_id=child.store_id(),
            prompts=None if request.prompts is None else str(request.prompts),
            head=None if request.head is None else str(request.head),
            row_temperatures=maker.row_temperatures(),
            prior=maker.prior(),
            embeddings_kept=plan.keeps_embeddings,
        )
