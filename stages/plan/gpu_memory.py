"""What a worker of the planned run would need of a GPU's memory, whether this machine has a GPU or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from teachonce.labels.format import LABELS, Layout
from teachonce.memory.batch import Batch, batch_need, smaller_batches
from teachonce.memory.gpus import in_gib, on_a_gpu, smallest_gpu, total_of
from teachonce.models.clip import LoadedClip
from teachonce.phrases import Phrase, phrase, setting
from teachonce.stages.teach.request import TeachRequest
from teachonce.teaching.estimate import Estimate


@dataclass(frozen=True)
class GpuNeed:
    """A worker's need of GPU memory."""

    estimate: Estimate
    fits: bool
    """False only where this machine has a GPU that is smaller."""
    sentence: Phrase


def gpu_need(request: TeachRequest, layout: Layout, models: Mapping[str, LoadedClip], measured: int = 0) -> GpuNeed:
    """Estimate the need of one worker.

    Args:
        request: says how much is computed at a time.
        layout: of the store.
        models: the loaded model by the column group it fills.
        measured: bytes that a rehearsal had in use on a GPU; it may have run smaller batches.
    """
    teacher = models.get(LABELS)
    keeping = tuple(clip for group, clip in models.items() if group != LABELS)
    device = str(next(iter(models.values())).device)
    batch = Batch(
        images=request.computing.batch_size,
        precision="bf16" if request.computing.precision == "auto" else request.computing.precision,
        classes=layout.classes if teacher is not None else 0,
        top_k=layout.top_k,
        temperatures=layout.temperatures,
        tile=request.computing.class_tile,
        kept_rows=layout.chunk_rows,
        fidelity_rows=layout.fidelity_rows,
    )
    alive = max(batch_need(teacher, keeping, batch), measured)
    needed, total = on_a_gpu(alive), total_of(device)
    fits, size = total is None or needed <= total, smallest_gpu(needed)
    where = "no usual GPU has room for that" if size is None else f"it fits on GPUs of {size} GiB and more"
    said = phrase("a worker in ") + f"{batch.precision} needs about {in_gib(needed)} of a GPU; {where}"
    smaller = smaller_batches(teacher, keeping, batch, alive)
    if smaller:
        ways = [setting(key, value) + f" needs {in_gib(on_a_gpu(less))}" for (key, value), less in smaller.items()]
        said += "; with less, " + Phrase(", or ").join(ways)
    if total is not None:
        said += f"; the GPU here has {in_gib(total)}, so it " + ("fits" if fits else "does not fit")
    estimate = Estimate(what="GPU memory", low=float(alive), high=float(needed), unit="bytes")
    return GpuNeed(estimate, fits, said)
