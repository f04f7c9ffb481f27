"""doctor: whether this machine can do the work: OK, WARN or FAIL on each thing that runs need, and what to do about it.

It runs offline, leaves nothing behind, and tries things rather than asking for versions: `machine` tries what the
machine gives, `software` what is installed, `work` puts both together.
"""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.doctor.request import DoctorRequest, DoctorResult, Finding, Standing

__all__ = ["DoctorRequest", "DoctorResult", "Finding", "Standing", "doctor"]


def doctor(request: DoctorRequest, reporter: Reporter) -> DoctorResult:
    """Look at everything; what is wrong is a finding and no error.

    Raises:
        UsageError: the path is no folder, or the model is named as no model is.
    """
    from teachonce.stages.doctor import work

    return work.doctor(request, reporter)
