"""import-model: make an open_clip folder of a transformers CLIP, or of a file of weights and the name of its release.

Nothing in the files is run, and every tensor is used or the model is refused. The folder is taken everywhere by
`local-dir:PATH`, and gives the logits of its source.
"""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.import_model.checks import check
from teachonce.stages.import_model.request import ImportModelRequest, ImportModelResult

__all__ = ["ImportModelRequest", "ImportModelResult", "import_model"]


def import_model(request: ImportModelRequest, reporter: Reporter) -> ImportModelResult:
    """Write the folder.

    Raises:
        UsageError: no such file or folder, a file without the name of its release, or the folder is not empty.
        IntegrityError: a file is damaged, or holds objects that would have to be run.
        DataError: the model is no CLIP of transformers, its tensors are not those of its configuration or release, or
            open_clip has no setting for something in it.
        IncompleteError, EnvironmentFault: the folder cannot be written, or a package for it is missing.
    """
    check(request)
    from teachonce.stages.import_model import work  # torch and open_clip

    return work.import_model(request, reporter)
