"""A scheduler that is named by its file: Dask's own file leads to its workers, and every other file is refused."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from teachonce.cluster import description
from teachonce.cluster.client import open_cluster
from teachonce.cluster.description import ClusterSpec, address_in
from teachonce.core.progress import Silent
from teachonce.errors import UsageError


def test_the_file_of_a_running_scheduler_leads_to_its_workers(tmp_path: Path) -> None:
    """As `dask scheduler` and `dask worker` write and read it."""
    file = tmp_path / "scheduler.json"
    plain = ["--scheduler-file", str(file), "--no-dashboard"]
    common = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m"]
    here = ["--host", "127.0.0.1", "--port", "0"]
    processes = [subprocess.Popen([*command, "distributed.cli.dask_scheduler", *plain, *here], **common)]
    try:
        processes.append(
            subprocess.Popen(
                [*command, "distributed.cli.dask_worker", *plain, "--no-nanny", "--nthreads", "1"], **common
            )
        )
        until = time.monotonic() + 60
        while not file.exists() and time.monotonic() < until:
            time.sleep(0.05)
        with open_cluster(ClusterSpec(scheduler=str(file)), Silent()) as client:
            assert client.submit(sum, [1, 2], pure=False).result(timeout=60) == 3
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_file_that_is_just_being_written_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text('{"address": "tcp://10.')
    threading.Timer(0.5, file.write_text, ['{"address": "tcp://10.0.0.1:8786", "workers": {}}']).start()
    assert address_in(str(file)) == "tcp://10.0.0.1:8786"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no scheduler file"),
        ("[1, 2]", "the key 'address'"),
        ('{"address": "10.0.0.1"}', r"the key 'address' .* found \"10.0.0.1\""),
        (None, "there is no such file"),
    ],
)
def test_another_file_is_refused_with_its_name(
    text: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(description, "_WRITING_SECONDS", 0.0)
    file = tmp_path / "scheduler.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        address_in(str(file))
    assert str(file) in str(caught.value)


def test_an_address_stays_what_it_is_and_words_that_are_neither_are_refused() -> None:
    assert address_in("tls://10.0.0.1:8786") == "tls://10.0.0.1:8786"
    with pytest.raises(UsageError, match="or a scheduler file"):
        ClusterSpec(scheduler="somewhere")
