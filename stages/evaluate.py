"""evaluate: zero-shot accuracy of a hand-written template, or of trained prompts with the template beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from teachonce.errors import DataError, UsageError
from teachonce.manifests import load_manifest, require_root
from teachonce.model_spec import parse_spec, require_template
from teachonce.progress import Reporter
from teachonce.sample_index import SampleIndex, build_index, split_classes
from teachonce.vocabulary import Vocabulary, load_vocabulary

if TYPE_CHECKING:
    from torch import Tensor

    from teachonce.clip_models import LoadedClip
    from teachonce.prompt_files import LoadedPrompts
    from teachonce.zeroshot import Scores


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What to evaluate on what; see `teachonce evaluate --help`."""

    run: Path | None
    student: str
    manifest: str
    root: Path | None = None
    split: str = "val"
    vocabulary: str | None = None
    template: str = "a photo of a {}."
    wise: float = 1.0
    """Share of the prompts in class features mixed with the template's; 1: the prompts alone (WiSE-FT)."""
    per_class: Path | None = None
    batch_size: int = 128
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """Shares are fractions of the `n` images that could be decoded."""

    top1: float
    top5: float
    n: int
    classes: int
    top1_interval: tuple[float, float]
    """Wilson, 95 %."""
    tied_names: int
    """Classes that share their name with another: m of them share the credit, 1/m each."""
    failed: int
    """Images that could not be decoded; they are not in n."""
    template: str | None
    run: str | None
    per_class: str | None
    wise: float | None
    """Share of the prompts in the class features; None without prompts."""
    baseline: dict[str, Any] | None
    """With prompts: top1, top5 and the template of the bare student on the same images."""
    digests: dict[str, str]
    """Of the student's weights, the class names and the samples."""


def evaluate(request: EvaluateRequest, reporter: Reporter) -> EvaluateResult:
    """Classify every image of a split among all classes of the vocabulary.

    Raises:
        UsageError: unknown split, bad template.
        DataError: missing or broken data, a class of the split that the vocabulary lacks.
        FingerprintError: the prompts belong to another student.
    """
    parse_spec(request.student)
    require_template(request.template)
    if request.run is None and request.wise != 1:
        raise UsageError("--wise mixes prompts with the template, and no RUN was given", hint="give a run folder")
    manifest = load_manifest(request.manifest)
    root = require_root(manifest, request.root)
    if request.run is not None and not request.run.is_dir():
        raise UsageError(f"{request.run} is not a run folder", hint="give the --out folder of `teachonce train`")
    own = split_classes(manifest, request.split, root)
    vocabulary = load_vocabulary(request.vocabulary, root) if request.vocabulary else own
    index = build_index(manifest, request.split, root, reporter)
    labels = _labels(index, own, vocabulary)

    from teachonce.clip_models import load_clip, pick_device, tune_process  # heavy: only when the data is in order
    from teachonce.cluster import default_threads
    from teachonce.prompt_files import load_prompts

    tune_process(request.threads or default_threads(1))
    clip = load_clip(request.student, pick_device())
    # Before the images: a template or a run that does not fit should not cost an hour of decoding first.
    prompts = None if request.run is None else load_prompts(request.run).bound_to(clip)
    if prompts is not None and prompts.image is not None and request.wise != 1:
        raise UsageError(f"--wise {request.wise:g} mixes class features only, and the prompts in {request.run} change "
                         "images too", hint="leave --wise out")  # fmt: skip
    template_classes = _template_classes(clip, vocabulary, request.template)
    prompt_classes = None if prompts is None else _prompt_classes(prompts, vocabulary, template_classes, request.wise)
    features = image_features(clip, index, root, request, reporter)
    good = np.isfinite(features[:, 0])
    if not good.any():
        raise DataError(f"none of the {len(index)} images of '{request.split}' could be decoded")

    plain = ours = _score(features[good], template_classes, labels[good])
    if prompts is not None and prompt_classes is not None:
        seen = features if prompts.image is None else image_features(clip, index, root, request, reporter, prompts)
        ours = _score(seen[good], prompt_classes, labels[good])
    if request.per_class is not None:
        _write_per_class(request.per_class, ours, labels[good], vocabulary)
    return _result(request, ours, plain, good, vocabulary, clip, index)


