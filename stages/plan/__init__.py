"""plan: what a `teach` would take in rows, bytes, time and memory, before it writes anything; and how it was after all.

It writes nothing but the plan itself, where asked to. The same request is given as to `teach`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachonce.cluster.description import ClusterSpec, load_description
from teachonce.core.files import atomic_write_bytes
from teachonce.core.progress import Reporter
from teachonce.data.index import build_index, few_samples, split_classes
from teachonce.data.manifests import load_manifest, require_root
from teachonce.data.vocabulary import load_vocabulary
from teachonce.errors import EnvironmentFault, UsageError
from teachonce.labels.format import LABELS, Layout, new_layout
from teachonce.labels.ledger import IN_TURN, require_fingerprint
from teachonce.labels.selection import few_shot_samples
from teachonce.labels.store import LabelStore
from teachonce.phrases import Phrase, option, phrase, setting
from teachonce.stages.plan.outcome import KIND, SCHEMA, Compared, CompareResult, compare
from teachonce.stages.teach.request import TeachRequest, check_request, cluster_of, load_models, wanted_store
from teachonce.teaching.estimate import (
    Estimate,
    all_workers,
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

__all__ = ["CompareResult", "Compared", "PlanRequest", "PlanResult", "compare", "plan"]
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
        raise UsageError(phrase("{rate} and {set} seconds must be above 0"))
    manifest = load_manifest(ask.manifest)
    root = require_root(manifest, ask.root)
    own = split_classes(manifest, ask.split, root)
    wanted = wanted_store(ask, manifest, root, own, load_vocabulary(ask.vocabulary, root) if ask.vocabulary else own)
    samples, counted = _samples(wanted, reporter)
    layout = new_layout(
        samples * wanted.views.views,
        len(wanted.vocabulary),
        wanted.top_k,
        TEMPERATURES,
        wanted.chunk_rows,
        wanted.views.views,
    )
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
        store="",
        root="",
        token=0,
        models=tuple((group, clip.spec, clip.digest) for group, clip in models.items()),
        logit_scale=models[LABELS].logit_scale if LABELS in models else 0.0,
        precision=request.precision,
        batch_size=request.batch_size,
        views=request.views,
        compiled=request.compiled,
        class_tile=request.class_tile,
        threads=request.threads or threads_of(cluster_of(request)),
        made_up=made_up,
    )


def _there(wanted: WantedStore, layout: Layout, models: dict[str, LoadedClip]) -> tuple[Layout, set[int]]:
    """The layout that holds, and the chunks that have all that is asked for."""
    if not wanted.path.exists():
        return layout, set()
    store = LabelStore.open(wanted.path)
    stored = store.groups[LABELS].fingerprint
    if LABELS in models:
        require_fingerprint(
            wanted.path, LABELS, stored, fingerprint_of(wanted, models) | {"samples": stored.get("samples")}
        )
    done = set(store.committed(LABELS))
    for group in models:
        done &= set(store.committed(group)) if group in store.groups else set()
    return store.layout, done


def _result(
    request: PlanRequest,
    wanted: WantedStore,
    layout: Layout,
    there: set[int],
    probe: Rehearsal | None,
    samples: int,
    counted: str,
) -> PlanResult:
    left = layout.rows - sum(stop - start for start, stop in map(layout.bounds, there))
    workers, unknown = _workers(cluster_of(request.teach))
    basis = _stated(request, wanted, layout, left) if probe is None else _measured(probe, workers, left)
    total = _total(basis.sizes)
    estimates = [*_times(basis, left, workers, probe), *basis.sizes, total, *_memory(probe, workers)]
    disk = shutil.disk_usage(next(p for p in (wanted.path, *wanted.path.resolve().parents) if p.exists())).free
    free = _memory_free(probe)
    advice = [*unknown, *_disk_advice(total, disk, wanted), *_memory_advice(estimates, free, probe)]
    fits = total.high <= disk and not any(e.what == "memory" and e.low > free for e in estimates)
    return PlanResult(
        manifest=wanted.manifest.name,
        labels=str(wanted.path),
        samples=samples,
        counted=counted,
        rows=layout.rows,
        chunk_rows=layout.chunk_rows,
        chunks=layout.chunks,
        chunks_there=len(there),
        workers=workers,
        device=probe.device if probe else "as stated",
        source=basis.source,
        bottleneck=_bottleneck(probe),
        estimates=tuple(estimates),
        disk_free=disk,
        memory_free=free,
        advice=tuple(advice),
        fits=fits,
        exit_code=0 if fits else EnvironmentFault.exit_code,
    )


@dataclass(frozen=True)
class _Basis:
    """What an estimate rests on: rates from measured rows, or one that was stated."""

    rates: tuple[float, float]
    """Rows a second of all workers, low and high."""
    sizes: list[Estimate]
    """Bytes of each part of the store."""
    source: str
    around: float
    """Seconds before the first chunk, at most."""


def _measured(probe: Rehearsal, workers: int, left: int) -> _Basis:
    source = f"{probe.rows} rows in {probe.seconds:.1f} s on this machine, {probe.threads} threads a worker"
    rates = all_workers(row_rates(probe), workers)
    return _Basis(rates, store_bytes(probe, left), source, probe.names_seconds + START_SECONDS)


def _stated(request: PlanRequest, wanted: WantedStore, layout: Layout, left: int) -> _Basis:
    assert request.rate is not None  # it was stated, or rows were measured
    rate = request.rate * wanted.views.views
    widths = {name: embedding_width_of(spec) for name, spec in _specs(request.teach).items()}
    sizes = stated_bytes(left, layout.top_k, widths, request.teach.embeddings, len(wanted.vocabulary))
    return _Basis((rate, rate), sizes, "the stated rate", START_SECONDS)


def _total(sizes: list[Estimate]) -> Estimate:
    return Estimate(what="bytes", low=sum(e.low for e in sizes), high=sum(e.high for e in sizes), unit="bytes")


def _times(basis: _Basis, left: int, workers: int, probe: Rehearsal | None) -> list[Estimate]:
    """Rates and times; `left` counts the rows that are still to be taught."""
    low, high = basis.rates
    around = basis.around + _total(basis.sizes).high / CHECK_RATE
    device = "GPU" if probe and probe.device != "cpu" else "worker"
    hours = (workers * left / high / 3600, workers * left / low / 3600)
    return [
        Estimate(what="rows a second", low=low, high=high, unit="rows/s"),
        Estimate(what="seconds of chunks", low=left / high, high=left / low, unit="s"),
        Estimate(what="seconds around them", low=5.0, high=around, unit="s"),
        Estimate(what=f"{device}-hours", low=hours[0], high=hours[1], unit="h"),
    ]


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
        found.append(
            Estimate(what="GPU memory", low=float(probe.device_bytes), high=1.2 * probe.device_bytes, unit="bytes")
        )
    return found


def _memory_free(probe: Rehearsal | None) -> int:
    import psutil

    return int(psutil.virtual_memory().available) + (probe.worker_bytes if probe else 0)


def _disk_advice(total: Estimate, free: int, wanted: WantedStore) -> list[str]:
    if total.high <= free:
        return []
    ways = [option("labels") + f" on a disk with {total.high / 1e9:.1f} GB free"]
    if wanted.top_k > 16:
        ways.append(phrase("a smaller {top_k}") + f" than {wanted.top_k}")
    if wanted.embeddings == "float16":
        ways.append(phrase("{embeddings} int8, half the bytes"))
    if wanted.views.views > 1:
        ways.append(phrase("fewer {views}"))
    ways.append(phrase("fewer {student}, which can be added later"))
    return [f"the store may not fit: {free / 1e9:.1f} GB are free; take " + Phrase(", or ").join(ways)]


def _memory_advice(estimates: list[Estimate], free: int, probe: Rehearsal | None) -> list[str]:
    needed = next((e for e in estimates if e.what == "memory"), None)
    if needed is None or needed.high <= free:
        return []
    return [
        f"memory may not suffice: {free / 1e9:.1f} GB are free and {needed.high / 1e9:.1f} may be needed; fewer "
        + option("workers")
        + ", a smaller "
        + option("set")
        + " batch_size, or "
        + setting("class_tile", "4096")
    ]


def _bottleneck(probe: Rehearsal | None) -> str:
    if probe is None:
        return "not measured"
    spent = {phase: probe.phases[phase] for phase in IN_TURN}
    total = sum(spent.values()) or 1.0
    return ", ".join(f"{phase} {seconds / total:.0%}" for phase, seconds in spent.items())
