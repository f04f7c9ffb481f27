"""Faults 9 and 10: a write that fails loses nothing, and a record is on disk only after its data.

Numbers as in the reliability table.
"""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import worlds
from worlds import SMALL, World, files_of, synthetic_store, teach_inline

from teachonce.core.progress import Silent
from teachonce.errors import IncompleteError
from teachonce.labels.create import add_student
from teachonce.labels.format import LABELS, chunk_file
from teachonce.labels.store import LabelStore

# Fault 9: disk full and other write errors


def fail_at(number: int, patch: pytest.MonkeyPatch, name: str) -> list[int]:
    """The `number`-th call of an `os` function raises ENOSPC; returns the list of calls."""
    real, calls = getattr(os, name), []

    def limited(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            where = (str(args[0]),) if name == "replace" else ()  # fsync knows a handle, and its error no name
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *where)
        return real(*args, **options)

    patch.setattr(os, name, limited)
    return calls


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("number", [1, 2, 9, 10, 40, 70])
def test_fault_9_no_space_at_any_write(
    function: str, number: int, world: World, teacher: str, student: str, finished: Path, tmp_path: Path
) -> None:
    """ENOSPC at the n-th rename or sync of a run: exit 5 that names a path; the same command mends it."""
    store = tmp_path / "a.zarr"
    with pytest.MonkeyPatch.context() as patch:
        with worlds.inline_tasks():
            calls = fail_at(number, patch, function)
            from teachonce.stages.teach import teach

            request = worlds.request_for(world, store, teacher, students=(student,), top_k=5)
            with pytest.raises(IncompleteError) as caught:
                teach(request, Silent())
        assert len(calls) >= number
    assert (
        str(tmp_path) in str(caught.value)
        and "MB free" in str(caught.value)
        and "run the same command" in caught.value.hint
    )
    if store.exists():
        opened = LabelStore.open(store)
        for group in opened.groups:
            for chunk in opened.committed(group):
                opened.read_chunk(group, chunk)
    result = teach_inline(world, store, teacher, students=(student,), top_k=5)
    assert result.store_id == LabelStore.open(finished).store_id()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr"]


@pytest.mark.parametrize("limit", [2_000, 40_000])
def test_fault_9_a_file_that_may_not_grow(limit: int, tmp_path: Path) -> None:
    """A real limit of the kernel (RLIMIT_FSIZE), at creation and at a chunk: exit 5, and no half chunk counts."""
    path, before = tmp_path / "a.zarr", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(IncompleteError) as caught:
            synthetic_store(path, rows=2000, chunk_rows=1000, classes=300, top_k=60)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    message = str(caught.value)
    assert message.startswith("cannot write ") and str(tmp_path) in message and "File too large" in message
    assert path.exists() == (limit == 40_000)
    if path.exists():
        assert LabelStore.open(path).committed(LABELS) == []


# Fault 10: power loss


def test_fault_10_data_is_synced_before_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every chunk file is renamed, then it and its folders are synced, and only then is the ledger record written,
    which is then synced with its folders: at no instant does a record vouch for data that a power cut could take."""
    synthetic_store(tmp_path / "a.zarr", **SMALL)
    opened = LabelStore.open(tmp_path / "a.zarr", writable=True)  # as a run does, which knows of no folder yet
    store, data = opened.path, opened.read_chunk(LABELS, 1)
    opened.drop(LABELS, 1)
    for spec in opened.groups[LABELS].arrays:
        shutil.rmtree(chunk_file(store, spec, 1).parents[max(0, len(spec.tail) - 1)], ignore_errors=len(spec.tail) == 0)
    for spec in opened.groups[LABELS].arrays:
        chunk_file(store, spec, 1).unlink(missing_ok=True)
    events: list[tuple[str, str]] = []
    real_sync, real_replace, real_rename = os.fsync, os.replace, os.rename

    def fsync(handle: int) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        real_sync(handle)

    def moved(real: Any) -> Any:
        def move(source: Any, target: Any, **options: Any) -> None:
            events.append(("rename", str(target)))
            real(source, target, **options)

        return move

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", moved(real_replace))
    monkeypatch.setattr(os, "rename", moved(real_rename))
    digests = opened.write_chunk(LABELS, 1, data)
    opened.commit(LABELS, 1, 3, 15, 0, digests)
    record = store / "ledger/labels/c/1/0"
    at_record = events.index(("rename", str(record)))
    for spec in opened.groups[LABELS].arrays:
        file = chunk_file(store, spec, 1)
        renamed = events.index(("rename", str(file)))
        chain = [file, *itertools.takewhile(lambda folder: folder != store, file.parents)]
        assert all(("sync", str(path)) in events[renamed:at_record] for path in chain), spec.path
    chain = [record, *itertools.takewhile(lambda folder: folder.name != "ledger", record.parents)]
    assert all(("sync", str(path)) in events[at_record:] for path in chain)


def test_fault_10_a_new_store_is_synced_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and folder of the draft, then the rename, then the folder that holds the name."""
    events: list[tuple[str, str]] = []
    real_sync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        real_sync(handle)

    def replace(source: Any, target: Any) -> None:
        drafts = {str(path) for path in Path(source).rglob("*")} | {str(source)}
        events.append(("unsynced", str(drafts - {path for _, path in events})))
        events.append(("rename", str(target)))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    synthetic_store(tmp_path / "a.zarr", **SMALL)
    at = events.index(("rename", str(tmp_path / "a.zarr")))
    assert events[at - 1] == ("unsynced", "set()")
    assert events[at + 1] == ("sync", str(tmp_path))


def test_fault_10_a_student_group_is_synced_with_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adding a student: the new metadata, its ledger and the header that lists them are on disk before work begins."""
    opened, _ = synthetic_store(tmp_path / "a.zarr", **SMALL)
    before = {file: file.read_bytes() for file in files_of(opened.path)}
    synced: set[str] = set()
    real_sync = os.fsync

    def fsync(handle: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{handle}"))
        real_sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    add_student(opened, "ef" * 32, 6, {"student_digest": "ef" * 32, "about": {}})
    new = [file for file in files_of(opened.path) if before.get(file) != file.read_bytes()]
    assert {str(file) for file in new} <= synced
