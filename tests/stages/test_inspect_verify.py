"""inspect says what a store holds, verify whether it is what was written; both from the store alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import worlds
from worlds import CHUNKS, NAMES, PHOTOS, World, all_arrays, keys_of, teach_inline

from teachonce.core.progress import Silent
from teachonce.errors import DataError, IntegrityError
from teachonce.labels.format import LABELS, chunk_file
from teachonce.labels.store import LabelStore
from teachonce.stages.inspect import InspectRequest, inspect
from teachonce.stages.verify import VerifyRequest, verify


class Seen(worlds.Notes):
    """Keeps the faults that progress tells of, too."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: set[object] = set()

    def progress(self, what: str, done: int, total: int, unit: str, **figures: float | int | str) -> None:
        self.faults.add(figures["faults"])


def test_inspect_tells_what_is_there(finished: Path, student: str) -> None:
    """Counts, fingerprint, students, and statistics that equal those of the decoded arrays."""
    inspected = inspect(InspectRequest(labels=finished, samples=4), Silent())
    arrays = all_arrays(finished)
    labels = LabelStore.open(finished).decode_labels(arrays)
    assert (inspected.rows, inspected.chunks, inspected.chunks_committed, inspected.rows_failed) == (
        PHOTOS,
        CHUNKS,
        CHUNKS,
        0,
    )
    assert (inspected.top_k, inspected.vocabulary_size, inspected.tied_names) == (5, 8, 2)
    assert inspected.statistics["rows_looked_at"] == PHOTOS
    assert inspected.statistics["top1_probability"] == pytest.approx(np.exp(labels.log_probs[:, 0]).mean(), rel=1e-5)
    assert inspected.statistics["mass_kept"] == pytest.approx(np.exp(labels.log_probs).sum(1).mean(), abs=0.01)
    assert inspected.statistics["top1_agrees_with_label"] == pytest.approx(
        (labels.class_ids[:, 0] == arrays["label"]).mean()
    )
    assert [s["student"] for s in inspected.students] == [student] and inspected.students[0]["width"] == 12
    assert inspected.students[0]["chunks_committed"] == CHUNKS
    assert inspected.store_id == LabelStore.open(finished).store_id()
    assert {"teacher_digest", "templates", "top_k", "split", "precision"} <= set(inspected.fingerprint)
    assert len(inspected.examples) == 4
    for row, example in enumerate(inspected.examples):
        assert example["row"] == row and example["key"] == keys_of(finished)[row]
        assert example["label"] == NAMES[arrays["label"][row]]
        assert [name for name, _ in example["teacher"]] == [NAMES[c] for c in labels.class_ids[row, :3]]


def test_results_are_plain_json(finished: Path) -> None:
    """What a stage returns can be printed with --json as it is: no NumPy numbers."""
    for result in (
        inspect(InspectRequest(labels=finished), Silent()),
        verify(VerifyRequest(labels=finished), Silent()),
    ):
        text = json.dumps(asdict(result), allow_nan=False)
        assert "np.float" not in text and "np.float" not in repr(result)


def test_inspect_of_a_store_that_has_only_begun(finished: Path, tmp_path: Path) -> None:
    """No chunk yet: counts say so, nothing fails; nor does a store of hard labels."""
    store = worlds.copy_store(finished, tmp_path)
    opened = LabelStore.open(store, writable=True)
    for chunk in range(CHUNKS):
        opened.drop(LABELS, chunk)
    inspected = inspect(InspectRequest(labels=store), Silent())
    assert (inspected.rows, inspected.chunks_committed, inspected.examples, inspected.statistics) == (PHOTOS, 0, (), {})


def test_inspect_of_hard_labels(world: World, student: str, tmp_path: Path) -> None:
    """A store without a teacher has nothing to tell of one."""
    teach_inline(world, tmp_path / "a.zarr", None, students=(student,), chunk_rows=35)
    inspected = inspect(InspectRequest(labels=tmp_path / "a.zarr"), Silent())
    assert (inspected.top_k, inspected.statistics, inspected.rows) == (0, {}, PHOTOS)
    assert verify(VerifyRequest(labels=tmp_path / "a.zarr"), Silent()).ok


