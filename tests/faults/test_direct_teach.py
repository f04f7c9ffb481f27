"""`teach` into a bucket: the same store as in a folder, whoever is killed, late or second.

The server lies in this process, and is SeaweedFS where a test is slow and its program `weed` is installed. "The same
store" means an equal id and no differing file outside the ledger, whose records hold times.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import worlds
from object_servers import moto_server
from worlds import World

from teachonce.core.progress import Silent
from teachonce.labels.store import LabelStore
from teachonce.objects.bucket import BucketObjects
from teachonce.objects.remote import location
from teachonce.stages.verify import VerifyRequest, verify

OPTIONS: dict[str, Any] = {"top_k": 5, "chunk_rows": 24}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketObjects]:
    """An empty bucket of a server inside this process."""
    with pytest.MonkeyPatch.context() as patch, moto_server(tmp_path_factory.mktemp("server")) as server:
        server.use(patch)
        server.make_bucket("stores")
        yield BucketObjects("s3", "stores")


@pytest.fixture(scope="module")
def whole(world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an uninterrupted run, in a folder."""
    path = tmp_path_factory.mktemp("whole") / "whole.zarr"
    worlds.teach_inline(world, path, teacher, students=(student,), **OPTIONS)
    return path


def differing(bucket: BucketObjects, name: str, whole: Path) -> list[str]:
    """Files outside the ledger's records that the two stores have not in common."""
    there = {entry.key.partition("/")[2] for entry in bucket.list(name)}
    here = {file.relative_to(whole).as_posix() for file in worlds.files_of(whole)}
    names = {key for key in there | here if not ("ledger/" in key and "/c/" in key)}
    other = []
    for key in names:
        stored = bucket.get(f"{name}/{key}")
        if stored is None or not (whole / key).is_file() or stored.data != (whole / key).read_bytes():
            other.append(key)
    return sorted(other)


def require_same(bucket: BucketObjects, name: str, whole: Path) -> None:
    """Equal ids, equal files, sound, and nothing left beside the store."""
    store = LabelStore.open(location(f"{bucket.place}/{name}"))
    assert store.store_id() == LabelStore.open(whole).store_id()
    assert differing(bucket, name, whole) == []
    assert verify(VerifyRequest(labels=store.path), Silent()).ok
    assert [entry.key for entry in bucket.list() if entry.key.startswith(f"{name}.")] == []


def test_a_store_taught_into_a_bucket_is_the_store_taught_into_a_folder(
    bucket: BucketObjects, whole: Path, world: World, teacher: str, student: str
) -> None:
    """A student is added by a second command; plain Zarr reads the rows."""
    store = location(f"{bucket.place}/first.zarr")
    worlds.teach_inline(world, store, teacher, **OPTIONS)
    result = worlds.teach_inline(world, store, teacher, students=(student,), **OPTIONS)
    assert result.rows_ok == worlds.PHOTOS
    require_same(bucket, "first.zarr", whole)
