"""Working sets on disk: the same values as a plain decode, made once, shared, and never used when damaged."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds

from teachonce.core.progress import Silent
from teachonce.errors import DataError, EnvironmentFault, IncompleteError, IntegrityError
from teachonce.labels.create import add_student
from teachonce.labels.format import LABELS
from teachonce.labels.store import LabelStore
from teachonce.rows import files as working_files
from teachonce.rows import working_set
from teachonce.rows.working_set import Batch, WorkingSet, open_working_set

STUDENT = "ab" * 32
NO_IMAGE = (3, 17)  # rows of the store whose image could not be read


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No test writes into the user's cache; no power fails here."""
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.fsync", lambda handle: None)
    yield tmp_path / "cache"


def featured_store(path: Path, **shape: int) -> LabelStore:
    """A synthetic store with the features of one student; two rows have no image."""
    store, _ = worlds.synthetic_store(path, **shape)
    group = add_student(store, STUDENT, 6, {"about": {"student": "S"}})
    rng = np.random.default_rng(1)
    for chunk in range(store.layout.chunks):
        start, stop = store.layout.bounds(chunk)
        data = rng.normal(size=(stop - start, 6)).astype(np.float16)
        failed = [row - start for row in NO_IMAGE if start <= row < stop]
        data[failed] = np.nan
        labels = store.read_chunk(LABELS, chunk)
        labels["status"][failed] = 1
        commit(store, LABELS, chunk, labels)
        commit(store, group, chunk, {f"{group}/features": data})
    return store


def commit(store: LabelStore, group: str, chunk: int, data: dict[str, Any]) -> None:
    """A chunk as `teach` leaves it."""
    store.commit(group, chunk, 7, 1, 0, store.write_chunk(group, chunk, data))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty rows in four chunks, two without an image; copied for every test."""
    return featured_store(tmp_path_factory.mktemp("made") / "labels.zarr").path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> LabelStore:
    """A copy that a test may change."""
    return LabelStore.open(Path(shutil.copytree(made, tmp_path / "labels.zarr")), writable=True)


def everything(rows: WorkingSet) -> Batch:
    """All rows in their own order."""
    return rows.batch(np.arange(len(rows)))


def same(ours: Batch, theirs: Batch) -> bool:
    """Bit for bit, types too."""
    pairs = [(a, b) for a, b in zip(vars(ours).values(), vars(theirs).values(), strict=True) if a is not b]
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)


def plain(store: LabelStore) -> Batch:
    """The rows with an image, decoded chunk by chunk without a working set."""
    group = next((name for name in store.groups if name != LABELS), None)
    parts = []
    for chunk in range(store.layout.chunks):
        data, top = store.read_chunk(LABELS, chunk), store.decode_labels(store.read_chunk(LABELS, chunk))
        features = store.read_chunk(group, chunk)[f"{group}/features"] if group else np.zeros((len(data["label"]), 0))
        good = data["status"] == 0
        start, stop = store.layout.bounds(chunk)
        columns = (
            features,
            data["label"].astype(np.int64),
            top.class_ids.astype(np.int32),
            top.log_probs,
            top.log_residual,
            np.arange(start, stop),
        )
        parts.append([column[good] for column in columns])
    return Batch(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def set_folder(store: LabelStore) -> Path:
    """The only set beside a store."""
    (place,) = [p for p in working_files.folder_beside(store.path).iterdir() if p.is_dir()]
    return place


@pytest.mark.parametrize("classes", [12, pytest.param(70_000, marks=pytest.mark.slow)])
def test_a_set_holds_what_a_plain_decode_gives(classes: int, tmp_path: Path) -> None:
    """Every field of every row, bit for bit, in the store's order and in random order, with small and large ids."""
    store = featured_store(tmp_path / "labels.zarr", classes=classes, rows=40)
    rows, expected = open_working_set(store, STUDENT, Silent()), plain(store)
    assert len(rows) == 38 and rows.has_labels and rows.temperatures == (1.0, 2.0)
    assert same(everything(rows), expected)
    for seed in range(5):
        picked = np.random.default_rng(seed).integers(0, len(rows), 100)
        wanted = Batch(*(column[picked] for column in vars(expected).values() if column is not None))
        assert same(rows.batch(picked), wanted)
    assert rows.label_column.tolist() == expected.label.tolist()
    without = open_working_set(store, None, Silent())
    assert len(without) == 38 and without.features is None and everything(without).features is None
    assert without.digest != rows.digest


