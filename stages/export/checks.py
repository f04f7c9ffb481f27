"""What `export` refuses before torch is loaded."""

from __future__ import annotations

from teachonce.core.files import require_new
from teachonce.core.hub import parse_hub_id
from teachonce.data.vocabulary import Vocabulary, load_vocabulary
from teachonce.errors import UsageError
from teachonce.models.spec import require_model
from teachonce.stages.export.request import ExportRequest


def checked_classes(request: ExportRequest) -> Vocabulary | None:
    """Refuse a request that is out of order; return the class list that it names, None where it names none.

    Raises:
        UsageError: a bad repository id, no such model, or --out is not empty.
        DataError: a broken class list.
    """
    if request.push is not None and parse_hub_id(request.push).revision is not None:
        raise UsageError(f"'{request.push}': what is pushed has no revision yet", hint="leave out what follows the @")
    if request.student is not None:
        require_model(request.student)
    require_new(request.out)
    return None if request.classes is None else load_vocabulary(request.classes)
