"""`verify --teacher`: the model runs again on random rows; what differs is found, and only that."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import CHUNKS, PHOTOS, World, copy_store, make_clip, teach_inline

from teachonce.core.progress import Silent
from teachonce.errors import DataError, FingerprintError, UsageError
from teachonce.labels.format import EMBEDDING, LABELS
from teachonce.labels.store import LabelStore
from teachonce.stages.inspect import InspectRequest, inspect
from teachonce.stages.verify import VerifyRequest, VerifyResult, verify

SOFT = ("class_ids", "gaps", "top_log_prob", "log_residual")


def again(store: Path, teacher: str, root: Path, **options: Any) -> VerifyResult:
    """Verify with the teacher on all rows."""
    given = {"sample": PHOTOS, "root": root} | options
    return verify(VerifyRequest(labels=store, teacher=teacher, **given), Silent())


def rewrite(store: Path, change: dict[str, Any], chunk: int = 2) -> None:
    """Commit a chunk anew with other contents: sound by every checksum, wrong all the same."""
    opened = LabelStore.open(store, writable=True)
    data = opened.read_chunk(LABELS, chunk)
    for name, function in change.items():
        data[name] = function(data[name])
    rows = len(data["label"])
    opened.commit(LABELS, chunk, 1, rows, 0, opened.write_chunk(LABELS, chunk, data))


def test_a_sound_store_agrees_with_its_teacher(world: World, teacher: str, finished: Path) -> None:
    """Every row, with the same classes and values within the codec's error."""
    report = again(finished, teacher, world.root)
    assert report.ok and report.exit_code == 0
    assert report.teacher["rows"] == PHOTOS and report.teacher["rows_wrong"] == 0
    assert report.teacher["least_overlap"] == 1.0 and report.teacher["worst_kl"] < 1e-3
    fewer = again(finished, teacher, world.root, sample=11, seed=5)
    assert fewer.teacher["rows"] == 11 and fewer.chunks_checked == 2 * CHUNKS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({name: lambda x: np.roll(x, 1, axis=0) for name in SOFT}, "a value is off by"),
        ({"top_log_prob": lambda x: x - np.float16(0.04)}, "a value is off by"),
        ({"image_crc": lambda x: x ^ 1}, "not the one that was taught"),
    ],
    ids=["rows shifted by one", "values moved", "another image"],
)
def test_wrong_rows_that_no_checksum_sees_are_found(
    change: dict[str, Any], words: str, world: World, teacher: str, finished: Path, tmp_path: Path
) -> None:
    """A writer's bug: checksums hold, the structure holds, the teacher says otherwise."""
    store = copy_store(finished, tmp_path)
    rewrite(store, change)
    report = again(store, teacher, world.root)
    assert not report.ok and report.exit_code == 4
    assert any(words in fault.found for fault in report.faults), report.faults


