"""The nearest vectors of every vector, by cosine: exactly for some ten thousand, through cells beyond that."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from teachonce.audit.evidence import Floats, Ids
from teachonce.core.progress import Reporter
from teachonce.core.streams import AUDIT

EXACT = 32_768
"""Up to so many vectors on both sides together every pair is compared: some 20 seconds of one core at width 512."""
PROBED = 8
"""Cells that are looked into for each vector where there are cells."""
ROUNDS = 4
"""Of k-means, by which the cells are laid out, on a sample of the vectors."""
BLOCK = 1024


def nearest(
    vectors: npt.NDArray[np.float16],
    k: int,
    reporter: Reporter,
    among: npt.NDArray[np.float16] | None = None,
    exact: int = EXACT,
) -> tuple[Ids, Floats]:
    """The k nearest of each vector, without itself.

    Args:
        vectors: [n, D] unit vectors.
        k: how many are wanted; fewer where there are fewer.
        reporter: told about progress.
        among: [m, D] where to look; the vectors themselves by default.
        exact: the largest number of vectors that are compared pair by pair.

    Returns:
        [n, k] places by falling cosine, and the cosines. Through cells a neighbour may be missed that lies in none of
        the nearest cells; a place is then -1 and its cosine -1 where too few were found.
    """
    crowd = vectors if among is None else among
    k = min(k, len(crowd) - (among is None))
    ids, cosines = np.full((len(vectors), k), -1, np.int64), np.full((len(vectors), k), -1, np.float32)
    if not k:
        return ids, cosines
    done = 0
    for rows, candidates in _parts(vectors, crowd, exact):
        for first in range(0, len(rows), BLOCK):
            some = rows[first : first + BLOCK]
            selves = some if among is None else None
            ids[some], cosines[some] = _best(vectors[some], crowd, candidates, selves, k)
            done += len(some)
            reporter.progress("neighbours", done, len(vectors), "samples")
    return ids, cosines


def _parts(
    vectors: npt.NDArray[np.float16], crowd: npt.NDArray[np.float16], exact: int
) -> Iterator[tuple[Ids, Ids | None]]:
    """Groups of vectors, and for each the places in the crowd that are compared with them; None: all."""
    if max(len(vectors), len(crowd)) <= exact:
        yield np.arange(len(vectors)), None
        return
    centres = _centres(crowd)
    home = _homes(crowd, centres)
    order = np.argsort(home, kind="stable")
    starts = np.searchsorted(home[order], np.arange(len(centres) + 1))
    mine = home if vectors is crowd else _homes(vectors, centres)
    near = np.argsort(-(centres @ centres.T), axis=1)[:, :PROBED]
    for cell in np.unique(mine).tolist():
        members = [order[starts[other] : starts[other + 1]] for other in near[cell].tolist()]
        yield np.flatnonzero(mine == cell), np.concatenate(members)


def _centres(crowd: npt.NDArray[np.float16]) -> Floats:
    """Unit centres of cells, as many as the square root of the crowd, [cells, D]."""
    cells = int(np.sqrt(len(crowd)))
    draw = AUDIT.at(0)
    sample = crowd[np.sort(draw.choice(len(crowd), min(len(crowd), 64 * cells), replace=False))].astype(np.float32)
    centres = sample[draw.choice(len(sample), cells, replace=False)]
    for _ in range(ROUNDS):
        home = _homes(sample, centres)
        sums = np.zeros_like(centres)
        np.add.at(sums, home, sample)
        empty = np.bincount(home, minlength=cells) == 0
        sums[empty] = centres[empty]
        centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.float32(1e-12))
    return centres


def _homes(vectors: npt.NDArray[np.floating], centres: Floats) -> Ids:
    """The cell of each vector, [n]."""
    parts = [
        (vectors[first : first + BLOCK].astype(np.float32) @ centres.T).argmax(axis=1)
        for first in range(0, len(vectors), BLOCK)
    ]
    return np.concatenate(parts).astype(np.int64)


def _best(
    some: npt.NDArray[np.float16], crowd: npt.NDArray[np.float16], places: Ids | None, selves: Ids | None, k: int
) -> tuple[Ids, Floats]:
    """The k best of the candidates for a block of vectors, [b, k] each; padded with -1."""
    others = crowd if places is None else crowd[places]
    names = np.arange(len(crowd)) if places is None else places
    cosines = some.astype(np.float32) @ others.astype(np.float32).T
    if selves is not None:
        at = selves if places is None else np.flatnonzero(np.isin(places, selves))  # candidates in this block
        rows = np.arange(len(selves)) if places is None else np.searchsorted(selves, places[at])
        cosines[rows, at] = -2
    kept = min(k, cosines.shape[1])
    best = np.argpartition(-cosines, kept - 1, axis=1)[:, :kept]
    values = np.take_along_axis(cosines, best, axis=1)
    order = np.lexsort((best, -values), axis=1)
    best, values = np.take_along_axis(best, order, axis=1), np.take_along_axis(values, order, axis=1)
    ids = np.where(values > -2, names[best], -1)
    spare = ((0, 0), (0, k - kept))
    return np.pad(ids, spare, constant_values=-1), np.pad(np.maximum(values, -1), spare, constant_values=-1)
