"""Every way to fail: its exit code, what a person reads, what a program reads.

Stages are stubs that fail on request.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stage_stubs

from teachonce import errors
from teachonce.cli.app import Terminated, describe
from teachonce.phrases import option, phrase

Command = Callable[..., Any]

EXPLAINED = [
    (errors.UsageError, 2),
    (errors.UnsupportedModelError, 2),
    (errors.DataError, 3),
    (errors.IntegrityError, 4),
    (errors.FingerprintError, 4),
    (errors.IncompleteError, 5),
    (errors.EnvironmentFault, 6),
    (errors.TeachOnceError, 1),
]


@pytest.mark.parametrize(("kind", "code"), EXPLAINED)
def test_an_explained_error(
    kind: type[errors.TeachOnceError], code: int, teachonce_here: Command, stubs: stage_stubs.Stubs
) -> None:
    stubs.problem = kind("chunk 3 of [x] differs", "teachonce verify x.zarr")
    ended = teachonce_here("inspect", "x.zarr")
    assert (ended.code, ended.out) == (code, "")
    assert ended.err == "error: chunk 3 of [x] differs\nnext: teachonce verify x.zarr\n"
    ended = teachonce_here("inspect", "x.zarr", "--json")
    assert ended.code == code
    assert ended.document == {
        "schema": 1,
        "command": "inspect",
        "error": {
            "kind": kind.__name__,
            "message": "chunk 3 of [x] differs",
            "hint": "teachonce verify x.zarr",
            "exit_code": code,
        },
    }


def test_options_that_the_library_names_are_flags_here(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    """In message and hint, for a person and in the document for a program."""
    stubs.problem = errors.UsageError(
        option("top_k") + " 5 is too many", hint=phrase("{another out}, or add {tail=none}; see {help}")
    )
    message, hint = "--top-k 5 is too many", "give another --out, or add --set tail=none; see --help"
    assert teachonce_here("inspect", "x.zarr").err == f"error: {message}\nnext: {hint}\n"
    error = teachonce_here("inspect", "x.zarr", "--json").document["error"]
    assert (error["message"], error["hint"]) == (message, hint)


@pytest.mark.parametrize(
    ("problem", "code", "word"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/disk/x.zarr"), 5, "/disk/x.zarr"),
        (PermissionError(errno.EACCES, "Permission denied", "/disk/x.zarr"), 6, "/disk/x.zarr"),
        (OSError(errno.EROFS, "Read-only file system", "/disk/x.zarr"), 6, "/disk/x.zarr"),
        (ModuleNotFoundError("No module named 'zarr'", name="zarr"), 6, "'zarr'"),
        (ModuleNotFoundError("No module named 'teachonce.gone'", name="teachonce.gone"), 1, "TEACHONCE_DEBUG=1"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/gone"), 6, "/gone"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/file/x"), 6, "/file/x"),
        (FileNotFoundError("without a name"), 1, "TEACHONCE_DEBUG=1"),
        (ValueError("shapes differ"), 1, "ValueError: shapes differ"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 6, "broken pipe"),
        (OSError(errno.EMFILE, "Too many open files", "/a"), 6, "ulimit -n"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "/a"), 6, "circle"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/a"), 6, "shorter"),
        (OSError(errno.EIO, "Input/output error", "/a"), 6, "dmesg"),
        (OSError(errno.ESTALE, "Stale file handle", "/a"), 6, "dmesg"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 6, "memory"),
        (MemoryError("Unable to allocate 9 GiB"), 6, "9 GiB"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 6, "memory"),
        (TimeoutError(), 6, "in time"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), 6, "network"),
        (RuntimeError("Could not determine home directory."), 6, "TEACHONCE_CACHE"),
        (ValueError("embedded null byte"), 2, "zero byte"),
        (UnicodeEncodeError("utf-8", "a\ud800", 1, 2, "surrogates not allowed"), 2, "no file system takes"),
        (ImportError("libx.so.1: cannot open shared object file", name="pyarrow.lib"), 6, "teachonce[parquet]"),
        (ModuleNotFoundError("No module named 'obstore'", name="obstore"), 6, "teachonce[s3]"),
        (ModuleNotFoundError("No module named 'dask_cuda'", name="dask_cuda"), 6, "teachonce[cuda]"),
        (ModuleNotFoundError("No module named 'pillow_heif'", name="pillow_heif"), 6, "pip install pillow_heif"),
        (RuntimeError("shapes differ"), 1, "TEACHONCE_DEBUG=1"),
        (RecursionError("maximum recursion depth exceeded"), 1, "TEACHONCE_DEBUG=1"),
        (EOFError(), 1, "EOFError"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "SIGTERM"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_an_error_that_no_stage_explained(
    problem: BaseException, code: int, word: str, teachonce_here: Command, stubs: stage_stubs.Stubs
) -> None:
    stubs.problem = problem
    ended = teachonce_here("inspect", "x.zarr", "--json")
    assert ended.code == code
    assert ended.document["error"]["exit_code"] == code
    assert word in ended.err
    assert "Traceback" not in ended.err


def unreadable() -> dict[str, Callable[[], object]]:
    """What makes a library raise, by the library's name."""
    import io
    import json
    import tarfile
    import tomllib
    import zipfile

    import safetensors.torch
    from PIL import Image

    return {
        "PIL": lambda: Image.open(io.BytesIO(b"no image")),
        "safetensors": lambda: safetensors.torch.load(b"no tensors"),
        "json.decoder": lambda: json.loads("["),
        "tomllib": lambda: tomllib.loads("="),
        "tarfile": lambda: tarfile.open(fileobj=io.BytesIO(b"x" * 600)),
        "zipfile": lambda: zipfile.ZipFile(io.BytesIO(b"x")),
    }


