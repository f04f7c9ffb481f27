"""`teach` into a bucket: the same store as in a folder, whoever is killed, late or second.

The server lies in this process. "The same store" means an equal id and no differing file outside the ledger, whose
records hold times.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
import zarr
from bucket_stores import moto_bucket, require_same
from worlds import World
from zarr.storage import ObjectStore

import teachonce.keeping.owners as owners
import teachonce.teaching.chunk as chunk_tasks
from teachonce.core.progress import Silent
from teachonce.errors import IncompleteError
from teachonce.keeping.bucket import BucketKeeper
from teachonce.keeping.claims import Claim
from teachonce.keeping.owners import owned, read_owner
from teachonce.labels.store import LabelStore
from teachonce.objects.bucket import BucketObjects
from teachonce.objects.clients import client
from teachonce.objects.remote import location
from teachonce.stages.status import StatusRequest, status
from teachonce.stages.verify import VerifyRequest, verify
from teachonce.teaching.delivery import deliver

OPTIONS: dict[str, Any] = {"top_k": 5, "chunk_rows": 24}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketObjects]:
    """An empty bucket of a server inside this process."""
    with moto_bucket(tmp_path_factory.mktemp("server")) as empty:
        yield empty


@pytest.fixture(scope="module")
def whole(world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an uninterrupted run, in a folder."""
    path = tmp_path_factory.mktemp("whole") / "whole.zarr"
    worlds.teach_inline(world, path, teacher, students=(student,), **OPTIONS)
    return path


class _Stopped(BaseException):
    """kill -9 of the driver between two requests."""


def test_a_store_taught_into_a_bucket_is_the_store_taught_into_a_folder(
    bucket: BucketObjects, whole: Path, world: World, teacher: str, student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver ends after a claim and before its copies, leaves its lock, and is followed by the same command; a
    student is added by a third one; plain Zarr reads the rows; a late report changes nothing.
    """
    name, reports = "first.zarr", []
    store = location(f"{bucket.place}/{name}")
    with monkeypatch.context() as patch:
        patch.setattr(BucketKeeper, "_finish", stopping)
        patch.setattr(owners, "_Beats", Silenced)
        with pytest.raises(_Stopped):
            worlds.teach_inline(world, store, teacher, **OPTIONS)
    claimed = [entry.key for entry in bucket.list(f"{name}.staging") if "/claims/" in entry.key]
    assert claimed and read_owner(store) is not None and LabelStore.open(store).committed("labels") == []
    real = chunk_tasks.run_chunk

    def kept(job: Any, chunk: int, groups: tuple[str, ...]) -> Any:
        reports.append((real(job, chunk, groups), job.token))
        return reports[-1][0]

    monkeypatch.setattr(chunk_tasks, "run_chunk", kept)
    worlds.teach_inline(world, store, teacher, force_unlock=True, **OPTIONS)
    chunks = LabelStore.open(store).layout.chunks
    assert len(reports) == chunks - len(claimed), "what was claimed was entered, and not computed again"
    result = worlds.teach_inline(world, store, teacher, students=(student,), **OPTIONS)
    assert result.rows_ok == worlds.PHOTOS
    require_same(bucket, name, whole)
    late, old = reports[0]
    with owned(store, Silent()) as token:
        with pytest.raises(IncompleteError, match="is being written by process"), owned(store, Silent()):
            raise AssertionError("two hold one store")
        with pytest.raises(IncompleteError, match="no longer owns"):
            deliver(LabelStore.open(store, writable=True), late, old)
        assert deliver(LabelStore.open(store, writable=True), late, token) == ()
    require_same(bucket, name, whole)
    plain = zarr.open_group(ObjectStore(client("s3", "stores"), read_only=True), path=name, mode="r")
    one, other = (group["class_ids"] for group in (plain, zarr.open_group(str(whole), mode="r")))
    assert np.array_equal(np.asarray(one[...]), np.asarray(other[...]))


def test_a_damaged_chunk_in_a_bucket_is_taken_out_and_taught_again(
    bucket: BucketObjects, whole: Path, world: World, teacher: str, student: str
) -> None:
    """`verify` finds it, with `repair` its record goes, and the same `teach` makes it anew."""
    name = "damaged.zarr"
    for file in worlds.files_of(whole):
        bucket.put(f"{name}/{file.relative_to(whole).as_posix()}", file.read_bytes())
    bucket.put(f"{name}/gaps/c/1/0", b"x" * 100)
    store = location(f"{bucket.place}/{name}")
    assert not verify(VerifyRequest(labels=store), Silent()).ok
    assert verify(VerifyRequest(labels=store, repair=True), Silent()).chunks_dropped == 1
    assert status(StatusRequest(folder=store), Silent()).state == "stopped"
    worlds.teach_inline(world, store, teacher, students=(student,), **OPTIONS)
    require_same(bucket, name, whole)
    assert status(StatusRequest(folder=store), Silent()).state == "finished"


def stopping(keeper: BucketKeeper, claim: Claim) -> bool:
    """In place of the copies of a claim."""
    raise _Stopped


class Silenced:
    """The signs of life of an owner that is killed: none, and the lock stays."""

    def __init__(self, *_: object) -> None:
        self.start = self.end = lambda: None
