"""Deliveries: few syncs, in the order that a power cut asks for, and many at a time without harm to any."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import copy_store, synthetic_store

from teachonce.core.locks import owned
from teachonce.core.progress import Silent
from teachonce.errors import IncompleteError
from teachonce.keeping.staging import new_staging, staging_root
from teachonce.labels.create import add_embedding, add_student
from teachonce.labels.format import LABELS, chunk_file
from teachonce.labels.ledger import ledger_path
from teachonce.labels.store import LabelStore
from teachonce.teaching import delivery
from teachonce.teaching.delivery import ChunkReport, Deliveries, deliver

MOST_SYNCS = 25  # of a delivery with labels, embeddings and the features of one student; 62 with each folder anew
STUDENT = "ef" * 32


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four chunks of labels, with embeddings and a student; to be copied."""
    made, _ = synthetic_store(tmp_path_factory.mktemp("whole") / "a.zarr")
    add_student(made, STUDENT, 6, {"student_digest": STUDENT, "about": {}})
    add_embedding(made, "int8", 6, {"about": {}})
    made = LabelStore.open(made.path, writable=True)
    for chunk in range(made.layout.chunks):
        for group in made.groups:
            if group != LABELS:
                made.commit(group, chunk, 7, 10, 0, made.write_chunk(group, chunk, _features(made, group, chunk)))
    return made.path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> LabelStore:
    """Four chunks of three groups, as a run opens it."""
    return LabelStore.open(copy_store(whole, tmp_path), writable=True)


def _features(store: LabelStore, group: str, chunk: int) -> dict[str, Any]:
    rng, data = np.random.default_rng(chunk), {}
    for spec in store.groups[group].arrays:
        start, stop = spec.bounds(store.layout, chunk)
        data[spec.path] = rng.normal(size=(stop - start, *spec.tail)).astype(spec.dtype)
    return data


def staged(store: LabelStore, chunk: int, token: int, change: float = 0.0) -> ChunkReport:
    """What a worker leaves that computes all groups of a chunk of this store again."""
    folder = new_staging(store.path, token, chunk)
    digests = []
    for group in store.groups:
        data = store.read_chunk(group, chunk)
        if group == LABELS:
            data["top_log_prob"] = data["top_log_prob"] - np.float16(change)
        digests.append((group, store.write_chunk(group, chunk, data, folder)))
    return ChunkReport(chunk, str(folder), tuple(digests), rows_ok=10)


def emptied(store: LabelStore, *, files: bool) -> None:
    """Nothing is committed any more; with `files`, the folders of chunks are gone too, as in a new store."""
    import shutil

    for group in store.groups:
        for chunk in range(store.layout.chunks):
            store.drop(group, chunk)
        for spec in store.groups[group].arrays if files else ():
            shutil.rmtree(chunk_file(store.path, spec, 0).parents[len(spec.tail)])


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """Every sync and every rename, in order, each with the path that is synced or the new name."""
    events: list[tuple[str, str]] = []
    real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in ("fsync", "replace", "rename")}

    def fsync(handle: int) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        real["fsync"](handle)

    def moved(name: str) -> Callable[..., None]:
        def move(source: Any, target: Any, **options: Any) -> None:
            events.append(("rename", str(target)))
            real[name](source, target, **options)

        return move

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", moved("replace"))
        patch.setattr(os, "rename", moved("rename"))
        yield events


@pytest.mark.parametrize("files", [True, False])
def test_a_delivery_syncs_each_path_once_and_at_most_25_of_them(store: LabelStore, files: bool) -> None:
    """Only the first delivery of a run syncs more: the names of the arrays' folders of chunks, once each.

    It is so in a new store as in one whose chunks were dropped and left their files.
    """
    with owned(store.path, Silent()) as token:
        reports = [staged(store, chunk, token) for chunk in range(store.layout.chunks)]
        emptied(store, files=files)
        counts = []
        for report in reports:
            with watched() as events:
                assert set(deliver(store, report, token)) == set(store.groups)
            syncs = Counter(path for kind, path in events if kind == "sync")
            assert set(syncs.values()) == {1}
            counts.append(len(syncs))
    arrays = sum(len(group.arrays) for group in store.groups.values()) + len(store.groups)
    assert len(store.groups) == 3 and max(counts[1:]) <= MOST_SYNCS and counts[0] <= MOST_SYNCS + arrays
    assert not staging_root(store.path).exists()