@pytest.mark.parametrize("library", ["PIL", "safetensors", "json.decoder", "tomllib", "tarfile", "zipfile"])
def test_what_a_library_raises_over_its_input_is_no_bug_of_ours(library: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011, B017 - each library has its own
        unreadable()[library]()
    failure = describe(caught.value)
    assert failure.exit_code == 3 and library.partition(".")[0] in failure.message and "bug" not in failure.hint


def test_debug_shows_the_traceback(
    teachonce_here: Command, stubs: stage_stubs.Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHONCE_DEBUG", "1")
    stubs.problem = ValueError("shapes differ")
    ended = teachonce_here("inspect", "x.zarr", "--json")
    assert "Traceback" in ended.err
    assert ended.document["error"]["kind"] == "ValueError"


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (("inspect", "--json"), "inspect"),
        (("teach", "m.toml", "--json"), "teach"),
        (("eval", "--json", "--student", "S"), "evaluate"),
        (("train", "--json", "x.zarr"), "train"),
        (("teach", "m.toml", "--labels", "x", "--top-k", "0", "--json"), "teach"),
        (("teach", "m.toml", "--labels", "x", "--set", "batch_size=0", "--json"), "teach"),
        (("teach", "m.toml", "--labels", "x", "--set", "batch_size", "--json"), "teach"),
        (("nonsense", "--json"), None),
    ],
)
def test_usage_errors_are_documents_too(line: tuple[str, ...], command: str | None, teachonce_here: Command) -> None:
    ended = teachonce_here(*line)
    assert ended.code == 2
    assert ended.document["command"] == command
    assert ended.document["error"]["kind"] == "UsageError"
    assert ended.document["error"]["message"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_unwinds_the_stage(
    number: signal.Signals, code: int, stubbed_command: list[str], tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    process = subprocess.Popen(
        [*stubbed_command, "inspect", "x.zarr", "--json"],
        env={**os.environ, "STUB_ACT": "sleep", "STUB_MARK": str(mark)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a signal to the test run itself must not reach it twice
    )
    with process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "sleeping\n"
            process.send_signal(number)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == code
    assert mark.read_text() == "cleaned up", "`finally` of the stage must have run"
    assert f'"exit_code": {code}' in out
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("line", "code"), [("inspect x.zarr --json", 6), ("inspect x.zarr", 6), ("nonsense --json", 2)]
)
def test_a_full_stdout_is_said(line: str, code: int, stubbed_command: list[str]) -> None:
    """The work is done and its result is lost: that is an error, and one without a traceback."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*stubbed_command, *line.split()], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == code and done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert code != 6 or "standard output" in done.stderr


@pytest.mark.parametrize("numbers", [[1], [2], [0, 1, 2]])
def test_closed_streams_are_no_error(numbers: list[int], stubbed_command: list[str]) -> None:
    """As `>&-` leaves them; nothing that the command opens takes their place."""

    def close() -> None:
        for number in numbers:
            os.close(number)

    command = [*stubbed_command, "inspect", "x.zarr"]
    assert subprocess.run(command, preexec_fn=close, stdout=subprocess.DEVNULL, timeout=60).returncode == 0


@pytest.mark.parametrize(("line", "code"), [("--help", 0), ("train --help", 0), ("nonsense", 2)])
def test_nobody_has_to_read_what_is_said(line: str, code: int, stubbed_command: list[str]) -> None:
    """`--help | head -1`; an error whose reader has gone keeps its exit code."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([*stubbed_command, *line.split()], stdout=write, stderr=write, timeout=60)
    finally:
        os.close(write)
    assert done.returncode == code


def test_a_reader_that_leaves_early_is_no_error(stubbed_command: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)  # what `| head -0` does
    try:
        done = subprocess.run(
            [*stubbed_command, "demo", "--json"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "line",
    [
        ("evaluate", "--student", "A", "--student", "B", "--manifest", "m"),
        ("evaluate", "--student=A", "--manifest", "m", "--manifest", "m"),
        ("train", "x.zarr", "--student", "S", "--out", "a", "--out", "b"),
        ("teach", "m.toml", "--labels", "x.zarr", "--top-k", "5", "--top-k", "6"),
        ("merge", "a.zarr", "b.zarr", "--labels", "c.zarr", "--weights", "1,0", "--weights", "0,1"),
        ("evaluate", "--student", "A", "--manifest", "m", "--set", "threads=1", "--set", "threads=2"),
        (
            "train",
            "x.zarr",
            "--student",
            "S",
            "--out",
            "a",
            "--set",
            "learning_rate=1",
            "--set",
            "optimiser.learning_rate=2",
        ),
    ],
)
def test_a_value_that_would_be_dropped_is_refused(line: tuple[str, ...], teachonce_here: Command) -> None:
    """Options with one value, and keys of --set."""
    ended = teachonce_here(*line)
    assert ended.code == 2 and "only one" in ended.err and "next: give" in ended.err


def test_options_that_take_several_values_take_them_all(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    """A flag that is repeated says the same twice."""
    line = ("evaluate", "--student", "S", "--manifest", "m", "--template", "a {}", "--template", "b {}")
    assert teachonce_here(*line, "--json", "--json").code == 0
    assert stubs.requests[-1].entrant.templates == ("a {}", "b {}")
