"""What a `teach` is asked to do, checked; `plan` and the rehearsals are asked the same.

It computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from teachonce.cluster.description import ClusterSpec
from teachonce.core.progress import Reporter
from teachonce.data.manifests import Manifest
from teachonce.data.views import ViewPolicy
from teachonce.data.vocabulary import Vocabulary, require_template
from teachonce.errors import UsageError
from teachonce.labels.format import EMBEDDING, LABELS, student_group
from teachonce.models.spec import EmbeddingKind, Precision, parse_spec
from teachonce.phrases import option, phrase
from teachonce.teaching.store import WantedStore

if TYPE_CHECKING:
    from teachonce.models.clip import LoadedClip

DEFAULT_TOP_K = 100


SETTINGS = ("batch_size", "threads", "class_tile")  # of the numbers of a request: those that are no options


@dataclass(frozen=True, kw_only=True)
class TeachRequest:
    """What to teach; see `teachonce teach --help`."""

    manifest: str
    labels: Path
    teacher: str | None
    root: Path | None = None
    split: str = "train"
    students: tuple[str, ...] = ()
    vocabulary: str | None = None
    templates: tuple[str, ...] = ("a photo of a {}.",)
    top_k: int | None = None
    embeddings: EmbeddingKind | None = None
    workers: int | None = None
    """On this machine; one where nothing else is said."""
    scheduler: str | None = None
    """Address of a Dask scheduler that runs already."""
    cluster: Path | None = None
    """Description of a cluster to start."""
    threads: int | None = None
    batch_size: int = 128
    chunk_rows: int | None = None
    precision: Precision = "fp32"
    compiled: bool = False
    """Run image towers under `torch.compile`."""
    class_tile: int | None = None
    """Classes whose logits are computed at a time; None: as many as fit."""
    views: ViewPolicy = ViewPolicy()
    shots: int | None = None
    seed: int = 0
    """Of the draw of shots; views have their own in their policy."""
    retry_failed: bool = False
    """Compute the chunks again in which images failed."""
    max_failed_share: float = 0.01
    force_unlock: bool = False


def cluster_of(request: TeachRequest) -> ClusterSpec:
    """Where its workers come from."""
    return ClusterSpec(workers=request.workers, scheduler=request.scheduler, file=request.cluster)


def check_request(request: TeachRequest) -> None:
    """Refuse what no data or model could make right.

    Raises:
        UsageError: an option is out of range, or asks for nothing.
    """
    for name, least in (
        ("workers", 1),
        ("batch_size", 1),
        ("top_k", 1),
        ("chunk_rows", 1),
        ("threads", 1),
        ("shots", 1),
        ("class_tile", 1),
    ):
        value = getattr(request, name)
        if value is not None and value < least:
            named = name if name in SETTINGS else option(name)
            raise UsageError(named + f" must be at least {least}, found {value}")
    cluster_of(request)  # says what is wrong with it before anything is loaded
    if not 0 <= request.max_failed_share <= 1:
        raise UsageError(f"max_failed_share must be between 0 and 1, found {request.max_failed_share}")
    if request.teacher is None and not request.students:
        raise UsageError(phrase("nothing to compute: give {teacher} MODEL, {student} MODEL, or both"))
    for spec in filter(None, (request.teacher, *request.students)):
        parse_spec(spec)
    for template in request.templates:
        require_template(template)
    if request.embeddings and request.teacher is None:
        raise UsageError(phrase("{embeddings} are the teacher's: give {teacher} MODEL too"))
    if not request.labels.name.endswith(".zarr"):
        raise UsageError(option("labels") + f" {request.labels}: the name of a label store ends in .zarr")


def top_k_of(request: TeachRequest, vocabulary: Vocabulary) -> int:
    """Classes kept of each soft label; 0 without a teacher.

    Raises:
        UsageError: more than there are classes.
    """
    if request.teacher is None:
        return 0
    if request.top_k is None:
        return min(DEFAULT_TOP_K, len(vocabulary))
    if request.top_k > len(vocabulary):
        raise UsageError(
            option("top_k") + f" {request.top_k} is larger than the vocabulary of {len(vocabulary)} classes"
        )
    return request.top_k


def load_models(request: TeachRequest, reporter: Reporter) -> dict[str, LoadedClip]:
    """The models by the column group they fill."""
    from teachonce.core.machine import default_threads
    from teachonce.models.clip import load_clip, pick_device, tune_process

    tune_process(default_threads(1))
    models = {}
    if request.teacher is not None:
        reporter.note(f"loading the teacher {request.teacher}")
        models[LABELS] = load_clip(request.teacher, pick_device())
        if request.embeddings:
            models[EMBEDDING] = models[LABELS]
    for spec in request.students:
        reporter.note(f"loading the student {spec}")
        student = load_clip(spec, pick_device())
        models[student_group(student.digest)] = student
    return models


def wanted_store(
    request: TeachRequest, manifest: Manifest, root: Path, own_classes: Vocabulary, vocabulary: Vocabulary
) -> WantedStore:
    """The store that the request describes."""
    return WantedStore(
        path=request.labels,
        manifest=manifest,
        split=request.split,
        root=root,
        own_classes=own_classes,
        vocabulary=vocabulary,
        vocabulary_spec=request.vocabulary,
        top_k=top_k_of(request, vocabulary),
        templates=request.templates,
        precision=request.precision,
        embeddings=request.embeddings,
        chunk_rows=request.chunk_rows,
        views=request.views,
        shots=request.shots,
        seed=request.seed,
    )
