"""Run the teacher again on some rows and compare with what is stored: the check that no checksum can replace.

The check needs the images and the teacher; `verify` checks structure and checksums.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teachonce.core.progress import Reporter
from teachonce.core.streams import RECHECK
from teachonce.data.index import SampleIndex
from teachonce.data.reader import ImageFault, ImageReader, decode
from teachonce.data.view_policy import ViewPolicy
from teachonce.data.views import EVALUATION, View, view_from_params
from teachonce.errors import DataError, FingerprintError
from teachonce.labels.codec import TopK, decode_embeddings, encode_embeddings, max_error
from teachonce.labels.format import EMBEDDING, LABELS
from teachonce.labels.ledger import BEHAVIOURS, resize_of
from teachonce.labels.store import Arrays, LabelStore
from teachonce.models.clip import LoadedClip, load_clip
from teachonce.models.spec import EmbeddingKind, Precision, unlike
from teachonce.softening.row_temperature import row_temperatures
from teachonce.teaching.teacher import TeacherHead, head_of

# Another device or thread count moves logits by some 1e-4 nats in float32 and by 1e-2 in half precision; a wrong image,
# model or preprocessing moves them by whole nats.
SLACK = {"fp32": (2e-3, 1e-3), "fp16": (5e-2, 1e-2), "bf16": (2e-1, 5e-2)}
INT8_SLACK = 2e-2
LEAST_COSINE = 0.999
LEAST_OVERLAP = 0.9  # of the stored classes that are among the new top k


@dataclass(frozen=True)
class Slack:
    """What another machine may change, in nats."""

    value: float
    """Allowed difference of a log-probability, beyond the codec's own error."""
    kl: float
    """Allowed KL between the stored and the new top k, both renormalised."""

    def times(self, factor: float) -> Slack:
        """As many times as much."""
        return Slack(self.value * factor, self.kl * factor)


@dataclass(frozen=True)
class RowCheck:
    """One row, stored against computed anew."""

    row: int
    key: str
    image_unchanged: bool | None
    """Whether the image's checksum is the stored one; None where the store keeps no checksum of images."""
    overlap: float
    """Share of the stored classes that are in the new top k."""
    worst_value: float
    """Largest distance of a stored log-probability from the new one beyond the codec's stated error, nats."""
    kl: float
    """KL(new || stored) over the stored classes, both renormalised, nats."""
    problem: str
    """What is wrong; empty if nothing is."""


