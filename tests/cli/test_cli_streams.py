"""What is said costs the work nothing: stderr may be closed, full or slow; any encoding and any width will do."""

from __future__ import annotations

import io
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from teachonce.cli import streams
from teachonce.cli.console import Records
from teachonce.core.documents import SHOWN


def text_on(raw: io.FileIO, encoding: str = "utf-8") -> io.TextIOWrapper:
    """A text stream as `prepare` makes them."""
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, SHOWN, line_buffering=True)


def test_a_full_disk_and_a_reader_that_has_gone_lose_what_is_said_and_nothing_else() -> None:
    read, write = os.pipe()
    os.close(read)
    with open("/dev/full", "wb", buffering=0) as full:
        for number in (full.fileno(), write):
            aside = text_on(streams.Asides(number))
            aside.write("said in vain\n")
            aside.flush()
    os.close(write)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_stops_reading_stops_no_work(blocking: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause is waited for once; then lines are lost, until somebody reads on."""
    monkeypatch.setattr(streams, "PATIENCE_S", 0.2)
    read, write = os.pipe()
    os.set_blocking(write, blocking)
    aside, began = text_on(streams.Asides(write)), time.monotonic()
    for _ in range(50):
        aside.write("x" * 9999 + "\n")
    assert time.monotonic() - began < 5
    while len(os.read(read, 1 << 20)) == 1 << 16:
        pass
    aside.write("heard again\n")
    assert os.read(read, 1 << 20).endswith(b"heard again\n")
    os.close(read)
    os.close(write)


def test_a_result_waits_for_a_slow_reader_of_a_pipe_that_refuses_to_wait() -> None:
    """Other programs set a pipe that they share with us so: `EAGAIN` is no loss of the result."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    taken: list[bytes] = []

    def read_slowly() -> None:
        time.sleep(0.1)
        while block := os.read(read, 1 << 15):
            taken.append(block)

    reader = threading.Thread(target=read_slowly)
    reader.start()
    result = text_on(streams.Results(write))
    result.write("x" * 200_000)
    result.flush()
    os.close(write)
    reader.join()
    os.close(read)
    assert len(b"".join(taken)) == 200_000


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_letter_that_an_encoding_lacks_is_escaped(encoding: str, tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb", buffering=0) as file:
        stream = text_on(streams.Results(file.fileno()), encoding)
        stream.write(os.fsdecode(b"a\xe9 \xe7\x8c\xab") + " ██▲\n")
        stream.flush()
    assert (tmp_path / "out").read_bytes() == b"a\\xe9 \\u732b ##^\n"


def test_a_process_ends_with_its_own_exit_code_whatever_stderr_is(stubbed_command: list[str]) -> None:
    """On a full disk, in ASCII, in a C locale."""
    env = {
        **os.environ,
        "PYTHONIOENCODING": "ascii",
        "LANG": "C",
        "LC_ALL": "C",
        "STUB_ACT": "progress",
        "COLUMNS": "40",
    }
    for line, code in (("demo", 0), ("nonsense", 2)):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*stubbed_command, line], stdout=subprocess.PIPE, stderr=full, env=env, text=True, timeout=60
            )
        assert done.returncode == code and done.stdout.isascii()


def test_a_narrow_screen_shows_every_figure_whole() -> None:
    """Where a table of many columns would cut words, records stand one below the other."""
    rows = [{f"column_{i}": 123456789 + i for i in range(9)}, {"column_0": "é" * 60}]
    for width, is_table in ((40, False), (160, True)):
        console = Console(width=width, file=io.StringIO(), color_system=None)
        with console.capture() as captured:
            console.print(Records("many figures", rows))
        shown = captured.get()
        assert max(map(len, shown.splitlines())) <= width
        assert all(f"{123456789 + i:,}" in shown for i in range(9)) and shown.count("é") == 60
        assert ("│" in shown) == is_table
