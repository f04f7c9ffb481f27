"""The label store: other readers get the same values, holes are visible, nothing exists before its ledger record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from worlds import synthetic_index, synthetic_store

from teachonce.data.vocabulary import Vocabulary
from teachonce.errors import DataError, FingerprintError, IncompleteError, IntegrityError
from teachonce.labels import format as store_format
from teachonce.labels.codec import TopK, encode, max_error
from teachonce.labels.create import add_student, create_store, row_order
from teachonce.labels.format import LABELS, Layout, label_arrays
from teachonce.labels.ledger import require_fingerprint
from teachonce.labels.size import bytes_per_row
from teachonce.labels.store import LabelStore

STUDENT = "ab" * 32


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power fails in these tests; faults/test_store_damage.py watches the syncs."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


def with_student(store: LabelStore, seed: int = 0) -> str:
    """Add a student's column group with random unit features; returns its name."""
    group = add_student(store, STUDENT, 6, {"student_digest": STUDENT, "about": {"student": "tiny"}})
    rng = np.random.default_rng(seed)
    for chunk in range(store.layout.chunks):
        start, stop = store.layout.bounds(chunk)
        features = rng.normal(size=(stop - start, 6))
        data = {f"{group}/features": (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)}
        store.commit(group, chunk, 7, stop - start, 0, store.write_chunk(group, chunk, data))
    return group


def test_plain_zarr_and_numpy_read_the_same(tmp_path: Path) -> None:
    """The documented format, without a line of ours: ids, log-probabilities, vocabulary, labels, samples."""
    store, logits = synthetic_store(tmp_path / "a.zarr", rows=37, chunk_rows=10)
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")
    ids = root["class_order"][:].astype(np.int64)[np.cumsum(root["class_ids"][:].astype(np.int64), axis=1)]
    log_probs = root["top_log_prob"][:].astype(np.float32)[:, None] - root["gap_levels"][:][root["gaps"][:]]
    order = np.argsort(root["gaps"][:] * 2.0**32 + ids, axis=1)
    ids, log_probs = np.take_along_axis(ids, order, 1), np.take_along_axis(log_probs, order, 1)
    names = [line.split("\t") for line in root["vocabulary"][:].tobytes().decode().splitlines()]

    parts = [store.decode_labels(store.read_chunk(LABELS, chunk)) for chunk in range(store.layout.chunks)]
    assert np.array_equal(ids, np.concatenate([part.class_ids for part in parts]))
    assert np.allclose(log_probs, np.concatenate([part.log_probs for part in parts]), atol=1e-6)
    assert [tuple(name) for name in names] == list(zip(store.vocabulary().ids, store.vocabulary().names, strict=True))
    assert np.array_equal(root["sample"][:], row_order(37, 0))
    assert np.array_equal(root["label"][:], synthetic_index(37, 12).label[row_order(37, 0)])
    assert np.array_equal(root["class_embeddings"][:], store.class_embeddings())

    wide = logits.astype(np.float64)
    truth = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    wanted = np.take_along_axis(truth, ids, 1)
    assert (np.abs(log_probs - wanted) <= max_error(wanted.astype(np.float32), store.tables) + 1e-5).all()
    assert np.array_equal(np.sort(ids, 1), np.sort(np.argsort(-truth, axis=1)[:, :4], 1))
    assert np.array_equal(ids[:, 0], truth.argmax(1))
    outside = np.exp(truth)
    np.put_along_axis(outside, ids, 0.0, axis=1)
    assert np.allclose(root["log_residual"][:, 0], np.log(outside.sum(1)), rtol=1e-3, atol=1e-5)


def test_the_index_of_a_chunk_is_that_of_its_rows(tmp_path: Path) -> None:
    """Keys, places and labels come back for the rows of each chunk, the last one short."""
    store, _ = synthetic_store(tmp_path / "a.zarr", rows=130, chunk_rows=50)
    index, order = synthetic_index(130, 12), row_order(130, 0)
    assert not np.array_equal(order, np.arange(130))
    for chunk in range(store.layout.chunks):
        start, stop = store.layout.bounds(chunk)
        part = store.index_of_chunk(chunk)
        assert [part.key(i) for i in range(len(part))] == [index.key(s) for s in order[start:stop]]
        assert part.archives == index.archives
        for name in ("archive", "offset", "size", "label"):
            assert np.array_equal(getattr(part, name), getattr(index, name)[order[start:stop]])
        assert np.array_equal(store.samples(start, stop), order[start:stop])


