"""Unit image features of evaluation splits, which are computed once for each model and kept.

This module scores nothing, and training does not use it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from teachonce.core.machine import default_threads
from teachonce.core.progress import Reporter
from teachonce.data.batches import image_batches
from teachonce.data.index import SampleIndex
from teachonce.data.reader import ImageReader
from teachonce.errors import DataError, UsageError
from teachonce.evaluation.cache import SplitFeatures, cached_features, digest_key, feature_key, kept_features
from teachonce.evaluation.choice import Work
from teachonce.evaluation.sets import EvaluationSet
from teachonce.models.clip import LoadedClip, embedding_width
from teachonce.models.prompt_files import LoadedPrompts


def features_identity(data: EvaluationSet, clip: LoadedClip, prompts: LoadedPrompts | None) -> str:
    """Return a name of the features of a set, which other images, another student or image prompts change."""
    if data.stored is not None:
        return digest_key("stored", data.stored.digest, str(clip.device.type))
    return feature_key(data.index, data.root, *image_identity(clip, prompts))


def image_identity(clip: LoadedClip, prompts: LoadedPrompts | None) -> list[str]:
    """Return what image features depend on besides the images."""
    prompts_digest = [] if prompts is None or prompts.image is None else [prompts.tensors_digest]
    resized = [] if clip.resize == "pillow" else [clip.resize]
    prepared = [clip.preprocess_text, *resized]
    return [clip.digest, *clip.image_behaviour.values(), *prepared, str(clip.device.type), *prompts_digest]


def set_features(
    data: EvaluationSet, clip: LoadedClip, prompts: LoadedPrompts | None, work: Work, reporter: Reporter
) -> npt.NDArray[np.float32]:
    """Compute unit features of the classified images, [n, E]; cached features of a split serve each part of it.

    Raises:
        UsageError: the set is of stored features, and the prompts change images.
    """
    if data.stored is not None:
        if prompts is not None and prompts.image is not None:
            raise UsageError(
                f"{data.root} keeps features of the bare student, and these prompts change images",
                hint="evaluate on images: set manifest = ... and root = ... in that [[evaluate]]",
            )
        return data.stored.features.astype(np.float32)
    if work.cache and len(data.rows) < len(data.index):
        whole = kept_features(feature_key(data.index, data.root, *image_identity(clip, prompts)))
        if whole is not None:
            _note_cached(reporter, len(data.rows))
            return whole.features[data.rows]
    return image_features(clip, data.samples, data.root, work, reporter, prompts)


def image_features(
    clip: LoadedClip,
    index: SampleIndex,
    root: Path,
    work: Work,
    reporter: Reporter,
    prompts: LoadedPrompts | None = None,
) -> npt.NDArray[np.float32]:
    """Compute unit features of all images of an index, [N, E]; prompts in the image tower take part if there are any.

    Rows are NaN where an image failed; the reporter receives each failure with its reason.
    """
    encode = clip.encode_images if prompts is None else prompts.image_features

    def compute() -> SplitFeatures:
        return SplitFeatures(encode_all(clip, encode, index, root, work, reporter))

    if not work.cache:
        return compute().features
    computed, cached = cached_features(feature_key(index, root, *image_identity(clip, prompts)), compute)
    if cached:
        _note_cached(reporter, len(index))
    return computed.features


def _note_cached(reporter: Reporter, count: int) -> None:
    reporter.note(f"image features of {count} samples come from the cache")


def encode_all(
    clip: LoadedClip, encode: Callable[[Tensor], Tensor], index: SampleIndex, root: Path, work: Work, reporter: Reporter
) -> npt.NDArray[np.float32]:
    """Read, decode and encode every image of an index, [N, E]; NaN rows where an image failed.

    Raises:
        DataError: a decoded image has features that are NaN or infinite, which would pass for those of a failed image.
    """
    features = np.full((len(index), embedding_width(clip)), np.nan, np.float32)
    threads = work.threads or default_threads(1)
    with (
        ImageReader(index, root) as reader,
        image_batches(reader, len(index), [clip], work.batch_size, threads) as batches,
    ):
        for batch in batches:
            pixels = batch.pixels(0)
            stop = batch.start + len(batch)
            if pixels is not None:
                features[batch.start : stop] = encode(clip.placed(pixels)).cpu().numpy()
            failed = dict(batch.faults())
            broken = np.flatnonzero(~np.isfinite(features[batch.start : stop]).all(1)) + batch.start
            wrong = [row for row in broken.tolist() if row not in failed]
            if wrong:
                raise DataError(
                    f"{index.key(wrong[0])} can be decoded, and its image features are not numbers",
                    hint=f"check the weights of {clip.spec} and the prompts, if any: one of them gives NaN",
                )
            for row, fault in failed.items():
                features[row] = np.nan
                reporter.note(f"{index.key(row)}: {fault.reason}")
            reporter.progress("evaluate", stop, len(index), "images")
    return features
