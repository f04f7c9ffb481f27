"""Stage one at the size of ImageNet-21K without a teacher, and its memory over many chunks of real photos.

    python benchmarks/teach_scale.py [--rows 14197122 --workers 2]
    python benchmarks/teach_scale.py --workers 1 --wait 8
    python benchmarks/teach_scale.py --memory --root DATA [--rows 460800]
    python benchmarks/teach_scale.py --driver [--gpus 150]

The first is the driver's own loop (Dask tasks in a window, staging folders, delivery, ledger commits, progress) over
tasks that read their part of the index, then write, prove and stage a chunk whose coded rows are drawn from a pool,
without images or models; it ends with the check that `teach` ends with. The second is the same with a pause of eight
seconds in each of 867 tasks, two at a time: an hour. The third runs the real task on real photos with a tiny model:
some 450 chunks of 1,024 rows, as many rows as two cores teach in an hour with a real teacher and as many chunks as a
GPU at 2,000 images/s teaches in one. These print resident memory in ten parts of the run. The last shows what one
driver can serve, with workers that only sleep (`driver_limits`).
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from driver_limits import driver as driver_limits
from label_store_scale import CLASSES, big_index, pool
from teach_parts import (
    Bench,
    MemoryWatch,
    digest_of,
    empty_store,
    fake_chunk,
    made_up_clip,
    nothing,
    paced_chunk,
    pool_file,
    warm,
)

from teachonce.cluster.client import local_cluster, run_tasks
from teachonce.core.locks import owned
from teachonce.core.progress import Silent
from teachonce.data.index import build_index, split_classes
from teachonce.data.manifests import load_manifest
from teachonce.data.vocabulary import Vocabulary
from teachonce.labels.format import LABELS
from teachonce.labels.size import bytes_per_row
from teachonce.labels.store import LabelStore
from teachonce.stages import teach
from teachonce.stages.teach import work as teach_run
from teachonce.stages.teach.final_check import check
from teachonce.teaching import chunk as chunk_task
from teachonce.teaching import delivery
from teachonce.watching.stop import heeded

POINTS = 10


class TimedDeliveries:
    """Stands before `deliver` in the driver's threads and takes the time."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._deliver = delivery.deliver

    def __call__(self, *args: Any) -> tuple[str, ...]:
        """Deliver a chunk and add its time."""
        began = time.perf_counter()
        brought = self._deliver(*args)
        self.seconds.append(time.perf_counter() - began)
        return brought


def scale(folder: Path, rows: int, workers: int, wait: float) -> None:
    """Run the whole of stage one without a teacher."""
    path, ids = folder / "big.zarr", tuple(f"n{i:08d}" for i in range(CLASSES))
    began = time.perf_counter()
    store = empty_store(path, big_index(rows), Vocabulary(ids, ids), CLASSES, 64, None)
    coded = pool(store.tables.class_order, store.gap_levels)
    np.savez(pool_file(path), **vars(coded))
    say(f"| {rows:,} rows in {store.layout.chunks} chunks, {workers} workers | |\n|---|---|")
    say(f"| made-up index, empty store, pool | {time.perf_counter() - began:.0f} s |")
    deliveries = TimedDeliveries()
    delivery.deliver = deliveries
    chunk_task.run_chunk = functools.partial(paced_chunk, wait) if wait else fake_chunk
    request = teach.TeachRequest(data=teach.TaughtData(manifest="local-tars"), labels=path, teacher="fake")
    bench = Bench(path, folder, "fake", "")
    with (
        local_cluster(workers) as client,
        owned(path, Silent()) as token,
        heeded(path, token, Silent()) as stop,
    ):
        pids = client.run(os.getpid)
        empty = no_work(client, store.layout.chunks)
        opened, driver = LabelStore.open(path, writable=True), psutil.Process()
        with MemoryWatch([os.getpid(), *pids.values()]) as watch:
            before = sum(driver.cpu_times()[:2])
            tally = teach_run._run(client, bench.job(token, path), opened, (LABELS,), request, stop, Silent())
            spent = sum(driver.cpu_times()[:2]) - before
            began = time.perf_counter()
            check(client, opened, (LABELS,), token, Silent(), with_workers=True)
            checked = time.perf_counter() - began
    chunks = store.layout.chunks
    say(f"| write, prove, deliver and commit all chunks | {tally.seconds:.0f} s, {rows / tally.seconds:,.0f} rows/s |")
    say(f"| in tasks, of all workers' time | {tally.phases['write'] / tally.seconds / workers:.0%} |")
    say(
        f"| Dask alone: the same loop over as many empty tasks | {empty / chunks * 1000:.1f} ms a task, "
        f"{chunks / empty:.0f} tasks/s, {empty / tally.seconds:.1%} of the wall |"
    )
    say(
        f"| delivery: renames, syncs and record of a chunk, in the driver | median "
        f"{statistics.median(deliveries.seconds) * 1000:.1f} ms, beside each other |"
    )
    say(
        f"| CPU of the driver, its scheduler included | {spent / chunks * 1000:.1f} ms a chunk, "
        f"{spent / tally.seconds:.1%} of a core |"
    )
    say(f"| every chunk read back against its record, by the workers | {checked:.0f} s |")
    finish(opened)
    say("\n" + "\n".join(watch.table(POINTS, ["driver", *(f"worker {i}" for i in range(workers))])))


