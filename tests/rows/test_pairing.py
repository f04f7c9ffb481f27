"""Image, label and teacher row belong together, or nothing is trained: each way to break the pairing is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds

from teachonce.core.progress import Silent
from teachonce.errors import FingerprintError, ImageChangedError, IntegrityError, UsageError
from teachonce.labels.format import LABELS, student_group
from teachonce.labels.ledger import from_row
from teachonce.labels.store import LabelStore
from teachonce.rows.pairing import Expected, prove_pairing, require_origin
from teachonce.rows.working_set import WorkingSet, open_working_set


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> LabelStore:
    """A copy of the finished store of seventy photos."""
    return LabelStore.open(worlds.copy_store(finished, tmp_path), writable=True)


@pytest.fixture
def rows(copied: LabelStore) -> Iterator[WorkingSet]:
    """Its rows with the student's features."""
    opened = open_rows(copied)
    yield opened
    opened.close()


def open_rows(store: LabelStore) -> WorkingSet:
    """With the only student's features."""
    (group,) = [name for name in store.groups if name.startswith("students/")]
    digest = str(store.groups[group].fingerprint["student_digest"])
    assert student_group(digest) == group
    return open_working_set(store, digest, Silent())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_sound_pairing_is_proved(seed: int, rows: WorkingSet, world: worlds.World) -> None:
    """Sixty-four rows, down to the bytes of the photos; and it says so."""
    notes = worlds.Notes()
    assert prove_pairing(rows, seed, notes, world.root) == 64
    assert notes.lines == ["64 random rows agree with the store and its sample index and the bytes of the images"]
    assert prove_pairing(rows, seed, Silent()) == 64


def other_field(name: str) -> Any:
    """A change of one field of every record."""

    def change(records: np.ndarray[Any, Any]) -> None:
        records[name] = np.roll(records[name], 1, axis=0)

    return change


@pytest.mark.parametrize("name", ["row", "label", "class_ids", "codes", "top_log_prob", "log_residual", "all"])
def test_swapped_records_are_refused(name: str, rows: WorkingSet) -> None:
    """Whole records in another order, beside the features of others; or one field of them."""
    records = rows.records.copy()
    if name == "all":
        records = np.roll(records, 1)
    else:
        other_field(name)(records)
    rows.records = records
    with pytest.raises(IntegrityError, match=r"row \d+ \(key '.*'\): expected .*, found ") as caught:
        prove_pairing(rows, 0, Silent())
    assert "teachonce cache clear" in caught.value.hint


def test_features_of_other_rows_are_refused(rows: WorkingSet) -> None:
    assert rows.features is not None
    rows.features = np.roll(rows.features, 1, axis=0)
    with pytest.raises(IntegrityError, match="expected the image features of this row"):
        prove_pairing(rows, 0, Silent())


def test_a_row_beyond_the_store_is_refused(rows: WorkingSet) -> None:
    records = rows.records.copy()
    records["row"] += 1000
    rows.records = records
    with pytest.raises(IntegrityError, match="expected a row below 70"):
        prove_pairing(rows, 0, Silent())


@pytest.mark.parametrize(("array", "what"), [("label", "the label"), ("sample", "the sample")])
def test_another_sample_index_is_refused(array: str, what: str, copied: LabelStore, rows: WorkingSet) -> None:
    """Labels or samples of the index swapped behind the chunks' back: valid arrays with valid checksums."""
    column: Any = copied.root[f"index/{array}"]
    column[...] = np.roll(np.asarray(column[...]), 1)
    with pytest.raises(IntegrityError, match=rf"\(key '.*'\): expected {what} \d+ of its chunk, found \d+ in the"):
        prove_pairing(rows, 0, Silent())


def test_swapped_keys_are_refused(copied: LabelStore, rows: WorkingSet) -> None:
    """Two keys of equal length changed places: labels and samples stay, so only the digest of the keys can tell."""
    column: Any = copied.root["index/key_bytes"]
    data = np.asarray(column[...]).copy()
    index = copied.index_of_chunk(0)
    end = int(index.key_ends[0])
    assert int(index.key_ends[1]) == 2 * end
    data[:end], data[end : 2 * end] = data[end : 2 * end].copy(), data[:end].copy()
    column[...] = data
    with pytest.raises(IntegrityError, match="keys of digest [0-9a-f]{32}, found [0-9a-f]{32}"):
        prove_pairing(rows, 0, Silent())


