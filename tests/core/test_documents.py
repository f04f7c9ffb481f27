"""What is not whole is None, and a log gives its whole events: whatever a crash, a person or a full disk left."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from teachonce.core.documents import (
    DEPTH,
    WHOLE,
    LogSeal,
    cell_text,
    csv_bytes,
    fault_of,
    json_in,
    number,
    plain,
    read_events,
    read_log,
    read_object,
    read_toml,
    sealed,
    toml_in,
    visible,
)

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


DEEP = "[" * 100_000 + "]" * 100_000
FAR = "1" + "0" * 400
BEYOND = {
    "nested": (DEEP, "in one another"),
    "nested a little": ("[" * (DEPTH + 1) + "]" * (DEPTH + 1), "in one another"),
    "tables": ('{"a":' * 100 + "1" + "}" * 100, "in one another"),
    "digits": ("9" * 5000, "64 bits"),
    "digits of an int": (FAR, "64 bits"),
    "65 bits": (str(WHOLE), "64 bits"),
    "a float": ("1e999", "beyond all floats"),
    "Infinity": ("Infinity", "no JSON"),
    "not UTF-8": (b"\xff", "utf-8"),
    "long": ("1" * 11, "MiB"),
}


@pytest.mark.parametrize(("text", "word"), BEYOND.values(), ids=BEYOND)
def test_json_beyond_a_limit_is_refused_in_words(text: str | bytes, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        json_in(text, most_bytes=10 if len(text) == 11 else 1 << 20)


def test_json_within_the_limits_is_read() -> None:
    assert json_in("[" * DEPTH + "]" * DEPTH) and json_in(str(WHOLE - 1)) == WHOLE - 1 and json_in("1e300") == 1e300


@pytest.mark.parametrize(
    "text",
    [f"x = {DEEP}", "x = " + "9" * 5000, "x = 0x" + "f" * 400, "x = " + FAR, "a." * 1000 + "b = 1", b"\xff", "x = ="],
    ids=["nested", "digits", "hex", "digits of an int", "dotted", "not UTF-8", "no TOML"],
)
def test_toml_beyond_a_limit_is_refused(text: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"."):
        toml_in(text)
    (tmp_path / "x.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"."):
        read_toml(tmp_path / "x.toml")


def test_of_a_file_no_more_is_read_than_the_limit(tmp_path: Path) -> None:
    """A sparse file of 100 GB costs neither its size in memory nor in time."""
    with (tmp_path / "x.toml").open("wb") as file:
        file.truncate(100 << 30)
    with pytest.raises(ValueError, match="MiB"):
        read_toml(tmp_path / "x.toml")


def test_a_log_counts_its_damaged_lines_but_not_a_torn_one(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_text('{"event": "a", "step": 1}\n{"event": "b", "step": 1e300}\n\n' + DEEP + '\n{"event": "c"}\n{"ev')
    events, damaged = read_log(log)
    assert [event["event"] for event in events] == ["a", "c"] and damaged == 2


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("a\x9b31m\x7f\r\x00", r"a\x9b31m\x7f\x0d\x00"),
        ("\u202eabc\u2066\u200f\u2028", r"\u202eabc\u2066\u200f\u2028"),
        ("line\n\ttab, Ōkami 狼 🦊", "line\n\ttab, Ōkami 狼 🦊"),
    ],
)
def test_what_a_terminal_would_obey_is_made_visible(text: str, seen: str) -> None:
    assert visible(text) == seen == visible(seen)


FORMULAS = ("=1+1", "+x", "-x", "@cmd", "\t=x", "=cmd|' /C calc'!A0", "\uff1d1", "'=1", "''@x", "-", "\n=x")


def test_csv_holds_no_formula_and_gives_its_texts_back() -> None:
    plain_cells = ("fox", "'fox'", "-0.5", "+1e3", "0.5000", 'a "b", c')
    cells = [*FORMULAS, *plain_cells, -0.5, 3, None]
    (read,) = csv.reader(io.StringIO(csv_bytes([cells]).decode(), newline=""))
    assert [
        cell for cell in read if cell[:1] in set("=+-@\t\n\uff1d") and not re.fullmatch(r"[-+]?[\d.e]+", cell)
    ] == []
    texts = (*FORMULAS, *plain_cells)
    assert tuple(map(cell_text, read[: len(texts)])) == texts and read[len(texts) :] == ["-0.5", "3", ""]
