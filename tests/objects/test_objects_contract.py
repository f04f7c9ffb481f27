"""The verbs of `pipeline/objects/seam.py` keep their promises in a folder and in buckets of different servers.

Buckets lie on a server inside this process, and on SeaweedFS where its program `weed` is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from object_servers import moto_server, seaweed_server

from teachonce.errors import UsageError
from teachonce.objects.bucket import BucketObjects
from teachonce.objects.folder import FolderObjects
from teachonce.objects.seam import Entry, Objects

WRITERS = 8
Open = Callable[[str], Objects]


@pytest.fixture(scope="module", params=["folder", "moto", pytest.param("seaweed", marks=pytest.mark.slow)])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """Opens a place of a name, on each kind of server; every call gives an instance of its own."""
    if request.param == "folder":
        top = tmp_path_factory.mktemp("objects")
        yield lambda name: FolderObjects(top / name)
        return
    servers = {"moto": moto_server, "seaweed": seaweed_server}
    with pytest.MonkeyPatch.context() as patch, servers[request.param](tmp_path_factory.mktemp("server")) as server:
        server.use(patch)
        server.make_bucket("contract")
        yield lambda name: BucketObjects("s3", "contract", name)


def test_what_was_put_is_read(opened: Open) -> None:
    place = opened("plain")
    assert place.get("a/b") is None
    first = place.put("a/b", b"1")
    stored = place.get("a/b")
    assert stored is not None and stored.data == b"1" and stored.version == first
    assert place.put("a/b", b"2") != first
    place.put("empty", b"")
    for key, data in (("a/b", b"2"), ("empty", b"")):
        now = opened("plain").get(key)
        assert now is not None and now.data == data


def test_large_objects_arrive_whole(opened: Open) -> None:
    """Clients cut what is larger than some MB into parts."""
    place, data = opened("large"), bytes(range(256)) * 45_000
    version = place.put("x", data)
    stored = place.get("x")
    assert stored is not None and stored.data == data and stored.version == version


def test_a_new_object_is_written_once(opened: Open) -> None:
    place = opened("new")
    version = place.put_new("a/x", b"1")
    assert version is not None and place.put_new("a/x", b"2") is None
    stored = place.get("a/x")
    assert stored is not None and stored.data == b"1" and stored.version == version
    place.delete("a/x")
    assert place.put_new("a/x", b"3") is not None


def test_a_replacement_needs_the_version_that_is_there(opened: Open) -> None:
    place = opened("if")
    first = place.put("x", b"1")
    second = place.put_if("x", b"2", first)
    assert second is not None and place.put_if("x", b"3", first) is None
    stored = place.get("x")
    assert stored is not None and stored.data == b"2" and stored.version == second
    place.delete("x")
    assert place.put_if("x", b"4", second) is None and place.get("x") is None
    assert place.put_if("never", b"4", second) is None and place.get("never") is None


def test_a_copy_is_the_object(opened: Open) -> None:
    place = opened("copy")
    place.put("a/x", b"1")
    place.put("b/x", b"2")
    assert place.copy("a/x", "b/x") and not place.copy("a/none", "b/y")
    stored = place.get("b/x")
    assert stored is not None and stored.data == b"1" and place.get("b/y") is None


def test_a_listing_has_all_below_a_folder_and_no_neighbours(opened: Open) -> None:
    place = opened("list")
    for key in ("zarr.json", "a/c/1", "a/c/0", "ab/c", "a-b"):
        place.put(key, key.encode())
    assert place.list("a") == [Entry("a/c/0", 5), Entry("a/c/1", 5)]
    assert [entry.key for entry in place.list()] == sorted(["zarr.json", "a/c/1", "a/c/0", "ab/c", "a-b"])
    assert place.list("nothing") == [] and opened("never-made").list() == []


def test_what_is_deleted_is_gone(opened: Open) -> None:
    place = opened("delete")
    place.put("a/x", b"1")
    for _ in range(2):
        place.delete("a/x")
        assert place.get("a/x") is None and place.list() == []
    opened("never-made").delete("none/at/all")


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a"])
def test_keys_that_could_leave_the_place_are_refused(opened: Open, key: str) -> None:
    for verb in (
        lambda: opened("keys").get(key),
        lambda: opened("keys").put(key, b""),
        lambda: opened("keys").delete(key),
    ):
        with pytest.raises(UsageError, match="no key"):
            verb()


def test_of_writers_at_once_one_wins(opened: Open) -> None:
    """In every round eight writers create the same object, and then replace the same version of it."""
    with ThreadPoolExecutor(WRITERS) as pool:
        for key in (f"race/{number}" for number in range(5)):
            made = list(pool.map(lambda who, key=key: opened("races").put_new(key, b"new %d" % who), range(WRITERS)))
            winners = [who for who, version in enumerate(made) if version is not None]
            stored = opened("races").get(key)
            assert len(winners) == 1 and stored is not None and stored.data == b"new %d" % winners[0]
            version = stored.version
            changed = list(
                pool.map(
                    lambda who, key=key, version=version: opened("races").put_if(key, b"if %d" % who, version),
                    range(WRITERS),
                )
            )
            winners = [who for who, version in enumerate(changed) if version is not None]
            stored = opened("races").get(key)
            assert len(winners) == 1 and stored is not None and stored.data == b"if %d" % winners[0]


def test_a_folder_holds_only_whole_objects(tmp_path: Path) -> None:
    """What a killed writer left half made is no object."""
    place = FolderObjects(tmp_path)
    place.put("a/x", b"1")
    (tmp_path / "a/.y.123-abcd.partial").write_bytes(b"half")
    assert place.list() == [Entry("a/x", 1)]
    with pytest.raises(ValueError, match="stop"):
        _fail_in_a_write(place)
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [".y.123-abcd.partial", "x"]


def _fail_in_a_write(place: FolderObjects) -> None:
    with place._draft("a/z", b"1"):
        raise ValueError("stop")
