"""evaluate: zero-shot accuracy of a hand-written template, or of trained prompts with the template beside it.

`request` says what is asked and answered, `checks` refuses what cannot be done, `scoring` works on one set, `protocol`
on the sets of a protocol. What is heavy is imported where the data are known to be in order.
"""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.evaluation.result import EvaluateResult
from teachonce.stages.evaluate.request import (
    EvaluateRequest,
    Files,
    Given,
    ProtocolRequest,
    ProtocolResult,
    SetLine,
)

__all__ = [
    "EvaluateRequest",
    "EvaluateResult",
    "Files",
    "Given",
    "ProtocolRequest",
    "ProtocolResult",
    "SetLine",
    "evaluate",
    "evaluate_protocol",
]


def evaluate(request: EvaluateRequest, reporter: Reporter) -> EvaluateResult:
    """Classify images of a split among the names that compete.

    Raises:
        UsageError: unknown split, bad template, options that would do nothing.
        DataError: missing or broken data, a class of the split that the vocabulary lacks.
        FingerprintError: the prompts belong to another student.
    """
    from teachonce.stages.evaluate.checks import checked_set

    data = checked_set(request, reporter)
    from teachonce.stages.evaluate.scoring import load_and_score  # torch and open_clip

    return load_and_score(request, data, reporter)


def evaluate_protocol(request: ProtocolRequest, reporter: Reporter) -> ProtocolResult:
    """Evaluate every set whose data are there.

    Raises:
        UsageError: no such protocol, an option that it has no use for, or what `evaluate` refuses.
        DataError: no set is there, or none could be evaluated.
        FingerprintError: the prompts belong to another student.
    """
    from teachonce.stages.evaluate.checks import ready_sets

    ready = ready_sets(request, reporter)
    from teachonce.stages.evaluate.protocol import evaluate_sets  # torch and open_clip

    return evaluate_sets(request, ready, reporter)