def test_a_sound_store_verifies(finished: Path) -> None:
    """Every chunk of every group is read."""
    report = verify(VerifyRequest(labels=finished), Silent())
    assert report.ok and report.faults == () and report.chunks_missing == report.chunks_dropped == 0
    assert report.chunks_checked == 2 * CHUNKS


def test_verify_lists_every_fault_and_goes_on(finished: Path, tmp_path: Path) -> None:
    """Three damaged chunks and a missing record: four faults, each with its file or place, in one run."""
    store = worlds.copy_store(finished, tmp_path)
    opened = LabelStore.open(store, writable=True)
    specs = {spec.path: spec for spec in opened.groups[LABELS].arrays}
    broken = [chunk_file(store, specs["gaps"], 1), chunk_file(store, specs["label"], 3)]
    for file in broken:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
    group = next(name for name in opened.groups if name != LABELS)
    gone = chunk_file(store, opened.groups[group].arrays[0], 2)
    gone.unlink()
    opened.drop(LABELS, 4)
    report = verify(VerifyRequest(labels=store), Silent())
    assert not report.ok and len(report.faults) == 4
    assert (report.chunks_missing, report.chunks_dropped, report.chunks_checked) == (1, 0, 2 * CHUNKS - 1)
    text = " ".join(f"{fault.where} {fault.expected} {fault.found}" for fault in report.faults)
    assert all(str(file) in text for file in (*broken, gone)) and "labels, chunk 4" in text


def test_repair_takes_out_what_is_broken_and_teach_mends_it(
    world: World, teacher: str, student: str, finished: Path, tmp_path: Path
) -> None:
    """After `verify --repair` the same `teach` writes exactly those chunks, and the store is as it was."""
    store = worlds.copy_store(finished, tmp_path)
    opened = LabelStore.open(store)
    specs = opened.groups[LABELS].arrays
    chunk_file(store, specs[0], 2).write_bytes(b"")
    chunk_file(store, specs[1], 4).unlink()
    report = verify(VerifyRequest(labels=store, repair=True), Silent())
    assert not report.ok and report.chunks_dropped == 2
    result = teach_inline(world, store, teacher, students=(student,), top_k=5)
    assert (result.chunks_written, result.chunks_skipped) == (2, CHUNKS - 2)
    assert result.store_id == LabelStore.open(finished).store_id()
    assert verify(VerifyRequest(labels=store), Silent()).ok


def test_repair_mends_a_damaged_ledger_record(
    world: World, teacher: str, student: str, finished: Path, tmp_path: Path
) -> None:
    """A record that a power cut left empty: teach says what to run, and that mends it."""
    store = worlds.copy_store(finished, tmp_path)
    record = store / "ledger/labels/c/3/0"
    record.write_bytes(b"")
    with pytest.raises(IntegrityError, match="ledger/labels/c/3/0") as caught:
        teach_inline(world, store, teacher, students=(student,), top_k=5)
    assert "`repair`" in caught.value.hint
    assert verify(VerifyRequest(labels=store, repair=True), Silent()).chunks_dropped == 1
    assert teach_inline(world, store, teacher, students=(student,), top_k=5).chunks_written == 1
    assert verify(VerifyRequest(labels=store), Silent()).ok


def test_a_wrong_writer_shows_even_with_right_digests(finished: Path, tmp_path: Path) -> None:
    """Statements that hold for every sound chunk, checked although the ledger agrees with the data."""
    store = worlds.copy_store(finished, tmp_path)
    opened = LabelStore.open(store, writable=True)
    changes = {"label": 1, "sample": 2, "status": 3, "top_log_prob": 4}
    for name, chunk in changes.items():
        data = opened.read_chunk(LABELS, chunk)
        data[name] = data[name].copy()
        data[name][0] = 255 if name == "status" else data[name][0] + 1
        opened.commit(LABELS, chunk, 1, 9, 0, opened.write_chunk(LABELS, chunk, data))
    report = verify(VerifyRequest(labels=store), Silent())
    for name, chunk in changes.items():
        assert any(fault.where.endswith(f"labels, chunk {chunk}") for fault in report.faults), name


