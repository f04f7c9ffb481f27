"""The ground of the fault campaign of `teach`: its photos and models, one row of its table, its runs and their verdict.

`campaign.py` hurts the runs that are started here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import worlds
from fault_processes import Processes

CHUNK_ROWS = 2
CHUNKS = worlds.PHOTOS // CHUNK_ROWS  # so many that there is a middle to be hit in
IN_FLIGHT = 8  # chunks under way at a time with two workers of two threads each: teach's window
PAUSE = 0.3  # seconds that a chunk takes longer, so that a seeded instant means about the same on a fast machine
GIVEN_UP = 8.0  # seconds without a heartbeat until Dask gives up a worker; it never takes less than 5


@dataclass(frozen=True)
class Ground:
    """What every case of a campaign starts from."""

    folder: Path
    world: worlds.World
    teacher: str
    student: str
    whole: Path
    """The store of an uninterrupted run."""
    chunk_rows: int = CHUNK_ROWS


@dataclass
class Case:
    """One row of the fault table."""

    name: str
    injected: int = 0
    exits: list[int] = field(default_factory=list)
    """Of every `teach` in order; -9 is kill -9."""
    recomputed: int = 0
    """Chunks begun beyond one time each."""
    allowed: int = 0
    """How many may be, at most: what was in flight at each fault."""
    identical: bool = False
    verified: bool = False
    said: list[str] = field(default_factory=list)
    """The last lines on stderr of each `teach` that ended with an error of its own."""
    detail: dict[str, int] = field(default_factory=dict)

    @property
    def survived(self) -> bool:
        """Whether everything that a fault must leave in peace is there."""
        return self.identical and self.verified and self.recomputed <= self.allowed and self.exits[-1] == 0

    def line(self) -> str:
        """A row of the Markdown table."""
        injected = f"{self.injected}" + (f" ({_counts(self.detail)})" if self.detail else "")
        exits = _counts(dict(sorted(Counter(map(str, self.exits)).items())))
        yes = {True: "yes", False: "NO"}
        return (
            f"| {self.name} | {injected} | {exits} | {self.recomputed} (<= {self.allowed}) "
            f"| {yes[self.identical]} | {yes[self.verified]} |"
        )


HEAD = (
    "| case | injected | exits of teach: how often | chunks recomputed | bit-identical | verify ok |\n"
    "|---|---|---|---|---|---|"
)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def prepare(folder: Path) -> Ground:
    """Photos, models and the uninterrupted store."""
    world = worlds.make_world(folder / "world", worlds.make_photos())
    teacher, student = (
        worlds.make_clip(folder / name, seed, width) for name, seed, width in (("teacher", 1, 16), ("student", 2, 12))
    )
    return ground_of(folder, world, teacher, student)


def ground_of(folder: Path, world: worlds.World, teacher: str, student: str, chunk_rows: int = CHUNK_ROWS) -> Ground:
    """The same with photos and models that are there."""
    whole = folder / f"whole-{chunk_rows}.zarr"
    worlds.teach_inline(world, whole, teacher, students=(student,), top_k=5, chunk_rows=chunk_rows, batch_size=2)
    return Ground(folder, world, teacher, student, whole, chunk_rows)


def teach(ground: Ground, processes: Processes, store: Path, out: str, *where: str) -> psutil.Popen:
    """The command, as a process."""
    return processes.start(
        "teachonce",
        "teach",
        ground.world.manifest(),
        "--root",
        str(ground.world.root),
        "--teacher",
        ground.teacher,
        "--student",
        ground.student,
        "--top-k",
        "5",
        "--chunk-rows",
        str(ground.chunk_rows),
        "--set",
        "batch_size=2",
        "--set",
        "threads=1",
        "--labels",
        str(store),
        "--json",
        "--quiet",
        *where,
        out=out,
    )


def ended(case: Case, run: psutil.Popen, processes: Processes, out: str) -> int:
    """Wait for a `teach`, and note its exit."""
    code = int(run.wait(timeout=400))
    case.exits.append(code)
    if code not in (0, -9):
        case.said.append((processes.folder / f"{out}.err").read_text()[-2000:])
    return code


def judge(case: Case, ground: Ground, processes: Processes, *stores: Path) -> Case:
    """Compare what is there with the uninterrupted run, and count what was computed more than once."""
    from teachonce.core.progress import Silent
    from teachonce.stages.verify import VerifyRequest, verify

    done = Counter(processes.events("start")) - Counter(processes.events("skipped"))
    case.recomputed = done.total() - len(done)
    case.identical = all(same(store, ground.whole) for store in stores)
    case.verified = all(verify(VerifyRequest(labels=store), Silent()).ok for store in stores)
    return case


def same(store: Path, whole: Path) -> bool:
    """Equal keys, and equal bits in every array that has rows, read as plain Zarr."""
    import zarr

    arrays, whole_arrays = worlds.all_arrays(store), worlds.all_arrays(whole)
    if arrays.keys() != whole_arrays.keys() or worlds.keys_of(store) != worlds.keys_of(whole):
        return False
    one, other = zarr.open_group(str(store), mode="r"), zarr.open_group(str(whole), mode="r")
    return all(_bits(one[name]) == _bits(other[name]) for name in whole_arrays)


def _bits(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, array[...].tobytes()
