"""Images and finished stores on S3, served from this machine: the same results as from a disk, and clear refusals."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from object_servers import Server, moto_server
from requests_of import evaluate_request
from worlds import PHOTOS, Notes, World, all_arrays, files_of, inline_tasks, request_for

import teachonce.objects.remote as remote
import teachonce.teaching.chunk as chunk_tasks
from teachonce.core.files import is_remote
from teachonce.core.progress import Silent
from teachonce.errors import DataError, EnvironmentFault, UsageError
from teachonce.labels.store import LabelStore
from teachonce.objects import patience
from teachonce.objects.remote import location
from teachonce.recipe.config import TrainConfig
from teachonce.stages.evaluate import evaluate
from teachonce.stages.inspect import InspectRequest, inspect
from teachonce.stages.merge import MergeRequest, merge
from teachonce.stages.relabel import RelabelRequest, relabel
from teachonce.stages.teach import teach
from teachonce.stages.train import TrainRequest, train
from teachonce.stages.verify import VerifyRequest, verify

BUCKET = "s3://photos"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An S3 on this machine, which this process and its children use."""
    with pytest.MonkeyPatch.context() as patch, moto_server(tmp_path_factory.mktemp("server")) as running:
        running.use(patch)
        yield running


@pytest.fixture(scope="module")
def s3(server: Server, world: World, finished: Path) -> Iterator[Any]:
    """A client of the server, which holds the photos and a finished store."""
    client = server.client()
    client.create_bucket(Bucket="photos")
    for folder, to in ((world.root, "data"), (finished, "done.zarr")):
        for file in files_of(folder):
            client.put_object(Bucket="photos", Key=f"{to}/{file.relative_to(folder)}", Body=file.read_bytes())
    yield client
    client.close()


@pytest.fixture
def copied(s3: Any) -> Path:
    """The finished store on S3."""
    return location(f"{BUCKET}/done.zarr")


def test_what_is_a_url() -> None:
    """A URL keeps both slashes, whatever a Path would make of it; anything else is a path of this machine."""
    assert is_remote(location("s3://b/c/")) and str(location("s3://b/c/")) == "s3://b/c"
    for text in ("a/b", "/a", "./s3:/x", "C:x"):
        assert location(text) == Path(text) and not is_remote(location(text))
    for text in ("hdfs://b/c", "s3://"):
        with pytest.raises(UsageError, match="s3://BUCKET/PATH"):
            location(text)


SLOW_LAYOUTS = [pytest.param(name, marks=pytest.mark.slow) for name in ("tars", "folders")]


@pytest.mark.parametrize("layout", ["wds", *SLOW_LAYOUTS])
def test_images_on_s3(layout: str, s3: Any, world: World, teacher: str, student: str, tmp_path: Path) -> None:
    """Every layout: the same store id and the same bits as from a disk."""
    made = []
    for root in (world.root, location(f"{BUCKET}/data")):
        store = tmp_path / f"{len(made)}.zarr"
        with inline_tasks():
            request = request_for(
                world,
                store,
                teacher,
                manifest=world.manifest(layout),
                root=root,
                top_k=5,
                students=(student,) if layout == "wds" else (),
            )
            result = teach(request, Silent())
        assert result.rows_ok == PHOTOS
        made.append((result.store_id, all_arrays(store)))
    if layout != "folders":  # the empty folder of a class without images is an archive on a disk, and nothing on S3
        assert made[0][0] == made[1][0]
    assert all(
        np.array_equal(made[1][1][name], data, equal_nan=data.dtype.kind == "f") for name, data in made[0][1].items()
    )


def test_a_server_that_is_killed_in_the_middle_of_teach(
    server: Server, s3: Any, world: World, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes back after a while: the store is that of the disk, nothing was lost, and one note says it.

    Each worker looks once whether it sees the data, and not once a chunk.
    """
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.1)
    looks: list[Path] = []
    monkeypatch.setattr(chunk_tasks, "exists", lambda path: looks.append(path) or remote.exists(path))

    def killed_at_the_second(tasks: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        for number, task in enumerate(tasks):
            if number == 1:
                server.stop()
                threading.Timer(1.0, server.start).start()
            yield task

    ids, notes = [], Notes()
    for root in (world.root, location(f"{BUCKET}/data")):
        looks.clear()
        store = tmp_path / f"{len(ids)}.zarr"
        with inline_tasks(killed_at_the_second if ids else list), patience.outages_noted(notes.note):
            ids.append(teach(request_for(world, store, teacher, root=root, top_k=5), Silent()).store_id)
    assert ids[0] == ids[1]
    assert [("does not answer" in line, "answers again" in line) for line in notes.lines] == [
        (True, False),
        (False, True),
    ]
    assert sorted(map(str, looks)) == sorted(set(map(str, looks))), "a place was looked at twice"


@pytest.mark.slow
def test_a_copied_store_is_the_store(
    copied: Path, finished: Path, student: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`inspect`, `verify` and `train` on s3:// say and learn what they do on the disk; nothing is written there."""
    assert inspect(InspectRequest(labels=copied), Silent()) == inspect(InspectRequest(labels=finished), Silent())
    result = verify(VerifyRequest(labels=copied), Silent())
    assert result.ok and replace(result, labels="") == replace(
        verify(VerifyRequest(labels=finished), Silent()), labels=""
    )
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))
    digests = []
    for labels, root in ((finished, world.root), (copied, location(f"{BUCKET}/data"))):
        request = TrainRequest(
            labels=labels,
            student=student,
            out=tmp_path / str(len(digests)),
            threads=1,
            root=root,
            config=TrainConfig.of(steps=3, batch_size=8),
        )
        digests.append(train(request, Silent()).prompts_digest)
    assert digests[0] == digests[1]
    assert any((tmp_path / "cache/working").glob("*/records.npy")), "its working set lies in the user's cache"


