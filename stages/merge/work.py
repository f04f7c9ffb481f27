"""The work of `merge`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from teachonce import __version__
from teachonce.core.devices import pick_device
from teachonce.core.locks import owned
from teachonce.core.machine import choose_threads, package_versions
from teachonce.core.progress import Reporter
from teachonce.errors import DataError, FingerprintError, UsageError
from teachonce.labels.codec import CODEC_VERSION
from teachonce.labels.create import create_child
from teachonce.labels.derived import STUDENTS, Rows, content_id, copy_groups, fill, open_child, open_parent
from teachonce.labels.format import EMBEDDING, LABELS, new_layout
from teachonce.labels.ledger import key_digest, resize_of
from teachonce.labels.size import bytes_per_row
from teachonce.labels.store import Arrays, LabelStore
from teachonce.phrases import option, phrase
from teachonce.stages.merge.request import MergeRequest, MergeResult

if TYPE_CHECKING:
    from torch import Tensor

    from teachonce.teaching.teacher import TeacherHead

BATCH_ROWS = 512
WEIGHTS_OFF = 1e-6  # how far the sum of the weights may be from 1
SAME_ROWS = ("label", "sample", "view")
ROW_ARRAYS = (*SAME_ROWS, "status", "image_crc")
TEACHER_FIELDS = ("teacher_digest", "precision", "preprocess", "templates")


def merge(request: MergeRequest, reporter: Reporter) -> MergeResult:
    """Complete the store that the request describes. The stage's `merge` says what is raised."""
    began = time.monotonic()
    weights = _weights(request)
    parents = [open_parent(path, request.labels) for path in request.parents]
    _require_alike(parents)
    first = parents[0]
    top_k = first.layout.top_k if request.top_k is None else request.top_k
    if top_k > first.layout.classes:
        raise UsageError(option("top_k") + f" {top_k} is larger than the vocabulary of {first.layout.classes} classes")
    with owned(request.labels, reporter, request.force_unlock) as token:
        child, scales = _open_or_create(request, parents, weights, top_k, reporter)
        sources = copy_groups(child, parents, lambda name: name.startswith(STUDENTS))
        maker = _Maker(parents, child, weights, scales, sources, request)
        filled = fill(child, list(sources), token, maker.make, reporter)
        teachers = tuple(
            {"labels": str(p.path), "weight": w, "trained_scale": _trained_scale(p), "scale": s} | row
            for p, w, s, row in zip(parents, weights, scales, maker.mean_row_weights(), strict=True)
        )
        return MergeResult(
            rows_ok=filled.rows_ok,
            rows_failed=filled.rows_failed,
            top_k=top_k,
            teachers=teachers,
            chunks_written=filled.written,
            chunks_skipped=filled.skipped,
            seconds=time.monotonic() - began,
            bytes_per_row=bytes_per_row(child),
            labels=str(request.labels),
            store_id=child.store_id(),
        )


def _weights(request: MergeRequest) -> tuple[float, ...]:
    """One positive weight a parent, adding up to 1."""
    count = len(request.parents)
    if count < 2:
        raise UsageError(f"a merge needs at least two stores, found {count}", phrase("teachonce merge {help}"))
    if len({path.resolve() for path in request.parents}) < count:
        raise UsageError(phrase("the same store is given twice; {weights} says how much each store counts"))
    for name, value in ((option("top_k"), request.top_k), ("threads", request.threads)):
        if value is not None and value < 1:
            raise UsageError(name + f" must be at least 1, found {value}")
    if request.weights is not None and request.row_weights != "equal":
        raise UsageError(
            option("weights") + f" are numbers or {request.row_weights}, not both: rows decide, or the numbers do"
        )
    given = (1.0 / count,) * count if request.weights is None else request.weights
    if len(given) != count:
        raise UsageError(option("weights") + f" names {len(given)} numbers for {count} stores: expected one a store")
    listed = ", ".join(f"{weight:g}" for weight in given)
    if not all(math.isfinite(weight) and weight > 0 for weight in given):
        raise UsageError(option("weights") + f" must be positive numbers, found {listed}")
    if max(given) > 2 or abs(math.fsum(given) - 1) > WEIGHTS_OFF:
        raise UsageError(
            option("weights") + f" must add up to 1, found {listed}, which is {sum(given):.7g}",
            hint="leave them out for equal weights",
        )
    return given


