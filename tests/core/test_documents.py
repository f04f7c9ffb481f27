"""What is not whole is None, and a log gives its whole events: whatever a crash, a person or a full disk left."""

import json
from pathlib import Path
from typing import Any

import pytest

from teachonce.core.documents import LogSeal, fault_of, number, plain, read_events, read_object, sealed

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


def test_a_document_that_was_changed_is_none_and_its_fault_is_said(tmp_path: Path) -> None:
    """Every flipped bit; one without a digest, as early versions wrote it, is read as it is."""
    file = tmp_path / "file.json"
    written = json.dumps(sealed({"schema": 1, "top1": 0.5, "of": ["\u00e4", None, float("nan")], "n": 3})).encode()
    file.write_bytes(written)
    assert fault_of(file) == "" and read_object(file, 1) is not None
    unseen = []
    for place in range(len(written) * 8):
        flipped = bytearray(written)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        document = read_object(file)
        if document is not None and {key: document.get(key) for key in ("top1", "n")} != {"top1": 0.5, "n": 3}:
            unseen.append(place)
        assert (fault_of(file) == "") == (document is not None)
    assert not unseen
    file.write_text('{"schema": 1, "top1": 0.25}')
    assert fault_of(file) == "" and read_object(file, 1) is not None
    assert fault_of(tmp_path / "nothing.json") == ""


def test_a_log_is_sealed_by_what_was_there_when_it_ended(tmp_path: Path) -> None:
    """Lines may follow; a changed, cut or lost one is seen; without a seal nothing can be said."""
    log = tmp_path / "events.jsonl"
    assert LogSeal.of(log).holds(log) and LogSeal().holds(log)
    log.write_bytes(b"one\ntwo\n")
    seal = LogSeal.of(log)
    log.write_bytes(b"one\ntwo\nthree\n")
    assert seal.holds(log)
    for damaged in (b"one\ntwp\n", b"one\n", b"two\none\n", b""):
        log.write_bytes(damaged)
        assert not seal.holds(log) and LogSeal().holds(log)
    log.unlink()
    assert not seal.holds(log)