@pytest.mark.slow
def test_damage_on_s3_is_found(s3: Any, copied: Path) -> None:
    """A lost chunk and a changed metadata file, each named with its URL."""
    key = "done.zarr/label/c/3"
    body = s3.get_object(Bucket="photos", Key=key)["Body"].read()
    s3.delete_object(Bucket="photos", Key=key)
    result = verify(VerifyRequest(labels=copied), Silent())
    s3.put_object(Bucket="photos", Key=key, Body=body)
    assert not result.ok and f"{BUCKET}/{key}" in result.faults[0].found
    assert verify(VerifyRequest(labels=copied), Silent()).ok


def test_relabel_and_merge_write_to_disks_only(copied: Path, finished: Path) -> None:
    """Both read a store on S3, refuse to write one there, and say how it gets there; nothing is left."""
    for work in (
        lambda: relabel(RelabelRequest(parent=finished, labels=location(f"{BUCKET}/new.zarr"), top_k=3), Silent()),
        lambda: merge(MergeRequest(parents=(copied, finished), labels=location(f"{BUCKET}/new.zarr")), Silent()),
    ):
        with pytest.raises(UsageError, match="write to a disk, not to s3") as caught:
            work()
        assert "teachonce push new.zarr" in caught.value.hint
    assert not remote.exists(location(f"{BUCKET}/new.zarr"))


def test_what_is_missing_on_s3(s3: Any, world: World, teacher: str, tmp_path: Path) -> None:
    """No such bucket, store, folder or archive: each is named."""
    with pytest.raises(DataError, match=f"{BUCKET}/no.zarr does not exist"):
        LabelStore.open(location(f"{BUCKET}/no.zarr"))
    with pytest.raises(DataError, match="there is no bucket 'no-such-bucket'"):
        LabelStore.open(location("s3://no-such-bucket/a.zarr"))
    with pytest.raises(DataError, match="not a label store"):
        LabelStore.open(location(f"{BUCKET}/data"))
    for url, words in (("s3://no-such-bucket/data", "there is no bucket"), (f"{BUCKET}/nothing", "is not a folder")):
        with pytest.raises(DataError, match=words), inline_tasks():
            teach(request_for(world, tmp_path / "a.zarr", teacher, root=location(url)), Silent())
    with pytest.raises(DataError, match=f"{BUCKET}/data/gone.tar does not exist"):
        remote.read_range(location(f"{BUCKET}/data/gone.tar"), 0, 10)
    assert remote.read_range(location(f"{BUCKET}/data/classes.tsv"), 10**9, 10) == b""


def test_wrong_credentials(s3: Any, copied: Path, world: World, teacher: str, tmp_path: Path) -> None:
    """Exit 6 that names the URL and where credentials come from; for stores and for images."""
    set_checking(s3, "0")
    try:
        with pytest.raises(EnvironmentFault, match=f"{copied} may not be read") as caught:
            LabelStore.open(copied)
        assert "AWS_ACCESS_KEY_ID" in caught.value.hint
        with pytest.raises(EnvironmentFault, match=f"{BUCKET}/data may not be read"), inline_tasks():
            teach(request_for(world, tmp_path / "a.zarr", teacher, root=location(f"{BUCKET}/data")), Silent())
        with pytest.raises(EnvironmentFault, match="may not be read"):
            remote.read_range(location(f"{BUCKET}/data/classes.tsv"), 0, 10)
    finally:
        set_checking(s3, "inf")


def set_checking(s3: Any, after: str) -> None:
    """Let the server check credentials after so many more requests."""
    url = f"{s3.meta.endpoint_url}/moto-api/reset-auth"
    with urllib.request.urlopen(
        urllib.request.Request(url, after.encode(), {"Content-Type": "text/plain"}, method="POST")
    ):
        pass


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named, before anything is asked of a network."""
    find_spec = remote.importlib.util.find_spec
    monkeypatch.setattr(remote.importlib.util, "find_spec", lambda name: None if name == "obstore" else find_spec(name))
    with pytest.raises(EnvironmentFault, match="obstore") as caught:
        location("s3://b/c")
    assert "teachonce[s3]" in caught.value.hint


@pytest.mark.parametrize("layout", ["wds", *SLOW_LAYOUTS])
def test_evaluation_on_s3(
    layout: str, s3: Any, world: World, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same figures as from a disk; asked again, they come from the cache."""
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))
    results, notes = [], Notes()
    for root in (world.root, location(f"{BUCKET}/data"), location(f"{BUCKET}/data")):
        request = evaluate_request(run=None, student=student, manifest=world.manifest(layout), root=root, threads=1)
        results.append(evaluate(request, notes))
    assert results[0].n == PHOTOS and results[1].top1 == results[0].top1 and results[2] == results[1]
    assert sum("come from the cache" in line for line in notes.lines) == 1