@pytest.mark.parametrize("name", ["index/key_bytes", "index/offset", "index/sample", "index/archives", "vocabulary"])
def test_damage_outside_the_chunks_is_listed(name: str, finished: Path, tmp_path: Path) -> None:
    """A lost or damaged index or class list is a fault with its path; verify does not stop at it."""
    for damage in ("flip", "lost"):
        store = worlds.copy_store(finished, tmp_path)
        file = store / name / "c/0"
        if damage == "lost":
            file.unlink()
        else:
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
        report = verify(VerifyRequest(labels=store), Silent())
        assert not report.ok and any(str(store / name) in fault.where for fault in report.faults)


@pytest.mark.parametrize(
    "name",
    ["index/label", "index/key_ends", "index/sample", "gap_levels", "class_order", "vocabulary", "class_embeddings"],
)
def test_repair_does_not_drop_sound_chunks_over_a_lost_index(name: str, finished: Path, tmp_path: Path) -> None:
    """The teacher's work is still there when the index is not: repair takes out damaged chunks only."""
    store = worlds.copy_store(finished, tmp_path)
    shutil.rmtree(store / name / "c")
    report = verify(VerifyRequest(labels=store, repair=True), Silent())
    assert not report.ok and report.chunks_dropped == 0
    assert LabelStore.open(store).committed(LABELS) == list(range(CHUNKS))


def test_teach_refuses_a_store_whose_index_is_lost(
    world: World, teacher: str, student: str, finished: Path, tmp_path: Path
) -> None:
    """A lost index reads as zeros: images of no bytes. The run that continues must stop, not record failures."""
    for name in ("index/offset", "index/size", "class_embeddings", "vocabulary"):
        store = worlds.copy_store(finished, tmp_path)
        LabelStore.open(store, writable=True).drop(LABELS, 4)
        shutil.rmtree(store / name / "c")
        with pytest.raises((IntegrityError, DataError)):
            teach_inline(world, store, teacher, students=(student,), top_k=5, max_failed_share=1.0)
        assert LabelStore.open(store).record(LABELS, 4) is None, name


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    """Exit 3 with the path, for both."""
    for path in (tmp_path / "gone.zarr", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            inspect(InspectRequest(labels=path), Silent())
        with pytest.raises(DataError, match=str(path)):
            verify(VerifyRequest(labels=path), Silent())


@pytest.mark.parametrize("name", ["label_classes", "vocabulary", "index/label", "index/sample"])
def test_damage_that_no_command_mends_is_not_sent_to_one(
    name: str, world: World, teacher: str, student: str, finished: Path, tmp_path: Path
) -> None:
    """A flipped byte in a part that is written once: every command says backup or anew, none says --repair."""
    store = worlds.copy_store(finished, tmp_path)
    file = store / name / "c/0"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    for repair in (False, True):
        seen = Seen()
        assert verify(VerifyRequest(labels=store, repair=repair), seen).exit_code == 4
        assert [line for line in seen.lines if "from a backup, or delete the store" in line] and seen.faults == {0}
        assert not any("`repair`" in line for line in seen.lines)
    with pytest.raises(IntegrityError, match=name.partition("/")[0]) as caught:
        if name == "index/sample":
            LabelStore.open(store).samples(0, 5)
        elif name == "index/label":
            LabelStore.open(store).index_of_chunk(0)
        else:
            inspect(InspectRequest(labels=store), Silent())
    assert "from a backup, or delete the store" in caught.value.hint


def test_verify_says_what_mends_each_kind_of_damage(finished: Path, tmp_path: Path) -> None:
    """Missing chunks need the maker alone; damaged ones --repair before; a lost class list a backup before both."""
    store = worlds.copy_store(finished, tmp_path)
    LabelStore.open(store, writable=True).drop(LABELS, 4)
    steps = []
    for change in (None, store / "gaps/c/1/0", store / "vocabulary/c/0"):
        if change is not None:
            change.unlink()
        seen = Seen()
        verify(VerifyRequest(labels=store), seen)
        steps.append(seen.lines)
    again = "run the same `teachonce teach` again: it writes what is lost"
    repair = f"teachonce verify {store} `repair`, then {again}"
    backup = "restore the file from a backup, or delete the store and run the command that made it again"
    assert steps == [[f"next: {again}"], [f"next: {repair}"], [f"next: {backup}, then {repair}"]]
