"""What `import` refuses before torch is loaded."""

from __future__ import annotations

from pathlib import Path

from teachonce.errors import UsageError
from teachonce.models.spec import require_model
from teachonce.phrases import option, phrase
from teachonce.stages.import_.request import ImportRequest


def check(request: ImportRequest) -> None:
    """Refuse what can be refused before the checkpoint is read.

    Raises:
        UsageError: no such model, or the folder is not empty.
    """
    require_model(request.student)
    _check_out(request.out)


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(
            f"{out} is a file; " + option("out") + " is a folder", hint=phrase("{another out}; nothing was changed")
        )
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty", hint=phrase("{another out}; nothing was changed"))
