"""plan: what a `teach` would take in rows, bytes, time and memory, before it writes anything; and how it was after all.

It writes nothing but the plan itself, where asked to. The same request is given as to `teach`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachonce.cluster.description import ClusterSpec, load_description
from teachonce.core.files import atomic_write_bytes
from teachonce.core.progress import Reporter
from teachonce.data.index import build_index, few_samples, split_classes
from teachonce.data.manifests import load_manifest, require_root
from teachonce.data.vocabulary import load_vocabulary
from teachonce.errors import DataError, EnvironmentFault, UsageError
from teachonce.labels.format import LABELS, Layout, new_layout
from teachonce.labels.ledger import IN_TURN, require_fingerprint
from teachonce.labels.selection import few_shot_samples
from teachonce.labels.size import bytes_per_row
from teachonce.labels.store import LabelStore
from teachonce.stages.teach.request import TeachRequest, check_request, cluster_of, load_models, wanted_store
from teachonce.teaching.estimate import (
    ANOTHER,
    Estimate,
    all_workers,
    differences,
    embedding_width_of,
    job_of,
    row_rates,
    stated_bytes,
    store_bytes,
)
from teachonce.teaching.fingerprints import TEMPERATURES
from teachonce.teaching.store import WantedStore, fingerprint_of

if TYPE_CHECKING:
    from teachonce.models.clip import LoadedClip
    from teachonce.teaching.rehearsal import Rehearsal

KIND = "teachonce-plan"
SCHEMA = 1
PROBE_SECONDS = 30.0
PROBE_SAMPLES = 4096
START_SECONDS = 30.0  # importing, loading, starting workers
CHECK_RATE = 1e8  # bytes a second that are read back and compared at the end


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """Which run to plan."""

    teach: TeachRequest
    rate: float | None = None
    """Images a second of all workers together, where it is known; no model is loaded and nothing is probed then."""
    seconds: float = PROBE_SECONDS
    """That the probe may take."""
    out: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """What the run would take; `estimates` hold for what is not there yet."""

    manifest: str
    labels: str
    samples: int
    counted: str
    """Where the number of samples comes from."""
    rows: int
    chunk_rows: int
    chunks: int
    chunks_there: int
    """Committed with all that is asked for; they would be skipped."""
    workers: int
    device: str
    source: str
    """What the rates come from."""
    bottleneck: str
    estimates: tuple[Estimate, ...]
    disk_free: int
    memory_free: int
    advice: tuple[str, ...]
    """What does not fit, and which option changes that."""
    fits: bool
    exit_code: int


def plan(request: PlanRequest, reporter: Reporter) -> PlanResult:
    """Plan a run.

    Raises:
        UsageError: as `teach`, or a rate or time that is not positive.
        DataError: the data is not there, and no rate is stated.
        FingerprintError: the store at this path was made from something else.
    """
    ask = request.teach
    check_request(ask)
    if (request.rate is not None and request.rate <= 0) or request.seconds <= 0:
        raise UsageError("--rate and --set seconds must be above 0")
    manifest = load_manifest(ask.manifest)
    root = require_root(manifest, ask.root)
    own = split_classes(manifest, ask.split, root)
    wanted = wanted_store(ask, manifest, root, own, load_vocabulary(ask.vocabulary, root) if ask.vocabulary else own)
    samples, counted = _samples(wanted, reporter)
    layout = new_layout(samples * wanted.views.views, len(wanted.vocabulary), wanted.top_k, TEMPERATURES,
                        wanted.chunk_rows, wanted.views.views)  # fmt: skip
    models = {} if request.rate is not None else load_models(ask, reporter)
    probe = None if request.rate is not None else _probe(request, wanted, models, samples, reporter)
    layout, there = _there(wanted, layout, models)
    result = _result(request, wanted, layout, there, probe, samples, counted)
    if request.out is not None:
        job = job_of(fingerprint_of(wanted, models), {LABELS, *models} if models else ())
        document = {"kind": KIND, "schema": SCHEMA, "job": job, **dataclasses.asdict(result)}
        atomic_write_bytes(request.out, (json.dumps(document, indent=1) + "\n").encode())
    return result


def _samples(wanted: WantedStore, reporter: Reporter) -> tuple[int, str]:
    split = wanted.manifest.split(wanted.split)
    if split.samples is not None and wanted.shots is None:
        return split.samples, "the manifest; `teachonce index` counts"
    index = build_index(wanted.manifest, wanted.split, wanted.root, reporter)
    if wanted.shots is None:
        return len(index), "counted in the archives"
    return len(few_shot_samples(index, wanted.shots, wanted.seed)), f"{wanted.shots} shots drawn from {len(index)}"


def _probe(
    request: PlanRequest, wanted: WantedStore, models: dict[str, LoadedClip], samples: int, reporter: Reporter
) -> Rehearsal:
    from teachonce.teaching.rehearsal import rehearse

    most = min(PROBE_SAMPLES, samples)
    index = few_samples(wanted.manifest, wanted.split, wanted.root, most)
    reporter.note(f"trying {min(most, len(index))} images at most, for {request.seconds:.0f} seconds")
    job = rehearsal_job(request.teach, models)
    return rehearse(wanted, models, index, job, request.seconds, reporter)


def rehearsal_job(request: TeachRequest, models: dict[str, LoadedClip], made_up: bool = False) -> Any:
    """The job of the run's chunk tasks; the rehearsal sets store, root and token."""
    from teachonce.cluster.client import threads_of
    from teachonce.teaching.chunk import TeachJob

    return TeachJob(
        store="", root="", token=0, models=tuple((group, clip.spec, clip.digest) for group, clip in models.items()),
        logit_scale=models[LABELS].logit_scale if LABELS in models else 0.0, precision=request.precision,
        batch_size=request.batch_size, views=request.views, compiled=request.compiled, class_tile=request.class_tile,
        threads=request.threads or threads_of(cluster_of(request)), made_up=made_up,
    )  # fmt: skip


