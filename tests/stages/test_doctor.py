"""What doctor finds: on a machine in order, and on one where something is not; it leaves nothing behind."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any, NoReturn

import pytest
from worlds import session_clip

from teachonce.core import machine as core_machine
from teachonce.core.progress import Silent
from teachonce.errors import EnvironmentFault, UsageError
from teachonce.stages.doctor import DoctorRequest, DoctorResult, Finding, doctor, machine, software

NAMES = ["cores", "memory", "open files", "disk", "disk speed", "locks", "python", "versions", "torch", "zarr", "dask"]


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable that doctor sets for its own process is gone after a test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> tuple[DoctorResult, Path]:
    """One visit with a model, and the folder that was looked at."""
    place = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TEACHONCE_CACHE", str(tmp_path_factory.mktemp("cache")))
        model = session_clip(tmp_path_factory, "student")
        return doctor(DoctorRequest(path=place, model=model), Silent()), place


def test_a_machine_in_order_has_no_failure_and_every_warning_a_remedy(answer: tuple[DoctorResult, Path]) -> None:
    result, place = answer
    assert [finding.what for finding in result.findings] == [*NAMES, "model"]
    assert [finding for finding in result.findings if finding.standing == "FAIL"] == []
    assert (result.failures, result.exit_code) == (0, 0)
    assert all(bool(finding.remedy) == (finding.standing != "OK") for finding in result.findings)
    assert list(place.iterdir()) == []


def test_a_failure_is_exit_code_6() -> None:
    finding = Finding(what="x", standing="FAIL", found="y", remedy="z")
    result = DoctorResult(findings=(finding,), warnings=0, failures=1, path=".", model=None)
    assert result.exit_code == EnvironmentFault.exit_code == 6


@pytest.mark.parametrize("request_", [DoctorRequest(path=Path("/nowhere")), DoctorRequest(model="nothing")], ids=repr)
def test_what_is_asked_wrongly_is_a_usage_error(request_: DoctorRequest) -> None:
    with pytest.raises(UsageError):
        doctor(request_, Silent())


def test_few_open_files_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, standing in ((64, "FAIL"), (512, "WARN"), (65536, "OK")):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, 1 << 20))
        finding = machine.open_files()
        assert finding.standing == standing and ("ulimit -n 65536" in finding.remedy) == (standing != "OK")


def test_more_threads_than_cores_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "allowed_cores", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(core_machine, "CONTROL_GROUP", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert machine.cores().standing == "OK"
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    finding = machine.cores()
    assert finding.standing == "WARN" and finding.remedy == "export OMP_NUM_THREADS=2"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(os, "getloadavg", lambda: (3.5, 0.0, 0.0))
    assert machine.cores().standing == "WARN"


def test_a_container_without_memory_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CONTROL_GROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{2 << 30}\n")
    (tmp_path / "memory.current").write_text(f"{(2 << 30) - 1}\n")
    assert machine.memory().standing == "FAIL"
    (tmp_path / "memory.max").write_text("max\n")
    assert "GiB free" in machine.memory().found


def test_a_full_disk_and_one_that_errs_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(machine, "atomic_write_bytes", full)
        assert machine.speed(tmp_path).standing == "FAIL"
    monkeypatch.setattr(machine, "atomic_write_bytes", lambda file, data: file.write_bytes(data[:-1] + b"?"))
    assert "not read back" in machine.speed(tmp_path).found and list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_or_links_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", refused)
        assert machine.locks(tmp_path).standing in ("WARN", "FAIL")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refused)
        assert machine.locks(tmp_path).standing == "FAIL"
    assert machine.locks(tmp_path).standing == "OK"


def test_a_checksum_that_sees_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from teachonce.labels import format as store_format

    def unchecked(root: Any, name: str, data: Any) -> None:
        root.create_array(name, data=data, compressors=None)

    monkeypatch.setattr(store_format, "create_static_array", unchecked)
    finding = software.tried("zarr", software.zarr_sees_a_flipped_bit)
    assert finding.standing == "FAIL" and "flipped bit" in finding.found


@pytest.mark.parametrize(
    ("here", "older"), [("2.5.9", True), ("2.6.0", False), ("2.14.1+cu128", False), ("2.6", False), ("2.5.0rc1", True)]
)
def test_versions_with_holes_are_told_from_later_ones(here: str, older: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_installed", lambda package: here if package == "torch" else "")
    finding = software.holes()
    assert (finding.standing == "WARN") is older and ("'torch>=2.6.0'" in finding.remedy) is older


def test_a_model_that_is_not_here_is_a_failure_with_a_remedy() -> None:
    finding = software.tried("model", lambda: software.model_works("local-dir:/nowhere"))
    assert finding.standing == "FAIL" and finding.remedy
