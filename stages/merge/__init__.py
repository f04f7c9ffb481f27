"""merge: one store from several teachers of the same images: the weighted mean of their calibrated probabilities.

The weights are numbers, or each row decides them by how sure the teachers are of it. Computed from the stored
embeddings, so no image is touched and no model is loaded. Running the same command again after any interruption
continues it.
"""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.merge.request import MergeRequest, MergeResult

__all__ = ["MergeRequest", "MergeResult", "merge"]


def merge(request: MergeRequest, reporter: Reporter) -> MergeResult:
    """Complete the store that the request describes.

    Raises:
        UsageError: an option is out of range.
        DataError: a parent has no embeddings, or no labels to calibrate on.
        FingerprintError: the parents differ in what they are about, or the store at this path is of something else.
        IncompleteError: a parent is not complete, or another process writes the store.
    """
    from teachonce.stages.merge import work

    return work.merge(request, reporter)
