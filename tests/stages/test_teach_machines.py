"""teach on workers that share as little with the driver as those of other machines: network, folder, user.

Each worker has a network of its own, where this machine allows to make one, so that nothing is reached by 127.0.0.1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import worlds
from hand_cluster import by_hand, free_port
from worlds import CHUNKS, PHOTOS, World, all_arrays

from teachonce.labels.store import LabelStore

NOBODY = "65534"
NETWORK = "198.18.{}"  # addresses that are kept for tests of networks
HANDFUL = 3  # chunks


def run(*command: str) -> None:
    """Run a command of the system that must work."""
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def machines(number: int) -> Iterator[tuple[str, list[str]]]:
    """Network namespaces behind one bridge: the bridge's address, and the names of the namespaces."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and `ip`")
    base = f"to{os.getpid() % 10_000_000:07d}"
    part = f"{os.getpid() % 250}"
    bridge, names = base, [f"{base}{i}" for i in range(number)]
    made = subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"this machine makes no networks: {made.stderr.decode().strip()}")
    try:
        run("ip", "addr", "add", f"{NETWORK.format(part)}.1/24", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
        for i, name in enumerate(names):
            run("ip", "netns", "add", name)
            run("ip", "link", "add", f"{name}h", "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "link", "set", f"{name}h", "master", bridge, "up")
            run("ip", "-n", name, "addr", "add", f"{NETWORK.format(part)}.{i + 2}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        yield f"{NETWORK.format(part)}.1", names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
            subprocess.run(["ip", "link", "delete", f"{name}h"], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", bridge], capture_output=True, check=False)


@contextmanager
def processes(*commands: tuple[list[str], Path]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes in folders of their own; they end with the block."""
    started = []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        for command, folder in commands:
            with (folder / "log").open("wb") as log:
                started.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log))
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def dask(what: str, *words: str) -> list[str]:
    """A command of Dask."""
    return [sys.executable, "-m", f"distributed.cli.dask_{what}", *words, "--no-dashboard"]


def teach_command(world: World, teacher: str, address: str, store: Path) -> list[str]:
    """`teach` of a world's photos, by a teacher alone."""
    sizes = ["--top-k", "5", "--chunk-rows", str(worlds.CHUNK_ROWS), "--set", "batch_size=4", "--set", "threads=1"]
    data = [str(world.root / "wds.toml"), "--root", str(world.root), "--labels", str(store)]
    return [sys.executable, "-m", "teachonce", "teach", *data, "--teacher", teacher, *sizes, "--scheduler", address]


@pytest.mark.slow  # a scheduler and two workers in networks of their own
def test_workers_in_other_networks_and_folders(world: World, teacher: str, finished: Path, tmp_path: Path) -> None:
    """What only an address and a shared disk connect teaches the same bits."""
    opened(tmp_path)
    places = {name: tmp_path / name for name in ("scheduler", "one", "two", "shared")}
    for place in places.values():
        place.mkdir()
        place.chmod(0o777)
    store, port = places["shared"] / "a.zarr", free_port()
    with machines(2) as (here, (one, two)):
        address = f"tcp://{here}:{port}"
        worker = dask("worker", address, "--nthreads", "2", "--no-nanny", "--local-directory", ".")
        with processes(
            (dask("scheduler", "--host", here, "--port", str(port)), places["scheduler"]),
            (["ip", "netns", "exec", one, *worker, "--name", "gpu-0"], places["one"]),
            (["ip", "netns", "exec", two, *worker, "--name", "gpu-1"], places["two"]),
        ):
            command = teach_command(world, teacher, address, store)
            done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=300, check=False)
        logs = "".join((place / "log").read_text() for place in (places["one"], places["two"]))
    assert done.returncode == 0, done.stderr[-3000:] + logs[-3000:]
    result = json.loads(done.stdout)
    assert (result["rows_ok"], result["chunks_written"]) == (PHOTOS, CHUNKS)
    assert "distributed." not in done.stderr, "Dask's log is not what a person reads"
    labels, wanted = all_arrays(store), all_arrays(finished)
    assert LabelStore.open(store).record("labels", 0) is not None
    same = [name for name in labels if name in wanted and not name.startswith("ledger")]
    assert "class_ids" in same and all((labels[name] == wanted[name]).all() for name in ("class_ids", "gaps", "sample"))
    assert logs.count("Registered to") == 2


def opened(folder: Path) -> None:
    """Let every user pass through the folders that lead to this one."""
    for place in (folder, *folder.parents):
        if place.stat().st_uid == os.geteuid() and place != Path("/"):
            place.chmod(place.stat().st_mode | 0o011)


@pytest.mark.slow  # a scheduler and a worker under another user
def test_a_worker_that_may_not_write_beside_the_store(world: World, teacher: str, tmp_path: Path) -> None:
    """Exit 6 before the first chunk, with host, user and path; nothing is committed."""
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("another user needs root and `setpriv`")
    # Another user who reads everything, as on a shared disk, wherever this Python and the photos lie.
    reading = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    nobody = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", *reading]
    imports = [*nobody, sys.executable, "-c", "import distributed, teachonce"]
    if subprocess.run(imports, check=False, capture_output=True, timeout=60).returncode:
        pytest.skip("another user may not start this Python")
    folder, shared = tmp_path / "nobody", tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    shared.mkdir()
    with by_hand(tmp_path, free_port(), 0) as (address, _):
        worker = dask("worker", address, "--nthreads", "1", "--no-nanny", "--local-directory", ".")
        as_nobody = [*nobody, "env", "HOME=/nowhere", *worker]
        with processes((as_nobody, folder)):
            began = time.monotonic()
            command = teach_command(world, teacher, address, shared / "a.zarr")
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 6, done.stderr[-3000:] + (folder / "log").read_text()[-3000:]
    assert f"cannot write beside the label store, as user nobody (uid {NOBODY})" in done.stderr
    assert str(shared / "a.zarr") in done.stderr and time.monotonic() - began < 200
    assert LabelStore.open(shared / "a.zarr").committed("labels") == []
