"""Whether a run has enough chunks to keep its workers busy to the end."""

from __future__ import annotations

from teachonce.labels.format import Layout
from teachonce.phrases import option, phrase

FEWEST_A_WORKER = 4  # chunks of each worker; with fewer, a fifth of all time and more may pass idle
WANTED_A_WORKER = 8
SMALLEST = 256  # rows of a chunk that is proposed; below, files, messages and syncs cost more than what they carry


def idle_advice(layout: Layout, chunks_left: int, rows_left: int, workers: int, *, is_new: bool) -> list[str]:
    """Say how much of the workers' time may pass idle, and how it becomes less; nothing where chunks are many.

    Whoever takes the last chunk leaves the others waiting for one chunk's time, and workers beyond the number of chunks
    never have any: of W workers with C chunks, up to W / (C + W) of all time is idle.

    Args:
        layout: of the planned store.
        chunks_left: chunks that are not there yet.
        rows_left: their rows.
        workers: of the run.
        is_new: whether the store does not exist yet, so that its chunks may still be given another size.
    """
    if workers < 2 or not chunks_left or chunks_left >= FEWEST_A_WORKER * workers:
        return []
    share = workers / (chunks_left + workers)
    problem = f"{chunks_left} chunks are few for {workers} workers: up to {share:.0%} of their time may pass idle; "
    rows = max(SMALLEST, rows_left // (WANTED_A_WORKER * workers) // SMALLEST * SMALLEST)
    rows = -(-rows // layout.views) * layout.views
    if is_new and rows < layout.chunk_rows:
        return [problem + option("chunk_rows", rows) + f" makes {-(-rows_left // rows)} chunks"]
    fewer = max(1, chunks_left // FEWEST_A_WORKER)
    return [problem + phrase("{workers}") + f": {fewer} would be as busy as there is work"]