def test_every_fill_value_is_no_value(tmp_path: Path) -> None:
    """A hole reads as something that cannot be data: class 65535, gap 255, NaN, status 255, label -2."""
    store, _ = synthetic_store(tmp_path / "a.zarr", rows=20, chunk_rows=10)
    with_student(store)
    for group in store.groups.values():
        for spec in group.arrays:
            shutil.rmtree(tmp_path / "a.zarr" / spec.path / "c")
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")
    holes = {spec.path: root[spec.path][:] for group in store.groups.values() for spec in group.arrays}
    assert (holes["class_ids"] == 65535).all() and (holes["gaps"] == 255).all() and (holes["status"] == 255).all()
    assert (holes["label"] == -2).all() and (holes["sample"] == 2**32 - 1).all() and (holes["view"] == 255).all()
    for name in ("top_log_prob", "log_residual", f"students/{STUDENT[:16]}/features"):
        assert np.isnan(holes[name]).all()


def test_a_chunk_of_fill_values_is_written_all_the_same(tmp_path: Path) -> None:
    """Zarr drops such chunks by default; a chunk of failed images must not look like a hole."""
    layout = Layout(rows=4, chunk_rows=4, classes=3, top_k=2, temperatures=(1.0,), fidelity_rows=2, fidelity_k=(2,))
    words = Vocabulary(("a", "b", "c"), ("a", "b", "c"))
    store = create_store(tmp_path / "a.zarr", layout, {}, words, words, synthetic_index(4, 3), np.arange(4), None)
    empty = TopK(np.full((4, 2), -1), np.full((4, 2), np.nan, np.float32), np.full((4, 1), np.nan, np.float32))
    data = {
        **vars(encode(empty, store.tables)),
        "label": np.full(4, -2),
        "sample": np.full(4, 2**32 - 1),
        "view": np.full(4, 255),
        "status": np.full(4, 255),
        "image_crc": np.zeros(4),
        "key_digest": np.zeros((1, 2)),
        "fidelity": np.full((2, 6), np.nan),
    }
    store.commit(LABELS, 0, 1, 0, 4, store.write_chunk(LABELS, 0, data))
    for spec in store.groups[LABELS].arrays:
        folder = tmp_path / "a.zarr" / spec.path / "c"
        assert sum(file.is_file() for file in folder.rglob("*")) == 1, spec.path
    assert (store.decode_labels(LabelStore.open(tmp_path / "a.zarr").read_chunk(LABELS, 0)).class_ids == -1).all()


def test_only_core_codecs_and_no_shards(tmp_path: Path) -> None:
    """A store reads with plain Zarr: bytes, blosc, crc32c, and each chunk is a file of its own."""
    synthetic_store(tmp_path / "a.zarr", rows=20, chunk_rows=10)
    for file in (tmp_path / "a.zarr").rglob("zarr.json"):
        metadata = json.loads(file.read_text())
        if metadata["node_type"] == "array":
            names = [codec["name"] for codec in metadata["codecs"]]
            assert set(names) <= {"bytes", "blosc", "crc32c"} and names[-1] == "crc32c", file


@pytest.mark.slow
def test_large_vocabularies_take_wide_class_ids(tmp_path: Path) -> None:
    """70,000 classes: uint32, and the highest class comes back."""
    store, logits = synthetic_store(tmp_path / "a.zarr", rows=40, chunk_rows=40, classes=70_000, top_k=3)
    data = store.read_chunk(LABELS, 0)
    assert data["class_ids"].dtype == np.uint32
    decoded = store.decode_labels(data)
    assert np.array_equal(np.sort(decoded.class_ids, 1), np.sort(np.argsort(-logits, axis=1, kind="stable")[:, :3], 1))
    assert decoded.class_ids.max() > 65_535


