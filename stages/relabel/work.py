"""The work of `relabel`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from teachonce.audit.label_noise import noisy_labels
from teachonce.core.locks import owned
from teachonce.core.progress import Reporter
from teachonce.labels.create import create_child
from teachonce.labels.derived import copy_groups, fill, open_child, open_parent
from teachonce.labels.format import EMBEDDING
from teachonce.labels.size import bytes_per_row
from teachonce.labels.store import LabelStore
from teachonce.stages.relabel.class_vectors import TeacherText
from teachonce.stages.relabel.labels import LabelMaker
from teachonce.stages.relabel.plan import Plan, check, make_plan
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
        text = TeacherText(request, parent, plan, reporter)
        if child is None:
            features, spec = text.class_vectors()
            made = plan.fingerprint | {"about": plan.fingerprint["about"] | {"teacher": spec}}
            noisy = _noisy(request, parent, plan)
            child = create_child(request.labels, parent, plan.layout, made, plan.vocabulary, features, reporter, noisy)
        groups = list(copy_groups(child, [parent], lambda name: plan.keeps_embeddings or name != EMBEDDING))
        maker = LabelMaker(parent, child, plan, text, request, reporter)
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
            labels_changed=_changed(request, parent, child),
            embeddings_kept=plan.keeps_embeddings,
        )


def _noisy(request: RelabelRequest, parent: LabelStore, plan: Plan) -> npt.NDArray[np.int32] | None:
    """The labels with wrong ones among them, where these are asked for."""
    if request.label_noise is None:
        return None
    return noisy_labels(parent, plan.vocabulary, request.label_noise, request.noise_seed)


def _changed(request: RelabelRequest, parent: LabelStore, child: LabelStore) -> int:
    if request.label_noise is None:
        return 0
    return int((parent.static("index/label") != child.static("index/label")).sum())
