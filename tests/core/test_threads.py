"""How many threads a process uses: as asked, as OMP_NUM_THREADS says, or what is free; idle ones sleep."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from teachonce.core import machine
from teachonce.core.machine import calm_waiting, choose_threads, default_threads


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with eight idle cores; returns the folder of its container's limits."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(machine, "allowed_cores", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    busy(monkeypatch, load=0.0, used=0.0)
    return tmp_path


def busy(monkeypatch: pytest.MonkeyPatch, load: float, used: float) -> None:
    """The load of the last minute, and the cores that are in use right now."""
    machine.busy_cores.cache_clear()
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval, percpu: [100 * used / 8] * 8)


@pytest.mark.parametrize(
    ("load", "used", "threads"), [(0.0, 0.0, 8), (5.0, 5.0, 3), (8.0, 0.4, 8), (0.3, 8.0, 8), (30.0, 8.0, 1)]
)
def test_threads_follow_the_cores_that_are_free(
    load: float, used: float, threads: int, eight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A core counts as busy if the last minute and this moment say so: a run that has just ended leaves its load."""
    busy(monkeypatch, load, used)
    chosen = choose_threads()
    assert chosen.count == threads and chosen.why.startswith("8 cores")
    busy(monkeypatch, 0.3, 0.0)
    machine.busy_cores.cache_clear()


def test_a_container_may_use_what_its_quota_says(eight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (eight / "cpu.max").write_text("250000 100000\n")
    assert (choose_threads().count, choose_threads().why) == (2, "2 of 8 cores may be used")
    busy(monkeypatch, load=6.0, used=5.0)
    assert choose_threads().count == 2, "what others do on other cores costs this container nothing"


def test_workers_share_what_is_free(eight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [default_threads(workers) for workers in (1, 2, 3, 100)] == [8, 4, 2, 1]
    busy(monkeypatch, load=4.0, used=4.0)
    assert default_threads(2) == 2


@pytest.mark.parametrize(("value", "threads"), [("3", 3), ("2,4", 2), ("0", 8), ("many", 8), ("", 8)])
def test_the_variable_of_openmp_is_honoured(
    value: str, threads: int, eight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that a person has set counts for every process; what is no number is passed over."""
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert default_threads(1) == threads
    assert choose_threads(5).count == 5, "what was asked for wins"
    assert choose_threads(heed_variable=False).count == 8


def test_idle_threads_sleep_unless_the_user_has_said_how_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in machine.WAITING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for load, calm in ((1.9, {}), (2.0, {"OMP_WAIT_POLICY": "PASSIVE"})):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert calm_waiting() == calm
        assert calm_waiting(shared=True) == {"OMP_WAIT_POLICY": "PASSIVE"}
    monkeypatch.setenv("GOMP_SPINCOUNT", "100")
    assert calm_waiting() == calm_waiting(shared=True) == {}