def test_a_chunk_does_not_exist_before_its_record(tmp_path: Path) -> None:
    """Written but not committed: readers refuse, with what to run."""
    store, _ = synthetic_store(tmp_path / "a.zarr", rows=20, chunk_rows=10)
    data = store.read_chunk(LABELS, 1)
    store.drop(LABELS, 1)
    assert store.committed(LABELS) == [0] and store.record(LABELS, 1) is None
    with pytest.raises(IncompleteError, match="chunk 1 of labels is not committed") as caught:
        store.read_chunk(LABELS, 1)
    assert "teach" in caught.value.hint
    digests = store.write_chunk(LABELS, 1, data)
    with pytest.raises(IncompleteError):
        LabelStore.open(store.path).read_chunk(LABELS, 1)
    store.commit(LABELS, 1, 9, 10, 0, digests)
    assert store.committed(LABELS) == [0, 1]
    record = store.record(LABELS, 1)
    assert record is not None and (record.token, record.rows_ok, record.rows_failed) == (9, 10, 0)


def test_the_store_id_is_that_of_the_content(tmp_path: Path) -> None:
    """Equal content, written by other runs at other times: equal ids. Any other content or fingerprint: another id."""
    first, _ = synthetic_store(tmp_path / "a.zarr", rows=20, chunk_rows=10)
    again, _ = synthetic_store(tmp_path / "b.zarr", rows=20, chunk_rows=10)
    other, _ = synthetic_store(tmp_path / "c.zarr", rows=20, chunk_rows=10, seed=1)
    ids = {first.store_id(), again.store_id(), other.store_id()}
    assert first.store_id() == again.store_id() and len(ids) == 2
    again.drop(LABELS, 0)
    ids.add(again.store_id())
    with_student(first)
    ids.add(first.store_id())
    assert len(ids) == 4
    assert LabelStore.open(first.path).store_id() == first.store_id()


def test_a_student_is_added_beside_and_its_fingerprint_kept(tmp_path: Path) -> None:
    """Labels stay as they are; the group is there after reopening; another fingerprint is refused by field."""
    store, _ = synthetic_store(tmp_path / "a.zarr", rows=20, chunk_rows=10)
    before = store.read_chunk(LABELS, 0)
    group = with_student(store)
    again = LabelStore.open(store.path, writable=True)
    assert set(again.groups) == {LABELS, group}
    assert all(np.array_equal(before[name], data) for name, data in again.read_chunk(LABELS, 0).items())
    assert again.read_chunk(group, 1)[f"{group}/features"].shape == (10, 6)
    with pytest.raises(FingerprintError, match="precision: stored None, asked for 'bf16'"):
        add_student(again, STUDENT, 6, {"student_digest": STUDENT, "precision": "bf16", "about": {}})


@pytest.mark.parametrize("left", ["group only", "group and ledger", "ledger only", "parent only"])
def test_a_student_group_left_half_made_by_a_crash_is_made_anew(left: str, tmp_path: Path) -> None:
    """A run that died at any point between the group and the header does not block the next one."""
    store, _ = synthetic_store(tmp_path / "a.zarr", rows=20, chunk_rows=10)
    header = (store.path / "ledger/zarr.json").read_bytes()
    group = add_student(store, STUDENT, 6, {"student_digest": STUDENT, "about": {}})
    (store.path / "ledger/zarr.json").write_bytes(header)  # the crash came before this was written
    ledger = store.path / "ledger" / group.replace("/", "-")
    if left in ("group only", "parent only"):
        shutil.rmtree(ledger)
    if left in ("ledger only", "parent only"):
        shutil.rmtree(store.path / group)
    again = LabelStore.open(store.path, writable=True)
    assert set(again.groups) == {LABELS}
    with_student(again)
    assert LabelStore.open(store.path).committed(group) == [0, 1]


