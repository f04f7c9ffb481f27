"""results.json of a run: what the run came to, and what its figures belong to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from teachonce.core.documents import LogSeal, is_as_written, sealed
from teachonce.core.strict import decode_known
from teachonce.errors import IntegrityError

SCHEMA = 1
LATER = ("linear_digest", "linear_held_out_top1", "template_held_out_top1", "linear_why")


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """What a finished run says of itself. What an earlier version did not write has its default."""

    steps: int
    trainable_parameters: int
    seconds: float
    """Of all calls that worked on the run; what a killed one did after its last checkpoint is not in it."""
    final_loss: float | None = None
    """Mean loss of the last 5 logged steps; None where the log holds none."""
    held_out_top1: float | None = None
    """Of the result, on the samples that were kept apart; None where none were."""
    out: str = ""
    """Where the run folder was."""
    prompts_digest: str = ""
    """SHA-256 of prompts.safetensors."""
    store_id: str | None = None
    student_digest: str | None = None
    """Of the student's weights."""
    student_tokenizer: str | None = None
    """Digest of what the student's tokenizer makes of text; the next two are of the other parts of its behaviour."""
    student_preprocess: str | None = None
    student_structure: str | None = None
    selection_digest: str | None = None
    vocabulary_digest: str | None = None
    start: str | None = None
    """Digest of the prompts that the run started from, or words where it was given none."""
    linear_digest: str | None = None
    """SHA-256 of the prompts.safetensors of the run's linear reference; None where it has none."""
    linear_held_out_top1: float | None = None
    """Of the linear reference, on the samples that were kept apart."""
    template_held_out_top1: float | None = None
    """Of the hand-written template, on the same."""
    linear_why: str = ""
    """Why there is no linear reference; empty in results of early versions, too."""
    log: LogSeal = LogSeal()
    """Of events.jsonl, when the run had ended."""

    def __post_init__(self) -> None:
        """Refuse figures that are no numbers: means and tables would be none, either."""
        for name in ("seconds", "final_loss", "held_out_top1", "linear_held_out_top1", "template_held_out_top1"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}")

    def document(self) -> dict[str, Any]:
        """The JSON document, without what later versions tell where there is nothing to tell."""
        said = {key: value for key, value in asdict(self).items() if key not in LATER or value not in (None, "")}
        return sealed({"schema": SCHEMA, **said})


def decode_results(document: Any, where: str) -> RunResults:
    """The results that a document holds.

    Args:
        document: parsed JSON.
        where: the file, for messages.

    Raises:
        IntegrityError: no run of any version has written it, or it was changed since.
    """
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        raise IntegrityError(f"{where} is not what a run writes: expected an object with schema {SCHEMA}")
    if not is_as_written(document):
        raise IntegrityError(f"{where} is not what its run wrote: its digest differs")
    return decode_known(RunResults, document, where, IntegrityError)
