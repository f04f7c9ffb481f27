"""The fault campaign of `teach`: cases that start real runs, hurt them at seeded instants, and measure what is left.

    python tests/faults/campaign.py --seed 0 --cases 20

runs all of them and prints a Markdown table. `test_teach_campaign.py` runs the same cases and says what must hold.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil

sys.path[:0] = [
    str(Path(__file__).parent),
    str(Path(__file__).parent.parent / "support"),
]  # as a script; pytest has done it

import worlds  # noqa: E402
from campaign_ground import (  # noqa: E402
    CHUNKS,
    GIVEN_UP,
    HEAD,
    IN_FLIGHT,
    PAUSE,
    Case,
    Ground,
    ended,
    ground_of,
    judge,
    prepare,
    teach,
)
from fault_processes import Cluster, Processes, commits, eventually, family, workers_of  # noqa: E402

TARGETS = ("worker", "nanny", "scheduler", "client")


# kill -9 at random instants


def kills(ground: Ground, seed: int, targets: Sequence[str]) -> Case:
    """kill -9 of each target in turn, at a seeded instant of a run over an existing scheduler.

    Whatever is missing is started again, as somebody would; a store that is nearly done is finished, and another begun.
    """
    rng, case, left = random.Random(seed), Case(f"kill -9 at random instants, seed {seed}"), deque(targets)
    stores: list[Path] = []
    with Processes(ground.folder / f"kills-{seed}", {"pause": PAUSE}) as processes:
        cluster = Cluster(processes)
        while left or not stores:
            stores.append(processes.folder / f"{len(stores)}.zarr")
            _kill_and_finish(case, ground, cluster, stores[-1], rng, left)
        case.allowed = IN_FLIGHT * case.injected
        return judge(case, ground, processes, *stores)


def _kill_and_finish(
    case: Case, ground: Ground, cluster: Cluster, store: Path, rng: random.Random, left: deque[str]
) -> None:
    """Runs of one store until it is whole, with kills as long as there is enough left to do."""
    run = None
    while True:
        cluster.mend()
        if run is None:
            out = f"teach-{len(case.exits)}"
            run = teach(ground, cluster.processes, store, out, "--scheduler", cluster.address)
        if left and commits(store) < CHUNKS - 2 * IN_FLIGHT:
            _wait_for_instant(rng, run, store)
            target = left.popleft()
            _kill(target, cluster, run, rng)
            case.injected += 1
            case.detail[target] = case.detail.get(target, 0) + 1
            if target not in ("client", "scheduler"):
                continue  # the run must bear it
        if ended(case, run, cluster.processes, out) == 0:
            return
        run = None


def _wait_for_instant(rng: random.Random, run: psutil.Popen, store: Path) -> None:
    """One time in four by the clock, so that imports and the first looks at the cluster are hit; else in the work."""
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0, 12))
        return
    target = commits(store) + rng.randint(1, 3)
    eventually(lambda: commits(store) >= target or run.poll() is not None, "a commit")
    time.sleep(rng.uniform(0, 0.4))


def _kill(target: str, cluster: Cluster, run: psutil.Popen, rng: random.Random) -> None:
    victim: psutil.Process
    if target == "client":
        victim = run
    elif target == "scheduler":
        assert cluster.scheduler is not None
        victim = cluster.scheduler
    elif target == "nanny":
        victim = rng.choice(cluster.hands)
    else:
        nannies = list(cluster.hands)
        eventually(lambda: any(workers_of(nanny) for nanny in nannies), "a worker")
        victim = rng.choice([worker for nanny in nannies for worker in workers_of(nanny)])
    cluster.processes.strays += family(victim)  # nobody finds them once their parent is gone
    victim.kill()
    psutil.wait_procs([victim], timeout=30)


# Other faults of running processes


def two_at_once(ground: Ground, seed: int) -> Case:
    """The same command twice at the same instant."""
    case = Case("two teach commands on one store", injected=1)
    with Processes(ground.folder / f"two-{seed}", {"pause": PAUSE}) as processes:
        store = processes.folder / "a.zarr"
        runs = [teach(ground, processes, store, f"teach-{i}") for i in range(2)]
        for i, run in enumerate(runs):
            ended(case, run, processes, f"teach-{i}")
        case.exits.sort(reverse=True)
        return judge(case, ground, processes, store)


def read_errors(ground: Ground, seed: int, share: float = 0.3) -> Case:
    """EIO from a share of all reads of images, in the worker processes."""
    case = Case(f"read errors, p = {share:g}")
    with Processes(ground.folder / f"reads-{seed}", {"eio": [share, seed]}) as processes:
        store = processes.folder / "a.zarr"
        for number in range(3):  # a chunk may fail on every try: then the same command goes on
            if ended(case, teach(ground, processes, store, f"teach-{number}"), processes, f"teach-{number}") == 0:
                break
        case.injected = len(processes.events("eio"))
        case.allowed = CHUNKS // 10  # a task starts again where all tries at one of its reads failed: 0.3 ** 6
        return judge(case, ground, processes, store)


def unreadable(ground: Ground, seed: int) -> Case:
    """EIO from every read of images, on all tries; then the disk is well again. Two large chunks."""
    large = ground_of(ground.folder / "large", ground.world, ground.teacher, ground.student, chunk_rows=35)
    case = Case("every read of images fails, then none", allowed=0)
    with Processes(ground.folder / f"unreadable-{seed}", {"eio": [1.0, seed]}) as processes:
        store = processes.folder / "a.zarr"
        ended(case, teach(large, processes, store, "teach-0"), processes, "teach-0")
        case.injected = len(processes.events("eio"))
        case.detail = {"committed": commits(store)}
        del processes.faults["eio"]
        ended(case, teach(large, processes, store, "teach-1"), processes, "teach-1")
        return judge(case, large, processes, store)


def clock_jumps(ground: Ground, seed: int) -> Case:
    """The wall clock of all processes jumps by hours, there and back; a second run tries its luck meanwhile."""
    rng, step = random.Random(seed), 1.0
    hours = [0.0, *(rng.uniform(-9, 9) for _ in range(200))]
    case = Case("wall clock jumps by up to 18 hours")
    began = time.monotonic()
    with Processes(ground.folder / f"clock-{seed}", {"pause": PAUSE, "clock": [began, step, hours]}) as processes:
        store = processes.folder / "a.zarr"
        run = teach(ground, processes, store, "teach-0", "--workers", "2")
        eventually(lambda: commits(store) > 2, "commits", run)
        case.detail = {
            "refused": int(ended(case, teach(ground, processes, store, "teach-1"), processes, "teach-1") == 5)
        }
        ended(case, run, processes, "teach-0")
        case.injected = int((time.monotonic() - began) / step)
        return judge(case, ground, processes, store)


def cut_off(ground: Ground, seed: int, *, after_the_run: bool) -> Case:
    """A worker is stopped while it writes a chunk, is given up, and goes on while the run does, or after another one.

    What it then writes are other bits, so that a single one of them in the store would be seen.
    """
    when = "after another run has finished" if after_the_run else "while the run goes on"
    case, held = Case(f"worker stopped, given up, back {when}", injected=1, allowed=IN_FLIGHT), seed % CHUNKS
    with Processes(ground.folder / f"cut-{seed}-{after_the_run}") as processes:
        marker, store = processes.folder / "held", processes.folder / "a.zarr"
        processes.faults |= {"pause": PAUSE, "hold": [held, str(marker)]}
        soon = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": f"{GIVEN_UP:.0f}s"}
        cluster = Cluster(processes, nannies=False, settings=soon)
        cluster.mend()
        run = teach(ground, processes, store, "teach-0", "--scheduler", cluster.address)
        eventually(lambda: marker.exists() and marker.read_text().endswith("\n"), "its worker writes", run)
        worker = next(hand for hand in cluster.hands if hand.pid == int(marker.read_text()))
        worker.suspend()
        stopped = time.monotonic()
        if after_the_run:
            run.kill()
            ended(case, run, processes, "teach-0")
            case.injected, case.allowed = 2, 2 * IN_FLIGHT  # the client is killed, too
            ended(case, teach(ground, processes, store, "teach-1"), processes, "teach-1")
        else:
            eventually(lambda: _committed(store, held), "it comes from another worker", run)
        before = ledger_of(store)
        time.sleep(max(0.0, GIVEN_UP - (time.monotonic() - stopped)))
        worker.resume()
        if after_the_run:  # its folder is gone and Dask ends it: it may write, fail or end before
            psutil.wait_procs([worker], timeout=30)
        else:
            eventually(lambda: bool(processes.events("late") or processes.events("late-failed")), "the late write")
        if not after_the_run:
            case.detail = {"chunks left when it came back": CHUNKS - len(before)}
            ended(case, run, processes, "teach-0")
        case.detail["late writes that went through"] = len(processes.events("late"))
        case.said += [f"the late write failed: {name}" for name in processes.events("late-failed")]
        after = ledger_of(store)
        judge(case, ground, processes, store)
        case.identical &= all(after[name] == data for name, data in before.items())
        return case


def _committed(store: Path, chunk: int) -> bool:
    return (store / f"ledger/labels/c/{chunk}/0").is_file()


def ledger_of(store: Path) -> dict[str, bytes]:
    """Every record of labels, as it lies on disk."""
    return {file.parent.name: file.read_bytes() for file in (store / "ledger/labels/c").glob("*/0")}


def lost_archive(ground: Ground, seed: int) -> Case:
    """An archive disappears in the middle of a run, and is brought back for the next."""
    case = Case("an archive disappears, and comes back", injected=1, allowed=IN_FLIGHT)
    with Processes(ground.folder / f"lost-{seed}", {"pause": PAUSE}) as processes:
        copied = replace(ground, world=worlds.make_world(processes.folder / "world", ground.world.photos))
        store, archive = processes.folder / "a.zarr", copied.world.root / "wds/part-1.tar"
        run = teach(copied, processes, store, "teach-0")
        eventually(lambda: commits(store) > 2, "commits", run)
        archive.rename(archive.with_suffix(".away"))
        ended(case, run, processes, "teach-0")
        archive.with_suffix(".away").rename(archive)
        ended(case, teach(copied, processes, store, "teach-1"), processes, "teach-1")
        return judge(case, ground, processes, store)


def shuffled(seed: int, number: int) -> list[str]:
    """What is killed: each kind as often as the others, in a seeded order."""
    targets = [TARGETS[i % len(TARGETS)] for i in range(number)]
    random.Random(seed).shuffle(targets)
    return targets


def all_cases(seed: int, number: int) -> list[partial[Case]]:
    """The long set, with so many kills."""
    return [
        partial(kills, seed=seed, targets=shuffled(seed, number)),
        partial(two_at_once, seed=seed),
        partial(read_errors, seed=seed),
        partial(unreadable, seed=seed),
        partial(lost_archive, seed=seed),
        partial(clock_jumps, seed=seed),
        partial(cut_off, seed=seed + 11, after_the_run=False),
        partial(cut_off, seed=seed + 11, after_the_run=True),
    ]


def main() -> int:
    """Run everything and print the table; exits with 1 where a case was not survived."""
    parser = argparse.ArgumentParser(description="The fault campaign of teach.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=20, help="how many kill -9")
    parser.add_argument("--only", default="", help="cases whose function has this in its name")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    fine = True
    with tempfile.TemporaryDirectory() as folder:
        ground = prepare(Path(folder))
        sys.stdout.write(HEAD + "\n")
        for run in all_cases(given.seed, given.cases):
            if given.only in run.func.__name__:
                began = time.monotonic()
                case = run(ground)
                fine &= case.survived
                sys.stdout.write(case.line() + "\n")
                sys.stdout.flush()
                sys.stderr.write("\n".join([f"{run.func.__name__}: {time.monotonic() - began:.0f} s", *case.said, ""]))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
