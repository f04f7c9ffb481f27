"""audit: what a label store tells of its data and its teacher, and how new photos differ; no model is loaded.

Labels that are probably wrong, near-duplicates, classes that the teacher names too often or too rarely, its
calibration, confusions, classes without photos; with a second store, drift and photos in both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from teachonce.core.progress import Reporter
from teachonce.stages.audit.request import AuditRequest, AuditResult

if TYPE_CHECKING:
    from teachonce.audit.findings import LeftOut
    from teachonce.labels.store import LabelStore

__all__ = ["AuditRequest", "AuditResult", "audit", "left_out_of"]


def audit(request: AuditRequest, reporter: Reporter, spell: Callable[[str], str] = str) -> AuditResult:
    """Look through a store and write the page and the lists.

    Args:
        request: what to look through, and where to write.
        reporter: told about progress.
        spell: how the page spells the options of commands that it names.

    Raises:
        UsageError: --out is a folder or lies in none, or a number is out of range.
        DataError: no label store, one without embeddings and without a student's features, or one without photos.
        FingerprintError: the new store's vectors come from another model.
        IncompleteError: a store is not complete, or a write failed.
    """
    from teachonce.stages.audit import work

    return work.audit(request, reporter, spell)


def left_out_of(store: LabelStore, reporter: Reporter) -> LeftOut:
    """What an audit by its defaults leaves out of a store; no file is written.

    Raises:
        DataError, IncompleteError: as `audit`.
    """
    from teachonce.stages.audit import work

    return work.left_out_of(store, reporter)
