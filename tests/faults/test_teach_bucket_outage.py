"""A server of S3 is killed while real workers read images from it, and comes back: nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from object_servers import seaweed_server
from worlds import World, files_of, teach_inline

from teachonce.labels.store import LabelStore

AWAY_S = 20.0
LONGEST_S = 300.0


def commits(store: Path) -> int:
    folder = store / "ledger/labels/c"
    return len(list(folder.iterdir())) if folder.is_dir() else 0


@pytest.mark.slow
def test_a_killed_server_of_s3_comes_back(
    world: World, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 0, the store of an uninterrupted run from a disk, one note for the outage and one for its end."""
    whole = teach_inline(world, tmp_path / "local.zarr", teacher, top_k=5, chunk_rows=2)
    store, log = tmp_path / "s3.zarr", tmp_path / "log"
    with seaweed_server(tmp_path) as server:
        server.use(monkeypatch)
        server.make_bucket("photos")
        for file in files_of(world.root):
            name = file.relative_to(world.root).as_posix()
            server.client().put_object(Bucket="photos", Key=f"data/{name}", Body=file.read_bytes())
        command = [sys.executable, "-m", "teachonce", "teach", str(world.manifest()), "--root", "s3://photos/data"]
        command += ["--teacher", teacher, "--labels", str(store), "--top-k", "5", "--chunk-rows", "2"]
        command += ["--workers", "1", "--set", "threads=1", "--set", "batch_size=4"]
        with open(log, "wb") as file:
            run = subprocess.Popen(command, stderr=file, stdout=file, env=dict(os.environ))
        try:
            end = time.monotonic() + LONGEST_S
            while commits(store) < 3:
                assert run.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.05)
            server.stop()
            time.sleep(AWAY_S)
            server.start()
            assert run.wait(timeout=LONGEST_S) == 0, log.read_text()
        finally:
            run.kill()
            run.wait()
    said = log.read_text()
    assert said.count("does not answer") == 1 and said.count("answers again") == 1
    assert LabelStore.open(store).store_id() == whole.store_id
