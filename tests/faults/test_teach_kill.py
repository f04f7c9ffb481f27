"""Faults 1 and 2: kill the driver or a worker of a real `teach` at any instant; in the end the same bits lie there.

Also late tasks of a run that lost its store. Runs are processes of their own, each with a Dask worker of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import worlds
from worlds import PHOTOS, World, all_arrays

from teachonce.core.locks import owned
from teachonce.core.progress import Silent
from teachonce.errors import IncompleteError
from teachonce.keeping.staging import staging_root
from teachonce.labels.format import LABELS
from teachonce.labels.store import LabelStore
from teachonce.stages.verify import VerifyRequest, verify

CHUNK_ROWS = 2  # 35 chunks, so that there is a middle to be killed in
CHUNKS = 35
WORKERS = 1
DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from teachonce.core.progress import Silent
from teachonce.stages.teach import teach
from worlds import World, request_for

world, labels, teacher, student, workers = json.loads(sys.argv[2])
request = request_for(World(Path(world), {}), Path(labels), teacher, students=(student,), top_k=5,
                      chunk_rows=2, batch_size=2, workers=workers)
result = teach(request, Silent())
print(json.dumps([result.rows_ok, result.chunks_written, result.chunks_skipped, result.store_id]))
"""


@contextmanager
def a_run(world: World, labels: Path, teacher: str, student: str) -> Iterator[subprocess.Popen[str]]:
    """A `teach` in a process of its own; whatever is left of it is ended."""
    given = json.dumps([str(world.root), str(labels), teacher, student, WORKERS])
    tests = str(Path(worlds.__file__).parent)
    run = subprocess.Popen(
        [sys.executable, "-c", DRIVER, tests, given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    family: list[psutil.Process] = []
    try:
        yield run
    finally:
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(run.pid).children(recursive=True)
        if run.poll() is None:
            run.kill()
        run.communicate()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def commits(store: Path, group: str = "labels") -> int:
    """Ledger records on disk."""
    folder = store / "ledger" / group / "c"
    return sum((entry / "0").is_file() for entry in folder.iterdir()) if folder.is_dir() else 0


def wait_for(run: subprocess.Popen[str], store: Path, count: int) -> None:
    """Until the run has committed so many chunks in all."""
    deadline = time.monotonic() + 150
    while commits(store) < count:
        if run.poll() is not None:
            raise AssertionError(f"the run ended with {run.returncode}: {run.communicate()[1][-2000:]}")
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.002)


def kill_and_wait(run: subprocess.Popen[str]) -> float:
    """kill -9 of the driver; returns how many seconds its workers outlived it."""
    family = psutil.Process(run.pid).children(recursive=True)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    began = time.monotonic()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, "workers outlive their driver"
    return time.monotonic() - began


def digests(store: Path) -> dict[str, str]:
    """SHA-256 of every decoded array."""
    return {name: hashlib.sha256(data.tobytes()).hexdigest() for name, data in all_arrays(store).items()}


@pytest.fixture(scope="module")
def uninterrupted(world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same store, made in this process without interruption."""
    path = tmp_path_factory.mktemp("whole") / "a.zarr"
    worlds.teach_inline(world, path, teacher, students=(student,), top_k=5, chunk_rows=CHUNK_ROWS, batch_size=2)
    return path


def kill_and_resume(world: World, teacher: str, student: str, store: Path, whole: Path, kills: int, seed: int) -> None:
    """Kill a run `kills` times at seeded instants, kill a worker of the last one, let it end, compare all."""
    rng, redone = random.Random(seed), 0
    targets = sorted(rng.sample(range(1, CHUNKS - 8), kills))
    for target in targets:
        before = commits(store)
        with a_run(world, store, teacher, student) as run:
            wait_for(run, store, max(target, before + 1))
            time.sleep(rng.uniform(0, 0.06))
            kill_and_wait(run)
        opened = LabelStore.open(store)
        for group in opened.groups:
            for chunk in opened.committed(group):
                opened.read_chunk(group, chunk)  # what is in the ledger is sound, after every kill
    before = commits(store)
    with a_run(world, store, teacher, student) as run:
        wait_for(run, store, before + 2)
        workers = [p for p in psutil.Process(run.pid).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
        assert len(workers) == WORKERS
        workers[0].kill()
        out, err = run.communicate(timeout=200)
        assert run.returncode == 0, err[-3000:]
    rows, written, skipped, store_id = json.loads(out)
    redone = written + before - CHUNKS
    assert rows == PHOTOS and written + skipped >= CHUNKS - 1 and redone <= 2 * WORKERS  # tasks at a time
    assert digests(store) == digests(whole)
    assert store_id == LabelStore.open(whole).store_id()
    assert verify(VerifyRequest(labels=store), Silent()).ok
    partial = [path.name for path in store.parent.iterdir() if path != store]
    assert partial == [], "no lock, no draft"


def test_fault_1_and_2_kills_leave_the_same_bits(
    world: World, teacher: str, student: str, uninterrupted: Path, tmp_path: Path
) -> None:
    """kill -9 of the driver, then of the worker: all arrays equal those of an uninterrupted run."""
    kill_and_resume(world, teacher, student, tmp_path / "a.zarr", uninterrupted, kills=1, seed=1)


@pytest.mark.slow
def test_fault_1_twenty_kills_in_one_run(
    world: World, teacher: str, student: str, uninterrupted: Path, tmp_path: Path
) -> None:
    """The same with 20 kills."""
    kill_and_resume(world, teacher, student, tmp_path / "a.zarr", uninterrupted, kills=20, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_fault_1_a_kill_at_any_second(
    seed: int, world: World, teacher: str, student: str, uninterrupted: Path, tmp_path: Path
) -> None:
    """Kills by the clock, so that imports, creation and the last check are hit too."""
    rng, store = random.Random(seed), tmp_path / "a.zarr"
    for _ in range(3):
        with a_run(world, store, teacher, student) as run:
            with suppress(subprocess.TimeoutExpired):
                run.wait(rng.uniform(1, 20))
            if run.poll() is None:
                kill_and_wait(run)
    with a_run(world, store, teacher, student) as run:
        _, err = run.communicate(timeout=300)
        assert run.returncode == 0, err[-3000:]
    assert digests(store) == digests(uninterrupted)
    left = [path.name for path in tmp_path.iterdir() if path != store]
    assert left == [], "drafts of killed runs are cleared away"


# A task of a run that no longer owns the store


def job_for(world: World, store: Path, teacher: str, token: int) -> object:
    """What the driver would send to workers."""
    from teachonce.models.clip import load_clip
    from teachonce.teaching.chunk import TeachJob

    clip = load_clip(teacher)
    return TeachJob(
        store=str(store),
        root=str(world.root),
        token=token,
        models=((LABELS, clip.spec, clip.digest),),
        logit_scale=clip.logit_scale,
        precision="fp32",
        batch_size=4,
        threads=1,
    )


def content(store: Path) -> dict[str, bytes]:
    """Every file."""
    return {str(file): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def test_a_late_task_of_an_old_run_writes_nothing(world: World, teacher: str, finished: Path, tmp_path: Path) -> None:
    """Its token is not the owner's, or nobody owns the store: not one byte changes."""
    from teachonce.teaching.chunk import run_chunk

    store = worlds.copy_store(finished, tmp_path)
    LabelStore.open(store, writable=True).drop(LABELS, 3)
    before = content(store)
    with pytest.raises(IncompleteError, match="no longer owns the store"):
        run_chunk(job_for(world, store, teacher, 5), 3, (LABELS,))
    with owned(store, Silent()) as token, pytest.raises(IncompleteError, match="no longer owns the store"):
        run_chunk(job_for(world, store, teacher, token + 1), 3, (LABELS,))
    assert content(store) == before


@pytest.mark.parametrize("step", ["soft_labels", "publish"])
def test_a_run_that_loses_its_store_midway_does_not_commit(
    step: str, world: World, teacher: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner changes while the teacher runs, or between moving and commit: no record appears."""
    import teachonce.teaching.chunk as chunk_task
    import teachonce.teaching.soft_chunk as soft_chunk
    from teachonce.teaching.delivery import deliver

    store = worlds.copy_store(finished, tmp_path)
    opened = LabelStore.open(store, writable=True)
    opened.drop(LABELS, 3)
    with owned(store, Silent()) as token:
        real = LabelStore.publish if step == "publish" else soft_chunk.begin_soft_labels

        def stolen(*args: object) -> object:
            result = real(*args)  # type: ignore[arg-type]
            lock = store.with_name(store.name + ".lock")
            lock.write_text(json.dumps(json.loads(lock.read_text()) | {"token": 1}))
            return result

        if step == "publish":
            monkeypatch.setattr(LabelStore, "publish", stolen)
        else:
            monkeypatch.setattr(soft_chunk, "begin_soft_labels", stolen)
        with pytest.raises(IncompleteError, match="no longer owns the store"):
            deliver(opened, chunk_task.run_chunk(job_for(world, store, teacher, token), 3, (LABELS,)), token)  # type: ignore[arg-type]
    assert LabelStore.open(store).record(LABELS, 3) is None
    assert not staging_root(store).exists(), "what was staged is cleared away"


def test_a_task_that_runs_twice_changes_nothing(world: World, teacher: str, finished: Path, tmp_path: Path) -> None:
    """Dask runs finished tasks again when their worker dies: the second one finds its chunk and stops."""
    from teachonce.teaching.chunk import run_chunk
    from teachonce.teaching.delivery import deliver

    store = worlds.copy_store(finished, tmp_path)
    opened = LabelStore.open(store, writable=True)
    opened.drop(LABELS, 3)
    with owned(store, Silent()) as token:
        job = job_for(world, store, teacher, token)
        assert deliver(opened, run_chunk(job, 3, (LABELS,)), token) == (LABELS,)  # type: ignore[arg-type]
        before = content(store)
        again = run_chunk(job, 3, (LABELS,))  # type: ignore[arg-type]
        assert deliver(opened, again, token) == () and again.rows_ok == again.rows_failed == 0
    assert content(store) == before and not staging_root(store).exists()
    assert all(
        np.array_equal(data, all_arrays(finished)[name], equal_nan=data.dtype.kind == "f")
        for name, data in all_arrays(store).items()
    )


def test_a_worker_that_was_cut_off_never_wins(
    world: World, teacher: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two attempts at one chunk in one run: the first is held up in the middle of writing until the second has been
    committed, then goes on and delivers other bits. What was committed stays, to the last byte."""
    import teachonce.teaching.chunk as chunk_task
    from teachonce.teaching.delivery import deliver

    store = worlds.copy_store(finished, tmp_path)
    opened = LabelStore.open(store, writable=True)
    opened.drop(LABELS, 3)
    real = LabelStore.write_chunk
    with owned(store, Silent()) as token:
        job = job_for(world, store, teacher, token)
        nested: list[Any] = []

        def held_up(self: LabelStore, group: str, chunk: int, data: Any, staging: Path | None = None) -> Any:
            if not nested:  # the first attempt: another worker is given the chunk, and finishes
                nested.append(None)
                nested.append(chunk_task.run_chunk(job, 3, (LABELS,)))  # type: ignore[arg-type]
                assert deliver(opened, nested[1], token) == (LABELS,)
                data = data | {"top_log_prob": data["top_log_prob"] - np.float16(1)}
            return real(self, group, chunk, data, staging)

        monkeypatch.setattr(LabelStore, "write_chunk", held_up)
        late = chunk_task.run_chunk(job, 3, (LABELS,))  # type: ignore[arg-type]
        before = content(store)
        assert late.digests != nested[1].digests and deliver(opened, late, token) == ()
    assert content(store) == before and not staging_root(store).exists()
    assert opened.store_id() == LabelStore.open(finished).store_id()


def test_other_weights_on_a_worker_are_refused(world: World, teacher: str, finished: Path, tmp_path: Path) -> None:
    """A worker whose model folder holds something else than the driver's: refused before a row is computed."""
    from teachonce.errors import FingerprintError
    from teachonce.teaching.chunk import run_chunk

    store = worlds.copy_store(finished, tmp_path)
    LabelStore.open(store, writable=True).drop(LABELS, 3)
    with owned(store, Silent()) as token:
        job = job_for(world, store, teacher, token)
        wrong = replace(job, models=((LABELS, teacher, "0" * 64),))  # type: ignore[type-var]
        said = "is the model .* and 0000000000000000 where teach was started: .*open_clip_torch"
        with pytest.raises(FingerprintError, match=said):
            run_chunk(wrong, 3, (LABELS,))
