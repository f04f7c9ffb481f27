"""The soft labels of a relabelled store, chunk by chunk: logits from embeddings, a prior, a temperature for each row.

One batch of rows is in memory at a time, whatever the store's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from teachonce.core.devices import pick_device
from teachonce.core.machine import choose_threads
from teachonce.core.progress import Reporter
from teachonce.labels.format import LABELS
from teachonce.labels.store import Arrays, LabelStore
from teachonce.stages.relabel.class_vectors import TeacherText
from teachonce.stages.relabel.plan import Plan
from teachonce.stages.relabel.request import RelabelRequest

if TYPE_CHECKING:
    from torch import Tensor

    from teachonce.softening.prior import PriorShift
    from teachonce.teaching.teacher import TeacherHead

BATCH_ROWS = 512
SOLVED_ROWS = 128  # rows whose temperatures are solved at a time: float64, several copies
ROW_ARRAYS = ("label", "sample", "view", "status", "image_crc", "key_digest")  # the child takes these from its parent
MOST_NAMED = 5  # classes that a result names on either side
QUANTILES = (5, 50, 95)


class LabelMaker:
    """Makes the chunks of the child: labels from embeddings, everything else as in the parent."""

    def __init__(
        self,
        parent: LabelStore,
        child: LabelStore,
        plan: Plan,
        text: TeacherText,
        request: RelabelRequest,
        reporter: Reporter,
    ) -> None:
        self._parent, self._child, self._plan, self._text = parent, child, plan, text
        self._request, self._reporter = request, reporter
        self._loaded: TeacherHead | None = None
        self._shift: PriorShift | None = None
        self._temperatures: list[Tensor] = []
        self._flat = self._sharp = 0

    def make(self, group: str, chunk: int) -> Arrays:
        """The arrays of one chunk of a column group."""
        if group != LABELS:
            return self._parent.read_chunk(group, chunk)
        views = ("view_params",) if self._parent.layout.views > 1 else ()
        data = self._parent.read_chunk(group, chunk, ROW_ARRAYS + views)
        if self._request.label_noise is not None:
            data["label"] = np.repeat(self._child.index_of_chunk(chunk).label, self._parent.layout.views)
        return data | self._labels(chunk, data)

    def _labels(self, chunk: int, data: Arrays) -> Arrays:
        import torch

        from teachonce.teaching.soft_chunk import SoftChunk

        soft = SoftChunk(self._child, chunk)
        good = torch.from_numpy(data["status"] == 0)
        shift = self._log_shift()
        for logits, is_good in zip(self._logits(chunk, good), torch.split(good, BATCH_ROWS), strict=True):
            adjusted = logits if shift is None else logits + shift
            soft.add(adjusted if self._plan.entropy is None else self._at_entropy(adjusted, is_good))
        return soft.finish(data["status"], data["label"])

    def _logits(self, chunk: int, good: Tensor) -> Iterator[Tensor]:
        """The teacher's logits of the rows of a chunk, batch by batch; those of rows without an image mean nothing."""
        import torch

        head = self._head()
        embeddings = torch.from_numpy(self._parent.embeddings(chunk))
        embeddings[~good] = 0  # `finish` writes fill values into these rows
        for batch in torch.split(embeddings, BATCH_ROWS):
            images = batch.to(head.features_UE.device)
            yield head.logits(images if self._plan.head is None else self._plan.head.scoring_images(images))

    def _at_entropy(self, logits: Tensor, good: Tensor) -> Tensor:
        """The logits, each row at the temperature that gives it the entropy; keeps what the result says of them."""
        import torch

        from teachonce.softening.row_temperature import row_temperatures

        assert self._plan.entropy is not None  # only asked where there is one
        parts = []
        for part, is_good in zip(torch.split(logits, SOLVED_ROWS), torch.split(good, SOLVED_ROWS), strict=True):
            solved = row_temperatures(part, self._plan.entropy)
            parts.append((part.double() / solved.values_B[:, None]).float())
            self._temperatures.append(solved.values_B.cpu()[is_good])
            self._flat += int(solved.too_flat_B.cpu()[is_good].sum())
            self._sharp += int(solved.too_sharp_B.cpu()[is_good].sum())
        return torch.cat(parts)

    def _log_shift(self) -> Tensor | None:
        """What the wanted prior adds to every row's logits, [C]; computed for the first missing chunk."""
        import torch

        from teachonce.softening.prior import prior_shift

        if not self._plan.wanted:
            return None
        if self._shift is None:
            inverse = self._head().inverse_C.cpu().numpy()
            self._shift = prior_shift(self._predicted(), self._plan.wanted, inverse)
        return torch.from_numpy(self._shift.log_shift_C.astype(np.float32)).to(self._head().features_UE.device)

    def _predicted(self) -> Any:
        """The mean of the teacher's probabilities over all rows with an image, [C] float64: a pass over the store."""
        import torch

        total, rows = torch.zeros(len(self._plan.vocabulary), dtype=torch.float64), 0
        for chunk in range(self._parent.layout.chunks):
            good = torch.from_numpy(self._parent.read_chunk(LABELS, chunk, ("status",))["status"] == 0)
            for logits, is_good in zip(self._logits(chunk, good), torch.split(good, BATCH_ROWS), strict=True):
                total += logits[is_good.to(logits.device)].softmax(dim=1).double().sum(dim=0).cpu()
                rows += int(is_good.sum())
            self._reporter.progress("prior", chunk + 1, self._parent.layout.chunks, "chunks")
        return (total / max(rows, 1)).numpy()

    def _head(self) -> TeacherHead:
        """Load the teacher's head for the first missing chunk: a store that is complete needs no torch."""
        if self._loaded is None:
            from teachonce.models.clip import tune_process
            from teachonce.teaching.teacher import head_of

            tune_process(choose_threads(self._request.threads).count)
            scale = float(self._parent.groups[LABELS].fingerprint["logit_scale"])
            vectors = self._child.class_embeddings() if self._plan.head is None else self._text.scoring_vectors()
            self._loaded = head_of(vectors, scale, pick_device(self._request.device))
        return self._loaded

    def row_temperatures(self) -> dict[str, Any]:
        """What the result says of the rows' temperatures."""
        if self._plan.entropy is None:
            return {}
        values = np.concatenate([np.zeros(0), *(part.numpy() for part in self._temperatures)])
        quantiles = {f"p{q}": float(np.percentile(values, q)) for q in QUANTILES} if len(values) else {}
        counts = {"rows": len(values), "too_flat": self._flat, "too_sharp": self._sharp}
        return {"entropy": self._plan.entropy, **counts, **quantiles}

    def prior(self) -> dict[str, Any]:
        """What the result says of the prior."""
        if self._shift is None:
            return {}
        shift, classes = self._shift, np.array(sorted(self._plan.wanted))
        order = classes[np.argsort(shift.log_shift_C[classes], kind="stable")]
        ids = self._plan.vocabulary.ids

        def said(places: Any) -> list[tuple[str, float, float]]:
            return [(ids[c], round(float(shift.predicted_C[c]), 6), round(float(shift.wanted_C[c]), 6)) for c in places]

        return {
            "classes": len(classes),
            "mass": float(shift.predicted_C[classes].sum()),
            "most_above": said(order[:MOST_NAMED]),
            "most_below": said(order[::-1][:MOST_NAMED]),
        }
