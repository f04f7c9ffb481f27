"""What is not whole is None, and a log gives its whole events: whatever a crash, a person or a full disk left."""

from pathlib import Path
from typing import Any

import pytest

from teachonce.core.documents import number, plain, read_events, read_object

DAMAGED = [b"", b'{"schema": 1', b"\xff\xfe", b"[1]", b"null", b'{"x": NaN}', b"[" * 100_000]


@pytest.mark.parametrize("data", DAMAGED, ids=range(len(DAMAGED)))
def test_what_is_not_a_whole_object_is_none(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(data)
    assert read_object(tmp_path / "file.json") is None


def test_an_object_is_read_if_it_has_the_schema_that_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    assert read_object(file) is None and read_object(tmp_path) is None
    file.write_text('{"schema": 1}')
    assert read_object(file) == read_object(file, schema=1) == {"schema": 1}
    assert read_object(file, schema=2) is None


def test_a_log_gives_its_whole_events(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    assert read_events(log) == []
    log.write_text('{"event": "a"}\n[1]\n{"x": 1}\n{"event": 3}\n{"event": "b", "time": 2}\n{"event": "c", "ti')
    assert [event["event"] for event in read_events(log)] == ["a", "b"]
    assert [event["event"] for event in read_events(log, live=True)] == ["b"], "without a time it does not count"


def test_a_log_that_is_no_text_is_an_error_except_to_who_only_looks(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_bytes(b'\xff\n{"event": "b", "time": 2}\n')
    with pytest.raises(UnicodeDecodeError):
        read_events(log)
    assert len(read_events(log, live=True)) == 1
    with pytest.raises(OSError, match="directory"):
        read_events(tmp_path)
    assert read_events(tmp_path, live=True) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0.0), (2.5, 2.5), (True, None), ("1", None), (None, None), (float("nan"), None), (float("-inf"), None)],
)
def test_only_finite_numbers_are_numbers(value: Any, expected: float | None) -> None:
    assert number(value) == expected
    assert number(10**400) is None


def test_plain_values_are_jsons_own() -> None:
    given = {1: (Path("a"), float("inf"), True), "b": {"c": None}}
    assert plain(given) == {"1": ["a", None, True], "b": {"c": None}}
