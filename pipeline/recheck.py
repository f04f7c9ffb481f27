"""Run the teacher again on some rows and compare with what is stored: the check that no checksum can replace.

It needs the images and the teacher; structure and checksums are `verify`'s own work.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from teachonce.clip_models import LoadedClip, load_clip, pick_device
from teachonce.errors import DataError, FingerprintError
from teachonce.images import ImageFault, ImageReader, decode
from teachonce.label_codec import TopK, max_error
from teachonce.label_store import LabelStore
from teachonce.model_spec import Precision
from teachonce.progress import Reporter
from teachonce.store_format import LABELS
from teachonce.teacher import TeacherHead, head_of

# Another device or thread count moves logits by some 1e-4 nats in float32 and by 1e-2 in half precision; a wrong image,
# model or preprocessing moves them by whole nats.
SLACK = {"fp32": 2e-3, "fp16": 5e-2, "bf16": 2e-1}  # nats beyond the codec's own error
MOST_KL = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}  # nats between the stored and the new top k, renormalised
LEAST_OVERLAP = 0.9  # of the stored classes that are among the new top k


@dataclass(frozen=True)
class RowCheck:
    """One row, stored against computed anew."""

    row: int
    key: str
    image_unchanged: bool | None
    """None where the store keeps no checksum of images."""
    overlap: float
    """Share of the stored classes that are in the new top k."""
    worst_value: float
    """Largest distance of a stored log-probability from the new one beyond the codec's stated error, nats."""
    kl: float
    """KL(new || stored) over the stored classes, both renormalised, nats."""
    problem: str
    """What is wrong, empty if nothing is."""


def recheck_rows(
    store: LabelStore, spec: str, root: Path, sample: int, seed: int, reporter: Reporter
) -> Iterator[RowCheck]:
    """Check random rows that have an image.

    Args:
        store: with soft labels.
        spec: the teacher, as open_clip names it.
        root: the data's folder.
        sample: how many rows; all when there are fewer.
        seed: which rows.

    Raises:
        FingerprintError: this is not the teacher that made the store, or it preprocesses otherwise.
        DataError: a store that no one teacher made, or an image that is gone.
    """
    teacher = _teacher_of(store, spec)
    fingerprint = store.groups[LABELS].fingerprint
    head = head_of(store.class_embeddings(), float(fingerprint["logit_scale"]), pick_device())
    rows = np.random.Generator(np.random.Philox(key=seed)).permutation(store.layout.rows)[:sample]
    chunks = rows // store.layout.chunk_rows
    done = 0
    for chunk in np.unique(chunks).tolist():
        data, index = store.read_chunk(LABELS, chunk), store.index_of_chunk(chunk)
        stored = store.decode_labels(data)
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
                logits = _logits(teacher, head, content, fingerprint["precision"])
                found = _compare(stored, place, logits, store, fingerprint["precision"], unchanged)
                yield RowCheck(start + place, index.key(place // store.layout.views), unchanged, *found)


def _teacher_of(store: LabelStore, spec: str) -> LoadedClip:
    fingerprint = store.groups[LABELS].fingerprint
    if "logit_scale" not in fingerprint:
        raise DataError(f"{store.path} was not made by one teacher: there is nothing to run again",
                        hint="check its parents instead")  # fmt: skip
    teacher = load_clip(spec, pick_device())
    found = {
        "teacher_digest": teacher.digest,
        "preprocess": teacher.preprocess_text,
        "logit_scale": teacher.logit_scale,
    }
    different = [f"{name}: stored {fingerprint[name]!r}, '{spec}' has {value!r}"
                 for name, value in found.items() if fingerprint[name] != value]  # fmt: skip
    if different:
        raise FingerprintError(f"'{spec}' is not the teacher of {store.path}:\n  " + "\n  ".join(different),
                               hint="teachonce inspect shows which one was used")  # fmt: skip
    return teacher


def _logits(
    teacher: LoadedClip, head: TeacherHead, content: bytes, precision: Precision
) -> npt.NDArray[np.float64] | None:
    image = decode(content)
    if isinstance(image, ImageFault):
        return None
    features = teacher.encode_images(teacher.prepare(image)[None], precision)
    return head.logits(features)[0].double().log_softmax(0).cpu().numpy()


def _compare(
    stored: TopK, place: int, log_p: npt.NDArray[np.float64] | None, store: LabelStore, precision: str,
    unchanged: bool | None,
) -> tuple[float, float, float, str]:  # fmt: skip
    """Overlap, worst value, KL and what is wrong of one row."""
    if log_p is None:
        return 0.0, float("inf"), float("inf"), "the image cannot be decoded any more"
    ids, values = stored.class_ids[place], stored.log_probs[place].astype(np.float64)
    threshold = np.sort(log_p)[-len(ids)] - SLACK[precision]  # near-ties may change places at the boundary
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
            (worst > SLACK[precision], f"a value is off by {worst:.3g} nats more than the codec's error"),
            (kl > MOST_KL[precision], f"KL {kl:.3g} nats, at most {MOST_KL[precision]:g} expected"),
        )
        if wrong
    ]
    return overlap, worst, kl, "; ".join(problems)
