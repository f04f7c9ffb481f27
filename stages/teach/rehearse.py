"""Half a teach, for a minute: the images without a model, or a model without images. Which of them is the bottleneck?

It writes nothing; made-up chunks go to a temporary store.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from teachonce.core.machine import default_threads
from teachonce.core.progress import Reporter
from teachonce.data.index import SampleIndex, few_samples, split_classes
from teachonce.data.manifests import load_manifest, require_root
from teachonce.data.vocabulary import load_vocabulary
from teachonce.errors import UsageError
from teachonce.stages.plan import rehearsal_job
from teachonce.stages.teach.request import TeachRequest, check_request, cluster_of, load_models, wanted_store

if TYPE_CHECKING:
    from teachonce.models.clip import LoadedClip
    from teachonce.teaching.store import WantedStore

Half = Literal["images", "models"]
SAMPLES = 4096


@dataclass(frozen=True, kw_only=True)
class RehearseResult:
    """Rates of one worker of this machine."""

    half: Half
    images: int
    images_per_second: float
    rates: dict[str, float]
    """Images a second of each phase, were it alone."""
    threads: int
    device: str
    failed: int
    seconds: float
    bottleneck: str


def rehearse_half(request: TeachRequest, half: Half, seconds: float, reporter: Reporter) -> RehearseResult:
    """Run one half of the pipeline for about so many seconds.

    Raises:
        UsageError, DataError: as `teach`.
    """
    check_request(request)
    if seconds <= 0:
        raise UsageError(f"seconds must be above 0, found {seconds}")
    manifest = load_manifest(request.manifest)
    root = require_root(manifest, request.root)
    own = split_classes(manifest, request.split, root)
    vocabulary = load_vocabulary(request.vocabulary, root) if request.vocabulary else own
    wanted = wanted_store(request, manifest, root, own, vocabulary)
    index = few_samples(manifest, request.split, root, SAMPLES)
    models = load_models(request, reporter)
    if half == "models":
        job = rehearsal_job(request, models, made_up=True)
        return _models_alone(wanted, models, index, job, seconds, reporter)
    return _images_alone(request, wanted, models, index, root, seconds)


def _models_alone(
    wanted: WantedStore, models: dict[str, LoadedClip], index: SampleIndex, job: Any, seconds: float, reporter: Reporter
) -> RehearseResult:
    """The models on made-up pixels: rates in images a second, of the phases that no image takes part in."""
    from teachonce.teaching.rehearsal import rehearse

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


def _images_alone(
    request: TeachRequest,
    wanted: WantedStore,
    models: dict[str, LoadedClip],
    index: SampleIndex,
    root: Path,
    seconds: float,
) -> RehearseResult:
    """Reading, decoding and preprocessing without a model: rates in images a second."""
    from teachonce.cluster.client import threads_of
    from teachonce.teaching.rehearsal import input_rates

    began = time.monotonic()
    threads = request.threads or threads_of(cluster_of(request)) or default_threads(1)
    distinct = list({clip.digest: clip for clip in models.values()}.values())
    measured = input_rates(index, root, distinct, wanted, threads, request.batch_size, seconds)
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


def _slowest(rates: dict[str, float]) -> str:
    return min(rates, key=lambda phase: rates[phase]) if rates else "nothing"
