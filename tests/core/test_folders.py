"""A folder or a file appears whole or not at all, and what ends a block in between leaves nothing."""

from pathlib import Path

import pytest

from teachonce.core.files import whole_file
from teachonce.core.folders import new_folder, whole_folder
from teachonce.errors import EnvironmentFault, UsageError


def test_a_folder_appears_with_all_its_files_when_its_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with whole_folder(out) as draft:
        (draft / "file").write_text("here")
        assert draft.parent == out.parent and draft.name.startswith(".out.") and not out.exists()
    assert (out / "file").read_text() == "here" and list(out.parent.iterdir()) == [out]


def test_a_folder_whose_block_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "out") as draft:
        (draft / "file").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_left_under_the_drafts_name_is_no_part_of_the_folder(tmp_path: Path) -> None:
    draft = tmp_path / "out.building-7"
    draft.mkdir()
    (draft / "old").write_text("left")
    with whole_folder(tmp_path / "out", draft):
        (draft / "new").write_text("")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["new"]


def test_the_last_check_makes_room_or_stops_the_folder(tmp_path: Path) -> None:
    def refuse(out: Path) -> None:
        raise UsageError(f"{out} is taken")

    with pytest.raises(UsageError, match="is taken"), whole_folder(tmp_path / "out", last=refuse):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("")
    with whole_folder(tmp_path / "out", last=lambda out: (out / "old").unlink()):
        pass
    assert list((tmp_path / "out").iterdir()) == []


def test_a_new_folder_never_takes_the_place_of_what_came_meanwhile(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="not empty"), new_folder(out):
        out.mkdir()
        (out / "theirs").write_text("kept")
    assert (out / "theirs").read_text() == "kept" and list(tmp_path.iterdir()) == [out]


def test_a_new_folder_that_cannot_be_written_is_an_environment_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot write"), new_folder(tmp_path / "file" / "out"):
        pass


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError), whole_file(path) as partial:  # noqa: PT011 - any
        partial.write_text("half")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with whole_file(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
