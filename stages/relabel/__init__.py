"""relabel: new soft labels from the teacher's stored image embeddings.

Other names, templates, k, temperatures or fewer classes; class vectors from prompts that were trained for the teacher;
a temperature for each row; another prior. No image is touched, and the teacher's text tower runs only for names,
templates or prompts that the store does not know. Running the same command again after any interruption continues it.
"""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.relabel.request import RelabelRequest, RelabelResult

__all__ = ["RelabelRequest", "RelabelResult", "relabel"]


def relabel(request: RelabelRequest, reporter: Reporter) -> RelabelResult:
    """Complete the store that the request describes.

    Raises:
        UsageError: an option is out of range, or nothing is to be changed.
        DataError: the parent has no embeddings, or a class list or a prior is not what it should be.
        FingerprintError: another teacher, prompts of another model, or the store at this path is of something else.
        IncompleteError: the parent is not complete, or another process writes the store.
    """
    from teachonce.stages.relabel import work

    return work.relabel(request, reporter)
