"""What one driver can serve: deliveries a second at fsyncs of a given length, Dask's part, the check at the end.

Workers are threads that sleep as long as a GPU would compute, then leave files as `write_chunk` does, without zarr. An
fsync is a pause, as on a network disk that answers several at once; a local disk does so too, as far as its journal
takes several in one go. `teach_scale.py --driver` prints all of it.
"""

from __future__ import annotations

import functools
import os
import random
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from label_store_scale import big_index
from teach_parts import Bench, empty_store

from teachonce.cluster.client import local_cluster, run_tasks
from teachonce.core.locks import owned
from teachonce.core.progress import Silent
from teachonce.data.vocabulary import Vocabulary
from teachonce.keeping.staging import new_staging, stage_array
from teachonce.labels.create import add_embedding, add_student
from teachonce.labels.format import LABELS, chunk_file
from teachonce.labels.store import LabelStore
from teachonce.stages import teach
from teachonce.stages.teach import final_check
from teachonce.stages.teach import work as teach_run
from teachonce.teaching import chunk as chunk_task
from teachonce.teaching.chunk import TeachJob
from teachonce.teaching.delivery import ChunkReport, Deliveries
from teachonce.watching.stop import heeded

PAUSES = (0.0005, 0.002, 0.005)
RATE = 2_500  # images a second of one GPU
CHUNK = 16_384  # rows of a chunk in a large store, by default
PROCESSES = 2
STUDENT = "ef" * 32
Say = Callable[[str], None]


def store_with_all(path: Path, chunks: int) -> LabelStore:
    """Make an empty store of so many small chunks with labels, embeddings and a student's features."""
    ids = tuple(f"n{i:08d}" for i in range(1000))
    store = empty_store(path, big_index(8 * chunks), Vocabulary(ids, ids), 1000, 64, 8)
    add_embedding(store, "int8", 64, {"about": {}})
    add_student(store, STUDENT, 64, {"student_digest": STUDENT, "about": {}})
    return LabelStore.open(path, writable=True)


def leave_files(store: LabelStore, token: int, chunk: int) -> ChunkReport:
    """Leave the files of a chunk in a staging folder, as a worker does, and report them; their content is none."""
    staging, digests = new_staging(store.path, token, chunk), []
    for name, group in store.groups.items():
        for spec in group.arrays:
            stage_array(store.path, staging, spec.path)
            file = chunk_file(staging, spec, chunk)
            file.parent.mkdir(parents=True)
            file.write_bytes(b"no data")
        digests.append((name, tuple(secrets.token_bytes(16) for _ in group.arrays)))
    return ChunkReport(chunk, str(staging), tuple(digests), rows_ok=8, phases=dict.fromkeys(teach_run.PHASES, 0.1))


def late_files(job: TeachJob, chunk: int, groups: tuple[str, ...], seconds: float) -> ChunkReport:
    """Stand for `run_chunk` on a GPU that takes so many seconds on average: GPUs do not march in step."""
    time.sleep(seconds * random.Random(chunk).uniform(0.5, 1.5))
    return leave_files(chunk_task.worker_store(Path(job.store), job.token), job.token, chunk)


@contextmanager
def slow_fsync(seconds: float) -> Iterator[list[int]]:
    """Inside, an fsync of this process takes so long; yields a list that gets one entry a call."""
    real, calls = os.fsync, []

    def pause(handle: int) -> None:
        calls.append(handle)
        time.sleep(seconds)

    os.fsync = pause
    try:
        yield calls
    finally:
        os.fsync = real


def deliveries(folder: Path, chunks: int, say: Say) -> None:
    """Print deliveries a second, without Dask, for fsyncs of several lengths."""
    say("| fsync | deliveries a second | fsyncs each | CPU each | GPUs served | chunks that serve 150 |")
    say("|---|---|---|---|---|---|")
    for pause in PAUSES:
        store = store_with_all(folder / "a.zarr", chunks)
        with owned(store.path, Silent()) as token:
            reports = [leave_files(store, token, chunk) for chunk in range(chunks)]
            began, cpu = time.perf_counter(), time.process_time()
            with slow_fsync(pause) as calls, Deliveries(store, token) as pool:
                for report in reports:
                    pool.add(report)
                    list(pool.ended())
                list(pool.ended(all_of_them=True))
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        rate = chunks / seconds
        say(
            f"| {pause * 1000:g} ms | {rate:.0f} | {len(calls) / chunks:.1f} | {cpu / chunks * 1000:.1f} ms "
            f"| {rate * CHUNK / RATE:.0f} | {150 * RATE / rate:,.0f} rows |"
        )
        shutil.rmtree(store.path)


