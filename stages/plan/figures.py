"""The figures of a plan: what there is to do, at which rates, and whether it fits."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from teachonce.cluster.description import (
    ClusterSpec,
    CudaDescription,
    KubernetesDescription,
    LocalDescription,
    load_description,
)
from teachonce.core.files import atomic_write_bytes, is_remote
from teachonce.core.progress import Reporter
from teachonce.data.index import build_index
from teachonce.errors import EnvironmentFault
from teachonce.labels.format import LABELS, Layout, new_layout
from teachonce.labels.ledger import IN_TURN, require_fingerprint
from teachonce.labels.selection import few_shot_samples
from teachonce.labels.store import LabelStore
from teachonce.objects.remote import exists
from teachonce.phrases import Phrase, option, phrase, setting
from teachonce.stages.plan.idle import idle_advice
from teachonce.stages.plan.outcome import KIND, SCHEMA
from teachonce.stages.plan.request import PlanRequest, PlanResult
from teachonce.stages.teach.request import TeachRequest
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
    from teachonce.stages.plan.gpu_memory import GpuNeed
    from teachonce.teaching.rehearsal import Rehearsal

START_SECONDS = 30.0  # what importing, loading models and starting workers takes
CHECK_RATE = 1e8  # bytes a second that are read back and compared at the end


def planned(request: PlanRequest, wanted: WantedStore, reporter: Reporter) -> PlanResult:
    """The plan of a request that was checked; raises what `plan` raises."""
    samples, counted = _samples(wanted, reporter)
    layout = new_layout(
        samples * wanted.views.views,
        len(wanted.vocabulary),
        wanted.top_k,
        TEMPERATURES,
        wanted.chunk_rows,
        wanted.views.views,
    )
    models: dict[str, LoadedClip] = {}
    probed: Rehearsal | None = None
    if request.rate is None:
        from teachonce.stages.plan import probe  # torch, open_clip and Dask: only where no rate is stated

        facts, wanted = probe.here(request.teach, wanted, reporter)
        models = probe.load_models(request.teach, reporter, facts.device)
        probe.say_what_carries(models, reporter, features_only=True)  # `plan` writes nothing: it says and goes on
        probed = probe.probe(request, wanted, models, samples, reporter)
    layout, there = _there(wanted, layout, models)
    gpu = None
    if models:
        from teachonce.stages.plan import gpu_memory  # torch, which is there by now

        gpu = gpu_memory.gpu_need(request.teach, layout, models, probed.device_bytes if probed else 0)
    result = _result(request, wanted, layout, there, probed, samples, counted, gpu)
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


def _there(wanted: WantedStore, layout: Layout, models: dict[str, LoadedClip]) -> tuple[Layout, set[int]]:
    """The layout that holds, and the chunks that have all that is asked for."""
    if not exists(wanted.path):
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
    gpu: GpuNeed | None,
) -> PlanResult:
    left = layout.rows - sum(stop - start for start, stop in map(layout.bounds, there))
    workers, unknown = _workers(request.teach.cluster)
    basis = _stated(request, wanted, layout, left) if probe is None else _measured(probe, workers, left)
    total = _total(basis.sizes)
    estimates = [
        *_times(basis, left, workers, probe),
        *basis.sizes,
        total,
        *_memory(probe, workers),
        *([] if gpu is None else [gpu.estimate]),
    ]
    disk = _disk_free(wanted.path)
    free = _memory_free(probe)
    advice = [*unknown, *_disk_advice(total, disk, wanted), *_memory_advice(estimates, free, probe)]
    advice += [] if gpu is None or gpu.fits else [gpu.sentence]
    advice += idle_advice(layout, layout.chunks - len(there), left, workers, is_new=not exists(wanted.path))
    fits = (disk is None or total.high <= disk) and not any(e.what == "memory" and e.low > free for e in estimates)
    fits = fits and (gpu is None or gpu.fits)
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
        gpu="not estimated: no model was loaded" if gpu is None else gpu.sentence,
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
    assert request.rate is not None  # the caller comes here only where a rate was stated
    rate = request.rate * wanted.views.views
    widths = {name: embedding_width_of(spec) for name, spec in _specs(request.teach).items()}
    sizes = stated_bytes(left, layout.top_k, widths, request.teach.kept.embeddings, len(wanted.vocabulary))
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
    """The number of workers, and a sentence for the plan where only the cluster knows that number."""
    if spec.scheduler is not None:
        return 1, ["times are for one worker like this machine: divide by the number that the scheduler has"]
    if spec.file is None:
        return spec.workers or 1, []
    description = load_description(spec.file)
    if isinstance(description, LocalDescription):
        return description.most_workers, []
    if isinstance(description, CudaDescription):
        count = len(description.devices) or 1
        return count, [] if description.devices else ["times are for one GPU: divide by the number of this machine"]
    count = description.most_workers if isinstance(description, KubernetesDescription) else description.most_jobs
    return count, ["times are for workers like this machine; a job's cores and GPU may be others"]


def _memory(probe: Rehearsal | None, workers: int) -> list[Estimate]:
    if probe is None:
        return []
    each = float(probe.worker_bytes)
    return [Estimate(what="memory", low=0.8 * each * (workers + 1), high=1.3 * each * (workers + 1), unit="bytes")]


def _memory_free(probe: Rehearsal | None) -> int:
    return int(psutil.virtual_memory().available) + (probe.worker_bytes if probe else 0)


def _disk_free(store: Path) -> int | None:
    """Bytes that are free where the store will lie; None for a bucket, which has no limit that can be asked for."""
    if is_remote(store):
        return None
    return shutil.disk_usage(next(place for place in (store, *store.resolve().parents) if place.exists())).free


def _disk_advice(total: Estimate, free: int | None, wanted: WantedStore) -> list[str]:
    if free is None or total.high <= free:
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
