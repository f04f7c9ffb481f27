"""Faults 6 to 8: no flipped bit, swapped, stale, missing or cut-off file is read in silence.

A fault is silent if neither reading nor `verify` complains. Numbers as in the reliability table.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import worlds
from worlds import SMALL, files_of, synthetic_store

from teachonce.core.progress import Silent
from teachonce.errors import IntegrityError, TeachOnceError
from teachonce.labels.create import add_embedding, add_student
from teachonce.labels.format import LABELS, chunk_file
from teachonce.labels.store import LabelStore
from teachonce.stages.verify import VerifyRequest, verify


def complaint(store: Path) -> str | None:
    """What reading the whole store, or verify's checks, say about it; None if nothing complains.

    Any other exception than ours passes through and fails the test: a traceback names no file.
    """
    try:
        opened = LabelStore.open(store)
        faults = opened.static_faults()
        if faults:
            return str(faults)
        for group in opened.groups:
            for chunk in range(opened.layout.chunks):
                opened.read_chunk(group, chunk)
    except TeachOnceError as problem:
        return str(problem)
    return None


@contextmanager
def changed(file: Path, data: bytes | None) -> Iterator[None]:
    """A file with other content, or gone; put back afterwards."""
    sound, times = file.read_bytes(), file.stat()
    if data is None:
        file.unlink()
    else:
        file.write_bytes(data)
    try:
        yield
    finally:
        file.write_bytes(sound)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def named(file: Path, store: Path) -> tuple[str, ...]:
    """What a message may call a file: its path, its array, or the chunk whose record it is."""
    relative = file.relative_to(store)
    array = relative.as_posix().split("/c/")[0]
    if array.startswith("ledger/") and file.name != "zarr.json":
        return str(file), f"chunk {relative.parts[-2]}"
    return str(file), f"{store}/{array}", str(store) if file.name == "zarr.json" else str(file)


def flip_bits(store: Path, count: int, seed: int) -> None:
    """Seeded single-bit flips, spread evenly over all files: each must be complained about, with the file's name."""
    files, rng = files_of(store), random.Random(seed)
    silent: list[object] = []
    for number in range(count):
        file = files[number % len(files)]
        data = bytearray(file.read_bytes())
        place, bit = rng.randrange(len(data)), rng.randrange(8)
        data[place] ^= 1 << bit
        with changed(file, bytes(data)):
            try:
                said = complaint(store)
            except Exception as problem:  # noqa: BLE001 - a traceback names no file
                said = None
                silent.append((file.relative_to(store).as_posix(), place, bit, repr(problem)[:200]))
                continue
        if said is None or not any(name in said for name in named(file, store)):
            silent.append((file.relative_to(store).as_posix(), place, bit, said))
    assert silent == []
    assert complaint(store) is None


def small_store_with_student(folder: Path) -> Path:
    """Two chunks of labels, of a student's features and of the teacher's embeddings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        store, _ = synthetic_store(folder / "a.zarr", **SMALL)
        group = add_student(store, "cd" * 32, 6, {"student_digest": "cd" * 32, "about": {"student": "tiny"}})
        for chunk in range(2):
            features = np.full((15, 6), 6**-0.5, np.float16)
            store.commit(group, chunk, 7, 15, 0, store.write_chunk(group, chunk, {f"{group}/features": features}))
        group = add_embedding(store, "int8", 6, {"teacher_digest": "ab" * 32, "about": {"teacher": "tiny"}})
        for chunk in range(2):
            data = {
                "embedding/values": np.full((15, 6), 100 + chunk, np.int8),
                "embedding/fidelity": np.full((8, 3), 1e-4, np.float16),
            }
            store.commit(group, chunk, 7, 15, 0, store.write_chunk(group, chunk, data))
    assert complaint(store.path) is None
    return store.path


def test_fault_6_no_flipped_bit_is_silent(tmp_path: Path) -> None:
    """200 flips over data, metadata, ledger, index and vocabulary: 0 silent, and the message names the file."""
    flip_bits(small_store_with_student(tmp_path), 200, seed=1)


@pytest.mark.slow
def test_fault_6_no_flipped_bit_is_silent_at_length(tmp_path: Path) -> None:
    """10,000 flips."""
    flip_bits(small_store_with_student(tmp_path), 10_000, seed=2)


def test_fault_6_every_bit_of_a_ledger_record_and_of_the_header(tmp_path: Path) -> None:
    """The ledger vouches for all else: a bit of every byte of a record, and of every few of the header."""
    store = small_store_with_student(tmp_path)
    record, header = store / "ledger/labels/c/0/0", store / "ledger/zarr.json"
    size = header.stat().st_size
    places = [(record, place, place % 8) for place in range(record.stat().st_size)] + [(record, 0, b) for b in range(8)]
    places += [(header, place, place % 8) for place in (*range(0, size - 90, 13), *range(size - 90, size))]
    silent = []
    for file, place, bit in places:
        data = bytearray(file.read_bytes())
        data[place] ^= 1 << bit
        with changed(file, bytes(data)):
            try:
                opened = LabelStore.open(store)
                opened.record(LABELS, 0)
            except TeachOnceError:
                continue
            silent.append((file.name, place, bit, data[max(0, place - 12) : place + 12]))
    assert silent == []


@pytest.mark.slow  # the flips above are not silent
def test_fault_6_verify_reports_flips_without_stopping(tmp_path: Path) -> None:
    """One flip in each data, index and ledger file in turn: verify ends and lists a fault."""
    store = small_store_with_student(tmp_path)
    rng = random.Random(3)
    for file in files_of(store):
        if file.name == "zarr.json":
            continue
        data = bytearray(file.read_bytes())
        data[rng.randrange(len(data))] ^= 16
        with changed(file, bytes(data)):
            report = verify(VerifyRequest(labels=store), Silent())
        assert not report.ok and report.faults, file


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic store of eight chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        return synthetic_store(tmp_path_factory.mktemp("eight") / "a.zarr", rows=40, chunk_rows=5)[0].path


@pytest.mark.slow
def test_fault_7_all_pairs_of_swapped_chunks(eight: Path) -> None:
    """28 pairs for every array: two sound files in each other's place are both refused, by name.

    Where both files hold the same bytes, as `view` and `status` do, nothing is lost by a swap and none can be seen.
    """
    opened = LabelStore.open(eight)
    for spec in opened.groups[LABELS].arrays:
        for one, two in itertools.combinations(range(8), 2):
            first, second = chunk_file(eight, spec, one), chunk_file(eight, spec, two)
            a, b = first.read_bytes(), second.read_bytes()
            if a == b:
                assert spec.path in ("view", "status"), spec.path
                continue
            with changed(first, b), changed(second, a):
                for chunk, file in ((one, first), (two, second)):
                    with pytest.raises(IntegrityError) as caught:
                        opened.read_chunk(LABELS, chunk)
                    assert str(file) in str(caught.value) and "`repair`" in caught.value.hint
    assert complaint(eight) is None


def test_fault_7_swapped_ledger_records_and_arrays(eight: Path) -> None:
    """Two records in each other's place, and two arrays of one type: refused."""
    records = [eight / f"ledger/labels/c/{chunk}/0" for chunk in (2, 5)]
    a, b = (file.read_bytes() for file in records)
    with changed(records[0], b), changed(records[1], a):
        assert complaint(eight) is not None
    pair = [eight / name / "c/3" for name in ("view", "status")]
    a, b = (file.read_bytes() for file in pair)
    if a != b:
        with changed(pair[0], b), changed(pair[1], a):
            assert complaint(eight) is not None


