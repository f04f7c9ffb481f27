"""cluster_check: one worker of a cluster is asked for all that a run of days will need of it.

It starts one job, or asks one worker of a scheduler that runs, and computes nothing that is kept. `request` says what
is asked and answered, `look` is what the worker does, `work` starts it and compares its answers with this machine.
"""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.cluster_check.request import ClusterCheckRequest, ClusterCheckResult, WorkerLook

__all__ = ["ClusterCheckRequest", "ClusterCheckResult", "WorkerLook", "cluster_check"]


def cluster_check(request: ClusterCheckRequest, reporter: Reporter) -> ClusterCheckResult:
    """Ask one worker; what does not fit is a finding and no error.

    Raises:
        UsageError: no cluster, or a description, path or model that is not understood.
        DataError: the plan is no plan.
        EnvironmentFault: no job is taken, or nothing answers.
        IncompleteError: no worker came in time.
    """
    from teachonce.stages.cluster_check import work

    return work.cluster_check(request, reporter)
