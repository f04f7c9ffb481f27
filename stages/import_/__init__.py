"""import: make prompts of this project out of another project's checkpoint, to start from or to compare with.

The folder holds prompts.safetensors + prompts.json and results.json; `evaluate` and `train --init` take it.
"""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.import_.checks import check
from teachonce.stages.import_.request import ImportRequest, ImportResult

__all__ = ["ImportRequest", "ImportResult", "import_"]


def import_(request: ImportRequest, reporter: Reporter) -> ImportResult:
    """Write the folder of prompts. Nothing in the checkpoint is run.

    Raises:
        UsageError: no such file, or the folder is not empty.
        IntegrityError: the file is damaged, or holds objects that would have to be run.
        DataError: it holds no prompts that any name can use, more than prompts, or prompts that lead to NaN.
        IncompleteError, EnvironmentFault: the folder cannot be made or written to; nothing is left of it.
        FingerprintError: it was trained on another student.
        UnsupportedModelError: a tower of the student that has prompts in the file cannot carry any.
    """
    check(request)
    from teachonce.stages.import_ import work  # torch and open_clip

    return work.import_(request, reporter)
