"""Schedulers and workers that somebody else started: certificates, versions, memory, and Dask's own log.

One scheduler speaks TLS here, with a worker that has a memory limit; others join it and lack something.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
import pytest
from hand_cluster import by_hand, free_port
from worlds import Notes

from teachonce.cluster.client import expect_memory, open_cluster, run_tasks
from teachonce.cluster.description import ClusterSpec
from teachonce.cluster.quiet import dask_silenced
from teachonce.cluster.scheduler_check import WorkerFacts, judge, own_facts
from teachonce.cluster.tls import SETTINGS, variable
from teachonce.core.progress import Silent
from teachonce.errors import EnvironmentFault, IncompleteError

LIMIT = 2_000_000_000  # bytes: more than a worker without models takes
# Loaded by a worker before all else: the package is not there, as in an environment without it.
LACKING = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "teachonce":
            raise ModuleNotFoundError("No module named 'teachonce'", name="teachonce")

sys.meta_path.insert(0, Finder())
for name in [name for name in sys.modules if name.partition(".")[0] == "teachonce"]:
    del sys.modules[name]
"""
# The same of a worker with another version of the package.
OTHER = """
import teachonce

teachonce.__version__ = "0.0.9"
"""


def certificates(folder: Path, name: str) -> dict[str, str]:
    """An authority, and a certificate of it for this machine, as the settings of Dask that name them."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes certificates, is not installed")
    place = folder / name
    place.mkdir()
    (place / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for line in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority",
        "req -newkey rsa:2048 -nodes -keyout key.pem -out asked.pem -subj /CN=here",
        "x509 -req -in asked.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile names",
    ):
        subprocess.run(["openssl", *line.split()], cwd=place, check=True, capture_output=True)
    return dict(zip(SETTINGS, (str(place / f"{file}.pem") for file in ("ca", "cert", "key")), strict=True))


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str], Path]]:
    """The address of a scheduler that speaks TLS, this side's settings, and the folder of its processes."""
    folder = tmp_path_factory.mktemp("secure")
    settings = certificates(folder, "ours")
    driver = {variable(setting): file for setting, file in settings.items()}
    roles = {name.replace("CLIENT", role): file for name, file in driver.items() for role in ("SCHEDULER", "WORKER")}
    options = ("--memory-limit", str(LIMIT))
    with by_hand(folder, free_port(), 1, options, driver | roles, "tls") as (address, _):
        yield address, settings, folder


@contextmanager
def another_worker(address: str, folder: Path, settings: dict[str, str], preload: str) -> Iterator[None]:
    """One more worker, which loads a file of this text first."""
    (folder / "first.py").write_text(preload)
    variables = {variable(setting).replace("CLIENT", "WORKER"): file for setting, file in settings.items()}
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny"]
    command += ["--no-dashboard", "--name", "stranger", "--preload", "first.py"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=folder, env=os.environ | variables, **quiet) as process:  # type: ignore[call-overload]
        try:
            yield
        finally:
            process.kill()


def slowly(number: int) -> int:
    """A task."""
    time.sleep(0.1)
    return number


def test_a_scheduler_that_speaks_tls(secure: tuple[str, dict[str, str], Path]) -> None:
    """With Dask's own settings tasks run; without them, with others, or as tcp: exit 6 that names the settings."""
    address, settings, folder = secure
    with dask.config.set(settings), open_cluster(ClusterSpec(scheduler=address), Silent()) as client:
        assert sorted(run_tasks(client, slowly, [(i,) for i in range(4)], "tls")) == [0, 1, 2, 3]
    strange = certificates(folder, "strange")
    for given, words in (
        ({}, r"ca-file \(DASK_DISTRIBUTED__COMM__TLS__CA_FILE\) and .*client.cert .* not set"),
        (settings | {SETTINGS[1]: "/nowhere.pem"}, "CLIENT__CERT.* names /nowhere.pem, which is not there"),
        (settings | {SETTINGS[2]: strange[SETTINGS[2]]}, "no certificate with its key"),
        (settings | {SETTINGS[0]: strange[SETTINGS[0]]}, "certificate does not match"),
        (strange | {SETTINGS[0]: settings[SETTINGS[0]]}, "nothing answers"),
    ):
        with (
            dask.config.set(given),
            pytest.raises(EnvironmentFault, match=words) as caught,
            open_cluster(ClusterSpec(scheduler=address), Silent()),
        ):
            pass
        assert "certificates" in caught.value.hint, caught.value.hint
    with (
        pytest.raises(EnvironmentFault, match="nothing answers") as caught,
        open_cluster(ClusterSpec(scheduler=address.replace("tls", "tcp")), Silent()),
    ):
        pass
    assert "tls://" in caught.value.hint


