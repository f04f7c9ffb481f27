"""The fault campaign of `teach`: after every fault the same bits, little done twice, and an exit that tells.

`campaign.py` does the deeds; here stands what must hold. With TEACHONCE_FAULT_TABLE=FILE each case adds a JSON line.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import time
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import campaign
import campaign_ground
import numpy as np
import pytest
import worlds
from campaign_ground import Case, Ground
from fault_processes import commits
from worlds import World

from teachonce.core.locks import owned
from teachonce.core.progress import Silent
from teachonce.errors import DataError, IncompleteError
from teachonce.labels.store import LabelStore
from teachonce.stages.verify import VerifyRequest, verify
from teachonce.teaching.delivery import deliver


@pytest.fixture(scope="module")
def ground(world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """An uninterrupted store to compare with."""
    return campaign_ground.ground_of(tmp_path_factory.mktemp("campaign"), world, teacher, student)


def printed(case: Case) -> Case:
    """What every case must end with; it is written down first, so that a failure is in the table too."""
    table = os.environ.get("TEACHONCE_FAULT_TABLE")
    if table:
        with open(table, "a") as file:
            file.write(json.dumps(asdict(case)) + "\n")
    assert case.identical, case
    assert case.verified, case
    assert case.recomputed <= case.allowed, case
    assert case.exits[-1] == 0, case
    return case


# kill -9


@pytest.mark.slow  # two starts of a scheduler and two workers; `test_teach_kill` kills a driver and a worker in CI
def test_kills_of_a_worker_a_nanny_and_the_scheduler_leave_the_same_bits(ground: Ground) -> None:
    """The run bears lost workers, with work queued on them; it ends with exit 5 and a hint when its scheduler dies."""
    case = printed(campaign.kills(ground, 3, ["worker", "nanny", "scheduler"]))
    assert case.exits == [5, 0] and case.injected == 3
    assert "the connection to the scheduler" in case.said[0] and "run the same command again" in case.said[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_twenty_kills_leave_the_same_bits(seed: int, ground: Ground) -> None:
    """Five each of worker, nanny, scheduler and client in a random order: only the last two end a run, with a word."""
    targets = campaign.shuffled(seed, 20)
    case = printed(campaign.kills(ground, seed, targets))
    killed, exits = Counter(targets), Counter(case.exits)
    assert exits[-9] == killed["client"] and set(exits) <= {-9, 0, 5, 6}
    assert exits[5] + exits[6] == killed["scheduler"]
    assert all("next: " in text for text in case.said)


# Two writers


@pytest.mark.slow  # the lock itself is tried by racing processes in CI (`test_locks`)
def test_one_of_two_teach_commands_wins(ground: Ground) -> None:
    """Both start at the same instant: the other ends with exit 5, says why, and has changed nothing."""
    case = printed(campaign.two_at_once(ground, 0))
    assert case.exits == [5, 0]
    assert "is being written by process" in case.said[0] or "took the lock at the same instant" in case.said[0]
    assert "next: " in case.said[0]


# A worker that comes back


@pytest.mark.slow  # waits for Dask to give a worker up, which a busy machine draws out; the next test is in CI
def test_a_stopped_worker_that_goes_on_late_never_wins(ground: Ground) -> None:
    """Its chunk was given to another worker; it writes other bits while the run goes on, and they go nowhere."""
    case = printed(campaign.cut_off(ground, 11, after_the_run=False))
    assert case.exits == [0] and case.detail["late writes that went through"] == 1


def test_a_late_report_never_wins(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk is computed twice, the second time with other bits, and delivered after the first: nothing changes."""
    import teachonce.teaching.chunk as chunk_task

    real, late = chunk_task.run_chunk, []

    def twice(job: Any, chunk: int, groups: tuple[str, ...]) -> Any:
        report = real(job, chunk, groups)
        with pytest.MonkeyPatch.context() as patch:
            write = LabelStore.write_chunk

            def other(store: Any, group: str, number: int, data: Any, staging: Any = None) -> Any:
                changed = data | {"top_log_prob": data["top_log_prob"] - 1} if group == "labels" else data
                return write(store, group, number, changed, staging)

            patch.setattr(LabelStore, "write_chunk", other)
            late.append((real(job, chunk, groups), job.token))
        return report

    monkeypatch.setattr(chunk_task, "run_chunk", twice)
    store = tmp_path / "a.zarr"
    worlds.teach_inline(ground.world, store, ground.teacher, students=(ground.student,), top_k=5)
    before = worlds.all_arrays(store)
    with owned(store, Silent()) as token:
        opened = LabelStore.open(store, writable=True)
        assert len(late) == worlds.CHUNKS
        for report, _ in late:
            assert deliver(opened, report, token) == (), "another attempt had delivered the chunk"
            assert not Path(report.staging).exists()
    after = worlds.all_arrays(store)
    assert all(np.array_equal(after[name], data, equal_nan=data.dtype.kind == "f") for name, data in before.items())


