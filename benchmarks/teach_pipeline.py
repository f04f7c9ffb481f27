"""The whole of stage one against the bare work inside it, on real photos, in one run.

    python benchmarks/teach_pipeline.py --root DATA --teacher local-dir:TEACHER [--cases ... --repeats 3]

`teach` is the driver's own loop over a Dask worker process: read, decode, forward, top k, coding, write, read back,
commit, from the first task to the last commit; models are loaded before. The bare work runs in the same worker, by
turns with it. A worker has one thread for its model and one for decoding (`--set threads=1`):
"2 cores" leaves a core to each, as beside a GPU; "1 core" pins all of it to one, so that ratios count all the work.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from teach_parts import Bench, Run, bare_decode, bare_forward, digest_of, empty_store, enlarged, made_up_clip, warm

from teachonce.cluster.client import local_cluster
from teachonce.core.progress import Silent
from teachonce.data.index import SampleIndex, build_index, split_classes
from teachonce.data.manifests import load_manifest
from teachonce.data.vocabulary import Vocabulary
from teachonce.labels.ledger import PHASES

NAMES = 21_841
CORES = sorted(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Case:
    """One comparison."""

    key: str
    title: str
    model: str
    photos: str
    images: int
    names: int
    cores: int
    bare: Callable[[Bench], tuple[float, float]]
    chunk_rows: int
    limit: float


def cases() -> dict[str, Case]:
    """Return the cases by name."""
    large, tiny = "large", "tiny"
    cases_here = [
        Case("forward", "224 px ViT", large, "as they are", 256, NAMES, 2, bare_forward, 128, 1.05),
        Case("teacher", "the teacher", "teacher", "as they are", 1024, 120, 2, bare_forward, 256, 1.05),
        Case("decode", "500 px photos", tiny, "500 px", 1024, NAMES, 2, bare_decode, 512, 1.10),
        Case("decode1", "500 px photos", tiny, "500 px", 1024, 120, 1, bare_decode, 512, 1.10),
        Case("forward1", "224 px ViT", large, "as they are", 256, NAMES, 1, bare_forward, 128, 1.05),
        Case("teacher22k", "the teacher", "teacher", "as they are", 1024, NAMES, 2, bare_forward, 256, 1.05),
        Case("decode22k", "500 px photos", tiny, "500 px", 1024, NAMES, 1, bare_decode, 512, 1.10),
    ]
    return {case.key: case for case in cases_here}


DEFAULT = "forward,teacher,decode,decode1,scaling"


@dataclass(frozen=True)
class World:
    """Photos and models by name."""

    folder: Path
    models: dict[str, str]
    roots: dict[str, Path]

    def bench(self, model: str, photos: str, images: int, names: int, chunk_rows: int) -> Bench:
        """Return an empty store for a case, and what its tasks need."""
        root, spec = self.roots[photos], self.models[model]
        index, classes = samples(root, images)
        digest, width = digest_of(spec)
        template = self.folder / f"{model}-{photos}-{names}-{chunk_rows}.zarr".replace(" ", "")
        if not template.exists():
            empty_store(template, index, classes, names, width, chunk_rows)
        return Bench(template, root, spec, digest, batch_size=min(128, chunk_rows))


def samples(root: Path, images: int) -> tuple[SampleIndex, Vocabulary]:
    """Index photos from all over the split."""
    manifest = load_manifest("local-tars")
    index = build_index(manifest, "train", root, Silent())
    chosen = np.sort(np.random.default_rng(0).permutation(len(index))[:images])
    return index.take(chosen), split_classes(manifest, "train", root)


def make_world(folder: Path, root: Path, teacher: str) -> World:
    """Write the made-up models and the enlarged photos."""
    models = {
        "large": made_up_clip(
            folder / "large", 512, layers=12, width=512, head_width=64, patch_size=32, image_size=224
        ),
        "tiny": made_up_clip(folder / "tiny", 64, layers=1, width=32, head_width=32, patch_size=32, image_size=224),
        "teacher": teacher,
    }
    enlarged(root, samples(root, 1024)[0], folder / "500", 375)
    return World(folder, models, {"as they are": root, "500 px": folder / "500"})


def pin(client: Any, cores: list[list[int]]) -> None:
    """Give each worker its cores, and all threads that it has."""
    for worker, core in zip(sorted(client.scheduler_info(n_workers=-1)["workers"]), cores, strict=True):
        client.run(pin_all, core, workers=[worker])


def pin_all(cores: list[int]) -> None:
    """A new thread inherits the cores of the thread that makes it; threads that exist are set one by one."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), cores)