@pytest.mark.parametrize("files", [True, False])
def test_a_power_cut_never_leaves_a_record_without_its_data(store: LabelStore, files: bool) -> None:
    """A worker syncs the file and the folder that is moved with it; then comes the move, the sync of where it went, of
    the folder's own name where it may be new, and only then any record, which is synced in the same way."""
    with owned(store.path, Silent()) as token, watched() as events:
        report = staged(store, 1, token)
        emptied(store, files=files)
        began = len(events)
        deliver(store, report, token)
    records = [str(store.path / ledger_path(group) / "c/1/0") for group in store.groups]
    first_record = min(events.index(("rename", record), began) for record in records)
    for group in store.groups.values():
        for spec in group.arrays:
            file = chunk_file(Path(report.staging), spec, 1)
            entry, folder = file.parents[len(spec.tail) - 1] if spec.tail else file, store.path / spec.path / "c"
            moved = events.index(("rename", str(folder / "1")), began)
            assert all(("sync", str(path)) in events[:began] for path in {file, entry}), spec.path
            after = events[moved:first_record]
            assert ("sync", str(folder)) in after and ("sync", str(folder.parent)) in after, spec.path
    for record in records:
        after = events[events.index(("rename", record), began) :]
        assert all(("sync", str(path)) in after for path in (record, *Path(record).parents[:3])), record


def test_deliveries_in_threads_make_the_store_that_they_make_in_turn(store: LabelStore) -> None:
    """Eight reports, two for each chunk: the first of each wins, and every row is as it was."""
    before = {
        (group, chunk): store.read_chunk(group, chunk) for group in store.groups for chunk in range(store.layout.chunks)
    }
    with owned(store.path, Silent()) as token:
        chunks = range(store.layout.chunks)
        first, late = [staged(store, c, token) for c in chunks], [staged(store, c, token, change=1) for c in chunks]
        emptied(store, files=True)
        with Deliveries(store, token, threads=3) as deliveries:
            for report in [one for pair in zip(first, late, strict=True) for one in pair]:
                deliveries.add(report)
            brought = {report.staging: groups for report, groups in deliveries.ended(all_of_them=True)}
            assert list(deliveries.ended(all_of_them=True)) == []
    assert all(set(brought[report.staging]) == set(store.groups) for report in first)
    assert all(brought[report.staging] == () for report in late)
    again = LabelStore.open(store.path)
    for (group, chunk), arrays in before.items():
        read = again.read_chunk(group, chunk)
        assert all(np.array_equal(read[name], data, equal_nan=data.dtype.kind == "f") for name, data in arrays.items())
    assert not staging_root(store.path).exists()


def test_what_was_handed_over_is_delivered_before_an_interruption_goes_on(store: LabelStore) -> None:
    """Ctrl-C, too many failed images, a lost cluster: chunks that a worker has computed are not thrown away."""
    with owned(store.path, Silent()) as token:
        reports = [staged(store, chunk, token) for chunk in range(store.layout.chunks)]
        emptied(store, files=False)
        with pytest.raises(KeyboardInterrupt), Deliveries(store, token, threads=1) as deliveries:
            for report in reports:
                deliveries.add(report)
            raise KeyboardInterrupt
    assert all(store.committed(group) == list(range(store.layout.chunks)) for group in store.groups)


def test_a_delivery_that_fails_stops_those_that_have_not_begun(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at the second chunk: its error is raised, the third is not tried, the first is committed."""
    begun, gate = [], threading.Event()
    with owned(store.path, Silent()) as token:
        reports = [staged(store, chunk, token) for chunk in range(store.layout.chunks)]
        emptied(store, files=False)

        def one(store: LabelStore, report: ChunkReport, token: int) -> tuple[str, ...]:
            begun.append(report.chunk)
            if report.chunk == 1:
                raise IncompleteError("cannot write: no space left")
            if report.chunk == 2:
                gate.wait(30)  # under way while the failure is noticed
            return deliver(store, report, token)

        monkeypatch.setattr(delivery, "deliver", one)
        with (
            pytest.raises(IncompleteError, match="no space left"),
            Deliveries(store, token, threads=1) as deliveries,
        ):
            for report in reports:
                deliveries.add(report)
            try:
                list(deliveries.ended(all_of_them=True))
            finally:
                gate.set()
    assert begun in ([0, 1], [0, 1, 2]) and store.committed(LABELS) == begun[:1] + begun[2:]


def test_no_more_reports_are_taken_than_are_delivered(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is slower than the workers holds the driver up, instead of filling its memory."""
    gate, waiting = threading.Event(), []

    def slow(store: LabelStore, report: ChunkReport, token: int) -> tuple[str, ...]:
        gate.wait(30)
        return ()

    monkeypatch.setattr(delivery, "deliver", slow)
    with Deliveries(store, 1, threads=2) as deliveries:

        def hand_over() -> None:
            for chunk in range(12):
                deliveries.add(ChunkReport(chunk))
                waiting.append(chunk)

        thread = threading.Thread(target=hand_over)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive() and waiting == [0, 1, 2, 3]
        gate.set()
        thread.join(30)
        assert len(list(deliveries.ended(all_of_them=True))) == 12