def whole_driver(folder: Path, gpus: int, chunks: int, pause: float, say: Say) -> None:
    """Print how long a run with so many GPUs takes, of which only the driver's part is real, and the driver's CPU."""
    seconds = 2 * CHUNK / RATE  # two tasks share a worker, whose model serves one at a time
    store, driver = store_with_all(folder / "b.zarr", chunks), psutil.Process()
    real = chunk_task.run_chunk, teach_run.cluster_client.run_tasks

    def with_seconds(client: Any, task: Any, work: list[Any], *more: Any, **options: Any) -> Iterator[Any]:
        return run_tasks(client, task, [(*given, seconds) for given in work], *more, **options)

    chunk_task.run_chunk, teach_run.cluster_client.run_tasks = late_files, with_seconds
    try:
        with (
            local_cluster(PROCESSES, threads=-(-2 * gpus // PROCESSES)) as client,
            owned(store.path, Silent()) as token,
            heeded(store.path, token, Silent()) as stop,
            slow_fsync(pause),
        ):
            client.run(imported)
            job = Bench(store.path, folder, "fake", "").job(token, store.path)
            request = teach.TeachRequest(data=teach.TaughtData(manifest="local-tars"), labels=store.path, teacher="x")
            before = sum(driver.cpu_times()[:2])
            tally = teach_run._run(client, job, store, tuple(store.groups), request, stop, Silent())
            spent = sum(driver.cpu_times()[:2]) - before
    finally:
        chunk_task.run_chunk, teach_run.cluster_client.run_tasks = real
    times = sorted(record.time_us / 1e6 for record in store.records(LABELS) if record)
    first, last = chunks // 4, 3 * chunks // 4  # neither the start nor the end, where not all GPUs have work
    say(
        f"| {gpus} GPUs of {RATE:,} images/s, {chunks} chunks of {CHUNK:,} rows, fsyncs of {pause * 1000:g} ms | "
        f"{(last - first) / (times[last] - times[first]):.1f} chunks/s in the middle of the run, which takes "
        f"{tally.seconds:.0f} s; the GPUs make {gpus * RATE / CHUNK:.1f} |"
    )
    say(
        f"| CPU of the driver, its scheduler included | {spent / chunks * 1000:.1f} ms a chunk, "
        f"{spent / tally.seconds:.0%} of a core |"
    )


def whole_check(folder: Path, workers: int, chunks: int, each: float, say: Say) -> None:
    """Print how long the check at the end takes with so many workers, each of which needs `each` seconds a chunk."""
    store = store_with_all(folder / "c.zarr", chunks)
    real = final_check.sound_chunks
    final_check.sound_chunks = functools.partial(slow_check, each)
    try:
        with local_cluster(PROCESSES, threads=-(-workers // PROCESSES)) as client:
            client.run(imported)
            began = time.perf_counter()
            final_check.check(client, store, (LABELS,), 1, Silent(), with_workers=True)
            seconds = time.perf_counter() - began
    finally:
        final_check.sound_chunks = real
    run = chunks * CHUNK / (workers * RATE)
    say(
        f"| check of {chunks} chunks by {workers} workers, {each * 1000:.0f} ms each | {seconds:.1f} s, "
        f"{seconds / run:.1%} of a run of {run:.0f} s; by the driver alone {chunks * each:.0f} s |"
    )


def slow_check(each: float, store: str, token: int, groups: tuple[str, ...], chunks: tuple[int, ...]) -> Any:
    """Stand for `sound_chunks`: chunks are sound after the time that reading them takes."""
    time.sleep(each * len(chunks))
    return chunks


def imported() -> None:
    """Load in a worker what tasks need."""


def driver(folder: Path, gpus: int, say: Say) -> None:
    """Print all limits of one driver."""
    deliveries(folder, 300, say)
    say("\n| the whole loop | |\n|---|---|")
    whole_driver(folder, gpus, 4 * 2 * gpus, 0.002, say)
    whole_check(folder, 64, 867, 0.058, say)
