"""Orders of samples as pure functions of seeds: the row order of a store, and the batches of a training run.

It holds no state, so that a resumed run needs two integers and not a loader's memory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BLOCK = 64  # consecutive samples that stay together in a store: reads stay mostly sequential


def row_order(samples: int, seed: int) -> npt.NDArray[np.int64]:
    """The samples in row order: blocks of the archive order, permuted, so that a chunk mixes many classes.

    Returns:
        [samples], a permutation of range(samples).
    """
    blocks = -(-samples // BLOCK)
    starts = np.random.Generator(np.random.Philox(key=seed)).permutation(blocks) * BLOCK
    order = (starts[:, None] + np.arange(BLOCK)[None]).ravel()
    return np.asarray(order[order < samples], dtype=np.int64)


def epoch_order(samples: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of one pass over `samples`, [samples]."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(samples)


def batch_at(samples: int, batch_size: int, step: int) -> tuple[int, int]:
    """Epoch and first position of the batch of a step (from 0). The last batch of an epoch may be short."""
    per_epoch = -(-samples // batch_size)
    return step // per_epoch, (step % per_epoch) * batch_size
