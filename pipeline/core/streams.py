"""Every stream of NumPy's random numbers that this project draws, by name.

A stream is a pure function of its lane, a seed and a part (an epoch or a step), whatever was drawn before: a resumed
run and another machine draw the same. Whoever draws from a seed of their own, or from one that another name draws
from, adds a name here.

Two names that draw from the same seed have different lanes, but for the names that are older than the registry: they
all have lane 0, and stores and runs that exist depend on what they drew. Each of them draws from the seed of something
else (a store, a run, a report), so that two of them draw the same only where these seeds are equal, and then for
different purposes.

The starts of prompts and of the made-up models come from torch's own generators, which share nothing with these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stream:
    """One kind of draw."""

    seed_of: str
    """Whose seed it draws from."""
    lane: int
    """What keeps its numbers apart from those of other names with the same seed."""

    def at(self, seed: int, part: int = 0) -> np.random.Generator:
        """A generator at the start of one part of the stream.

        Args:
            seed: 0 or above, below 2^64.
            part: an epoch or a step, 0 or above, below 2^64; 0 where a stream has one part only.
        """
        return np.random.Generator(np.random.Philox(counter=self.lane << 192, key=seed | part << 64))


TRAINING_ORDER = Stream("run", 0)
"""The order of samples; a part is an epoch."""
CANDIDATES = Stream("run", 1)
"""Classes that fill the candidates; a part is a step."""
SECOND_PASS = Stream("run", 2)
"""Names that a second pass computes; a part is a step."""
PAIRING = Stream("run", 3)
"""Rows of a working set that are proved before a run begins."""
MASKED_DIMENSIONS = Stream("run", 4)
"""Dimensions of key and value prompts that a step leaves at their start; a part is a step."""
IMAGE_NOISE = Stream("run", 5)
"""What is added to image features in training; a part is a step."""
NAME_NOISE = Stream("run", 6)
"""What is added to the features of names; a part is a step."""
ROW_ORDER = Stream("store", 0)
"""The blocks of samples in the order of a store."""
RECHECK = Stream("verify", 0)
"""Rows that are computed again."""
CALIBRATION = Stream("ensemble", 0)
"""Rows that teachers are calibrated on."""
CLASS_ORDER = Stream("class order", 0)
"""The direction from which the order of classes in a store is found."""
BOOTSTRAP = Stream("report", 0)
"""Images that are drawn with replacement for an interval."""
LINEAR_REFERENCE = Stream("linear reference", 0)
"""The order of rows in the fit of the linear reference; a part is an epoch."""
REHEARSAL = Stream("rehearsal", 0)
"""Class features in place of those that a rehearsal has no time to compute."""
AUDIT = Stream("audit", 0)
"""Samples of a store that an audit fits, lays cells out or compares two stores by, and shuffled labels of a test."""
