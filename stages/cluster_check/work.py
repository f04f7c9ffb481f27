"""Start or find one worker, let it look, and compare what it says with this machine and with the plan."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from teachonce import __version__
from teachonce.cluster.batch_description import BatchDescription
from teachonce.cluster.client import open_cluster, open_described, run_tasks
from teachonce.cluster.description import Description, KubernetesDescription, load_description, one_worker
from teachonce.core.documents import JSON_BYTES, json_in
from teachonce.core.files import is_remote
from teachonce.core.machine import package_versions
from teachonce.core.outside import read_plain
from teachonce.core.progress import Reporter
from teachonce.errors import DataError, EnvironmentFault, UsageError
from teachonce.models.spec import absolute_spec, parse_spec
from teachonce.objects.places import open_objects
from teachonce.objects.remote import absolute
from teachonce.phrases import option, phrase
from teachonce.stages.cluster_check.look import TOKEN, Asked, look
from teachonce.stages.cluster_check.request import ClusterCheckRequest, ClusterCheckResult, WorkerLook
from teachonce.stages.doctor.request import Finding, Standing

SEEN_SECONDS = 10.0  # a network file system may show what another machine wrote a moment later
ROOM = 1.5  # times what a worker holds with its models loaded: batches and decoded images come on top


def cluster_check(request: ClusterCheckRequest, reporter: Reporter) -> ClusterCheckResult:
    """Ask one worker. The stage's `cluster_check` says what is raised."""
    if request.cluster.file is None and request.cluster.scheduler is None:
        raise UsageError(phrase("no cluster to check: give the file of a description, or {scheduler}"))
    for spec in request.models:
        parse_spec(spec)
    description = None if request.cluster.file is None else one_worker(load_description(request.cluster.file))
    needed = None if request.plan is None else memory_of_a_worker(request.plan)
    began = time.monotonic()
    with _trial_folder(request.labels) as (trial, token):
        asked = Asked(
            trial=None if trial is None else str(trial),
            token=token,
            root=None if request.root is None else absolute(request.root),
            models=tuple(map(absolute_spec, request.models)),
        )
        seen = _answer(request, description, asked, reporter)
        findings = [Finding(what="worker", standing="OK", found=_place(seen)), *versions(seen), *seen.findings]
        if trial is not None:
            findings += _written_here(trial, token, seen)
    findings += [memory(seen, needed, bool(request.models)), *_gpu(seen, description)]
    standings = [finding.standing for finding in findings]
    return ClusterCheckResult(
        findings=tuple(findings),
        warnings=standings.count("WARN"),
        failures=standings.count("FAIL"),
        worker=seen,
        seconds=time.monotonic() - began,
    )


def _answer(
    request: ClusterCheckRequest, description: Description | None, asked: Asked, reporter: Reporter
) -> WorkerLook:
    opened = open_cluster(request.cluster, reporter) if description is None else open_described(description, reporter)
    with opened as client:
        reporter.note("waiting for a worker, which then looks around for some seconds")
        (seen,) = run_tasks(client, look, [(asked,)], f"cluster-check-{asked.token}", reporter)
        return seen


@contextmanager
def _trial_folder(labels: Path | None) -> Iterator[tuple[Path | None, str]]:
    """A folder beside the store with a word in it that only this call knows; it is gone afterwards."""
    token = secrets.token_hex(8)
    if labels is None:
        yield None, token
        return
    if is_remote(labels):
        trial = labels.with_name(f"{labels.name}.check-{token}")
        bucket = open_objects(trial)
        bucket.put(TOKEN, token.encode())
        try:
            yield trial, token
        finally:
            for entry in bucket.list():
                bucket.delete(entry.key)
        return
    try:
        folder = tempfile.TemporaryDirectory(prefix=".teachonce-check-", dir=labels.resolve().parent)
    except OSError as problem:
        raise EnvironmentFault(
            option("labels") + f" {labels}: {labels.resolve().parent} cannot be written: {problem.strerror}",
            hint="make the folder, or mend who may write there",
        ) from problem
    with folder as name:
        trial = Path(name)
        trial.chmod(0o777)  # a worker of another user shall fail at the store's folder, not at this one
        (trial / TOKEN).write_text(token, encoding="ascii")
        yield trial, token