def finish(store: LabelStore) -> None:
    """Print the time of the check without workers, which a second teach does, and the bytes."""
    began = time.perf_counter()
    check(None, store, (LABELS,), 0, Silent(), with_workers=False)
    assert sum(record.rows_ok for record in store.records(LABELS) if record) == store.layout.rows
    say(f"| the same by the driver alone | {time.perf_counter() - began:.0f} s |")
    total = sum(value for name, value in bytes_per_row(store).items() if name != "total")
    say(f"| bytes a row | {total:.1f} ({total * store.layout.rows / 1e9:.2f} GB) |")


def no_work(client: Any, count: int) -> float:
    """Measure the seconds that Dask and our window take for tasks without work, after a few that import everything."""
    for number in (20, count):
        began = time.perf_counter()
        done = list(run_tasks(client, nothing, [(i,) for i in range(number)], f"nothing-{number}"))
        assert len(done) == number
    return time.perf_counter() - began


def memory(folder: Path, rows: int, root: Path) -> None:
    """Run the real task on real photos, again and again."""
    manifest = load_manifest("local-tars")
    index, classes = build_index(manifest, "train", root, Silent()), split_classes(manifest, "train", root)
    spec = made_up_clip(folder / "tiny", 64, layers=1, width=64, head_width=32, patch_size=16, image_size=32)
    template = folder / "many.zarr"
    store = empty_store(
        template, index.take(np.arange(rows) % len(index)), classes, len(classes), digest_of(spec)[1], 1024
    )
    bench = Bench(template, root, spec, digest_of(spec)[0])
    with local_cluster(2) as client:
        client.run(warm, bench)
        with MemoryWatch([os.getpid(), *client.run(os.getpid).values()]) as watch:
            run = bench.teach(client)
    say(f"{run.rows:,} rows in {store.layout.chunks} chunks, {run.rows / run.seconds:,.0f} images/s\n")
    say("\n".join(watch.table(POINTS, ["driver", "worker 0", "worker 1"])))


def say(line: str) -> None:
    """Print one line of the report at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="14197122 without images, 460800 with")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--wait", type=float, default=0.0, help="seconds that each task without images sleeps")
    parser.add_argument("--memory", action="store_true", help="the real task on the photos below --root")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--driver", action="store_true", help="what one driver can serve")
    parser.add_argument("--gpus", type=int, default=150, help="of the run that --driver stands for")
    args = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        if args.driver:
            driver_limits(Path(name), args.gpus, say)
        elif args.memory:
            memory(Path(name), args.rows or 460_800, args.root.resolve())
        else:
            scale(Path(name), args.rows or 14_197_122, args.workers, args.wait)


if __name__ == "__main__":
    sys.exit(main())