def _there(wanted: WantedStore, layout: Layout, models: dict[str, LoadedClip]) -> tuple[Layout, set[int]]:
    """The layout that holds, and the chunks that have all that is asked for."""
    if not wanted.path.exists():
        return layout, set()
    store = LabelStore.open(wanted.path)
    stored = store.groups[LABELS].fingerprint
    if LABELS in models:
        require_fingerprint(wanted.path, LABELS, stored, fingerprint_of(wanted, models)
                            | {"samples": stored.get("samples")})  # fmt: skip
    done = set(store.committed(LABELS))
    for group in models:
        done &= set(store.committed(group)) if group in store.groups else set()
    return store.layout, done


def _result(
    request: PlanRequest, wanted: WantedStore, layout: Layout, there: set[int], probe: Rehearsal | None, samples: int,
    counted: str,
) -> PlanResult:  # fmt: skip
    ask = request.teach
    left = layout.rows - sum(stop - start for start, stop in map(layout.bounds, there))
    workers, unknown = _workers(cluster_of(ask))
    if probe is not None:
        rates = all_workers(row_rates(probe), workers)
        sizes = store_bytes(probe, left)
        source = f"{probe.rows} rows in {probe.seconds:.1f} s on this machine, {probe.threads} threads a worker"
        extra = probe.names_seconds + START_SECONDS
    else:
        assert request.rate is not None  # one of the two
        views = wanted.views.views
        rates = (request.rate * views, request.rate * views)
        widths = {name: embedding_width_of(spec) for name, spec in _specs(ask).items()}
        sizes = stated_bytes(left, layout.top_k, widths, ask.embeddings, len(wanted.vocabulary))
        source, extra = "the stated rate", START_SECONDS
    total = Estimate(what="bytes", low=sum(e.low for e in sizes), high=sum(e.high for e in sizes), unit="bytes")
    seconds = Estimate(what="seconds of chunks", low=left / rates[1], high=left / rates[0], unit="s")
    around = Estimate(what="seconds around them", low=5.0, high=extra + total.high / CHECK_RATE, unit="s")
    hours = Estimate(what=f"{'GPU' if probe and probe.device != 'cpu' else 'worker'}-hours",
                     low=workers * seconds.low / 3600, high=workers * seconds.high / 3600, unit="h")  # fmt: skip
    estimates = [Estimate(what="rows a second", low=rates[0], high=rates[1], unit="rows/s"), seconds, around, hours,
                 *sizes, total, *_memory(probe, workers)]  # fmt: skip
    disk = shutil.disk_usage(next(p for p in (wanted.path, *wanted.path.resolve().parents) if p.exists())).free
    free = _memory_free(probe)
    advice = [*unknown, *_disk_advice(total, disk, wanted), *_memory_advice(estimates, free, probe)]
    fits = total.high <= disk and not any(e.what == "memory" and e.low > free for e in estimates)
    return PlanResult(
        manifest=wanted.manifest.name, labels=str(wanted.path), samples=samples, counted=counted, rows=layout.rows,
        chunk_rows=layout.chunk_rows, chunks=layout.chunks, chunks_there=len(there), workers=workers,
        device=probe.device if probe else "as stated", source=source, bottleneck=_bottleneck(probe),
        estimates=tuple(estimates), disk_free=disk, memory_free=free, advice=tuple(advice), fits=fits,
        exit_code=0 if fits else EnvironmentFault.exit_code,
    )  # fmt: skip