def test_a_replaced_photo_is_found(world: World, teacher: str, finished: Path, tmp_path: Path) -> None:
    """Bytes changed inside the archive without changing its size: the row, its key, and what was expected."""
    root = tmp_path / "root"
    shutil.copytree(world.root, root)
    index = LabelStore.open(finished).index_of_chunk(0)
    archive = root / index.archives[int(index.archive[0])]
    content = bytearray(archive.read_bytes())
    content[int(index.offset[0]) + int(index.size[0]) // 2] ^= 0x55
    archive.write_bytes(bytes(content))
    report = again(finished, teacher, root)
    assert [index.key(0) in fault.where for fault in report.faults] == [True]
    assert "not the one that was taught" in report.faults[0].found or "decoded" in report.faults[0].found


def test_embeddings_and_derived_labels_are_checked_too(world: World, teacher: str, tmp_path: Path) -> None:
    """Relabelled rows agree with what int8 embeddings give; embeddings in each other's place are found."""
    from teachonce.stages.relabel import RelabelRequest, relabel

    path, child = tmp_path / "a.zarr", tmp_path / "b.zarr"
    teach_inline(world, path, teacher, top_k=5, embeddings="int8")
    relabel(RelabelRequest(parent=path, labels=child, top_k=3, threads=1), Silent())
    assert again(child, teacher, world.root).ok
    assert inspect(InspectRequest(labels=child), Silent()).fidelity["embedding_kl"] == {}
    relabel(RelabelRequest(parent=path, labels=tmp_path / "warm.zarr", entropy=1.0, threads=1), Silent())
    assert again(tmp_path / "warm.zarr", teacher, world.root).ok, "each row at its own temperature"
    relabel(RelabelRequest(parent=path, labels=tmp_path / "even.zarr", prior="balanced", threads=1), Silent())
    with pytest.raises(DataError, match="another prior than its teacher"):
        again(tmp_path / "even.zarr", teacher, world.root)
    opened = LabelStore.open(path, writable=True)
    data = opened.read_chunk(EMBEDDING, 1)
    data["embedding/values"] = np.roll(data["embedding/values"], 1, axis=0)
    opened.commit(EMBEDDING, 1, 1, 9, 0, opened.write_chunk(EMBEDDING, 1, data))
    assert verify(VerifyRequest(labels=path), Silent()).ok
    report = again(path, teacher, world.root)
    assert not report.ok and all("cosine" in fault.found for fault in report.faults)


def test_labels_that_were_lost_take_what_stood_beside_them_along(
    world: World, teacher: str, student: str, tmp_path: Path
) -> None:
    """A photo replaced between loss and repair: labels, embedding and features of the chunk are all made anew."""
    root, path = tmp_path / "root", tmp_path / "a.zarr"
    shutil.copytree(world.root, root)
    options: dict[str, Any] = {"top_k": 5, "embeddings": "float16", "students": (student,), "root": root}
    teach_inline(world, path, teacher, **options)
    store = LabelStore.open(path, writable=True)
    store.drop(LABELS, 2)
    index = store.index_of_chunk(2)
    archive, start = root / index.archives[int(index.archive[5])], int(index.offset[5])
    place = slice(start, start + int(index.size[5]))
    content = bytearray(archive.read_bytes())
    other = next(photo for photo in world.photos.values() if len(photo) < place.stop - place.start)
    content[place] = other + bytes(place.stop - place.start - len(other))
    archive.write_bytes(bytes(content))
    teach_inline(world, path, teacher, **options)
    store = LabelStore.open(path)
    logits = store.embeddings(2)[5] @ store.class_embeddings().T
    assert logits.argmax() == store.decode_labels(store.read_chunk(LABELS, 2)).class_ids[5, 0]
    assert verify(VerifyRequest(labels=path), Silent()).ok and again(path, teacher, root).ok


def test_features_where_no_image_is_are_a_fault(finished: Path, tmp_path: Path) -> None:
    """A hole in the features of a row that has an image passes every checksum, and not `verify`."""
    store = LabelStore.open(copy_store(finished, tmp_path), writable=True)
    group = next(name for name in store.groups if name.startswith("students/"))
    data = store.read_chunk(group, 0)
    data[f"{group}/features"][3] = np.nan
    store.commit(group, 0, 1, 9, 0, store.write_chunk(group, 0, data))
    report = verify(VerifyRequest(labels=store.path), Silent())
    assert ["features in every row with an image" in fault.expected for fault in report.faults] == [True]


def test_another_teacher_and_wrong_options_are_refused(
    world: World, teacher: str, student: str, finished: Path, tmp_path: Path
) -> None:
    """By the fields that differ; options that make no sense by what is missing."""
    with pytest.raises(FingerprintError, match="teacher_digest: stored"):
        again(finished, make_clip(tmp_path / "other", 9), world.root)
    with pytest.raises(UsageError, match="`root`"):
        verify(VerifyRequest(labels=finished, teacher=teacher), Silent())
    with pytest.raises(UsageError, match="give `teacher`"):
        verify(VerifyRequest(labels=finished, sample=4), Silent())
    with pytest.raises(UsageError, match="at least 1"):
        again(finished, teacher, world.root, sample=0)
    hard = tmp_path / "hard.zarr"
    teach_inline(world, hard, None, students=(student,))
    with pytest.raises(DataError, match="without a teacher"):
        again(hard, teacher, world.root)