def _require_alike(parents: Sequence[LabelStore]) -> None:
    """The same rows about the same classes; how they are cut into chunks may differ.

    Raises:
        FingerprintError: names each differing field with both values.
    """
    first = _subject(parents[0])
    for other in parents[1:]:
        theirs = _subject(other)
        different = [
            f"{field}: {first[field]!r} and {theirs[field]!r}" for field in first if first[field] != theirs[field]
        ]
        if different:
            raise FingerprintError(
                f"{parents[0].path} and {other.path} cannot be merged, they differ in:\n  " + "\n  ".join(different),
                hint=phrase(
                    "teach both on the same split; `teachonce relabel {vocabulary}` gives both the same classes"
                ),
            )


def _subject(store: LabelStore) -> dict[str, Any]:
    fingerprint = store.groups[LABELS].fingerprint
    return {
        "manifest_digest": fingerprint.get("manifest_digest"),
        "split": fingerprint.get("split"),
        "samples": fingerprint["samples"],
        "rows": store.layout.rows,
        "row_order": fingerprint.get("row_order"),
        "views": [fingerprint.get("views"), store.layout.views],
        "resize": resize_of(fingerprint),
        "vocabulary_digest": store.vocabulary().digest,
        "label_classes": store.label_classes().digest,
    }


def _trained_scale(store: LabelStore) -> float:
    return float(store.groups[LABELS].fingerprint["logit_scale"])


def _open_or_create(
    request: MergeRequest, parents: Sequence[LabelStore], weights: tuple[float, ...], top_k: int, reporter: Reporter
) -> tuple[LabelStore, tuple[float, ...]]:
    """The child, and the scale of each teacher; a child that is there keeps the scales it was made with."""
    wanted = _fingerprint(request, parents, weights, top_k)
    stored = LabelStore.open(request.labels).groups[LABELS].fingerprint if request.labels.exists() else {}
    child = open_child(request.labels, wanted | {"scales": stored.get("scales")}, reporter)
    if child is not None:
        return child, tuple(stored["scales"])
    if request.calibrate:
        scales = _calibrated(parents, request, reporter)
    else:
        scales = tuple(_trained_scale(parent) for parent in parents)
    first = parents[0]
    layout = new_layout(
        first.layout.rows, first.layout.classes, top_k, first.layout.temperatures, first.layout.chunk_rows
    )
    child = create_child(
        request.labels,
        first,
        replace(layout, views=first.layout.views),
        wanted | {"scales": list(scales)},
        first.vocabulary(),
        None,
        reporter,
    )
    return child, scales


def _fingerprint(
    request: MergeRequest, parents: Sequence[LabelStore], weights: tuple[float, ...], top_k: int
) -> dict[str, Any]:
    """What the merged labels depend on, but for the scales."""
    first = parents[0].groups[LABELS].fingerprint
    shared = ("manifest", "manifest_digest", "split", "samples", "vocabulary_digest", "views", "resize", "row_order")
    return {field: first[field] for field in shared if field in first} | {
        "top_k": top_k,
        "temperatures": list(parents[0].layout.temperatures),
        "codec_version": CODEC_VERSION,
        "derivation": "merge",
        "calibrate": request.calibrate,
        **({} if request.row_weights == "equal" else {"row_weights": request.row_weights}),
        "parents": [
            {
                "store": content_id(parent),
                "weight": weight,
                "embedding_kind": parent.groups[EMBEDDING].fingerprint["kind"],
                **{field: parent.groups[LABELS].fingerprint.get(field) for field in TEACHER_FIELDS},
            }
            for parent, weight in zip(parents, weights, strict=True)
        ],
        "about": {
            "teachonce": __version__,
            "versions": package_versions(),
            "vocabulary": first["about"].get("vocabulary"),
            "teacher": " + ".join(str(parent.groups[LABELS].fingerprint["about"].get("teacher")) for parent in parents),
            "parents": [{"name": parent.path.name, "store_id": parent.store_id()} for parent in parents],
        },
    }


