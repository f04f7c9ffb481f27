"""Half a teach, for a minute: the images without a model, or a model without images. Which of them is the bottleneck?

It writes nothing; made-up chunks go to a temporary store.
"""

from __future__ import annotations

import time
from dataclasses import replace

from teachonce.cluster.client import threads_of
from teachonce.core.machine import default_threads
from teachonce.core.progress import Reporter
from teachonce.data.index import SampleIndex, few_samples
from teachonce.models.clip import LoadedClip
from teachonce.stages.teach.loading import here, load_models, teach_job
from teachonce.stages.teach.request import RehearseResult, TeachRequest
from teachonce.teaching.rehearsal import input_rates, rehearse
from teachonce.teaching.store import WantedStore

SAMPLES = 4096


def models_alone(request: TeachRequest, wanted: WantedStore, seconds: float, reporter: Reporter) -> RehearseResult:
    """The models on made-up pixels: rates in images a second, of the phases that no image takes part in."""
    facts, wanted = here(request, wanted, reporter)
    models, index = _loaded(request, wanted, facts.device, reporter)
    job = replace(teach_job(request, wanted, 0, models), made_up=True)
    began = time.monotonic()
    done = rehearse(wanted, models, index, job, seconds, reporter)
    images = done.rows / wanted.views.views
    phases = {phase: spent for phase, spent in done.phases.items() if phase not in ("read", "decode", "wait") and spent}
    rates = {phase: images / spent for phase, spent in phases.items()}
    return RehearseResult(
        half="models",
        images=done.rows // wanted.views.views,
        images_per_second=images / done.seconds,
        rates=rates,
        threads=done.threads,
        device=done.device,
        failed=0,
        seconds=time.monotonic() - began,
        bottleneck=_slowest(rates) + ", images aside",
    )


def images_alone(request: TeachRequest, wanted: WantedStore, seconds: float, reporter: Reporter) -> RehearseResult:
    """Reading, decoding and preprocessing without a model: rates in images a second."""
    models, index = _loaded(request, wanted, "cpu", reporter)
    began, computing = time.monotonic(), request.computing
    threads = computing.threads or threads_of(request.cluster) or default_threads(1)
    distinct = list({clip.digest: clip for clip in models.values()}.values())
    measured = input_rates(index, wanted.root, distinct, wanted, threads, computing.batch_size, seconds)
    slower = "reading" if measured.read < 1.5 * measured.decode else "decoding and preprocessing, on CPU cores"
    return RehearseResult(
        half="images",
        images=measured.images,
        images_per_second=measured.decode,
        rates={"read": measured.read, "decode": measured.decode},
        threads=threads,
        device="cpu",
        failed=measured.failed,
        seconds=time.monotonic() - began,
        bottleneck=slower,
    )


def _loaded(
    request: TeachRequest, wanted: WantedStore, device: str, reporter: Reporter
) -> tuple[dict[str, LoadedClip], SampleIndex]:
    """The models, and a few samples."""
    index = few_samples(wanted.manifest, wanted.split, wanted.root, SAMPLES)
    return load_models(request, reporter, device), index


def _slowest(rates: dict[str, float]) -> str:
    return min(rates, key=lambda phase: rates[phase]) if rates else "nothing"