@pytest.mark.parametrize(("preload", "words"), [(LACKING, "cannot import teachonce"), (OTHER, "has teachonce 0.0.9")])
def test_a_worker_that_joins_in_the_middle_with_another_installation(
    preload: str, words: str, secure: tuple[str, dict[str, str], Path]
) -> None:
    """Exit 6 that names the worker, as soon as it has joined; the tasks of the others went on until then."""
    address, settings, folder = secure
    results = []
    with dask.config.set(settings), open_cluster(ClusterSpec(scheduler=address), Silent()) as client:
        tasks = run_tasks(client, slowly, [(i,) for i in range(3000)], f"late-{words[:3]}")
        results.append(next(tasks))
        with (
            another_worker(address, folder, settings, preload),
            pytest.raises(EnvironmentFault, match=f"the worker stranger .*{words}") as caught,
        ):
            results += list(tasks)
    assert "install" in caught.value.hint and 0 < len(results) < 3000


def test_a_worker_with_less_memory_than_the_work_takes(secure: tuple[str, dict[str, str], Path]) -> None:
    """Exit 6 before the run where it cannot suffice, a note where it may not, and silence where it does."""
    address, settings, _ = secure
    with dask.config.set(settings), open_cluster(ClusterSpec(scheduler=address), Silent()) as client:
        with pytest.raises(EnvironmentFault, match=r"worker w-0 .* may use 2 GB \(Dask.*80%.*about 4 GB") as caught:
            expect_memory(client, 2 * LIMIT, Silent())
        assert "memory-limit 0" in caught.value.hint
        for needed, said in ((0.75 * LIMIT, 1), (0.5 * LIMIT, 0)):
            notes = Notes()
            expect_memory(client, int(needed), notes)
            assert len(notes.lines) == said, notes.lines
            assert all("may not suffice" in line for line in notes.lines)


def fill(number: int) -> int:
    """A task that takes more memory than the worker may have."""
    held = bytearray(b"x" * 700_000_000)
    time.sleep(5)
    return len(held)


KEPT: list[bytearray] = []


def keep(number: int) -> int:
    """A task that leaves nine tenths of the worker's limit in use."""
    import psutil

    KEPT.append(bytearray(b"x") * (520_000_000 - psutil.Process().memory_info().rss))
    return number


@pytest.mark.slow  # Dask starts a worker three times, and waits a minute for another to have room again
@pytest.mark.parametrize(("task", "words"), [(fill, "3 workers ended so"), (keep, "has given no task to any worker")])
def test_memory_that_runs_out_is_said(task: object, words: str, tmp_path: Path) -> None:
    """Dask ends workers, or holds them back, and says so in their log only: here it ends the run, in words."""
    port = free_port()
    with by_hand(tmp_path, port, 0) as (address, _):
        command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command += ["--no-dashboard", "--memory-limit", "600MB", "--name", "small"]
        with subprocess.Popen(command, cwd=tmp_path, env=environment, **quiet) as worker:  # type: ignore[call-overload]
            try:
                notes = Notes()
                with (
                    open_cluster(ClusterSpec(scheduler=address), notes) as client,
                    pytest.raises(EnvironmentFault, match=words) as caught,
                ):
                    list(run_tasks(client, task, [(i,) for i in range(5)], "memory", notes))  # type: ignore[arg-type]
            finally:
                worker.terminate()
    assert "memory" in caught.value.hint and any("small" in line and "memory" in line for line in notes.lines)


def test_answers_of_workers_are_judged() -> None:
    """One that has left again is asked anew later, one that says nothing is noted, other packages are noted once."""

    class Asked:
        """Stands for a client: acquaintances are kept by it."""

    client, notes = Asked(), Notes()
    worker = WorkerFacts("tcp://h:1", "gpu-0", "node7")
    facts = own_facts()
    other = facts | {"versions": facts["versions"] | {"torch": "1.0"}}
    judge(client, {"tcp://h:1": (worker, OSError("gone"))}, notes)  # type: ignore[arg-type]
    assert not notes.lines
    for _ in range(2):
        judge(client, {"tcp://h:1": (worker, other)}, notes)  # type: ignore[arg-type]
    assert len(notes.lines) == 1 and "torch is 1.0 on workers" in notes.lines[0]
    judge(client, {"tcp://h:1": (worker, TimeoutError())}, notes)  # type: ignore[arg-type]
    assert "does not say its versions" in notes.lines[1]
    with pytest.raises(EnvironmentFault, match=r"the worker gpu-0 \(node7, tcp://h:1\) has another version"):
        judge(client, {"tcp://h:1": (worker, AttributeError("no own_facts"))}, notes)  # type: ignore[arg-type]


def test_dasks_log_is_silent_unless_nothing_else_explains(capfd: pytest.CaptureFixture[str]) -> None:
    """Our own errors stand alone; with an exception of another kind come the last errors of Dask, as notes."""
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("distributed")
    logger.addHandler(handler)
    try:
        for problem, noted in ((IncompleteError("ours"), 0), (KeyError("a bug"), 1)):
            notes = Notes()
            with pytest.raises(type(problem)), dask_silenced(notes):
                logging.getLogger("distributed.core").error("loud")
                logging.getLogger("asyncio").error("Task exception was never retrieved")
                raise problem
            assert len(notes.lines) == 2 * noted and all("Dask's log says" in line for line in notes.lines)
        assert "loud" not in capfd.readouterr().err
        logger.error("after the block")
        assert "after the block" in capfd.readouterr().err
    finally:
        logger.removeHandler(handler)
