"""A store goes to a bucket and comes back: verified, whole or not at all, and the same command goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zarr
from object_servers import Server, moto_server
from worlds import Notes, World, files_of, teach_inline

from teachonce.core.progress import Silent
from teachonce.errors import DataError, EnvironmentFault, FingerprintError, IncompleteError, IntegrityError, UsageError
from teachonce.labels.format import LABELS
from teachonce.labels.store import LabelStore
from teachonce.objects.bucket import BucketObjects
from teachonce.objects.folder import FolderObjects
from teachonce.objects.places import open_objects
from teachonce.objects.remote import location
from teachonce.objects.seam import Version
from teachonce.stages.pull import PullRequest, pull
from teachonce.stages.push import PushRequest, PushResult, push
from teachonce.stages.verify import VerifyRequest, verify


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch, moto_server(tmp_path_factory.mktemp("server")) as running:
        running.use(patch)
        running.make_bucket("copies")
        yield running


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    """A finished store of this test's own."""
    return Path(shutil.copytree(finished, tmp_path / "labels.zarr"))


@pytest.fixture(scope="module")
def third_class_store(world: World, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of the same images with fewer classes a row."""
    path = tmp_path_factory.mktemp("other") / "labels.zarr"
    teach_inline(world, path, teacher, top_k=3)
    return path


@pytest.fixture
def other_store(third_class_store: Path, tmp_path: Path) -> Path:
    """Another finished store of this test's own."""
    return Path(shutil.copytree(third_class_store, tmp_path / "other.zarr"))


def sent(store: Path, target: Path) -> PushResult:
    return push(PushRequest(labels=store, target=target), Silent())


def content(place: Path) -> dict[str, bytes]:
    """Every file or object below a place."""
    objects = open_objects(place)
    return {entry.key: getattr(objects.get(entry.key), "data", b"") for entry in objects.list()}


def on_disk(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files_of(folder)}


@pytest.fixture(params=[pytest.param("bucket", marks=pytest.mark.slow), "folder"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A place of this test's own, of each kind."""
    if request.param == "folder":
        return tmp_path / "elsewhere" / "labels.zarr"
    request.getfixturevalue("server")
    return location(f"s3://copies/{tmp_path.name}/labels.zarr")


@pytest.mark.parametrize("target", ["bucket", "folder"], indirect=True)
def test_a_store_comes_back_as_it_went(store: Path, target: Path, tmp_path: Path) -> None:
    """Every file is the same; plain Zarr and `verify` read the copy; a second push and pull move nothing."""
    result = sent(store, target)
    assert content(target) == on_disk(store)
    assert result.store_id == LabelStore.open(store).store_id() == LabelStore.open(target).store_id()
    assert result.sent_files == result.files == len(on_disk(store))
    assert verify(VerifyRequest(labels=target), Silent()).ok
    assert open_objects(target.parent).list() == open_objects(target.parent).list(target.name), "nothing lies beside"
    back = tmp_path / "back.zarr"
    pulled = pull(PullRequest(source=target, labels=back), Silent())
    assert on_disk(back) == on_disk(store) and pulled.store_id == result.store_id
    assert [path.name for path in tmp_path.iterdir() if "pull" in path.name] == []
    assert sent(store, target).sent_files == 0
    again = pull(PullRequest(source=target, labels=back), Silent())
    assert again.fetched_files == 0 and again.files == result.files
    assert zarr.open_group(str(back), mode="r").attrs["teachonce"]


def fail_after(monkeypatch: pytest.MonkeyPatch, kind: Any, count: int) -> list[str]:
    """Let the network go away after so many written objects; returns their keys."""
    written: list[str] = []
    put = kind.put

    def failing(self: Any, key: str, data: bytes) -> Version:
        if len(written) >= count:
            raise EnvironmentFault("the network is gone")
        written.append(key)
        return put(self, key, data)

    monkeypatch.setattr(kind, "put", failing)
    return written


@pytest.mark.parametrize("count", [1, 40])
def test_a_push_goes_on_where_it_was(store: Path, target: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Until the end nobody can open the target; what had arrived is not sent again."""
    kind = FolderObjects if isinstance(target, Path) else BucketObjects
    with monkeypatch.context() as patch:
        written = fail_after(patch, kind, count)
        with pytest.raises(EnvironmentFault, match="network is gone"):
            sent(store, target)
    with pytest.raises(DataError):
        LabelStore.open(target)
    arrived = [key for key in written if not key.endswith(".copy.json")]
    result = sent(store, target)
    assert result.sent_files == result.files - len(arrived) and content(target) == on_disk(store)


def test_the_root_arrives_last_and_the_ledger_before_it(
    store: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = fail_after(monkeypatch, FolderObjects if isinstance(target, Path) else BucketObjects, 10**6)
    sent(store, target)
    keys = [key.removeprefix(f"{target.name}/") for key in written if not key.endswith(".copy.json")]
    ledger = [number for number, key in enumerate(keys) if key.startswith("ledger/")]
    assert keys[-1] == "zarr.json" and ledger == list(range(min(ledger), len(keys) - 1))


def test_a_pull_appears_whole_or_not_at_all(
    store: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, back = location(f"s3://copies/{tmp_path.name}/labels.zarr"), tmp_path / "back.zarr"
    sent(store, target)
    with monkeypatch.context() as patch:
        written = fail_after(patch, FolderObjects, 40)
        with pytest.raises(EnvironmentFault, match="network is gone"):
            pull(PullRequest(source=target, labels=back), Silent())
    assert not back.exists()
    (tmp_path / "back.zarr.pull/.class_ids.1-ab.partial").write_bytes(b"what a kill leaves of a file")
    result = pull(PullRequest(source=target, labels=back), Silent())
    assert on_disk(back) == on_disk(store)
    assert result.fetched_files == result.files - len([key for key in written if not key.endswith(".copy.json")])


def test_another_store_at_the_target_is_refused(
    store: Path, target: Path, other_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is whole or only a part of it had arrived; what is there stays as it is."""
    with monkeypatch.context() as patch:
        fail_after(patch, FolderObjects if isinstance(target, Path) else BucketObjects, 20)
        with pytest.raises(EnvironmentFault):
            sent(other_store, target)
    before = content(target)
    with pytest.raises(FingerprintError, match="a part of store"):
        sent(store, target)
    assert content(target) == before
    sent(other_store, target)
    with pytest.raises(FingerprintError, match="another store"):
        sent(store, target)
    assert content(target) == on_disk(other_store)


def test_a_pull_over_another_store_is_refused(store: Path, other_store: Path, tmp_path: Path) -> None:
    before = on_disk(other_store)
    with pytest.raises(FingerprintError, match="holds store"):
        pull(PullRequest(source=store, labels=other_store), Silent())
    assert on_disk(other_store) == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        pull(PullRequest(source=store, labels=tmp_path / "notes"), Silent())


def test_what_is_damaged_or_not_complete_is_not_sent(store: Path, target: Path) -> None:
    broken = Path(shutil.copytree(store, store.with_name("broken.zarr")))
    chunk = next(iter((broken / "label/c").iterdir()))
    chunk.write_bytes(chunk.read_bytes()[::-1])
    with pytest.raises(IntegrityError, match="is damaged"):
        sent(broken, target)
    LabelStore.open(store, writable=True).drop(LABELS, 0)
    with pytest.raises(IncompleteError, match="not complete"):
        sent(store, target)
    assert content(target) == {}


def test_damage_at_the_target_is_mended(store: Path, target: Path) -> None:
    """A file that lost its content on the way is sent again, and no other."""
    sent(store, target)
    key = next(key for key in content(target) if key.startswith("label/c/"))
    open_objects(target).put(key, b"x" * len(content(target)[key]))
    assert not verify(VerifyRequest(labels=target), Silent()).ok
    assert sent(store, target).sent_files == 1 and verify(VerifyRequest(labels=target), Silent()).ok


def test_places_that_cannot_be_meant_are_refused(store: Path, server: Server, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="whole bucket"):
        sent(store, location("s3://copies"))
    with pytest.raises(UsageError, match="lies in"):
        sent(store, store / "copy.zarr")
    with pytest.raises(UsageError, match="not on a disk"):
        push(PushRequest(labels=location("s3://copies/a.zarr"), target=tmp_path / "b.zarr"), Silent())
    with pytest.raises(UsageError, match="no place on a disk"):
        pull(PullRequest(source=store, labels=location("s3://copies/a.zarr")), Silent())
    with pytest.raises(DataError, match="there is no bucket 'nowhere'"):
        sent(store, location("s3://nowhere/a.zarr"))
    notes = Notes()
    push(PushRequest(labels=store, target=tmp_path / "b.zarr"), notes)
    push(PushRequest(labels=store, target=tmp_path / "b.zarr"), notes)
    assert any("held all of it already" in line for line in notes.lines)
