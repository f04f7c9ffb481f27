"""Who is there, and tasks that end early: on one real worker of this machine, and on a cluster without any."""

from __future__ import annotations

import os
import socket
import time
import types
from pathlib import Path

from teachonce.cluster.client import local_cluster, run_tasks
from teachonce.cluster.workers import mark_of_this_worker, present_workers
from teachonce.watching.workers import WorkerMark


def who(device: str) -> WorkerMark:
    """A task: who runs it."""
    return mark_of_this_worker(device)


def touch(folder: Path, number: int) -> int:
    """A task that leaves a trace when it begins, and takes a while."""
    (folder / str(number)).touch()
    time.sleep(0.05)
    return number


def test_a_worker_is_known_before_it_has_done_anything_and_ends_what_it_has_begun(tmp_path: Path) -> None:
    """Its name is the one that its tasks say; once the run should stop, nothing is lost and little is begun."""
    with local_cluster(1, threads=1) as client:
        client.wait_for_workers(1, timeout=60)
        present = present_workers(client)
        assert present is not None and list(present) == ["0"] and present["0"].memory_bytes > 1e6
        mark = client.submit(who, "cpu").result(timeout=60)
        assert (mark.name, mark.host, mark.device) == ("0", socket.gethostname(), "cpu")
        assert mark.pid != os.getpid() and mark.memory_bytes > 1e6
        came: list[int] = []
        for number in run_tasks(
            client, touch, [(tmp_path, i) for i in range(100)], "t", stopping=lambda: len(came) >= 3
        ):
            came.append(number)
        begun = sorted(int(path.name) for path in tmp_path.iterdir())
        assert sorted(came) == begun == list(range(len(begun))) and 3 <= len(begun) < 20
    assert present_workers(client) is None, "a client that is closed"


def test_without_workers_a_run_that_should_stop_ends_at_once() -> None:
    """As in a queue that has not let any job start: nothing is under way that could be waited for."""
    began, asked = time.monotonic(), []

    def stopping() -> bool:
        asked.append(True)
        return len(asked) > 3

    with local_cluster(0) as client:
        assert list(run_tasks(client, touch, [(Path(), 1)], "t", stopping=stopping)) == []
    assert time.monotonic() - began < 30


def test_outside_a_cluster_a_task_names_its_process() -> None:
    assert mark_of_this_worker("cpu").name == f"process {os.getpid()}"
    assert present_workers(types.SimpleNamespace()) is None  # type: ignore[arg-type]