def _specs(request: TeachRequest) -> dict[str, str]:
    teacher = {"teacher": request.teacher} if request.teacher is not None else {}
    return teacher | {f"student {n}": spec for n, spec in enumerate(request.students)}


def _workers(spec: ClusterSpec) -> tuple[int, list[str]]:
    """How many there will be, and what to say where nobody knows."""
    if spec.scheduler is not None:
        return 1, ["times are for one worker like this machine: divide by the number that the scheduler has"]
    if spec.file is None:
        return spec.workers or 1, []
    description = load_description(spec.file)
    if description.kind == "local":
        return description.most_workers, []
    if description.kind == "cuda":
        count = len(description.devices) or 1
        return count, [] if description.devices else ["times are for one GPU: divide by the number of this machine"]
    jobs = description.adaptive.maximum if description.adaptive is not None else description.jobs or 1
    return jobs, ["times are for workers like this machine; a job's cores and GPU may be others"]


def _memory(probe: Rehearsal | None, workers: int) -> list[Estimate]:
    if probe is None:
        return []
    each = float(probe.worker_bytes)
    found = [Estimate(what="memory", low=0.8 * each * (workers + 1), high=1.3 * each * (workers + 1), unit="bytes")]
    if probe.device_bytes:
        found.append(Estimate(what="GPU memory", low=float(probe.device_bytes), high=1.2 * probe.device_bytes,
                              unit="bytes"))  # fmt: skip
    return found


def _memory_free(probe: Rehearsal | None) -> int:
    import psutil

    return int(psutil.virtual_memory().available) + (probe.worker_bytes if probe else 0)


def _disk_advice(total: Estimate, free: int, wanted: WantedStore) -> list[str]:
    if total.high <= free:
        return []
    ways = [f"--labels on a disk with {total.high / 1e9:.1f} GB free"]
    if wanted.top_k > 16:
        ways.append(f"a smaller --top-k than {wanted.top_k}")
    if wanted.embeddings == "float16":
        ways.append("--embeddings int8, half the bytes")
    if wanted.views.views > 1:
        ways.append("fewer --views")
    ways.append("fewer --student, which can be added later")
    return [f"the store may not fit: {free / 1e9:.1f} GB are free; take " + ", or ".join(ways)]


def _memory_advice(estimates: list[Estimate], free: int, probe: Rehearsal | None) -> list[str]:
    needed = next((e for e in estimates if e.what == "memory"), None)
    if needed is None or needed.high <= free:
        return []
    return [f"memory may not suffice: {free / 1e9:.1f} GB are free and {needed.high / 1e9:.1f} may be needed; fewer "
            "--workers, a smaller --set batch_size, or --set class_tile=4096"]  # fmt: skip


