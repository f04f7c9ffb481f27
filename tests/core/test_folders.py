"""A folder or a file appears whole or not at all, and what ends a block in between leaves nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from worlds import Notes

from teachonce.core.files import drafts, new_folder, whole_file, whole_folder
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


def leave(folder: Path, name: str) -> Path:
    """A draft as a killed process leaves it: nobody holds its lock."""
    draft = folder / name
    draft.mkdir()
    (draft / "half").write_text("made")
    return draft


@pytest.mark.parametrize("name", [".out.4194304-0011aabb.partial", ".out.4194304.partial"])
def test_what_a_killed_process_left_goes_when_its_place_is_written_next(name: str, tmp_path: Path) -> None:
    """Of this version and of earlier ones; a folder as well as a file, and that is said."""
    notes = Notes()
    left = leave(tmp_path, name)
    with new_folder(tmp_path / "out", notes) as draft:
        (draft / "file").write_text("")
    assert os.listdir(tmp_path) == ["out"] and notes.lines == [
        f"removed {left}, which a process that was killed had left half made"
    ]
    left.write_text("half")
    with whole_file(tmp_path / "out" / "file", reporter=notes) as partial:
        partial.write_text("other name")
    assert left.exists(), "a draft of another place"
    (tmp_path / "out" / "file").unlink()
    (tmp_path / "out").rmdir()
    with whole_file(tmp_path / "out", reporter=notes) as partial:
        partial.write_text("now a file")
    assert os.listdir(tmp_path) == ["out"] and len(notes.lines) == 2


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    """Its draft is held; one of an earlier version, which holds nothing, is known by the number of its process."""
    earlier = leave(tmp_path, f".out.{os.getpid()}.partial")
    foreign = leave(tmp_path, ".out.notes.partial")
    notes = Notes()
    with whole_folder(tmp_path / "out") as first:
        with whole_folder(tmp_path / "out", reporter=notes) as second:
            assert first != second and first.is_dir() and drafts(tmp_path) == []
        (tmp_path / "out").rmdir()
    assert notes.lines == [] and earlier.is_dir() and foreign.is_dir()


def test_a_draft_is_taken_for_dead_only_when_its_process_is(tmp_path: Path) -> None:
    """The system frees the lock of a process that is killed."""
    code = (
        "import sys; from pathlib import Path; from teachonce.core.files import whole_folder\n"
        "with whole_folder(Path(sys.argv[1])) as draft: print(draft, flush=True); input()"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    draft = Path(writer.stdout.readline().strip())
    assert draft.is_dir() and drafts(tmp_path) == []
    writer.kill()
    writer.communicate()
    assert drafts(tmp_path) == [draft] and drafts(tmp_path, "other") == []
