"""The work of `doctor`. The docstring of the package says what the stage promises."""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.errors import UsageError
from teachonce.models.spec import parse_spec
from teachonce.phrases import option
from teachonce.stages.doctor import machine, software
from teachonce.stages.doctor.request import DoctorRequest, DoctorResult


def doctor(request: DoctorRequest, reporter: Reporter) -> DoctorResult:
    """Look at everything. The stage's `doctor` says what is raised."""
    if request.model is not None:
        parse_spec(request.model)
    if not request.path.is_dir():
        raise UsageError(
            option("path") + f" {request.path} is no folder", hint="give the folder where stores shall lie"
        )
    reporter.note("trying what runs need, for some seconds")
    findings = (*machine.look(request.path), *software.look(request.model))
    standings = [finding.standing for finding in findings]
    return DoctorResult(
        findings=findings,
        warnings=standings.count("WARN"),
        failures=standings.count("FAIL"),
        path=str(request.path),
        model=request.model,
    )
