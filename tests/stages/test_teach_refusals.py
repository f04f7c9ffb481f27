"""teach refuses: a wrong option, unreadable data or a second writer, before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import worlds
from worlds import World, request_for, teach_inline

from teachonce.core.progress import Silent
from teachonce.errors import DataError, IncompleteError, UsageError
from teachonce.stages.teach import teach


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 0}, "`workers` must be at least 1"),
        ({"batch_size": 0}, "batch_size must"),
        ({"top_k": 0}, "`top_k`"),
        ({"chunk_rows": 0}, "`chunk_rows`"),
        ({"threads": 0}, "threads must"),
        ({"max_failed_share": 1.5}, "between 0 and 1"),
        ({"teacher": None}, "nothing to compute"),
        ({"labels": Path("x")}, r"ends in \.zarr"),
        ({"top_k": 9}, "`top_k` 9 is larger than the vocabulary of 8 classes"),
        ({"split": "trian"}, "did you mean 'train'"),
        ({"root": None}, "needs the folder"),
        ({"manifest": "local-tarz"}, "did you mean"),
        ({"vocabulary": "timm:imagenet22"}, "did you mean"),
        ({"templates": ("no hole",)}, "exactly one"),
        ({"teacher": "local-dir:/nowhere"}, "open_clip_config.json"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_written(
    change: dict[str, Any], message: str, world: World, teacher: str, tmp_path: Path
) -> None:
    """Exit 2 with the option; no store, no lock is left."""
    with worlds.inline_tasks(), pytest.raises(UsageError, match=message):
        teach(request_for(world, **{"labels": tmp_path / "a.zarr", "teacher": teacher, **change}), Silent())
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_root_fails_at_once(world: World, teacher: str, tmp_path: Path) -> None:
    """Exit 3, before any store is made."""
    for root in (tmp_path / "gone", tmp_path):
        with worlds.inline_tasks(), pytest.raises(DataError):
            teach(request_for(world, tmp_path / "a.zarr", teacher, root=root), Silent())
    assert list(tmp_path.iterdir()) == []


def test_a_second_writer_is_refused(world: World, teacher: str, finished: Path, tmp_path: Path) -> None:
    """Exit 5 with the owner; the first run goes on undisturbed."""
    from teachonce.core.locks import owned, require_token

    store = worlds.copy_store(finished, tmp_path)
    with owned(store, Silent()) as token:
        with pytest.raises(IncompleteError, match="is being written by process"):
            teach_inline(world, store, teacher, top_k=5)
        require_token(store, token)


def test_data_that_cannot_be_read_at_all_makes_no_store(
    world: World, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails from the start on: exit 3 that names the archive, before anything is written."""

    def failing(*_: Any) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.pread", failing)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(DataError, match=r"the first image cannot be read: .*Input/output error.*part-0\.tar"):
        teach_inline(world, tmp_path / "a.zarr", teacher, top_k=5)
    assert not (tmp_path / "a.zarr").exists()
