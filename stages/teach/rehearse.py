"""Half a teach, for a minute: the images without a model, or a model without images. Which of them is the bottleneck?

It writes nothing; made-up chunks go to a temporary store.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from teachonce.core.progress import Reporter
from teachonce.data.index import few_samples, split_classes
from teachonce.data.manifests import load_manifest, require_root
from teachonce.data.vocabulary import load_vocabulary
from teachonce.errors import UsageError
from teachonce.stages.plan import rehearsal_job
from teachonce.stages.teach.request import TeachRequest, check_request, cluster_of, load_models, wanted_store

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
    began = time.monotonic()
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
        from teachonce.teaching.rehearsal import rehearse

        done = rehearse(wanted, models, index, rehearsal_job(request, models, made_up=True), seconds, reporter)
        views = wanted.views.views
        rates = {phase: done.rows / views / spent for phase, spent in done.phases.items()
                 if phase not in ("read", "decode", "wait") and spent}  # fmt: skip
        return RehearseResult(
            half=half, images=done.rows // views, images_per_second=done.rows / views / done.seconds, rates=rates,
            threads=done.threads, device=done.device, failed=0, seconds=time.monotonic() - began,
            bottleneck=_slowest(rates) + ", images aside",
        )  # fmt: skip
    from teachonce.cluster.client import threads_of
    from teachonce.core.machine import default_threads
    from teachonce.teaching.rehearsal import input_rates

    threads = request.threads or threads_of(cluster_of(request)) or default_threads(1)
    distinct = list({clip.digest: clip for clip in models.values()}.values())
    found = input_rates(index, root, distinct, wanted, threads, request.batch_size, seconds)
    rates = {"read": found.read, "decode": found.decode}
    return RehearseResult(
        half=half, images=found.images, images_per_second=found.decode, rates=rates, threads=threads, device="cpu",
        failed=found.failed, seconds=time.monotonic() - began,
        bottleneck="reading" if found.read < 1.5 * found.decode else "decoding and preprocessing, on CPU cores",
    )  # fmt: skip


def _slowest(rates: dict[str, float]) -> str:
    return min(rates, key=lambda phase: rates[phase]) if rates else "nothing"
