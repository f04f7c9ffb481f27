"""Some images taught for half a minute on this machine: what an estimate rests on where no rate is stated."""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.data.index import few_samples
from teachonce.models.clip import LoadedClip
from teachonce.stages.plan.request import PlanRequest
from teachonce.stages.teach.loading import load_models, say_what_carries, teach_job
from teachonce.teaching.rehearsal import Rehearsal, rehearse
from teachonce.teaching.store import WantedStore

__all__ = ["load_models", "probe", "say_what_carries"]
PROBE_SAMPLES = 4096


def probe(
    request: PlanRequest, wanted: WantedStore, models: dict[str, LoadedClip], samples: int, reporter: Reporter
) -> Rehearsal:
    most = min(PROBE_SAMPLES, samples)
    index = few_samples(wanted.manifest, wanted.split, wanted.root, most)
    reporter.note(f"trying {min(most, len(index))} images at most, for {request.seconds:.0f} seconds")
    job = teach_job(request.teach, wanted.root, 0, models)
    return rehearse(wanted, models, index, job, request.seconds, reporter)