def recheck_rows(
    store: LabelStore, spec: str, root: Path, sample: int, seed: int, reporter: Reporter, device: str = "cpu"
) -> Iterator[RowCheck]:
    """Check random rows; rows without an image are passed over.

    Args:
        store: a store with soft labels.
        spec: the teacher, as open_clip names it.
        root: the data's folder.
        sample: how many rows are drawn; all rows if the store has fewer.
        seed: the seed that decides which rows are drawn.
        device: what the teacher runs on, as torch names it.

    Raises:
        FingerprintError: another teacher made the store, or this one preprocesses in another way.
        DataError: no single teacher made the store, or an image is gone.
    """
    teacher = _teacher_of(store, spec, device)
    fingerprint = store.groups[LABELS].fingerprint
    head = head_of(store.class_embeddings(), float(fingerprint["logit_scale"]), device)
    rows = RECHECK.at(seed).permutation(store.layout.rows)[:sample]
    chunks = rows // store.layout.chunk_rows
    embedded = set(store.committed(EMBEDDING)) if EMBEDDING in store.groups else set()
    kind = fingerprint.get("embedding_kind")
    slack = Slack(*SLACK[fingerprint["precision"]])
    if kind == "int8":  # an entry on the edge between two steps may fall to the other side
        slack = Slack(slack.value + INT8_SLACK, slack.kl + INT8_SLACK)
    done = 0
    for chunk in np.unique(chunks).tolist():
        data, index = store.read_chunk(LABELS, chunk), store.index_of_chunk(chunk)
        stored = store.decode_labels(data)
        embeddings = store.embeddings(chunk) if chunk in embedded else None
        start = store.layout.bounds(chunk)[0]
        with ImageReader(index, root) as reader:
            for place in np.sort(rows[chunks == chunk] - start).tolist():
                done += 1
                reporter.progress("teacher", done, len(rows), "rows")
                if data["status"][place] != 0:
                    continue
                content = reader.read(place // store.layout.views)
                crc = int(data["image_crc"][place]) if "image_crc" in data else None
                unchanged = None if crc is None else zlib.crc32(content) == crc
                view = _view(store, data, place, index)
                features = _features(teacher, content, view, fingerprint["precision"])
                log_p, sharpened = _log_probs(head, features, kind, fingerprint.get("entropy"))
                overlap, worst, kl, problem = _compare(stored, place, log_p, store, slack.times(sharpened), unchanged)
                if features is not None and embeddings is not None:
                    problem = problem or _turned(embeddings[place], features)
                key = index.key(place // store.layout.views)
                yield RowCheck(start + place, key, unchanged, overlap, worst, kl, problem)


def _view(store: LabelStore, data: Arrays, place: int, index: SampleIndex) -> View:
    """Return the view that a row of a chunk holds, as the store records it."""
    if "view_params" not in data:
        return EVALUATION
    policy = ViewPolicy.from_dict(store.groups[LABELS].fingerprint["views"], str(store.path))
    name = index.key(place // store.layout.views)
    return view_from_params(data["view_params"][place], policy, name, int(data["view"][place]))


def _turned(stored: npt.NDArray[np.float32], features: Tensor) -> str:
    """Say what is wrong with a stored embedding; the result is empty if nothing is."""
    cosine = float(stored @ features[0].cpu().numpy())
    return "" if cosine > LEAST_COSINE else f"the stored embedding has cosine {cosine:.4f} to the new one"


def _teacher_of(store: LabelStore, spec: str, device: str) -> LoadedClip:
    fingerprint = store.groups[LABELS].fingerprint
    if "logit_scale" not in fingerprint:
        raise DataError(
            f"{store.path} was not made by one teacher: there is nothing to run again", hint="check its parents instead"
        )
    if "prior" in fingerprint:
        raise DataError(
            f"{store.path} has another prior than its teacher, by the mean over all rows of its parent: one row cannot "
            "be computed again alone",
            hint=f"verify its parent, {fingerprint['about'].get('parent', {}).get('name', 'the store it came from')}",
        )
    if "head" in fingerprint:
        raise DataError(
            f"{store.path} has labels of its teacher with a {fingerprint['head']} head, which is not kept in the store",
            hint=f"verify its parent, {fingerprint['about'].get('parent', {}).get('name', 'the store it came from')}",
        )
    teacher = load_clip(spec, device).resized_by(resize_of(fingerprint))
    fields = {
        "teacher_digest": teacher.digest,
        "preprocess": teacher.preprocess_text,
        "logit_scale": teacher.logit_scale,
    }
    different = [
        f"{name}: stored {fingerprint[name]!r}, '{spec}' has {value!r}"
        for name, value in fields.items()
        if fingerprint[name] != value
    ]
    parts = unlike(fingerprint.get(BEHAVIOURS["teacher"], {}), teacher.behaviour)
    different += [f"it has another {parts} than the teacher had"] if parts else []
    if different:
        raise FingerprintError(
            f"'{spec}' is not the teacher of {store.path}:\n  " + "\n  ".join(different),
            hint="teachonce inspect shows which one was used",
        )
    return teacher


def _features(teacher: LoadedClip, content: bytes, view: View, precision: Precision) -> Tensor | None:
    """Compute the unit embedding of one view of an image, [1, D]; None if the image cannot be decoded."""
    image = decode(content)
    if isinstance(image, ImageFault):
        return None
    return teacher.encode_images(teacher.prepare_view(image, view)[None], precision)


def _log_probs(
    head: TeacherHead, features: Tensor | None, kind: EmbeddingKind | None, entropy: float | None
) -> tuple[npt.NDArray[np.float64] | None, float]:
    """The teacher's log-probabilities of one image, [C], and by what factor the row's temperature sharpens errors."""
    if features is None:
        return None, 1.0
    if kind is not None:  # the labels came from stored embeddings
        coded = decode_embeddings(encode_embeddings(features.cpu().numpy(), kind))
        features = torch.from_numpy(coded).to(features.device)
    logits = head.logits(features)
    temperature = 1.0 if entropy is None else float(row_temperatures(logits, entropy).values_B[0])
    return (logits[0].double() / temperature).log_softmax(0).cpu().numpy(), max(1.0, 1 / temperature)


def _compare(
    stored: TopK,
    place: int,
    log_p: npt.NDArray[np.float64] | None,
    store: LabelStore,
    slack: Slack,
    unchanged: bool | None,
) -> tuple[float, float, float, str]:
    """Compare one row: return overlap, worst value, KL and what is wrong."""
    if log_p is None:
        return 0.0, float("inf"), float("inf"), "the image cannot be decoded any more"
    ids, values = stored.class_ids[place], stored.log_probs[place].astype(np.float64)
    threshold = np.sort(log_p)[-len(ids)] - slack.value  # near-ties may change places at the boundary
    overlap = float((log_p[ids] >= threshold).mean())
    limit = max_error(np.append(log_p.max(), log_p[ids]).astype(np.float32)[None], store.tables)[0, 1:]
    worst = float(np.maximum(np.abs(values - log_p[ids]) - limit, 0).max())
    p, q = (np.exp(x - np.logaddexp.reduce(x)) for x in (log_p[ids], values))
    kl = float((p * (np.log(p) - np.log(q))).sum())
    problems = [
        text
        for wrong, text in (
            (unchanged is False, "the image is not the one that was taught"),
            (overlap < LEAST_OVERLAP, f"{overlap:.0%} of the classes agree, at least {LEAST_OVERLAP:.0%} expected"),
            (worst > slack.value, f"a value is off by {worst:.3g} nats more than the codec's error"),
            (kl > slack.kl, f"KL {kl:.3g} nats, at most {slack.kl:g} expected"),
        )
        if wrong
    ]
    return overlap, worst, kl, "; ".join(problems)
