"""The script: directives of the whole allocation, the worker's environment, a scheduler, workers by srun, `teach`."""

from __future__ import annotations

import re
import shlex
import sys
from math import ceil
from pathlib import Path

from teachonce.cluster.batch_description import OPTION, SlurmDescription
from teachonce.cluster.description import BRIEF_MEMORY, THREADS_PER_WORKER, WORKER_ENVIRONMENT, load_description
from teachonce.cluster.description_parts import duration_seconds
from teachonce.core.files import atomic_write_bytes, write_failed
from teachonce.core.machine import calm_waiting
from teachonce.errors import UsageError
from teachonce.stages.cluster_script.request import ClusterScriptRequest, ClusterScriptResult

GRACE = 120
"""Seconds before the end of the allocation at which `teach` is told to stop."""
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_GPUS = re.compile(r"gpu(?::(?P<kind>[^:,]+))?:(?P<count>\d+)")

SCRIPT = """\
#!/usr/bin/env bash
{directives}

# A whole `teachonce teach` in one allocation of SLURM: {workers} workers, their scheduler, and the command.
# Submit it with what would follow `teachonce teach`, without the options that say where it runs:
#
#     sbatch THIS_FILE MANIFEST -=-root DATA -=-teacher MODEL -=-labels OUT.zarr
#
# Paths are those of the folder in which sbatch was called. Whatever ends the job, the same line goes on: committed
# chunks are kept. The first node also carries the scheduler and the command; `memory` must leave room for them.

set -euo pipefail
{exports}
{prologue}
folder=$(mktemp -d "$PWD/teachonce-$SLURM_JOB_ID-XXXXXX")
file=$folder/scheduler.json
started=()
command=

finish() {{
    trap - EXIT TERM
    rm -rf "$folder"  # first: SLURM may kill what takes longer
    if [ -n "$command" ] && kill -TERM "$command" 2>/dev/null; then wait "$command" || true; fi
    for process in "${{started[@]}}"; do kill "$process" 2>/dev/null || true; done
}}
stop() {{  # SLURM's warning {grace} s before the time limit, or scancel -b: chunks that are committed stay
    echo "teach is told to stop; sbatch the same line again to go on" >&2
    finish
    exit 143
}}
trap finish EXIT
trap stop TERM

{python} -m distributed.cli.dask_scheduler -=-scheduler-file "$file" -=-port 0 -=-no-dashboard{interface} \\
    > "$folder/scheduler.log" 2>&1 &
scheduler=$!
started+=("$scheduler")
until [ -s "$file" ]; do
    if ! kill -0 "$scheduler" 2>/dev/null; then cat "$folder/scheduler.log" >&2; exit 6; fi
    sleep 0.5
done

# A worker's name ends in its number on its node, which is that of its GPU. One that dies takes no other with it.
srun -=-ntasks={workers} -=-cpus-per-task={cores}{gpus} -=-kill-on-bad-exit=0 -=-wait=0 -=-no-kill \\
    bash -c {worker} "$file" &
started+=("$!")

{python} -m teachonce teach "$@" -=-scheduler "$file" &
command=$!
code=0
wait "$command" || code=$?
command=
exit "$code"
"""

WORKER = """\
exec {python} -m distributed.cli.dask_worker -=-scheduler-file "$0" \\
        -=-name "$SLURMD_NODENAME-$SLURM_PROCID-gpu-$SLURM_LOCALID" -=-nthreads {threads} -=-memory-limit 0 \\
        -=-no-dashboard -=-death-timeout {death_timeout}{options}"""


def cluster_script(request: ClusterScriptRequest) -> ClusterScriptResult:
    """Make the script. The stage's `cluster_script` says what is raised."""
    description = load_description(request.file)
    if not isinstance(description, SlurmDescription):
        raise UsageError(
            f'{request.file}: kind = "{description.kind}": a script of one allocation is made for "slurm"',
            hint="docs/cluster.md says how a scheduler and workers are started by hand",
        )
    script = script_of(description)
    if request.out is not None:
        _make_log_folder(description)
        atomic_write_bytes(request.out, script.encode())
    return ClusterScriptResult(
        script=script, workers=description.most_jobs, out=None if request.out is None else str(request.out)
    )


