"""What somebody names or sends is opened only where it is a plain file; headers of tensors are not believed."""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from teachonce.core.documents import read_events, read_json
from teachonce.core.outside import TensorSpec, open_plain, read_plain, tensor_header
from teachonce.objects.remote import read_bytes


def test_pipes_devices_sockets_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    for name, kind in {"pipe": "pipe", "link": "pipe", "socket": "socket", "/dev/zero": "device"}.items():
        for read in (open_plain, lambda file: read_plain(file, 10), read_bytes):
            with pytest.raises(OSError, match=f"a {kind} and no plain file"):
                read(tmp_path / name)
        assert read_json(tmp_path / name) is None
        assert read_events(tmp_path / name, live=True) == []
    listener.close()
    with pytest.raises(IsADirectoryError):
        open_plain(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_plain(tmp_path / "gone")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "x/" * 40_000])
def test_a_name_that_no_file_system_takes_is_a_file_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(OSError):  # noqa: PT011 - whatever the system says
        open_plain(tmp_path / name)


def test_no_more_is_read_than_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_plain(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="more than the 4 bytes"):
        read_plain(tmp_path / "file", 4)


def test_links_stay_inside_a_folder_from_outside(tmp_path: Path) -> None:
    (tmp_path / "box").mkdir()
    (tmp_path / "secret").write_text("s")
    (tmp_path / "box" / "file").write_text("f")
    (tmp_path / "box" / "in").symlink_to("file")
    (tmp_path / "box" / "out").symlink_to("../secret")
    assert read_plain(tmp_path / "box" / "in", 9, inside=tmp_path / "box") == b"f"
    with pytest.raises(OSError, match="leads out"):
        read_plain(tmp_path / "box" / "out", 9, inside=tmp_path / "box")


SOUND: dict[str, Any] = {
    "b": {"dtype": "F16", "shape": [3], "data_offsets": [8, 14]},
    "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
    "__metadata__": {"step": "1"},
}


def write(file: Path, header: Any, data: int = 14, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))


def test_a_sound_header_tells_types_and_shapes(tmp_path: Path) -> None:
    write(tmp_path / "f", SOUND)
    assert tensor_header(tmp_path / "f") == {"a": TensorSpec("F32", (2, 1)), "b": TensorSpec("F16", (3,))}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}, "begins at byte"),
        ({"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}, "not what its shape takes"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "is none"),
        ({"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}, "is none"),
        ({"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}, "is none"),
        ({"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}, "is not read"),
        ({"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}, "is not read"),
        ({"dtype": "F32", "shape": [2]}, "not that of a tensor"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "begins at byte"),
        (7, "not that of a tensor"),
    ],
)
def test_a_header_that_does_not_fill_its_file_is_refused(entry: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path / "f", SOUND | {"a": entry})
    with pytest.raises(ValueError, match=message):
        tensor_header(tmp_path / "f")


@pytest.mark.parametrize(
    ("header", "data", "length", "message"),
    [
        (SOUND, 14, 2**63, "shorter than its header says"),
        (SOUND, 15, None, "ends? at byte 14"),
        (SOUND, 13, None, "ends? at byte 14"),
        (b"[1]", 0, None, "no table"),
        (b"[" * 100_000, 0, None, "no JSON"),
        (b"\xff", 0, None, "no JSON"),
    ],
)
def test_a_header_that_is_none_is_refused(
    header: Any, data: int, length: int | None, message: str, tmp_path: Path
) -> None:
    write(tmp_path / "f", header, data, length)
    with pytest.raises(ValueError, match=message):
        tensor_header(tmp_path / "f")
