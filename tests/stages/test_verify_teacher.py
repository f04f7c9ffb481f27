"""`verify --teacher`: the model runs again on random rows; what differs is found, and only that."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import CHUNKS, PHOTOS, World, copy_store, make_clip, teach_inline

from teachonce.errors import DataError, FingerprintError, UsageError
from teachonce.label_store import LabelStore
from teachonce.progress import Silent
from teachonce.stages.verify import VerifyRequest, VerifyResult, verify
from teachonce.store_format import LABELS

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
    found = again(finished, teacher, world.root)
    assert found.ok and found.exit_code == 0
    assert found.teacher["rows"] == PHOTOS and found.teacher["rows_wrong"] == 0
    assert found.teacher["least_overlap"] == 1.0 and found.teacher["worst_kl"] < 1e-3
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
    found = again(store, teacher, world.root)
    assert not found.ok and found.exit_code == 4
    assert any(words in fault.found for fault in found.faults), found.faults


def test_a_replaced_photo_is_found(world: World, teacher: str, finished: Path, tmp_path: Path) -> None:
    """Bytes changed inside the archive without changing its size: the row, its key, and what was expected."""
    root = tmp_path / "root"
    shutil.copytree(world.root, root)
    index = LabelStore.open(finished).index_of_chunk(0)
    archive = root / index.archives[int(index.archive[0])]
    content = bytearray(archive.read_bytes())
    content[int(index.offset[0]) + int(index.size[0]) // 2] ^= 0x55
    archive.write_bytes(bytes(content))
    found = again(finished, teacher, root)
    assert [index.key(0) in fault.where for fault in found.faults] == [True]
    assert "not the one that was taught" in found.faults[0].found or "decoded" in found.faults[0].found


def test_another_teacher_and_wrong_options_are_refused(
    world: World, teacher: str, student: str, finished: Path, tmp_path: Path
) -> None:
    """By the fields that differ; options that make no sense by what is missing."""
    with pytest.raises(FingerprintError, match="teacher_digest: stored"):
        again(finished, make_clip(tmp_path / "other", 9), world.root)
    with pytest.raises(UsageError, match="--root"):
        verify(VerifyRequest(labels=finished, teacher=teacher), Silent())
    with pytest.raises(UsageError, match="give --teacher"):
        verify(VerifyRequest(labels=finished, sample=4), Silent())
    with pytest.raises(UsageError, match="at least 1"):
        again(finished, teacher, world.root, sample=0)
    hard = tmp_path / "hard.zarr"
    teach_inline(world, hard, None, students=(student,))
    with pytest.raises(DataError, match="without a teacher"):
        again(hard, teacher, world.root)