def _make_log_folder(description: SlurmDescription) -> None:
    """Make the folder of the job's logs: SLURM makes none, and a job that cannot write its log ends without a word.

    Raises:
        EnvironmentFault, IncompleteError: it cannot be made.
    """
    if description.log_directory is not None:
        folder = Path(description.log_directory)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise write_failed(folder, problem) from problem


def script_of(description: SlurmDescription) -> str:
    """The script of a description, as one text."""
    python = description.python or shlex.quote(sys.executable)
    gpus, others = _gres(description.gres)
    text = SCRIPT.format(
        directives="\n".join(f"#SBATCH {line}" for line in _directives(description, gpus, others)),
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in _variables(description).items()),
        prologue="".join(f"{line}\n" for line in description.job_script_prologue),
        workers=description.most_jobs,
        cores=description.cores,
        gpus=f" -=-gpus-per-task={gpus}" if gpus else "",
        grace=GRACE,
        python=python,
        interface=f" -=-interface {description.interface}" if description.interface else "",
        worker=shlex.quote(_worker(description, python)),
    )
    return text.replace("-=-", OPTION)


def _worker(description: SlurmDescription, python: str) -> str:
    """What each task of the allocation runs."""
    given = {"interface": description.interface, "local-directory": description.local_directory}
    return WORKER.format(
        python=python,
        threads=THREADS_PER_WORKER,
        death_timeout=duration_seconds(description.death_timeout),
        options="".join(f" -=-{name} {value}" for name, value in given.items() if value is not None),
    )


def _directives(description: SlurmDescription, gpus: str, others: str) -> list[str]:
    logs = f"{description.log_directory}/" if description.log_directory else ""
    asked = [
        "-J teachonce",
        f"-p {description.queue}" if description.queue else "",
        f"-A {description.account}" if description.account else "",
        f"-t {description.walltime}",
        f"-=-ntasks={description.most_jobs}",
        f"-=-cpus-per-task={description.cores}",
        f"-=-mem-per-cpu={ceil(_megabytes(description.memory) / description.cores)}M",
        f"-=-gpus-per-task={gpus}" if gpus else "",
        f"-=-gres={others}" if others else "",
        "-=-no-kill",
        "-=-no-requeue",
        f"-=-signal=B:TERM@{GRACE}",
        f"-o {logs}teachonce-%j.out",
        f"-e {logs}teachonce-%j.err",
    ]
    return [*filter(None, asked), *description.job_extra_directives]


def _gres(gres: str | None) -> tuple[str, str]:
    """What `gres` asks of each worker: GPUs as -=-gpus-per-task takes them, and the rest."""
    parts = [part.strip() for part in (gres or "").split(",") if part.strip()]
    gpus, others = "", []
    for part in parts:
        match = _GPUS.fullmatch(part if part != "gpu" else "gpu:1")
        if match is None:
            others.append(part)
        else:
            gpus = f"{match['kind']}:{match['count']}" if match["kind"] else match["count"]
    return gpus, ",".join(others)


def _variables(description: SlurmDescription) -> dict[str, str]:
    """As for a job of one worker: the allocator's, Dask's, and the description's own."""
    dask = {
        f"DASK_{key.upper().replace('.', '__').replace('-', '_')}": str(value) for key, value in BRIEF_MEMORY.items()
    }
    return calm_waiting(shared=True) | WORKER_ENVIRONMENT | dask | description.environment


def _megabytes(memory: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", memory)
    if match is None:  # the description was read strictly
        raise ValueError(f"memory {memory!r} is no size")
    base = float(match[1]) * (UNITS[match[2]] if match[3] else 1000 ** list(UNITS).index(match[2]))
    return base / 2**20
