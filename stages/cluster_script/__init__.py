"""cluster_script: a job script that runs a whole `teach` in one allocation of SLURM: scheduler, workers and command.

`request` says what is asked and answered, `work` writes the script. It submits nothing and imports no Dask.
"""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.cluster_script.request import ClusterScriptRequest, ClusterScriptResult

__all__ = ["ClusterScriptRequest", "ClusterScriptResult", "cluster_script"]


def cluster_script(request: ClusterScriptRequest, reporter: Reporter) -> ClusterScriptResult:
    """Make the script of a description.

    Raises:
        UsageError: the description is not understood, or is not one of SLURM.
        EnvironmentFault, IncompleteError: the script cannot be written.
    """
    from teachonce.stages.cluster_script import work

    return work.cluster_script(request)
