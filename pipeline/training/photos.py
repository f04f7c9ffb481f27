"""What a head is told of a run's photos: which classes have some, and the features that a cache keeps.

This module takes no training step.

Shapes: N labelled samples that are trained on, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from teachonce.errors import DataError
from teachonce.heads.adapters import TipHead
from teachonce.heads.kinds import OF_STORE, HeadKind
from teachonce.heads.teacher_space import TeacherSpaceHead, regression
from teachonce.heads.verbs import Head
from teachonce.rows.order import Places, TrainingOrder
from teachonce.rows.resident import StepRows
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
    trained: Places
    """Rows of the working set that are not held out, with a label or without."""
    teacher_width: int = 0
    """D, and the teacher's logit scale; 0 unless a head asks for the teacher."""
    teacher_scale: float = 0.0

    @classmethod
    def of(cls, rows: WorkingSet, order: TrainingOrder, head: HeadKind) -> Photos:
        """What a working set holds for a head; of its teacher where the head classifies in its space."""
        labels = rows.label_column.astype(np.int64)
        trained = labels >= 0
        trained[order.held_out] = False
        places = np.flatnonzero(trained)
        numbers = rows.records["row"][places].astype(np.int64) // rows.store.layout.views
        _, first, sample = np.unique(numbers, return_index=True, return_inverse=True)
        classes = np.unique(labels[labels >= 0]).tolist()
        kept = np.setdiff1d(np.arange(len(rows)), order.held_out)
        of_teacher = (rows.class_embeddings.shape[1], rows.teacher_scale) if head in OF_STORE else (0, 0.0)
        return cls(classes, rows.vocabulary.ids, places, sample, labels[places[first]], kept, *of_teacher)

    @property
    def samples(self) -> int:
        """N."""
        return len(self.label)

    def fill(
        self,
        head: Head,
        rows: WorkingSet,
        known: Tensor,
        standing_for: list[int],
        taken: Callable[[Places], StepRows],
        features: Callable[[StepRows], Tensor],
    ) -> None:
        """Put into a head what it holds of a run's rows before it moves; most heads hold nothing.

        Args:
            known: [V] of each class its row among those that the head knows, or -1.
            standing_for: the class that stands for each of these rows.
            taken: rows of the working set.
            features: unit image features of such rows.
        """
        if isinstance(head, TipHead):
            labels = known.cpu()[torch.from_numpy(self.label)]
            head.fill(self.features(lambda places: features(taken(places))), labels)
        elif isinstance(head, TeacherSpaceHead):
            head.fill(torch.from_numpy(rows.class_embeddings[standing_for]), regression(self.pairs(taken, features)))

    @torch.no_grad()
    def pairs(
        self, taken: Callable[[Places], StepRows], features: Callable[[StepRows], Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Image features [n, E] of the rows that are not held out, and the teacher's embeddings [n, D], in blocks.

        Args:
            taken: rows of the working set.
            features: unit image features of such rows.
        """
        for start in range(0, len(self.trained), AT_ONCE):
            rows = taken(self.trained[start : start + AT_ONCE])
            if rows.columns.embedding is None:
                raise DataError("the head teacher-space needs the teacher's embeddings")
            yield features(rows).float(), rows.columns.embedding.float()

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
