"""What is refused before a model is loaded, and the store that a request describes. It loads no torch."""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.data.index import split_classes
from teachonce.data.layouts import archive_parts
from teachonce.data.manifests import load_manifest, require_root
from teachonce.data.places import Tally
from teachonce.data.vocabulary import Vocabulary, load_vocabulary, require_template
from teachonce.errors import UsageError
from teachonce.models.spec import require_model
from teachonce.objects.remote import exists
from teachonce.phrases import option, phrase
from teachonce.stages.teach.request import TeachRequest
from teachonce.teaching.store import WantedStore

DEFAULT_TOP_K = 100

SETTINGS = ("batch_size", "threads", "class_tile")  # keys of --set; the other numbers of a request are options


def check_request(request: TeachRequest) -> None:
    """Refuse a request that is wrong whatever the data and the models are.

    Raises:
        UsageError: an option is out of range, or asks for nothing; or no such model.
        EnvironmentFault: a model needs a package that is not installed.
    """
    kept, computing = request.kept, request.computing
    for name, value in (
        ("batch_size", computing.batch_size),
        ("top_k", kept.top_k),
        ("chunk_rows", kept.chunk_rows),
        ("threads", computing.threads),
        ("shots", request.data.shots),
        ("class_tile", computing.class_tile),
    ):
        if value is not None and value < 1:
            named = name if name in SETTINGS else option(name)
            raise UsageError(named + f" must be at least 1, found {value}")
    if not 0 <= request.max_failed_share <= 1:
        raise UsageError(f"max_failed_share must be between 0 and 1, found {request.max_failed_share}")
    if request.teacher is None and not request.students:
        raise UsageError(phrase("nothing to compute: give {teacher} MODEL, {student} MODEL, or both"))
    for spec in filter(None, (request.teacher, *request.students)):
        require_model(spec)
    for template in request.kept.templates:
        require_template(template)
    if request.features_only and not request.students:
        raise UsageError(phrase("{features_only} is about students: give {student} MODEL too"))
    if request.kept.embeddings and request.teacher is None:
        raise UsageError(phrase("{embeddings} are the teacher's: give {teacher} MODEL too"))
    if not request.labels.name.endswith(".zarr"):
        raise UsageError(option("labels") + f" {request.labels}: the name of a label store ends in .zarr")


def wanted_store(request: TeachRequest, reporter: Reporter) -> WantedStore:
    """The store that the request describes, with the classes of its data.

    Raises:
        UsageError: no such manifest, split, vocabulary or folder, or more of a soft label than there are classes.
        DataError: the data is not what the manifest says.
    """
    data, kept = request.data, request.kept
    manifest = load_manifest(data.manifest)
    root = require_root(manifest, data.root)
    own_classes = split_classes(manifest, data.split, root)
    if not len(own_classes) and not data.vocabulary:
        raise UsageError(
            f"the photos of '{manifest.title}' come without classes, and soft labels are of names",
            hint=phrase("add {vocabulary} FILE.tsv (id TAB name) or {vocabulary} timm:imagenet22k"),
        )
    vocabulary = load_vocabulary(data.vocabulary, root) if data.vocabulary else own_classes
    for remark in vocabulary.remarks():
        reporter.note(remark)
    return WantedStore(
        path=request.labels,
        manifest=manifest,
        split=data.split,
        root=root,
        own_classes=own_classes,
        vocabulary=vocabulary,
        vocabulary_spec=data.vocabulary,
        top_k=_top_k(request, vocabulary),
        templates=kept.templates,
        precision=request.computing.precision,
        embeddings=kept.embeddings,
        chunk_rows=kept.chunk_rows,
        views=kept.views,
        shots=data.shots,
        seed=data.seed,
        resize=kept.resize,
    )


def require_data(request: TeachRequest, wanted: WantedStore) -> None:
    """Refuse a folder without any archive of the split before jobs are submitted that may wait for hours.

    Only where workers come from elsewhere: a run on this machine soon meets its archives itself.

    Raises:
        DataError: nothing matches the split's path.
    """
    if (request.cluster.file is None and request.cluster.scheduler is None) or exists(request.labels):
        return
    split = wanted.manifest.split(request.data.split)
    next(archive_parts(wanted.manifest, split, wanted.root, wanted.own_classes, Tally()), None)


def _top_k(request: TeachRequest, vocabulary: Vocabulary) -> int:
    """Classes kept of each soft label; 0 without a teacher.

    Raises:
        UsageError: more than there are classes.
    """
    if request.teacher is None:
        return 0
    if request.kept.top_k is None:
        return min(DEFAULT_TOP_K, len(vocabulary))
    if request.kept.top_k > len(vocabulary):
        raise UsageError(
            option("top_k") + f" {request.kept.top_k} is larger than the vocabulary of {len(vocabulary)} classes"
        )
    return request.kept.top_k
