"""What a head is told of a run's photos: which classes have some, and the features that a cache keeps.

This module takes no training step.

Shapes: N labelled samples that are trained on, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from teachonce.rows.order import Places, TrainingOrder
from teachonce.rows.working_set import WorkingSet

AT_ONCE = 1024  # rows whose features are computed together
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Photos:
    """The labelled samples of a run that are not held out."""

    classes: Sequence[int]
    """Classes that have photos, rising; those of held-out photos are among them."""
    ids: Sequence[str]
    """Of all classes of the vocabulary."""
    places: Places
    """Rows of the working set, all views of each sample."""
    sample: Labels
    """The sample of each of them, counted from 0."""
    label: Labels
    """[N] of each sample."""

    @classmethod
    def of(cls, rows: WorkingSet, order: TrainingOrder) -> Photos:
        """What a working set holds for a head."""
        labels = rows.label_column.astype(np.int64)
        trained = labels >= 0
        trained[order.held_out] = False
        places = np.flatnonzero(trained)
        numbers = rows.records["row"][places].astype(np.int64) // rows.store.layout.views
        _, first, sample = np.unique(numbers, return_index=True, return_inverse=True)
        classes = np.unique(labels[labels >= 0]).tolist()
        return cls(classes, rows.vocabulary.ids, places, sample, labels[places[first]])

    @property
    def samples(self) -> int:
        """N."""
        return len(self.label)

    @torch.no_grad()
    def features(self, of_places: Callable[[Places], Tensor]) -> Tensor:
        """Unit image features of the samples, [N, E] float32: of several views their mean, as Tip-Adapter has it.

        Args:
            of_places: unit image features of rows of the working set.
        """
        starts = range(0, len(self.places), AT_ONCE)
        each = torch.cat([of_places(self.places[start : start + AT_ONCE]).float() for start in starts])
        if self.samples == len(self.places):
            return each
        sums = each.new_zeros(self.samples, each.shape[1])
        return nn.functional.normalize(sums.index_add(0, torch.from_numpy(self.sample).to(each.device), each), dim=-1)