def test_chunks_are_decoded_once(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second and third opening read no chunk at all, also by another object of the same store."""
    calls: list[int] = []
    real = LabelStore.read_chunk

    def counted(self: LabelStore, group: str, chunk: int, only: tuple[str, ...] = ()) -> Any:
        calls.append(chunk)
        return real(self, group, chunk, only)

    monkeypatch.setattr(LabelStore, "read_chunk", counted)
    first = open_working_set(store, STUDENT, Silent())
    assert sorted(calls) == sorted(2 * list(range(store.layout.chunks)))
    calls.clear()
    again = [open_working_set(s, STUDENT, Silent()) for s in (store, LabelStore.open(store.path))]
    assert not calls and {first.digest} == {rows.digest for rows in again}
    assert all(same(everything(first), everything(rows)) for rows in again)


def test_what_a_store_lacks_is_refused(store: LabelStore, tmp_path: Path) -> None:
    """Another student; a chunk that is not committed; a store that changes meanwhile. Nothing is left behind."""
    with pytest.raises(DataError, match="holds no image features of this student.*those of: S"):
        open_working_set(store, "cd" * 32, Silent())
    store.drop(LABELS, 2)
    with pytest.raises(IncompleteError, match="chunk 2 of labels is not committed"):
        open_working_set(store, STUDENT, Silent())
    assert not [p for p in working_files.folder_beside(store.path).iterdir() if p.is_dir()]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("places", [slice(2, 3), slice(None)])
def test_features_that_are_not_finite_are_refused(value: float, places: slice, store: LabelStore) -> None:
    """One number or all of them, in a row whose image was read: named before anything trains, and nothing is made."""
    (group,) = [name for name in store.groups if name != LABELS]
    data = store.read_chunk(group, 2)
    data[f"{group}/features"][4, places] = value
    commit(store, group, 2, data)
    with pytest.raises(DataError, match=rf"row 24 in chunk 2 of {group} holds -?(nan|inf) in \d of 6 places") as caught:
        open_working_set(store, STUDENT, Silent())
    assert "overflows" in caught.value.hint
    assert working_files.stored_sets(working_files.folder_beside(store.path)) == []
    assert len(open_working_set(store, None, Silent())) == 38, "without the student nothing is wrong"


def test_a_store_that_changes_while_its_set_is_made_gives_none(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = iter(["before", "after"])
    monkeypatch.setattr(LabelStore, "store_id", lambda self: next(ids))
    with pytest.raises(IncompleteError, match="changed while"):
        open_working_set(store, STUDENT, Silent())
    assert working_files.stored_sets(working_files.folder_beside(store.path)) == []


@pytest.mark.parametrize("flips", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_flipped_bits_are_noticed(flips: int, tmp_path: Path) -> None:
    """In any file, anywhere: the set is made again with a note, and what comes out is right every time."""
    store = featured_store(tmp_path / "labels.zarr", rows=20, chunk_rows=20)
    expected, rng = plain(store), np.random.default_rng(5)
    open_working_set(store, STUDENT, Silent())
    for number in range(flips):
        files = sorted(file for file in set_folder(store).iterdir())
        assert len(files) == 3
        file = files[number % 3]
        data = bytearray(file.read_bytes())
        bit = int(rng.integers(len(data) * 8))
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        notes = worlds.Notes()
        rows = open_working_set(store, STUDENT, notes)
        assert len([line for line in notes.lines if "thrown away and made again" in line]) == 1, (file, bit)
        assert same(everything(rows), expected), (file, bit)
        rows.close()
    notes = worlds.Notes()
    open_working_set(store, STUDENT, notes)
    assert notes.lines == []


def swap_files(place: Path, other: Path) -> None:
    """The records of a set of the same shape."""
    shutil.copy(other / "records.npy", place / "records.npy")


def swap_sets(place: Path, other: Path) -> None:
    """A whole set of the same shape under this one's name."""
    shutil.rmtree(place)
    shutil.copytree(other, place)


DAMAGE = {
    "cut": lambda place, other: os.truncate(place / "records.npy", (place / "records.npy").stat().st_size - 1),
    "empty": lambda place, other: os.truncate(place / "features.npy", 0),
    "no records": lambda place, other: (place / "records.npy").unlink(),
    "no about": lambda place, other: (place / "about.json").unlink(),
    "longer": lambda place, other: (place / "features.npy").open("ab").write(b"\0"),
    "records of another set": swap_files,
    "another set": swap_sets,
    "empty about": lambda place, other: (place / "about.json").write_text("{}\n"),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_never_used(damage: str, store: LabelStore, tmp_path: Path) -> None:
    other = featured_store(tmp_path / "other.zarr", seed=4)
    for made in (store, other):
        open_working_set(made, STUDENT, Silent())
    DAMAGE[damage](set_folder(store), set_folder(other))
    notes = worlds.Notes()
    rows = open_working_set(store, STUDENT, notes)
    assert len(notes.lines) == 1 and "thrown away and made again" in notes.lines[0]
    assert same(everything(rows), plain(store))


def test_a_set_that_is_open_survives_its_replacement(store: LabelStore) -> None:
    """Another run finds a flipped bit and makes the set again: who reads the old one keeps its bytes."""
    rows = open_working_set(store, STUDENT, Silent())
    file = set_folder(store) / "about.json"
    file.write_bytes(file.read_bytes().replace(b"labels", b"lapels"))
    fresh = open_working_set(store, STUDENT, Silent())
    assert same(everything(rows), everything(fresh))


CHILD = """
import os, signal, sys, time
from pathlib import Path
from teachonce.rows import working_set
from teachonce.labels.store import LabelStore
real = working_set.write_arrays
class Tell:
    def note(self, text): print("note", text, flush=True)
    def progress(self, *a, **k): pass
def slow(plan, place, reporter):
    print("building", flush=True)
    facts = real(plan, place, reporter)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[2] == "full":
        raise AssertionError("the disk was not full")
    time.sleep(1.5)
    return facts
if sys.argv[2] == "full":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
working_set.write_arrays = slow
rows = working_set.open_working_set(LabelStore.open(Path(sys.argv[1])), "ab" * 32, Tell())
print("opened", len(rows), flush=True)
"""


def children(store: LabelStore, how: str, count: int = 1) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of processes that open the set at the same time."""
    command = [sys.executable, "-c", CHILD, str(store.path), how]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        texts = [run.communicate(timeout=120) for run in runs]
    finally:
        for run in runs:
            run.kill()
    return [(run.returncode, *text) for run, text in zip(runs, texts, strict=True)]


def test_of_two_processes_at_once_one_builds(store: LabelStore) -> None:
    """The other says that it waits, and then opens what the first has made."""
    runs = children(store, "slow", 2)
    texts = [text for _, text, _ in runs]
    assert [code for code, _, _ in runs] == [0, 0]
    assert sum(text.count("building") for text in texts) == 1
    assert all("opened 38" in text for text in texts)
    waited = next(text for text in texts if "building" not in text)
    # A process that came late enough found the set whole and had nothing to wait for.
    assert "waiting for it" in waited or waited == "opened 38\n"


def test_what_a_killed_builder_left_is_cleared_away(store: LabelStore) -> None:
    ((code, _, _),) = children(store, "die")
    assert code == -signal.SIGKILL
    folder = working_files.folder_beside(store.path)
    (left,) = working_files.stored_sets(folder)
    assert ".building-" in left.place.name and left.rows is None and not left.in_use
    rows = open_working_set(store, STUDENT, Silent())
    assert same(everything(rows), plain(store))
    assert [stored.place for stored in working_files.stored_sets(folder)] == [rows.path]


def test_a_full_disk_is_said_and_leaves_nothing(store: LabelStore) -> None:
    """A file-size limit stands for the disk: the error names the path, and the draft is gone."""
    ((_, _, text),) = children(store, "full")
    assert "IncompleteError" in text and "labels.zarr.working" in text and "MB free" in text, text
    assert working_files.stored_sets(working_files.folder_beside(store.path)) == []


def test_a_place_that_cannot_be_written_is_passed_over(store: LabelStore, own_cache: Path) -> None:
    """Beside the store is a file where the folder should be: the set goes to the user's cache, and is found there."""
    working_files.folder_beside(store.path).write_text("")
    notes = worlds.Notes()
    rows = open_working_set(store, STUDENT, notes)
    assert len(notes.lines) == 1 and "cannot be written" in notes.lines[0]
    assert rows.path.parent == own_cache / "working" and same(everything(rows), plain(store))
    notes = worlds.Notes()
    assert open_working_set(store, STUDENT, notes).path == rows.path and notes.lines == []


def test_nowhere_to_write_is_said(store: LabelStore, own_cache: Path) -> None:
    for path in (working_files.folder_beside(store.path), own_cache):
        path.write_text("")
    with pytest.raises(EnvironmentFault, match="neither .* can be written") as caught:
        open_working_set(store, STUDENT, Silent())
    assert "TEACHONCE_CACHE" in caught.value.hint


def test_a_damaged_chunk_makes_no_set(store: LabelStore) -> None:
    """The decode goes through the ledger."""
    file = sorted((store.path / "gaps" / "c").rglob("*"))[-1]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 8
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match="gaps"):
        open_working_set(store, STUDENT, Silent())
    assert working_files.stored_sets(working_files.folder_beside(store.path)) == []


def test_a_fault_of_the_disk_is_not_passed_over(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a place that may not be written sends the set elsewhere."""

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device", "records.npy")

    monkeypatch.setattr(working_set, "write_arrays", full)
    with pytest.raises(IncompleteError, match=r"cannot write .*No space left on device: records.npy"):
        open_working_set(store, STUDENT, Silent())
