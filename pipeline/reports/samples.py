"""What a report shows of a label store: its fidelity, and a few rows with image, teacher and student before and after.

Whatever is missing becomes a sentence that says so; it trains nothing and reads the images of the shown rows only.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from teachonce.core.progress import Reporter
from teachonce.data.reader import ImageFault, ImageReader, decode
from teachonce.data.spelling import spoken
from teachonce.data.vocabulary import Vocabulary
from teachonce.errors import DataError, TeachOnceError
from teachonce.labels.fidelity import fidelity_report
from teachonce.labels.format import EMBEDDING, LABELS
from teachonce.labels.store import LabelStore
from teachonce.rows.order import TrainingOrder
from teachonce.runs.reader import Run

if TYPE_CHECKING:
    from PIL import Image

LOOKED_AT = 512  # rows among which the shown ones are sought
MOST_CHUNKS = 16  # ... in so many chunks at most
WIDE, LOOKED_AT_WIDE = 2000, 96  # with more names than this, only those that matter to few rows are encoded
BEST_OF_WIDE = 10  # of each row, the teacher's best classes
SHOWN = (("gained", 3), ("lost", 3), ("right before and after", 1), ("wrong before and after", 1))
BEST = 3  # classes shown of each row
SIDE = 176  # pixels of a shown image
QUALITY = 80
Guess = tuple[str, float]  # a class name and its probability


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One row of the store."""

    key: str
    kind: str
    """One of `SHOWN`."""
    label: str
    image: str
    """A JPEG as a data URI."""
    teacher: tuple[Guess, ...]
    before: tuple[Guess, ...]
    after: tuple[Guess, ...]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Sample rows, and how they were chosen."""

    run: str
    template: str
    looked_at: int
    held_out: bool
    """Whether all of them are samples that the run was never trained on."""
    names: int
    """How many names the student decides among here."""
    counts: Mapping[str, int]
    """Rows of each kind among those looked at."""
    rows: tuple[SampleRow, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """Rows of a few chunks, view 0 only."""

    keys: list[str]
    places: list[tuple[int, int]]
    """Chunk, and sample within it."""
    label: npt.NDArray[np.int64]
    teacher_ids: npt.NDArray[np.int64]
    teacher_p: npt.NDArray[np.float64]
    features: npt.NDArray[np.float32]
    held_out: bool


def store_fidelity(labels: Path) -> dict[str, Any] | str:
    """The fidelity report of a store, or why there is none."""
    try:
        report = fidelity_report(LabelStore.open(labels))
    except TeachOnceError as problem:
        return problem.message
    return report or f"{labels.name} tells nothing of its fidelity: it has no soft labels, or an early version wrote it"


def sample_rows(labels: Path, root: Path, run: Run, student: str | None, reporter: Reporter) -> Samples | str:
    """Rows on which prompts changed something, and some on which they did not, or why none can be shown.

    Rows are taken by rule: the first of each kind in the order of the store.

    Args:
        labels: a store with the student's features.
        root: the folder of its images.
        run: whose prompts are shown.
        student: the model, where the run's own name for it does not hold here.
        reporter: told what is done.
    """
    if run.config.get("tower", "text") != "text":
        return "the prompts stand in the image tower: stored features say nothing of them"
    try:
        return _sample_rows(LabelStore.open(labels), root, run, student or str(run.start.get("student")), reporter)
    except TeachOnceError as problem:
        return problem.message
    except OSError as problem:
        return f"{problem.strerror or problem}: {problem.filename or root}"


def _sample_rows(store: LabelStore, root: Path, run: Run, student: str, reporter: Reporter) -> Samples:
    if not store.layout.top_k:
        raise DataError(f"{store.path.name} has no teacher, and so no soft labels to show")
    vocabulary = store.vocabulary()
    rows = _read_rows(store, run, LOOKED_AT if len(vocabulary) <= WIDE else LOOKED_AT_WIDE)
    names = _names(rows, vocabulary)
    reporter.note(f"sample rows: {len(rows.label)} rows among {len(names)} names, with the prompts of {run.name}")
    template, before, after = _student(run, student, [vocabulary.names[i] for i in names], rows.features)
    spelt = np.array([spoken(name) for name in vocabulary.names], dtype=object)
    right = [spelt[names[p.argmax(axis=1)]] == spelt[rows.label] for p in (before, after)]
    kinds = {
        "gained": ~right[0] & right[1],
        "lost": right[0] & ~right[1],
        "right before and after": right[0] & right[1],
        "wrong before and after": ~right[0] & ~right[1],
    }
    shown = []
    for kind, most in SHOWN:
        for row in np.flatnonzero(kinds[kind])[:most].tolist():
            image = _thumbnail(store, root, rows.places[row])
            guesses = [_best(p[row], names, vocabulary) for p in (before, after)]
            teacher = tuple(
                (vocabulary.names[i], float(p))
                for i, p in zip(rows.teacher_ids[row, :BEST], rows.teacher_p[row, :BEST], strict=True)
            )
            shown.append(
                SampleRow(
                    key=rows.keys[row],
                    kind=kind,
                    label=vocabulary.names[rows.label[row]],
                    image=image,
                    teacher=teacher,
                    before=guesses[0],
                    after=guesses[1],
                )
            )
    counts = {kind: int(mask.sum()) for kind, mask in kinds.items()}
    return Samples(
        run=run.name,
        template=template,
        looked_at=len(rows.label),
        held_out=rows.held_out,
        names=len(names),
        counts=counts,
        rows=tuple(shown),
    )


def _read_rows(store: LabelStore, run: Run, most: int) -> _Rows:
    """The first rows, of the evaluation view, that have an image, a class and the student's features."""
    digest = run.results.student_digest
    group = next(
        (
            name
            for name, group in store.groups.items()
            if name not in (LABELS, EMBEDDING) and group.fingerprint.get("student_digest") == digest
        ),
        None,
    )
    if group is None:
        raise DataError(f"{store.path.name} holds no image features of the run's student")
    both = sorted(set(store.committed(LABELS)) & set(store.committed(group)))
    apart = bool(run.config.get("held_out")) and run.results.store_id == store.store_id()
    parts, count = [], 0
    for chunk in both[:MOST_CHUNKS]:
        parts.append(_read_chunk(store, group, chunk, run if apart else None))
        count += len(parts[-1].label)
        if count >= most:
            break
    if not count:
        raise DataError(
            f"the first chunks of {store.path.name} have no row with an image and a class of its vocabulary"
            f"{' that the run kept apart from training' if apart else ''}"
        )
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])[:most]
        for name in ("label", "teacher_ids", "teacher_p", "features")
    }
    keys, places = [key for part in parts for key in part.keys], [place for part in parts for place in part.places]
    return _Rows(keys=keys[:most], places=places[:most], held_out=apart, **joined)