def test_replaced_image_bytes_are_refused(rows: WorkingSet, world: worlds.World, tmp_path: Path) -> None:
    """Same archive, same sizes, other pixels: named with the archive, the key and both checksums."""
    root = Path(shutil.copytree(world.root, tmp_path / "world"))
    for archive in (root / "wds").glob("*.tar"):
        data = archive.read_bytes()
        start = data.index(b"\xff\xda") + 40  # in the compressed pixels of the first photo
        archive.write_bytes(data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :])
    words = r"part-\d.tar: .* of row \d+ has CRC-32 [0-9a-f]{8}, and had [0-9a-f]{8}"
    with pytest.raises(ImageChangedError, match=words):
        for seed in range(10):  # 64 of 70 rows each time
            prove_pairing(rows, seed, Silent(), root)
    assert prove_pairing(rows, 0, Silent()) == 64, "without the images nothing is wrong"


def test_what_an_old_store_cannot_prove_is_said(copied: LabelStore, rows: WorkingSet, world: worlds.World) -> None:
    """A store without the columns of keys and image bytes is still compared in all else."""
    group = copied.groups[LABELS]
    copied.version = 1
    real = LabelStore.read_chunk

    def without(self: LabelStore, name: str, chunk: int, only: tuple[str, ...] = ()) -> Any:
        data = real(self, name, chunk, only)
        return {path: column for path, column in data.items() if path not in ("key_digest", "image_crc")}

    notes = worlds.Notes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelStore, "read_chunk", without)
        patch.setattr("teachonce.labels.store.from_row", lambda row, version: from_row(row))  # only its columns are old
        patch.setitem(rows.plan.store.__dict__, "gap_levels", rows.plan.store.gap_levels)
        patch.setitem(rows.plan.store.__dict__, "tables", rows.plan.store.tables)
        assert prove_pairing(rows, 0, notes, world.root) == 64
    assert "format version 1: it cannot prove keys" in notes.lines[0] and group.name == LABELS
    assert "bytes of the images" not in notes.lines[1]


def test_another_data_set_is_refused_field_by_field(copied: LabelStore, world: worlds.World, tmp_path: Path) -> None:
    """Manifest, split and vocabulary: every field that differs is named with both values."""
    root = world.root
    for sound in (
        Expected(),
        Expected(manifest=world.manifest()),
        Expected(split="train"),
        Expected(manifest=world.manifest(), split="train", vocabulary="classes.tsv"),
    ):
        require_origin(copied, sound, root)
    with pytest.raises(FingerprintError, match="manifest: stored 'tiny-wds', expected 'tiny-tars'") as caught:
        require_origin(copied, Expected(manifest=world.manifest("tars")), root)
    assert "manifest_digest" in caught.value.message and "vocabulary" not in caught.value.message
    with pytest.raises(FingerprintError, match="split: stored 'train', expected 'val'"):
        require_origin(copied, Expected(split="val"), root)
    (tmp_path / "fewer.tsv").write_text("n01\tred fox\n")
    with pytest.raises(FingerprintError) as caught:
        all_three = Expected(manifest=world.manifest("tars"), split="val", vocabulary=str(tmp_path / "fewer.tsv"))
        require_origin(copied, all_three, root)
    for field in ("manifest:", "manifest_digest:", "split:", "vocabulary_digest:"):
        assert field in caught.value.message
    with pytest.raises(UsageError, match="no split 'vall'"):
        require_origin(copied, Expected(manifest=world.manifest(), split="vall"), root)


def test_a_class_list_that_changed_is_refused(copied: LabelStore, world: worlds.World, tmp_path: Path) -> None:
    """The manifest says the same as ever, but the file it names lists other classes now."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "classes.tsv").write_text((world.root / "classes.tsv").read_text())
    require_origin(copied, Expected(manifest=world.manifest()), root)
    (root / "classes.tsv").write_text((world.root / "classes.tsv").read_text().replace("piano", "grand piano"))
    with pytest.raises(FingerprintError, match="label_classes: stored"):
        require_origin(copied, Expected(manifest=world.manifest()), root)
