"""An order of the classes in which like names are neighbours, so that a row's class numbers lie close together.

It only looks at the teacher's text features. Measured on the real teacher over 21,841 names at k = 100: 89 bytes of
class ids a row, against 101 in WordNet's own order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LEAF = 4
POWER_STEPS = 10


def class_order(embeddings: npt.NDArray[np.float32] | None, classes: int) -> npt.NDArray[np.int64]:
    """Halve the classes at the median of their first principal direction, again and again, and read off the leaves.

    Args:
        embeddings: [C, E] unit text features; None leaves the vocabulary's own order.
        classes: C.

    Returns:
        [C], a permutation: the class at each place.
    """
    if embeddings is None or not np.isfinite(embeddings).all():
        return np.arange(classes)
    order: list[int] = []
    waiting = [np.arange(classes)]
    while waiting:
        part = waiting.pop()
        if len(part) <= LEAF:
            order.extend(part.tolist())
            continue
        halves = _halves(embeddings, part)
        if order:  # the half that is nearer to the class before comes first
            before = embeddings[order[-1]]
            near = [float(embeddings[half].mean(axis=0) @ before) for half in halves]
            if near[1] > near[0]:
                halves = halves[::-1]
        waiting += [halves[1], halves[0]]
    return np.array(order, dtype=np.int64)


def _halves(
    embeddings: npt.NDArray[np.float32], part: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    centred = embeddings[part] - embeddings[part].mean(axis=0)
    direction = np.random.Generator(np.random.Philox(key=0)).normal(size=centred.shape[1]).astype(np.float32)
    for _ in range(POWER_STEPS):
        direction = centred.T @ (centred @ direction)
        length = float(np.linalg.norm(direction))
        if length == 0:  # all the same
            break
        direction /= np.float32(length)
    ranked = part[np.argsort(centred @ direction, kind="stable")]
    middle = len(part) // 2
    return ranked[:middle], ranked[middle:]
