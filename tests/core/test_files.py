"""Whole files or none; what is no plain file is not replaced by one."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from teachonce.core.files import atomic_write_bytes
from teachonce.errors import EnvironmentFault


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """The file behind it is replaced, and nothing else is left in the folder."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "table.csv").write_bytes(b"old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real" / "table.csv")
    atomic_write_bytes(tmp_path / "link.csv", b"new")
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "real" / "table.csv").read_bytes() == b"new"
    assert sorted(item.name for item in tmp_path.rglob("*")) == ["link.csv", "real", "table.csv"]


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    """As are devices, which root could replace."""
    pipe, seen = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: seen.append(pipe.read_bytes()))
    reader.start()
    atomic_write_bytes(pipe, b"through")
    reader.join(10)
    assert seen == [b"through"] and pipe.is_fifo()


def test_a_folder_is_refused(tmp_path: Path) -> None:
    """Nothing of it is touched."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(EnvironmentFault, match="cannot write"):
        atomic_write_bytes(tmp_path / "folder", b"x")
    assert (tmp_path / "folder").is_dir() and [item.name for item in tmp_path.iterdir()] == ["folder"]