def test_fault_7_swapped_index_arrays(eight: Path) -> None:
    """Offsets where sizes should be: same type, same shape, sound checksums."""
    a, b = eight / "index/offset/c/0", eight / "index/size/c/0"
    one, two = a.read_bytes(), b.read_bytes()
    with changed(a, two), changed(b, one):
        said = complaint(eight)
    assert said is not None and "index/offset" in said and "index/size" in said


def test_fault_7_stale_and_foreign_chunks(eight: Path, tmp_path: Path) -> None:
    """The same chunk of a store of another seed, or of the same data under another fingerprint: refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        other = synthetic_store(tmp_path / "b.zarr", rows=40, chunk_rows=5, seed=1)[0].path
    opened = LabelStore.open(eight)
    for spec in opened.groups[LABELS].arrays:
        for chunk in (0, 7):
            file, foreign = chunk_file(eight, spec, chunk), chunk_file(other, spec, chunk)
            if file.read_bytes() == foreign.read_bytes():
                continue
            with changed(file, foreign.read_bytes()), pytest.raises(IntegrityError, match=str(file)):
                opened.read_chunk(LABELS, chunk)
    record = eight / "ledger/labels/c/0/0"
    with changed(record, (other / "ledger/labels/c/0/0").read_bytes()):
        assert complaint(eight) is not None


def test_fault_7_a_whole_foreign_chunk_with_its_record(eight: Path, tmp_path: Path) -> None:
    """Every array of a chunk and its ledger record from another teacher's store: the fingerprint tells."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        other = synthetic_store(tmp_path / "b.zarr", rows=40, chunk_rows=5, seed=1)[0]
    store = worlds.copy_store(eight, tmp_path)
    for spec in other.groups[LABELS].arrays:
        shutil.copy(chunk_file(other.path, spec, 4), chunk_file(store, spec, 4))
    shutil.copy(other.path / "ledger/labels/c/4/0", store / "ledger/labels/c/4/0")
    assert complaint(store) is not None


def test_fault_8_each_file_deleted_once(tmp_path: Path) -> None:
    """Every file of a store in turn: missed, by name."""
    store = small_store_with_student(tmp_path)
    for file in files_of(store):
        with changed(file, None):
            said = complaint(store)
        assert said is not None, file
        assert any(name in said for name in named(file, store)), (file, said)


def test_fault_8_whole_folders_deleted(tmp_path: Path) -> None:
    """Each folder of a store in turn, the ledger among them: missed; nothing is read as data."""
    store = small_store_with_student(tmp_path)
    for folder in sorted(folder for folder in store.rglob("*") if folder.is_dir()):
        hidden = tmp_path / "hidden"
        folder.rename(hidden)
        try:
            assert complaint(store) is not None, folder
        finally:
            hidden.rename(folder)
    assert complaint(store) is None


@pytest.mark.parametrize("share", [0.5, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.0, 0.97))])
def test_truncated_files(share: float, tmp_path: Path) -> None:
    """Every file cut to nothing, to half, by its last bytes: refused, by name."""
    store = small_store_with_student(tmp_path)
    for file in files_of(store):
        data = file.read_bytes()
        with changed(file, data[: min(int(share * len(data)), len(data) - 1)]):
            said = complaint(store)
        assert said is not None, file
        assert any(name in said for name in named(file, store)), (file, said)


def test_bytes_behind_the_end_of_a_file(tmp_path: Path) -> None:
    """A file that grew is not what was written."""
    store = small_store_with_student(tmp_path)
    for file in files_of(store):
        with changed(file, file.read_bytes() + b"x"):
            assert complaint(store) is not None, file
