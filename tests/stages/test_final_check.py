"""The check at the end of teach: workers share it, and nobody's word but a sound reading ends a run with success."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from worlds import copy_store, synthetic_store

from teachonce.cluster import client as cluster_client
from teachonce.core.progress import Silent
from teachonce.errors import IncompleteError, IntegrityError
from teachonce.labels.format import LABELS, chunk_file
from teachonce.labels.store import LabelStore
from teachonce.stages.teach import final_check
from teachonce.stages.teach.final_check import check, sound_chunks

CHUNKS = 20  # more than are read without asking workers


class Notes(Silent):
    """Keeps what a person would see."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.checked = 0

    def note(self, text: str) -> None:
        """Keep the note."""
        self.notes.append(text)

    def progress(self, task: str, done: int, total: int, unit: str, **more: Any) -> None:
        """Keep how far the check is."""
        assert task == "check" and self.checked < done <= total
        self.checked = done


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty committed chunks; to be copied."""
    made, _ = synthetic_store(tmp_path_factory.mktemp("whole") / "a.zarr", rows=2 * CHUNKS, chunk_rows=2)
    return Path(made.path)


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> LabelStore:
    """Twenty committed chunks."""
    return LabelStore.open(copy_store(whole, tmp_path), writable=True)


@pytest.fixture
def read_here(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Chunks that the driver itself reads."""
    chunks: list[int] = []
    real = store.read_chunk

    def read(group: str, chunk: int, only: tuple[str, ...] = ()) -> Any:
        chunks.append(chunk)
        return real(group, chunk, only)

    monkeypatch.setattr(store, "read_chunk", read)
    return chunks


def workers_that(
    answer: Callable[..., tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, silent_after: int = 99
) -> None:
    """In place of a cluster: tasks are answered so; after some answers, there is silence."""

    def run(
        client: Any, task: Any, arguments: list[Any], name: str, reporter: Any, each_look: Callable[[], None]
    ) -> Iterator[Any]:
        assert task is sound_chunks
        for number, given in enumerate(arguments):
            while number >= silent_after:
                each_look()
                time.sleep(0.01)
            each_look()
            yield answer(*given)

    monkeypatch.setattr(cluster_client, "run_tasks", run)


def test_workers_read_all_and_the_driver_nothing(
    store: LabelStore, read_here: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver with a hundred GPUs would need minutes alone."""
    workers_that(sound_chunks, monkeypatch)
    notes = Notes()
    check(None, store, (LABELS,), 1, notes, with_workers=True)
    assert read_here == [] and notes.checked == CHUNKS and notes.notes == []


@pytest.mark.parametrize("with_workers", [True, False])
def test_damage_is_named_whoever_finds_it(
    with_workers: bool, store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk file with a flipped bit, and another that is gone: the error is the one of a reader, with the file."""
    workers_that(sound_chunks, monkeypatch)
    spec = store.groups[LABELS].arrays[0]
    broken = chunk_file(store.path, spec, 13)
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="class_ids/c/13"):
        check(None, store, (LABELS,), 1, Silent(), with_workers=with_workers)
    broken.write_bytes(whole)
    store.drop(LABELS, 7)
    with pytest.raises(IncompleteError, match="chunk 7 of labels is not committed"):
        check(None, store, (LABELS,), 2, Silent(), with_workers=with_workers)


def test_a_worker_that_sees_files_late_ends_nothing(
    store: LabelStore, read_here: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds two chunks missing; this process reads them, and they are there."""

    def late(*given: Any) -> tuple[int, ...]:
        return tuple(chunk for chunk in sound_chunks(*given) if chunk not in (3, 17))

    workers_that(late, monkeypatch)
    notes = Notes()
    check(None, store, (LABELS,), 1, notes, with_workers=True)
    assert sorted(read_here) == [3, 17] and notes.checked == CHUNKS


def test_workers_that_fall_silent_hold_nobody_up(
    store: LabelStore, read_here: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their jobs ended or wait in a queue: this process reads the rest and says so."""
    workers_that(sound_chunks, monkeypatch, silent_after=2)
    monkeypatch.setattr(final_check, "PATIENCE", 0.1)
    notes = Notes()
    check(None, store, (LABELS,), 1, notes, with_workers=True)
    assert sorted(read_here) == list(range(2 * final_check.SLICE, CHUNKS)) and notes.checked == CHUNKS
    assert len(notes.notes) == 1 and "this process reads the rest" in notes.notes[0]


def test_tasks_that_fail_hold_nobody_up(
    store: LabelStore, read_here: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost scheduler at the very end: all is committed, and this process can prove it."""

    def lost(*given: Any) -> tuple[int, ...]:
        raise IncompleteError("the connection to the scheduler was lost")

    workers_that(lost, monkeypatch)
    notes = Notes()
    check(None, store, (LABELS,), 1, notes, with_workers=True)
    assert sorted(read_here) == list(range(CHUNKS)) and len(notes.notes) == 1
