"""cache list and cache clear: what they find, what they free, and what they must leave alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import worlds
from worlds import Notes

from teachonce.core.files import whole_folder
from teachonce.core.progress import Silent
from teachonce.errors import DataError, EnvironmentFault
from teachonce.evaluation.cache import SplitFeatures, cached_features, keep_arrays
from teachonce.labels.store import LabelStore
from teachonce.rows import files as working_files
from teachonce.rows.working_set import open_working_set
from teachonce.stages.cache import Action, CacheRequest, cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's cache folder of this test."""
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    """Thirty rows of labels."""
    made, _ = worlds.synthetic_store(tmp_path / "labels.zarr", **worlds.SMALL)
    assert isinstance(made, LabelStore)
    return made


def test_a_set_is_listed_and_cleared(store: LabelStore) -> None:
    """With its size, rows and date; afterwards nothing is left beside the store, and it can be made again."""
    rows = open_working_set(store, None, Silent())
    before = rows.batch(np.arange(len(rows)))
    rows.close()
    listed = cache(CacheRequest(action="list", labels=store.path), Silent())
    (entry,) = listed.entries
    assert (entry.kind, entry.store, entry.rows, entry.in_use) == ("working set", "labels.zarr", 30, False)
    assert entry.path == str(rows.path) and entry.created.startswith("20")
    size = sum(file.stat().st_size for file in rows.path.iterdir())
    assert (entry.bytes, listed.bytes, listed.freed, listed.skipped) == (size, size, 0, ())
    cleared = cache(CacheRequest(action="clear", labels=store.path), Silent())
    assert (cleared.freed, cleared.skipped) == (size, ())
    assert not working_files.folder_beside(store.path).exists()
    assert cache(CacheRequest(action="list", labels=store.path), Silent()).entries == ()
    after = open_working_set(store, None, Silent()).batch(np.arange(30))
    assert after.log_probs.tobytes() == before.log_probs.tobytes()


def test_a_set_in_use_is_left_alone(store: LabelStore) -> None:
    """As long as anyone has it open, in this process or another; the note names it."""
    first, second = (open_working_set(store, None, Silent()) for _ in range(2))
    first.close()
    notes = worlds.Notes()
    result = cache(CacheRequest(action="clear", labels=store.path), notes)
    assert result.entries[0].in_use and result.freed == 0 and result.skipped == (str(second.path),)
    assert notes.lines == [f"left {second.path} alone: a process uses it"]
    assert second.path.is_dir() and len(second.batch(np.arange(3)).label) == 3
    second.close()
    assert cache(CacheRequest(action="clear", labels=store.path), Silent()).freed > 0


READER = """
import sys, time
from pathlib import Path
from teachonce.labels.store import LabelStore
from teachonce.core.files import whole_folder
from teachonce.core.progress import Silent
from teachonce.rows.working_set import open_working_set
rows = open_working_set(LabelStore.open(Path(sys.argv[1])), None, Silent())
print("open", flush=True)
sys.stdin.readline()
"""


def test_a_killed_reader_does_not_hold_a_set(store: LabelStore) -> None:
    """The lock ends with the process, however it ends."""
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert reader.stdout is not None and reader.stdout.readline() == "open\n"
        assert cache(CacheRequest(action="list", labels=store.path), Silent()).entries[0].in_use
        assert cache(CacheRequest(action="clear", labels=store.path), Silent()).freed == 0
    finally:
        os.kill(reader.pid, signal.SIGKILL)
        reader.communicate()
    assert cache(CacheRequest(action="clear", labels=store.path), Silent()).freed > 0


def test_what_a_dead_builder_left_is_cleared_and_a_living_one_spared(store: LabelStore) -> None:
    folder, digest = working_files.folder_beside(store.path), "0" * 32
    dies = suppress(InterruptedError)
    with dies, working_files.building(folder, digest, Silent()), working_files.draft(folder, digest) as place:
        (place / "records.npy").write_bytes(b"half of it")
        (entry,) = cache(CacheRequest(action="list", labels=store.path), Silent()).entries
        assert (entry.kind, entry.rows, entry.in_use) == ("unfinished", None, True)
        assert cache(CacheRequest(action="clear", labels=store.path), Silent()).skipped == (str(place),)
        raise InterruptedError
    place.mkdir()
    (place / "records.npy").write_bytes(b"half of it")
    result = cache(CacheRequest(action="clear", labels=store.path), Silent())
    assert (result.freed, result.skipped) == (10, ()) and not folder.exists()


def test_what_a_killed_pack_left_beside_a_store_is_listed_and_cleared(store: LabelStore) -> None:
    """And what a living process writes there, or somebody else, is no entry."""
    left = store.path.with_name(".packed.4194304-00aa11bb.partial")
    left.mkdir()
    (left / "part").write_bytes(b"half of it")
    store.path.with_name(".mine.partial").write_text("")
    with whole_folder(store.path.with_name("other")):
        (entry,) = cache(CacheRequest(action="list", labels=store.path), Silent()).entries
        assert (entry.kind, entry.path, entry.bytes) == ("half made", str(left), 10)
        notes = Notes()
        assert cache(CacheRequest(action="clear", labels=store.path), notes).freed == 10
    assert not left.exists() and notes.lines == [f"removed {left}, which a process that was killed had left half made"]


def test_without_a_store_the_users_cache_is_meant(store: LabelStore, own_cache: Path) -> None:
    """Working sets that found no place beside their store, and features of evaluation splits."""
    assert cache(CacheRequest(action="list"), Silent()).entries == ()
    working_files.folder_beside(store.path).write_text("")
    open_working_set(store, None, Silent()).close()
    cached_features("f00d", lambda: SplitFeatures(np.ones((5, 3), np.float32)))
    keep_arrays("beef", {"decoded": np.ones(4, np.bool_)})
    (own_cache / "results/half.npz").write_bytes(b"PK half a file")
    listed = cache(CacheRequest(action="list"), Silent())
    kinds = [("working set", 30), ("features", 5), ("results", 4), ("results", None)]
    assert [(e.kind, e.rows) for e in listed.entries] == kinds
    assert cache(CacheRequest(action="clear"), Silent()).freed == listed.bytes
    assert not [file for file in own_cache.rglob("*") if file.is_file()]


@pytest.mark.parametrize("action", ["list", "clear"])
def test_a_cache_folder_that_is_a_file_is_said(action: Action, own_cache: Path) -> None:
    """It is not an empty cache."""
    own_cache.write_text("mine")
    with pytest.raises(EnvironmentFault, match=f"{own_cache} is no folder") as caught:
        cache(CacheRequest(action=action), Silent())
    assert "TEACHONCE_CACHE" in caught.value.hint and own_cache.read_text() == "mine"


def test_a_store_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        cache(CacheRequest(action="list", labels=tmp_path / "typo.zarr"), Silent())
