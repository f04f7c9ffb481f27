"""models: open_clip's released models, and which of them can teach and carry text or image prompts.

It reads a file of this package: no network, no torch.
"""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.models.request import Family, ListedModel, ModelsRequest, ModelsResult

__all__ = ["Family", "ListedModel", "ModelsRequest", "ModelsResult", "models"]


def models(request: ModelsRequest, reporter: Reporter) -> ModelsResult:
    """List the models.

    Raises:
        UsageError: no model's name or family holds the word.
    """
    from teachonce.stages.models import work

    return work.models(request, reporter)
