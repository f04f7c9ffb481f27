"""`teach` into a bucket, whoever is killed, late or second: the same command ends with the store of a folder.

The server lies in this process. How requests of several drivers interleave is searched in tests/keeping/test_claims.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from bucket_stores import claim_again, moto_bucket, require_same
from worlds import Notes, World

from teachonce.core import locks
from teachonce.core.locks import LockOwner
from teachonce.core.machine import this_process
from teachonce.core.progress import Silent
from teachonce.errors import DataError, EnvironmentFault, IncompleteError
from teachonce.keeping import probe
from teachonce.keeping.bucket import BucketKeeper
from teachonce.keeping.claims import staging_key
from teachonce.keeping.owners import owned, read_owner, require_token
from teachonce.labels.direct import hand_over
from teachonce.labels.format import LABELS
from teachonce.labels.store import LabelStore
from teachonce.objects.bucket import BucketObjects
from teachonce.objects.remote import location
from teachonce.stages.teach import teach
from teachonce.teaching.delivery import ChunkReport, deliver

OPTIONS: dict[str, Any] = {"top_k": 5, "chunk_rows": 24}
NAME = "x.zarr"


class Killed(BaseException):
    """kill -9 between two requests."""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketObjects]:
    """An empty bucket of a server inside this process."""
    with moto_bucket(tmp_path_factory.mktemp("server")) as empty:
        yield empty


@pytest.fixture(scope="module")
def whole(world: World, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an uninterrupted run, in a folder."""
    path = tmp_path_factory.mktemp("whole") / "whole.zarr"
    worlds.teach_inline(world, path, teacher, **OPTIONS)
    return path


@pytest.fixture(scope="module")
def taught(bucket: BucketObjects, world: World, teacher: str) -> Path:
    """The same in the bucket; every test leaves it as it found it."""
    place = location(f"{bucket.place}/{NAME}")
    worlds.teach_inline(world, place, teacher, **OPTIONS)
    return place


def taught_again(world: World, store: Path, teacher: str, **options: Any) -> tuple[Any, str]:
    """The result of the same command, and what it said."""
    notes = Notes()
    with worlds.inline_tasks():
        result = teach(worlds.request_for(world, store, teacher, **OPTIONS, **options), notes)
    return result, "\n".join(notes.lines)


def test_the_next_run_finishes_what_was_claimed_and_teaches_what_is_gone(
    bucket: BucketObjects, taught: Path, whole: Path, world: World, teacher: str
) -> None:
    """Chunk 0 was claimed, half copied, and its objects are there; of chunk 1 one of them is lost.

    Chunk 2 was entered, and its claim was not yet removed: its objects, other ones by now, are not copied once more.
    """
    store = LabelStore.open(taught)
    claim_again(store, 0)
    bucket.delete(staging_key(NAME, claim_again(store, 1).files[3].staged))
    entered = claim_again(store, 2)
    for file in entered.files:
        bucket.copy(staging_key(NAME, file.staged), f"{NAME}/{file.target}")
        bucket.put(staging_key(NAME, file.staged), b"other")
    bucket.put(f"{NAME}/{entered.record_key}", bytes.fromhex(entered.record))
    result, said = taught_again(world, taught, teacher)
    assert result.chunks_written == 1 and "entered a chunk that an earlier run had handed over" in said
    require_same(bucket, NAME, whole)


def test_of_two_deliveries_of_a_chunk_the_first_wins_whole(bucket: BucketObjects, taught: Path, whole: Path) -> None:
    """A worker of the same run and a driver that lost the store come late, with other rows: nothing changes."""
    store = LabelStore.open(taught, writable=True)
    data = store.read_chunk(LABELS, 1)
    other = {**data, "gaps": (data["gaps"] ^ 1), "top_log_prob": data["top_log_prob"] - np.float16(1)}

    def report(token: int, arrays: dict[str, Any]) -> ChunkReport:
        name, digests, staged = hand_over(store, token, 1, {LABELS: arrays})
        return ChunkReport(1, name, digests, rows_ok=len(data["label"]), staged=staged)

    with owned(taught, Silent()) as former:
        late_driver = report(former, other)
    store.drop(LABELS, 1)
    with owned(taught, Silent()) as token:
        first, late_worker = report(token, data), report(token, other)
        assert deliver(store, first, token) == (LABELS,)
        assert deliver(store, late_worker, token) == ()
        with pytest.raises(IncompleteError, match="no longer owns the store"):
            deliver(store, late_driver, former)
        assert deliver(store, late_driver, token) == ()  # even if it had looked at the lock just before
    require_same(bucket, NAME, whole)