def _calibrated(parents: Sequence[LabelStore], request: MergeRequest, reporter: Reporter) -> tuple[float, ...]:
    """The scale of each teacher at which the labels of a sample of rows are most probable."""
    import torch

    from teachonce.teaching.ensemble import calibrate, calibration_rows

    first, rows = parents[0], [Rows(parent) for parent in parents]
    label, usable = np.full(first.layout.rows, -1, np.int64), np.ones(first.layout.rows, np.bool_)
    for chunk in range(first.layout.chunks):
        start, stop = first.layout.bounds(chunk)
        parts = [source.columns(LABELS, start, stop, ("label", "status")) for source in rows]
        label[start:stop] = first.in_vocabulary(parts[0]["label"])
        usable[start:stop] = _status(parts) == 0
    chosen = calibration_rows(usable & (label >= 0), first.layout.classes)
    scales = []
    for parent, source in zip(parents, rows, strict=True):
        head = _head(parent, _trained_scale(parent), request)
        device = head.features_UE.device
        images = torch.from_numpy(_gather(source, chosen)).to(device)
        calibration = calibrate(head, images, torch.from_numpy(label[chosen]).to(device))
        reporter.note(
            f"{parent.path}: scale {head.logit_scale:.4g} -> {calibration.scale:.4g}, mean -ln p(label) "
            f"{calibration.nll_before:.4f} -> {calibration.nll_after:.4f} on {len(chosen)} rows"
            + ("; the end of the range: these labels do not determine a scale" if calibration.at_bound else "")
        )
        scales.append(calibration.scale)
    return tuple(scales)


