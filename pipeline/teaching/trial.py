"""What shows that a model works at all: its features of real images are numbers and of unit length.

Some images run through every model before a store is made or continued; rows of a chunk are looked at before the chunk
is written. This module writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from teachonce.data.batches import image_batches
from teachonce.data.index import SampleIndex
from teachonce.data.reader import ImageReader
from teachonce.errors import DataError
from teachonce.models.clip import LoadedClip, libraries_explained
from teachonce.models.spec import Precision
from teachonce.phrases import phrase

TRIED = 8  # samples: enough to meet a model that fails on all, few enough for a driver without a GPU
MOST_OFF = 1e-3  # of a length from 1; features are normalised in float32


def try_models(models: Iterable[LoadedClip], index: SampleIndex, root: Path, precision: Precision) -> None:
    """Run the first samples of an index through every model.

    Samples that cannot be read are left to the task of their chunk, which says so.

    Raises:
        EnvironmentFault: a model fails on them.
        DataError: a model's features of them are NaN or infinite, or not of unit length.
    """
    distinct = list({id(model): model for model in models}.values())
    samples = index.take(np.arange(min(TRIED, len(index))))
    try:
        with ImageReader(samples, root) as reader, image_batches(reader, len(samples), distinct, TRIED, 1) as batches:
            batch = next(batches)
    except (DataError, OSError):
        return
    status = np.zeros(len(batch), np.uint8)
    status[[row for row, _ in batch.failed]] = 1
    for number, model in enumerate(distinct):
        pixels = batch.pixels(number)
        if pixels is None:
            return
        with libraries_explained(model.spec, "run"):
            lengths = model.encode_images(pixels, precision).norm(dim=1).cpu().numpy()
        require_unit(model.spec, lengths, status, "the first images", samples.key)


def require_unit(
    spec: str, lengths: npt.NDArray[np.float32], status: npt.NDArray[np.uint8], where: str, key: Callable[[int], str]
) -> None:
    """Refuse image features that are no unit vectors.

    Args:
        spec: the model that made them.
        lengths: of the features of each row, [R].
        status: 0 where there was an image, [R].
        where: which rows they are, in words.
        key: names the image of a row.

    Raises:
        DataError: says who made them, where, and the first such row.
    """
    wrong = np.flatnonzero((status == 0) & ~(np.abs(lengths - 1) <= MOST_OFF))  # no comparison with NaN holds
    if len(wrong):
        row = int(wrong[0])
        length = float(lengths[row])
        fault = f"have length {length:.3g} in place of 1" if np.isfinite(length) else "are NaN or infinite"
        raise DataError(
            f"image features of '{spec}' {fault}: {where}, row {row} ('{key(row)}'); {len(wrong)} of "
            f"{int((status == 0).sum())} rows are so, and nothing of them is kept",
            hint=phrase("run with {precision=fp32}; if it stays, the weights are damaged"),
        )