def cpu_seconds(client: Any) -> float:
    """Return the CPU seconds of all workers so far."""
    return sum(client.run(time.process_time).values())


def timed(client: Any, work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what the work returns, and the CPU seconds of the workers during it."""
    before = cpu_seconds(client)
    result = work()
    return result, cpu_seconds(client) - before


def say(line: str) -> None:
    """Print one line of the report at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def compare(client: Any, case: Case, bench: Bench, repeats: int) -> None:
    """Run both sides by turns, and print a row of the table."""
    client.submit(warm, bench, pure=False).result()
    pin(client, [CORES[: case.cores]])
    bare: list[tuple[float, float]] = []
    whole: list[tuple[Run, float]] = []
    for turn in range(repeats):
        for side in ("bare", "teach") if turn % 2 == 0 else ("teach", "bare"):
            if side == "bare":
                bare.append(client.submit(case.bare, bench, pure=False).result())
            else:
                whole.append(timed(client, lambda: bench.teach(client)))
    pairs = list(zip(bare, whole, strict=True))
    figures = [
        1000 * statistics.median(wall for wall, _ in bare) / case.images,
        1000 * statistics.median(run.seconds for run, _ in whole) / case.images,
    ]
    ratio = statistics.median(run.seconds / wall for (wall, _), (run, _) in pairs)
    work = statistics.median(cpu / bare_cpu for (_, bare_cpu), (_, cpu) in pairs)
    say(
        f"| {case.key}: {case.title}, {case.names:,} names | {case.cores} | {figures[0]:.2f} | {figures[1]:.2f} "
        f"| {ratio:.3f} | {case.limit:.2f} | {work:.3f} | {phases([run for run, _ in whole])} |"
    )


def phases(runs: list[Run]) -> str:
    """Return milliseconds an image in each phase, median over the runs."""
    rows = runs[0].rows
    return " | ".join(f"{1000 * statistics.median(run.phases[phase] for run in runs) / rows:.2f}" for phase in PHASES)


def scaling(stack: ExitStack, world: World, repeats: int) -> None:
    """Compare two workers on two cores with one worker on one core, by turns."""
    bench = world.bench("teacher", "as they are", 1536, 120, 128)
    clients = {count: stack.enter_context(local_cluster(count)) for count in (1, 2)}
    for count, client in clients.items():
        for worker in client.nthreads():  # workers follow each other, because each copies the store
            client.run(warm, bench, workers=[worker])
        pin(client, [[CORES[i]] for i in range(count)])
    runs: dict[int, list[Run]] = {1: [], 2: []}
    for turn in range(repeats):
        for count in (1, 2) if turn % 2 == 0 else (2, 1):
            runs[count].append(bench.teach(clients[count]))
    say(f"\n| workers, a core each | images/s | speed | {' | '.join(PHASES)} (ms an image, summed over workers) |")
    say("|---|---|---|" + "---|" * len(PHASES))
    for count in (1, 2):
        speed = statistics.median(one.seconds / run.seconds for one, run in zip(runs[1], runs[count], strict=True))
        rate = statistics.median(run.rows / run.seconds for run in runs[count])
        say(f"| {count} | {rate:.1f} | {speed:.2f} | {phases(runs[count])} |")


def main() -> None:
    """Run all cases, then the scaling."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a folder that the manifest local-tars describes")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--cases", default=DEFAULT, help=f"of {', '.join(cases())}, scaling")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    chosen = args.cases.split(",")
    if len(CORES) < 2:
        raise SystemExit("two cores are needed")
    with tempfile.TemporaryDirectory() as name:
        world = make_world(Path(name), args.root.resolve(), args.teacher)
        say(
            "| what dominates | cores | bare, ms an image | teach, ms an image | ratio of times | wanted "
            f"| ratio of CPU | {' | '.join(PHASES)} (ms an image) |"
        )
        say("|---|---|---|---|---|---|---|" + "---|" * len(PHASES))
        with local_cluster(1) as client:
            for key, case in cases().items():
                if key in chosen:
                    bench = world.bench(case.model, case.photos, case.images, case.names, case.chunk_rows)
                    compare(client, case, bench, args.repeats)
        if "scaling" in chosen:
            with ExitStack() as stack:
                scaling(stack, world, args.repeats)


if __name__ == "__main__":
    sys.exit(main())