def _read_chunk(store: LabelStore, group: str, chunk: int, run: Run | None) -> _Rows:
    """The rows of one chunk; with a run, only those that the run kept apart from training."""
    data, views = store.read_chunk(LABELS, chunk), store.layout.views
    soft, index = store.decode_labels(data), store.index_of_chunk(chunk)
    features = store.read_chunk(group, chunk)[store.groups[group].vectors.path].astype(np.float32)
    label = store.in_vocabulary(data["label"])
    first = np.arange(len(label)) % views == 0
    kept = np.flatnonzero(first & (data["status"] == 0) & (label >= 0) & np.isfinite(features).all(axis=1))
    if run is not None:
        kept = np.intersect1d(kept, _held_out(store, chunk, run))
    samples = (kept // views).tolist()
    return _Rows(
        keys=[index.key(sample) for sample in samples],
        places=[(chunk, sample) for sample in samples],
        label=label[kept],
        teacher_ids=soft.class_ids[kept].astype(np.int64),
        teacher_p=np.exp(soft.log_probs[kept].astype(np.float64)),
        features=features[kept],
        held_out=run is not None,
    )


def _held_out(store: LabelStore, chunk: int, run: Run) -> npt.NDArray[np.int64]:
    """Rows of a chunk that the run kept apart: that depends on its seed and the sample alone."""
    start, stop = store.layout.bounds(chunk)
    try:
        share = float(run.config["held_out"])
        return TrainingOrder(np.arange(start, stop), store.layout.views, 1, 1, run.seed, share).held_out
    except DataError:  # no sample of this chunk
        return np.zeros(0, np.int64)


def _names(rows: _Rows, vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    """The classes among which the student decides, as places in the vocabulary."""
    if len(vocabulary) <= WIDE:
        return np.arange(len(vocabulary))
    return np.unique(np.concatenate([rows.label, rows.teacher_ids[:, :BEST_OF_WIDE].ravel()]))


def _student(
    run: Run, student: str, names: Sequence[str], features: npt.NDArray[np.float32]
) -> tuple[str, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The template, and the probabilities of the student with it and with the prompts, [R, C] each."""
    import torch

    from teachonce.models import classifier, clip, prompt_files  # bring open_clip: only where rows can be shown

    prompts = prompt_files.load_prompts(run.folder)
    model = clip.load_clip(student)
    template, bound = prompts.meta.template, prompts.bound_to(model)
    unit = torch.from_numpy(features / np.linalg.norm(features, axis=1, keepdims=True))
    before, after = (
        classifier.probabilities(unit, classes, model.logit_scale).numpy()
        for classes in (classifier.template_features(model, names, template), bound.classifier(names))
    )
    return template, before, after


def _best(p: npt.NDArray[np.float64], names: npt.NDArray[np.int64], vocabulary: Vocabulary) -> tuple[Guess, ...]:
    order = np.argsort(-p, kind="stable")[:BEST]
    return tuple((vocabulary.names[names[i]], float(p[i])) for i in order)


def _thumbnail(store: LabelStore, root: Path, place: tuple[int, int]) -> str:
    chunk, sample = place
    with ImageReader(store.index_of_chunk(chunk), root) as reader:
        image = decode(reader.read(sample))
    if isinstance(image, ImageFault):
        raise DataError(f"an image of {store.path.name} could not be decoded: {image.reason}")
    return data_uri(image)


def data_uri(image: Image.Image) -> str:
    """A small JPEG of an image as a data URI."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