def _gather(source: Rows, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The embeddings of the chosen rows, [B, D], from the chunks that hold them."""
    layout, parts = source.store.layout, []
    for chunk in np.unique(chosen // layout.chunk_rows).tolist():
        start, stop = layout.bounds(chunk)
        parts.append(source.embeddings(start, stop)[chosen[(chosen >= start) & (chosen < stop)] - start])
    return np.concatenate(parts)


def _status(parts: Sequence[Arrays]) -> npt.NDArray[np.uint8]:
    """The status of each row: that of the first teacher that failed on it, 0 where none did."""
    status: npt.NDArray[np.uint8] = parts[0]["status"].copy()
    for part in parts[1:]:
        status = np.where(status == 0, part["status"], status).astype(np.uint8)
    return status


def _head(parent: LabelStore, scale: float, request: MergeRequest) -> TeacherHead:
    from teachonce.models.clip import tune_process
    from teachonce.teaching.teacher import head_of

    tune_process(choose_threads(request.threads).count)
    return head_of(parent.class_embeddings(), scale, pick_device(request.device))


class _Maker:
    """Makes the chunks of the child: labels from all teachers' embeddings, students' features as in the parents."""

    def __init__(
        self,
        parents: Sequence[LabelStore],
        child: LabelStore,
        weights: tuple[float, ...],
        scales: tuple[float, ...],
        sources: dict[str, int],
        request: MergeRequest,
    ) -> None:
        self._parents, self._child, self._weights, self._scales = parents, child, weights, scales
        self._rows = [Rows(parent) for parent in parents]
        self._sources, self._request = sources, request
        self._loaded: list[TeacherHead] = []
        self._weighed, self._row_weights = 0, np.zeros(len(parents))

    def make(self, group: str, chunk: int) -> Arrays:
        """The arrays of one chunk of a column group."""
        start, stop = self._child.layout.bounds(chunk)
        if group == LABELS:
            return self._labels(chunk, start, stop)
        data = self._rows[self._sources[group]].columns(group, start, stop)
        failed = self._child.read_chunk(LABELS, chunk, ("status",))["status"] != 0
        for spec in self._child.groups[group].arrays:
            data[spec.path][failed] = spec.fill  # a row that one teacher failed on has no labels in the child
        return data

    def _labels(self, chunk: int, start: int, stop: int) -> Arrays:
        import torch

        from teachonce.teaching.soft_chunk import SoftChunk

        views = ("view_params",) if self._parents[0].layout.views > 1 else ()
        parts = [rows.columns(LABELS, start, stop, ROW_ARRAYS + views) for rows in self._rows]
        self._require_same_rows(parts, (*SAME_ROWS, *views), start, stop)
        status = _status(parts)
        heads = self._heads()
        images = [torch.from_numpy(rows.embeddings(start, stop)) for rows in self._rows]
        for embeddings in images:
            embeddings[torch.from_numpy(status != 0)] = 0  # `finish` writes fill values into these rows
        soft = SoftChunk(self._child, chunk)
        for begin in range(0, stop - start, BATCH_ROWS):
            batch = [x[begin : begin + BATCH_ROWS].to(heads[0].features_UE.device) for x in images]
            soft.add(self._merged(heads, batch, torch.from_numpy(status[begin : begin + BATCH_ROWS] == 0)))
        first = {name: parts[0][name] for name in (*SAME_ROWS, *views, "image_crc")}
        keys = key_digest(self._child.index_of_chunk(chunk))
        return soft.finish(status, first["label"]) | first | {"status": status, "key_digest": keys}

    def _merged(self, heads: Sequence[TeacherHead], batch: Sequence[Tensor], good: Tensor) -> Tensor:
        """The logs of the merged probabilities of some rows, [B, C]; adds up the weights that rows gave."""
        from teachonce.teaching.ensemble import merged_log_probs, weighed_log_probs

        if self._request.row_weights == "equal":
            return merged_log_probs(heads, batch, self._weights)
        log_probs, weights = weighed_log_probs(heads, batch, self._request.row_weights)
        self._weighed += int(good.sum())
        self._row_weights += weights.cpu()[:, good].double().sum(dim=1).numpy()
        return log_probs

    def mean_row_weights(self) -> list[dict[str, float]]:
        """Of each teacher: its mean weight over the rows that were labelled; empty where rows do not decide."""
        if not self._weighed:
            return [{} for _ in self._parents]
        return [{"mean_row_weight": float(share) / self._weighed} for share in self._row_weights]

    def _require_same_rows(self, parts: Sequence[Arrays], names: Sequence[str], start: int, stop: int) -> None:
        """Refuse parents with other rows under equal fingerprints: images were changed, or a writer has a bug."""
        for parent, part in zip(self._parents[1:], parts[1:], strict=True):
            both = (part["status"] == 0) & (parts[0]["status"] == 0)
            same = all(bool((part[name] == parts[0][name]).all()) for name in names)
            if not same or bool((part["image_crc"] != parts[0]["image_crc"])[both].any()):
                raise DataError(
                    f"{self._parents[0].path} and {parent.path} hold other images in rows {start} to {stop}",
                    hint="the archives were changed between the two runs of teach: teach both again on the same data",
                )

    def _heads(self) -> list[TeacherHead]:
        """Load the teachers' heads for the first missing chunk: a store that is complete needs no torch."""
        if not self._loaded:
            pairs = zip(self._parents, self._scales, strict=True)
            self._loaded = [_head(parent, scale, self._request) for parent, scale in pairs]
        return self._loaded