def test_adding_a_student_does_not_bless_a_damaged_array(tmp_path: Path) -> None:
    """The header is written anew for the student; what was lost before must stay visible."""
    store, _ = synthetic_store(tmp_path / "a.zarr", rows=20, chunk_rows=10)
    shutil.rmtree(store.path / "class_embeddings" / "c")
    assert store.static_faults()
    try:
        with_student(LabelStore.open(store.path, writable=True))
    except IntegrityError:
        return
    assert LabelStore.open(store.path).static_faults()


@pytest.mark.parametrize("name", ["class_embeddings", "vocabulary", "label_classes"])
def test_a_lost_static_array_is_not_read_as_zeros(name: str, tmp_path: Path) -> None:
    """Zarr reads a missing chunk as zeros; a teacher of zeros would give every class the same probability."""
    store, _ = synthetic_store(tmp_path / "a.zarr", rows=20, chunk_rows=10)
    shutil.rmtree(store.path / name / "c")
    with pytest.raises(IntegrityError, match=name):
        getattr(LabelStore.open(store.path), name)()


def test_what_is_no_store_is_a_data_error(tmp_path: Path) -> None:
    """Missing, an empty folder, another Zarr group, a store of a newer version."""
    with pytest.raises(DataError, match="does not exist"):
        LabelStore.open(tmp_path / "gone.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(DataError, match="is not a label store"):
        LabelStore.open(tmp_path / "empty.zarr")
    zarr.create_group(str(tmp_path / "other.zarr"), zarr_format=3)
    with pytest.raises(DataError, match="is not a label store"):
        LabelStore.open(tmp_path / "other.zarr")
    store, _ = synthetic_store(tmp_path / "a.zarr", rows=20, chunk_rows=10)
    file = store.path / "zarr.json"
    file.write_text(file.read_text().replace('"version": 3', '"version": 4'))
    with pytest.raises(IntegrityError, match="format version 4; this program reads 1 and 2 and 3"):
        LabelStore.open(store.path)


def test_differing_fields_are_named_and_information_may_differ(tmp_path: Path) -> None:
    """Every field that differs, with both values; `about` is not compared."""
    stored = {"template": "a {}", "top_k": 5, "about": {"version": 1}}
    require_fingerprint(tmp_path, LABELS, stored, stored | {"about": {"version": 2}})
    with pytest.raises(FingerprintError) as caught:
        require_fingerprint(tmp_path, LABELS, stored, {"template": "b {}", "precision": "fp32", "about": {}})
    message = str(caught.value)
    for part in (
        "template: stored 'a {}', asked for 'b {}'",
        "top_k: stored 5, asked for None",
        "precision: stored None, asked for 'fp32'",
    ):
        assert part in message
    assert "about" not in message


def test_bytes_a_row_add_up_to_what_lies_on_disk(tmp_path: Path) -> None:
    """The parts are all files, each once."""
    store, _ = synthetic_store(tmp_path / "a.zarr", rows=40, chunk_rows=10)
    with_student(store)
    parts = bytes_per_row(store)
    total = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
    assert parts["total"] == total / 40
    assert sum(size for name, size in parts.items() if name != "total") == pytest.approx(parts["total"])
    assert parts["embeddings"] == 0 and all(size > 0 for name, size in parts.items() if name != "embeddings")


def test_a_failed_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store appears under its name whole or not at all; no draft stays behind."""

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("teachonce.core.files.sync_tree", full)
    with pytest.raises(IncompleteError, match=r"cannot write .*: No space left.*MB free"):
        synthetic_store(tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rows", [1, 9, 10, 11, 30])
def test_chunks_cover_the_rows(rows: int) -> None:
    """Bounds are adjacent, whole, and end with the last row."""
    layout = Layout(rows=rows, chunk_rows=10, classes=3, top_k=0, temperatures=())
    bounds = [layout.bounds(chunk) for chunk in range(layout.chunks)]
    assert [row for start, stop in bounds for row in range(start, stop)] == list(range(rows))
    assert [spec.path for spec in label_arrays(layout)] == [
        "label",
        "sample",
        "view",
        "status",
        "image_crc",
        "key_digest",
    ]
    assert store_format.LABEL_FILL == -2