def _labels(index: SampleIndex, own: Vocabulary, vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    """Class index in the vocabulary of every sample, [N]."""
    used = np.unique(index.label)
    absent = [own.ids[i] for i in used if own.ids[i] not in vocabulary.index]
    if absent:
        raise DataError(
            f"{len(absent)} classes of the split are not in the vocabulary, the first is '{absent[0]}'",
            hint="give a --vocabulary that holds every class of the split",
        )
    mapping = np.array([vocabulary.index.get(class_id, -1) for class_id in own.ids])
    return mapping[index.label]


def _template_classes(clip: LoadedClip, vocabulary: Vocabulary, template: str) -> npt.NDArray[np.float32]:
    from teachonce.zeroshot import template_features

    return np.asarray(template_features(clip, vocabulary.names, template).cpu().numpy())


def _prompt_classes(
    prompts: LoadedPrompts, vocabulary: Vocabulary, template: npt.NDArray[np.float32], share: float
) -> npt.NDArray[np.float32]:
    import torch

    from teachonce.regularisers import wise

    trained = prompts.classifier(vocabulary.names).cpu()
    return np.asarray((trained if share == 1 else wise(torch.from_numpy(template), trained, share)).numpy())


def image_features(
    clip: LoadedClip, index: SampleIndex, root: Path, request: EvaluateRequest, reporter: Reporter,
    prompts: LoadedPrompts | None = None,
) -> npt.NDArray[np.float32]:  # fmt: skip
    """Unit image features of the split, [N, E], with prompts in the image tower if given; NaN where an image failed."""
    from teachonce.feature_cache import SplitFeatures, cached_features, feature_key

    encode = clip.encode_images if prompts is None else prompts.image_features

    def compute() -> SplitFeatures:
        return SplitFeatures(_encode(clip, encode, index, root, request, reporter))

    own = [] if prompts is None else [prompts.tensors_digest]
    key = feature_key(index, root, clip.digest, clip.preprocess_text, str(clip.device.type), *own)
    found, cached = cached_features(key, compute)
    if cached:
        reporter.note(f"image features of {len(index)} samples come from the cache")
    return found.features


def _encode(
    clip: LoadedClip, encode: Callable[[Tensor], Tensor], index: SampleIndex, root: Path, request: EvaluateRequest,
    reporter: Reporter,
) -> npt.NDArray[np.float32]:  # fmt: skip
    from teachonce.clip_models import embedding_width
    from teachonce.cluster import default_threads
    from teachonce.image_batches import image_batches
    from teachonce.images import ImageReader

    features = np.full((len(index), embedding_width(clip)), np.nan, np.float32)
    threads = request.threads or default_threads(1)
    with (
        ImageReader(index, root) as reader,
        image_batches(reader, len(index), [clip], request.batch_size, threads) as batches,
    ):
        for batch in batches:
            pixels = batch.pixels(0)
            stop = batch.start + len(batch)
            if pixels is not None:
                features[batch.start : stop] = encode(pixels).cpu().numpy()
            for row, fault in batch.faults():
                features[row] = np.nan
                reporter.note(f"{index.key(row)}: {fault.reason}")
            reporter.progress("evaluate", stop, len(index), "images")
    return features


def _score(
    features: npt.NDArray[np.float32],
    classes: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
) -> Scores:
    import torch

    from teachonce.zeroshot import equal_rows, score

    text = torch.from_numpy(classes)
    return score(torch.from_numpy(features), text, torch.from_numpy(labels), equal_rows(text))


def _write_per_class(file: Path, scores: Scores, labels: npt.NDArray[np.int64], vocabulary: Vocabulary) -> None:
    """One line a class that has images: id, name, n, top1, top5, the class it is most often taken for."""
    from teachonce.files import atomic_write_bytes

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "name", "n", "top1", "top5", "most_confused_with", "confused_share"])
    for class_index in np.unique(labels):
        mine = labels == class_index
        wrong = scores.predicted[mine & (scores.top1 == 0)]
        names, counts = np.unique(wrong, return_counts=True)
        confused = vocabulary.names[names[counts.argmax()]] if len(names) else ""
        share = counts.max() / mine.sum() if len(names) else 0.0
        top1, top5 = scores.top1[mine].mean(), scores.top5[mine].mean()
        class_id, name = vocabulary.ids[class_index], vocabulary.names[class_index]
        writer.writerow([class_id, name, mine.sum(), f"{top1:.4f}", f"{top5:.4f}", confused, f"{share:.4f}"])
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(file, text.getvalue().encode())


def _result(
    request: EvaluateRequest, ours: Scores, plain: Scores, good: npt.NDArray[np.bool_],
    vocabulary: Vocabulary, clip: LoadedClip, index: SampleIndex,
) -> EvaluateResult:  # fmt: skip
    from teachonce.zeroshot import wilson

    n, prompted = int(good.sum()), request.run is not None
    top1 = float(ours.top1.mean())
    baseline = {"top1": float(plain.top1.mean()), "top5": float(plain.top5.mean()), "template": request.template}
    return EvaluateResult(
        top1=top1, top5=float(ours.top5.mean()), n=n, classes=len(vocabulary), top1_interval=wilson(top1, n),
        tied_names=vocabulary.tied(), failed=int((~good).sum()), template=None if prompted else request.template,
        run=str(request.run) if prompted else None, per_class=str(request.per_class) if request.per_class else None,
        wise=request.wise if prompted else None,
        baseline=baseline if prompted else None,
        digests={"student": clip.digest, "vocabulary": vocabulary.digest, "samples": index.digest},
    )  # fmt: skip