@pytest.mark.slow
def test_a_stopped_worker_that_goes_on_after_all_is_done_never_wins(ground: Ground) -> None:
    """Its client was killed and another run finished the store, before it writes."""
    case = printed(campaign.cut_off(ground, 11, after_the_run=True))
    assert case.exits == [-9, 0]


# Reads that fail


def failing_reads(patch: pytest.MonkeyPatch, share: float, seed: int) -> list[str]:
    """EIO from a share of the reads of archives in this process, without the waits between tries."""
    real, rng, hit = os.pread, random.Random(seed), []

    def pread(handle: int, size: int, offset: int) -> bytes:
        name = os.readlink(f"/proc/self/fd/{handle}")
        if name.endswith(".tar") and rng.random() < share:
            hit.append(name)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(handle, size, offset)

    patch.setattr(os, "pread", pread)
    patch.setattr("teachonce.data.reader.BACKOFF", (0.0,) * 5)
    return hit


def here(ground: Ground, store: Path, **options: Any) -> Any:
    """The same teach in this process."""
    given: dict[str, Any] = {"students": (ground.student,), "top_k": 5, "chunk_rows": campaign_ground.CHUNK_ROWS}
    return worlds.teach_inline(ground.world, store, ground.teacher, **(given | {"batch_size": 2} | options))


def test_reads_that_fail_now_and_then_change_nothing(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three reads in ten fail: each is tried again until it succeeds, and no row is lost."""
    hit = failing_reads(monkeypatch, 0.3, 1)
    result = here(ground, tmp_path / "a.zarr")
    monkeypatch.undo()
    assert len(hit) > 15 and (result.rows_ok, result.rows_failed) == (worlds.PHOTOS, 0)
    assert campaign_ground.same(tmp_path / "a.zarr", ground.whole)
    assert verify(VerifyRequest(labels=tmp_path / "a.zarr"), Silent()).ok


@pytest.mark.slow
def test_an_archive_that_is_gone_ends_with_exit_3(ground: Ground, tmp_path: Path) -> None:
    """It is named, what was committed stays, and with it back the same command ends well."""
    copied = replace(ground, world=worlds.make_world(tmp_path / "world", ground.world.photos))
    store, archive = tmp_path / "a.zarr", copied.world.root / "wds/part-1.tar"
    here(copied, store)
    opened = LabelStore.open(store, writable=True)
    for group in opened.groups:
        for chunk in range(5, campaign_ground.CHUNKS):
            opened.drop(group, chunk)
    shutil.move(archive, tmp_path / "away.tar")
    with pytest.raises(DataError) as caught:
        here(copied, store)
    assert caught.value.exit_code == 3 and "wds/part-1.tar" in str(caught.value) and caught.value.hint
    assert 5 <= commits(store) < campaign_ground.CHUNKS and not verify(VerifyRequest(labels=store), Silent()).ok
    shutil.move(tmp_path / "away.tar", archive)
    here(copied, store)
    assert campaign_ground.same(store, ground.whole) and verify(VerifyRequest(labels=store), Silent()).ok


# The clock


@pytest.mark.slow  # `tests/core/test_locks.py` turns the clock in CI
def test_a_clock_that_jumps_by_hours_frees_no_lock(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look at the wall clock finds it hours off: nobody else gets the store, the bits are equal."""
    rng, real, real_ns, commit = random.Random(0), time.time, time.time_ns, LabelStore.commit
    store, refused = tmp_path / "a.zarr", []
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * rng.uniform(-9, 9))
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(3.6e12 * rng.uniform(-9, 9)))

    def commit_with_a_rival(self: LabelStore, *args: Any) -> None:
        with pytest.raises(IncompleteError, match="is being written by process"), owned(store, Silent()):
            raise AssertionError("two hold one store")
        refused.append(args[1])
        commit(self, *args)

    monkeypatch.setattr(LabelStore, "commit", commit_with_a_rival)
    here(ground, store)
    monkeypatch.undo()
    assert len(refused) == 2 * campaign_ground.CHUNKS, "labels and the student's features of every chunk"
    assert campaign_ground.same(store, ground.whole) and verify(VerifyRequest(labels=store), Silent()).ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "exits"),
    [
        (campaign.read_errors, [0]),
        (campaign.unreadable, [3, 0]),
        (campaign.lost_archive, [3, 0]),
        (campaign.clock_jumps, [5, 0]),
    ],
    ids=["read_errors", "unreadable", "lost_archive", "clock_jumps"],
)
def test_the_same_in_worker_processes(case: Any, exits: list[int], ground: Ground) -> None:
    """Reads that fail, an archive that goes, a clock that jumps, in all processes of a real run."""
    outcome = printed(partial(case, ground, 0)())
    assert outcome.exits == exits and outcome.injected > 0
    if 3 in exits:
        assert "wds/part-" in outcome.said[0] and "next: " in outcome.said[0]