def _bottleneck(probe: Rehearsal | None) -> str:
    if probe is None:
        return "not measured"
    spent = {phase: probe.phases[phase] for phase in IN_TURN}
    total = sum(spent.values()) or 1.0
    return ", ".join(f"{phase} {seconds / total:.0%}" for phase, seconds in spent.items())


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One figure of a plan beside what came of it."""

    what: str
    low: float
    high: float
    outcome: float
    unit: str
    inside: bool


@dataclass(frozen=True, kw_only=True)
class CompareResult:
    """A plan against the store that was taught after it."""

    labels: str
    source: str
    complete: bool
    compared: tuple[Compared, ...]


def compare(plan_file: Path, labels: Path, reporter: Reporter) -> CompareResult:
    """Read a plan and a store, and set them side by side.

    Raises:
        DataError: the file is no plan.
        UsageError: the store was taught from other data, or by another teacher.
    """
    try:
        document: Any = json.loads(plan_file.read_text(encoding="utf-8"))
        planned = {item["what"]: Estimate(**item) for item in document["estimates"]}
        rows, chunks, there = (int(document[key]) for key in ("rows", "chunks", "chunks_there"))
        known = document["kind"] == KIND and document["schema"] == SCHEMA
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DataError(f"{plan_file} is no plan: {problem}", hint="`teachonce plan` with --out FILE.json") from problem
    if not known:
        raise DataError(f"{plan_file} is no plan of this version", hint="`teachonce plan` with --out FILE.json")
    if there:
        reporter.note(f"{there} chunks were there before the plan: bytes are compared with what was to be added")
    store = LabelStore.open(labels)
    _require_same_job(document, store, plan_file, reporter)
    outcome = {"rows": float(store.layout.rows), "chunks": float(store.layout.chunks)} | _outcome(store, there)
    planned = {"rows": Estimate(what="rows", low=rows, high=rows, unit="rows"),
               "chunks": Estimate(what="chunks", low=chunks, high=chunks, unit="chunks")} | planned  # fmt: skip
    found = tuple(
        Compared(what=what, low=e.low, high=e.high, outcome=outcome[what], unit=e.unit,
                 inside=e.low <= outcome[what] <= e.high)
        for what, e in planned.items() if what in outcome
    )  # fmt: skip
    complete = len(store.committed(LABELS)) == store.layout.chunks
    return CompareResult(labels=str(labels), source=document["source"], complete=complete, compared=found)


def _require_same_job(document: dict[str, Any], store: LabelStore, plan_file: Path, reporter: Reporter) -> None:
    """Say what was taught otherwise than it was planned, and refuse what was never planned."""
    job = document.get("job")
    taught = job_of(store.groups[LABELS].fingerprint, store.groups)
    found = differences(job, taught) if isinstance(job, dict) else {}
    if set(found) & ANOTHER:
        raise UsageError(f"{plan_file} is the plan of another job than {store.path}: {'; '.join(found.values())}",
                         hint="give the store that was taught after this plan, or plan this one")  # fmt: skip
    if document["rows"] != store.layout.rows:
        found["rows"] = f"rows {document['rows']} planned, {store.layout.rows} taught"
    if found:
        reporter.note(f"{store.path} was not taught as it was planned, so that figures may differ: "
                      f"{'; '.join(found.values())}")  # fmt: skip


def _outcome(store: LabelStore, there: int) -> dict[str, float]:
    committed = store.committed(LABELS)
    rows = sum(stop - start for start, stop in map(store.layout.bounds, committed))
    share = 1 - there / max(1, store.layout.chunks)
    sizes = {f"bytes of {part}" if part != "total" else "bytes": each * rows * share
             for part, each in bytes_per_row(store).items() if each}  # fmt: skip
    seconds = _seconds(store)
    return sizes | ({"seconds of chunks": seconds, "rows a second": rows / seconds} if seconds else {})


def _seconds(store: LabelStore) -> float:
    """From the start of the first chunk to the last commit, over all runs: a record says how long its chunk took."""
    runs: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for record in store.records(LABELS):
        if record is not None:
            took = sum(record.phases.get(phase, 0.0) for phase in IN_TURN)
            runs[record.token].append((record.time_us / 1e6, took))
    return sum(max(commits)[0] - min(commits)[0] + min(commits)[1] for commits in runs.values())