def _written_here(trial: Path, token: str, seen: WorkerLook) -> list[Finding]:
    """What the worker wrote must arrive here; nothing is said where it could not write."""
    if seen.fsync_ms is None:
        return []
    until = time.monotonic() + SEEN_SECONDS
    while True:
        with contextlib.suppress(OSError):
            stored = open_objects(trial).get(seen.host)
            if stored is not None and stored.data == token.encode():
                return []
        if time.monotonic() > until:
            text = f"what {seen.host} writes to {trial.parent} is not seen here within {SEEN_SECONDS:.0f} s"
            return [_finding("store", "FAIL", text, "put the store on a disk that all machines share")]
        time.sleep(0.2)


def versions(seen: WorkerLook) -> list[Finding]:
    """The worker's packages beside those here."""
    here = {"teachonce": __version__, **package_versions()}
    python = [text.rpartition(".")[0] for text in (here["python"], seen.versions["python"])]
    other = [name for name in here if seen.versions.get(name) != here[name]]
    lacking = [name for name in other if seen.versions.get(name) == "not installed"]
    said = "; ".join(f"{name} {seen.versions.get(name)}, here {here[name]}" for name in other)
    where = f"{said} (in {seen.executable})"
    if "teachonce" in other or lacking or python[0] != python[1]:
        remedy = "install the same versions on both sides, or name that Python with the key python"
        return [_finding("versions", "FAIL", where, remedy)]
    if other:
        remedy = "install the same versions on both sides: last bits may differ, and timm may count as another model"
        return [_finding("versions", "WARN", where, remedy)]
    text = f"teachonce {here['teachonce']}, Python {here['python']} and {len(here) - 2} packages are the same as here"
    return [_finding("versions", "OK", text)]


def memory(seen: WorkerLook, needed: float | None, loaded: bool) -> Finding:
    """The worker's limit against the plan, or against what it holds with the models loaded."""
    limit, text = seen.memory_limit, f"{_gb(seen.memory_limit)} by {seen.memory_limit_by}"
    remedy = "ask for more memory, or take a smaller batch_size or class_tile"
    if needed is not None:
        text += f"; a worker of the plan takes up to {_gb(needed)}"
        return _finding("memory", "FAIL" if limit < needed else "OK", text, remedy)
    if not loaded:
        return _finding("memory", "OK", text)
    text += f"; with the models loaded {_gb(seen.memory_used)} are in use"
    return _finding("memory", "WARN" if limit < ROOM * seen.memory_used else "OK", text, remedy)


def memory_of_a_worker(plan: Path) -> float:
    """The bytes that a worker takes at most, as a plan says.

    Raises:
        DataError: the file is no plan, or one that measured nothing.
    """
    try:
        document = json_in(read_plain(plan, JSON_BYTES))
        (estimate,) = [float(item["high"]) for item in document["estimates"] if item["what"] == "memory"]
        return estimate / (int(document["workers"]) + 1)  # the command itself takes as much as a worker
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DataError(
            f"{plan} is no plan with an estimate of memory: {problem}",
            hint=phrase("`teachonce plan` with {out} FILE.json and without {rate}"),
        ) from problem


def _gpu(seen: WorkerLook, description: Description | None) -> list[Finding]:
    visible = f"CUDA_VISIBLE_DEVICES={seen.cuda_visible_devices}" if seen.cuda_visible_devices is not None else ""
    if seen.gpus:
        return [_finding("gpu", "OK", "; ".join(filter(None, (*seen.gpus, visible))))]
    if description is not None and _asks_for_gpu(description):
        text = " ".join(filter(None, ("the job asks for a GPU, and torch sees none", visible)))
        remedy = "look at the key that asks for it, at job_script_prologue, and at torch's build on that machine"
        return [_finding("gpu", "FAIL", text, remedy)]
    return [_finding("gpu", "OK", "none is seen, and none was asked for")]


def _asks_for_gpu(description: Description) -> bool:
    if isinstance(description, KubernetesDescription):
        return description.gpus > 0
    if not isinstance(description, BatchDescription):
        return description.kind == "cuda"
    asked = [*description.directives(), *filter(None, description.cluster_options().values())]
    return any("gpu" in text.lower() for text in asked)


def _place(seen: WorkerLook) -> str:
    return f"{seen.host}, user {seen.user}, in {seen.folder}, {seen.cores} cores"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _finding(what: str, standing: Standing, text: str, remedy: str = "") -> Finding:
    return Finding(what=what, standing=standing, found=text, remedy="" if standing == "OK" else remedy)
