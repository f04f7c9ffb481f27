"""relabel: wrong options, class files, paths and owners are refused, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import worlds
from worlds import PHOTOS, World, teach_inline

from teachonce.core.progress import Silent
from teachonce.errors import DataError, IncompleteError, UsageError
from teachonce.stages.relabel import RelabelRequest, RelabelResult, relabel


@pytest.fixture(scope="module")
def parent(world: World, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels and embeddings in two chunks; never change it."""
    path = tmp_path_factory.mktemp("relabel-refused") / "parent.zarr"
    teach_inline(world, path, teacher, top_k=5, embeddings="int8", chunk_rows=35)
    return path


def run(parent: Path, labels: Path, **options: Any) -> RelabelResult:
    """Run `relabel` in this process; nothing waits for the disk."""
    with worlds.inline_tasks():
        return relabel(RelabelRequest(parent=parent, labels=labels, **options), Silent())


def test_a_child_that_another_host_holds(parent: Path, tmp_path: Path) -> None:
    """Refused until --force-unlock says that its run is dead."""
    lock = tmp_path / "child.zarr.lock"
    lock.write_text('{"host": "elsewhere", "pid": 1, "started": 0.0, "token": 1}')
    with pytest.raises(IncompleteError, match="process 1 on elsewhere"):
        run(parent, tmp_path / "child.zarr", top_k=2)
    assert run(parent, tmp_path / "child.zarr", top_k=2, force_unlock=True).rows_ok == PHOTOS
    assert not lock.exists()


def test_a_parent_without_embeddings_is_refused(finished: Path, tmp_path: Path) -> None:
    """Exit 3 with the way to add them."""
    with pytest.raises(DataError, match="holds no image features of its teacher") as caught:
        run(finished, tmp_path / "child.zarr")
    assert "`embeddings` int8" in caught.value.hint and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 0}, "`top_k` must be at least 1"),
        ({"top_k": 9}, "`top_k` 9 is larger than the vocabulary of 8"),
        ({"temperatures": (2.0, 4.0)}, "must begin with 1"),
        ({"temperatures": (1.0, 2.0, 2.0)}, "name each once"),
        ({"temperatures": ()}, "must begin with 1"),
        ({"temperatures": (1.0, 0.0)}, "positive"),
        ({"temperatures": (1.0, float("nan"))}, "positive"),
        ({"templates": ("no hole",)}, "exactly one"),
        ({"templates": ()}, "at least one template"),
        ({"labels": Path("x")}, r"ends in \.zarr"),
        ({"teacher": "nonsense"}, "is not a model"),
        ({"threads": 0}, "threads"),
        ({"vocabulary": "timm:imagenet22"}, "did you mean"),
        ({}, "nothing to change"),
        ({"top_k": 5, "temperatures": (1.0, 2.0, 4.0), "templates": (worlds.TEMPLATE,)}, "nothing to change"),
    ],
)
def test_a_wrong_option_is_refused(change: dict[str, Any], message: str, parent: Path, tmp_path: Path) -> None:
    """Exit 2 with the option; nothing is written."""
    given: dict[str, Any] = {"labels": tmp_path / "child.zarr", **change}
    with pytest.raises(UsageError, match=message):
        run(parent, **given)
    assert list(tmp_path.iterdir()) == []


def test_class_files_and_paths_that_do_not_fit(parent: Path, tmp_path: Path) -> None:
    """Unknown, doubled and missing classes, a missing file, the parent itself."""
    for text, message in (
        ("n01\nn99\n", "1 class ids are not in the vocabulary"),
        ("n01\nn01\n", "comes 2 times"),
        ("\n", "names no class"),
    ):
        (tmp_path / "some.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            run(parent, tmp_path / "child.zarr", classes=tmp_path / "some.txt")
    with pytest.raises(DataError, match="cannot read the class file"):
        run(parent, tmp_path / "child.zarr", classes=tmp_path / "none.txt")
    with pytest.raises(UsageError, match="is the store to read"):
        run(parent, parent.parent / "." / parent.name)
