"""export: a folder that others can use: prompts, class weights, model card, digests; proved by loading it again."""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.export.checks import checked_classes
from teachonce.stages.export.request import ExportRequest, ExportResult

__all__ = ["ExportRequest", "ExportResult", "export"]


def export(request: ExportRequest, reporter: Reporter) -> ExportResult:
    """Write the folder beside its place, load it again, compare, and only then give it its name.

    Raises:
        UsageError: RUN holds no prompts; --out is not empty; a bad repository id.
        DataError: a broken class list, or a name in it that is too long for the tower.
        IntegrityError: the run, its config, or an evaluation in it, was damaged or changed; the reload gives other
            features.
        FingerprintError: the student, a result or an evaluation belongs to other prompts.
        IncompleteError: the disk is full.
        EnvironmentFault: the hub cannot be reached (the folder stays).
    """
    classes = checked_classes(request)
    from teachonce.stages.export import work  # torch and open_clip, when the request is in order

    return work.export(request, classes, reporter)