def test_a_second_driver_is_refused_by_name_and_may_be_made_the_owner(
    bucket: BucketObjects, taught: Path, whole: Path, world: World, teacher: str
) -> None:
    """Afterwards the first one may hand over nothing more."""
    with owned(taught, Silent()) as first:
        me = this_process()
        with pytest.raises(IncompleteError, match=f"written by process {me.pid} on {me.host}") as caught:
            taught_again(world, taught, teacher)
        assert "force_unlock" in caught.value.hint or "--force-unlock" in caught.value.hint
        require_token(taught, first)
        result, _ = taught_again(world, taught, teacher, force_unlock=True)
        assert result.chunks_written == 0
        with pytest.raises(IncompleteError):
            require_token(taught, first)
    require_same(bucket, NAME, whole)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_stale_lock_is_taken_over(
    bucket: BucketObjects, taught: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a dead process of this machine at once; of another machine's, which nobody can see, after its silence."""
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.02)
    owner = LockOwner(**asdict(this_process()), token=5)
    dead = replace(owner, pid=2**22 + 1) if where == "here" else replace(owner, host="elsewhere", boot="another")
    bucket.put(f"{NAME}.lock", json.dumps({**asdict(dead), "beat": 3, "time": time.time() - 60}).encode())
    notes = Notes()
    with owned(taught, notes) as token:
        require_token(taught, token)
        time.sleep(0.1)  # signs of life keep the lock
        require_token(taught, token)
    assert any("reclaimed the lock" in line for line in notes.lines)
    assert read_owner(taught) is None


def test_an_owner_elsewhere_that_gives_signs_keeps_the_store(
    bucket: BucketObjects, taught: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clock is hours behind, and it cannot be seen from here."""
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.2)
    far = replace(LockOwner(**asdict(this_process()), token=5), host="elsewhere", boot="another")
    get, beats = BucketObjects.get, iter(range(100))

    def get_after_a_sign(objects: BucketObjects, key: str) -> Any:
        if key == f"{NAME}.lock":
            document = {**asdict(far), "beat": next(beats), "time": time.time() - 7200}
            bucket.put(key, json.dumps(document).encode())
        return get(objects, key)

    with monkeypatch.context() as patch:
        patch.setattr(BucketObjects, "get", get_after_a_sign)
        with pytest.raises(IncompleteError, match="on elsewhere"), owned(taught, Silent()):
            pass
    bucket.delete(f"{NAME}.lock")


@pytest.mark.parametrize("ignored", ["If-None-Match", "If-Match"])
def test_a_server_that_keeps_no_conditions_is_refused(
    ignored: str, bucket: BucketObjects, world: World, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 6 that names `push`; nothing is left there."""
    conditional = BucketObjects._conditional

    def without(objects: BucketObjects, key: str, data: bytes, version: Any) -> Any:
        if (version is None) == (ignored == "If-None-Match"):
            return objects.put(key, data)
        return conditional(objects, key, data, version)

    monkeypatch.setattr(BucketObjects, "_conditional", without)
    monkeypatch.setattr(probe, "_PROVED", set())
    with pytest.raises(EnvironmentFault, match="If-None-Match and If-Match") as caught:
        taught_again(world, location(f"{bucket.place}/new.zarr"), teacher)
    assert caught.value.exit_code == 6
    assert f"teachonce push new.zarr {bucket.place}/new.zarr" in caught.value.hint
    assert [entry.key for entry in bucket.list() if entry.key.startswith("new.zarr")] == []


def test_a_creation_that_was_killed_is_begun_again(
    bucket: BucketObjects, whole: Path, world: World, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had other classes of a soft label in mind, and its files are there without the root's."""
    send, store = BucketKeeper._send, location(f"{bucket.place}/killed.zarr")

    def killed(keeper: BucketKeeper, folder: Path, name: str) -> None:
        if name == "zarr.json":
            raise Killed
        send(keeper, folder, name)

    with monkeypatch.context() as patch:
        patch.setattr(BucketKeeper, "_send", killed)
        with pytest.raises(Killed), worlds.inline_tasks():
            teach(worlds.request_for(world, store, teacher, top_k=3, chunk_rows=15), Silent())
    assert bucket.list("killed.zarr") and bucket.get("killed.zarr/zarr.json") is None
    taught_again(world, store, teacher)
    require_same(bucket, "killed.zarr", whole)


def test_a_place_where_other_things_lie_is_refused(bucket: BucketObjects, world: World, teacher: str) -> None:
    """They stay."""
    bucket.put("photos.zarr/a.jpg", b"a photo")
    with pytest.raises(DataError, match=f"{bucket.place}/photos.zarr is not a label store"):
        taught_again(world, location(f"{bucket.place}/photos.zarr"), teacher)
    stored = bucket.get("photos.zarr/a.jpg")
    assert stored is not None and stored.data == b"a photo"
