"""Orders of samples as pure functions of seeds: the row order of a store, and the batches of a training run.

This module reads no data. A resumed run needs its seed and its step, not a loader's memory.

Shapes: N rows of a working set, S samples, B samples of a step, W views of a sample.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from teachonce.core.streams import TRAINING_ORDER
from teachonce.errors import DataError, TeachOnceError

Places = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


class TrainingOrder:
    """Which rows of a working set make each step of a run, and which samples no step ever sees.

    An epoch shows every trained sample once, in an order drawn by (seed, epoch). A sample brings `views_per_step` of
    its views, drawn by (seed, epoch, sample). A sample is held out, with all its views, by a hash of (seed, sample)
    alone: other samples, a selection or the batch size do not change it.

    Args:
        rows: row of the store for each row of the set, [N], rising: views of a sample are neighbours.
        views: number of views of a sample in the store.
        batch_size: samples of a step; the last step of an epoch may have fewer.
        views_per_step: views of a sample in a step; a sample with fewer views brings all its views.
        seed: the seed of the run.
        held_out: share of the samples to hold out, 0 or above, below 1; each sample is held out by itself, so the count
            varies.

    The numbers are not checked here: `training.config` declares their ranges, and `training.requirements` compares the
    views of a step with the store's.

    Attributes:
        samples: S, how many samples are trained on.
        held_out: places in the set of all rows of the held-out samples, rising, [h].
        steps_per_epoch: steps that show every trained sample once.

    Raises:
        DataError: no sample is left to train on, or none is held out although a share should be.
        TeachOnceError: there is no row, or the rows do not rise, which is a bug.
    """

    def __init__(
        self,
        rows: npt.NDArray[np.integer[Any]],
        views: int,
        batch_size: int,
        views_per_step: int,
        seed: int,
        held_out: float,
    ) -> None:
        if not len(rows) or (np.diff(rows) <= 0).any():
            raise TeachOnceError("the rows of a working set are missing or do not rise")
        self._views, self._batch_size, self._views_per_step, self._seed = views, batch_size, views_per_step, seed
        samples = rows if views == 1 else rows // views
        starts = np.flatnonzero(np.diff(samples, prepend=-1)).astype(np.int32 if len(rows) < 2**31 else np.int64)
        counts = np.diff(starts, append=len(rows)).astype(np.int32)
        numbers = samples[starts].astype(np.uint32)
        self.held_out: Places = np.zeros(0, np.int64)
        if held_out > 0:
            out = held_out_samples(seed, numbers, held_out)
            self.held_out = np.flatnonzero(np.repeat(out, counts))
            starts, counts, numbers = starts[~out], counts[~out], numbers[~out]
            _require_both(len(starts), int(out.sum()), held_out)
        self.samples = len(starts)
        self.steps_per_epoch = -(-self.samples // batch_size)
        self._alone = self.samples == len(rows)  # every row is a sample of its own, so the sample's number is its place
        self._starts = starts[:0] if self._alone else starts
        # Only views that are drawn need the sample's number; only samples of several rows need the counts.
        self._counts = counts if views > 1 else counts[:0]
        self._numbers = numbers if views_per_step < views else numbers[:0]
        self._order: tuple[int, Places] = (-1, np.zeros(0, np.int64))

    def at(self, step: int) -> tuple[int, Places]:
        """Return the epoch of a step (both from 0), and the places of its rows in the working set.

        Places of one sample stand together; samples come in the order of the epoch.
        """
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            random = TRAINING_ORDER.at(self._seed, epoch)
            self._order = (epoch, random.permutation(self.samples))
        chosen = self._order[1][within * self._batch_size : (within + 1) * self._batch_size]
        if self._alone:
            return epoch, chosen
        starts = self._starts.take(chosen).astype(np.int64)
        return epoch, starts if self._views == 1 else self._with_views(starts, chosen, epoch)

    def _with_views(self, starts: Places, chosen: Places, epoch: int) -> Places:
        offsets = np.broadcast_to(np.arange(self._views), (len(chosen), self._views))
        counts = self._counts.take(chosen)[:, None]
        if self._views_per_step < self._views:
            lots = _view_lots(self._seed, epoch, self._numbers.take(chosen), self._views)
            lots[offsets >= counts] = np.iinfo(np.uint64).max  # these come after the views that exist
            drawn = np.argsort(lots, axis=1, kind="stable")[:, : self._views_per_step]
            offsets = np.sort(drawn, axis=1)
        places: Places = (starts[:, None] + offsets)[offsets < counts]
        return places


def _require_both(trained: int, held_out: int, share: float) -> None:
    """Refuse a run without training samples, or an evaluation without samples, which would show much later."""
    if trained and held_out:
        return
    lacking = "held out" if trained else "left to train on"
    raise DataError(
        f"held_out = {share} of {trained + held_out} samples: none is {lacking}",
        hint="use another share or seed, or held_out = 0 and no evaluation during training",
    )


def held_out_samples(seed: int, samples: npt.NDArray[np.integer[Any]], held_out: float) -> npt.NDArray[np.bool_]:
    """Return which samples a run of this seed and share never trains on, [S]; others and selections change nothing.

    Args:
        seed: of the run.
        samples: their numbers: the row of the store, divided by its views.
        held_out: share of the samples that is held out; 0 holds out none.
    """
    held: npt.NDArray[np.bool_] = _shares(seed, samples.astype(np.uint32)) < held_out
    return held


def _shares(seed: int, samples: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1) for each sample, which depends on the seed and the sample alone."""
    words = _mixed(_word(seed, 1) ^ samples.astype(np.uint64))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _view_lots(seed: int, epoch: int, samples: npt.NDArray[np.uint32], views: int) -> Words:
    """Return a random word for each view of each sample of an epoch, [B, W]; the smallest words are drawn."""
    of_sample = _mixed(_word(seed, 2, epoch) ^ samples.astype(np.uint64))
    return _mixed(of_sample[:, None] ^ np.arange(views, dtype=np.uint64))


def _word(*numbers: int) -> Words:
    """Return one word that stands for all the numbers, [1]."""
    word = np.zeros(1, np.uint64)
    for number in numbers:
        word = _mixed(word ^ np.uint64(int(number) % 2**64))
    return word


def _mixed(words: Words) -> Words:
    """Apply the output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): neighbours become unlike."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
