"""A store that a stranger forged, every digest computed anew, is refused in a moment; what others add does no harm."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from worlds import Notes, synthetic_store

from teachonce.core.digests import canonical_digest
from teachonce.errors import DataError, IntegrityError
from teachonce.labels.create import add_student
from teachonce.labels.format import LABELS
from teachonce.labels.store import LabelStore
from teachonce.stages.verify import VerifyRequest, verify

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        return synthetic_store(tmp_path_factory.mktemp("sound") / "a.zarr", rows=40, chunk_rows=10)[0].path


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "a.zarr"))


def change(store: Path, name: str, how: Change) -> None:
    """Change a metadata file of a store."""
    file = store / name / "zarr.json"
    document = json.loads(file.read_text())
    how(document)
    file.write_text(json.dumps(document))


def seal(store: Path, more: dict[str, str] | None = None) -> None:
    """Compute the header anew, as whoever forges a store does; `more` are further names in it."""

    def renew(document: dict[str, Any]) -> None:
        header = document["attributes"]["header"]
        files = {n: hashlib.sha256((store / n).read_bytes()).hexdigest() for n in header["files"]}
        body = {"files": files | (more or {}), "arrays": header["arrays"]}
        document["attributes"]["header"] = {**body, "digest": canonical_digest(body)}

    change(store, "ledger", renew)


LAYOUTS: dict[str, Change] = {
    **{
        f"{key} {value}": lambda t, key=key, value=value: t["layout"].update({key: value})  # type: ignore[misc]
        for key, value in [
            ("rows", 0), ("rows", 10**12), ("rows", 10**400), ("rows", 41), ("chunk_rows", 0), ("chunk_rows", 1),
            ("chunk_rows", -10), ("views", 0), ("views", 2), ("views", -1), ("views", 3), ("classes", 0),
            ("classes", 13), ("top_k", 9), ("top_k", 0), ("top_k", -1), ("top_k", 10**9), ("temperatures", []),
            ("temperatures", [0.0]), ("temperatures", "warm"), ("fidelity_rows", 10**9), ("fidelity_k", [4, 1]),
            ("rows", True), ("rows", 40.5), ("rows", None), ("surplus", 1),
        ]
    },
    "layout a list": lambda t: t.update(layout=[1]),
    "layout missing": lambda t: t.pop("layout"),
    "layout empty": lambda t: t.update(layout={}),
    "fingerprint a list": lambda t: t.update(fingerprint=[1, 2]),
    "fingerprint missing": lambda t: t.pop("fingerprint"),
    "about a word": lambda t: t["fingerprint"].update(about="x"),
    "scale a word": lambda t: t["fingerprint"].update(logit_scale="x"),
    "version a list": lambda t: t.update(version=[3]),
}  # fmt: skip


@pytest.mark.parametrize("how", LAYOUTS)
def test_a_layout_that_contradicts_the_arrays_is_refused(how: str, store: Path) -> None:
    change(store, "", lambda document: LAYOUTS[how](document["attributes"]["teachonce"]))
    seal(store)
    with pytest.raises((IntegrityError, DataError), match="a.zarr") as caught:
        LabelStore.open(store)
    assert isinstance(caught.value, IntegrityError) or "0" * 400 in how, "a number beyond JSON's limits is no metadata"


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
ARRAYS: dict[str, tuple[str, Change]] = {
    "zstd": ("gaps", lambda d: d.update(codecs=[BYTES, {"name": "zstd", "configuration": {"level": 3}}])),
    "a codec that runs code": ("gaps", lambda d: d.update(codecs=[{"name": "numcodecs.pickle"}])),
    "no checksum": ("gaps", lambda d: d["codecs"].pop()),
    "codecs a word": ("gaps", lambda d: d.update(codecs="none")),
    "another compressor": ("gaps", lambda d: d["codecs"][1]["configuration"].update(cname="lz4")),
    "shards": ("gaps", lambda d: d.update(codecs=[{"name": "sharding_indexed", "configuration": {}}])),
    "more rows than the layout": ("gaps", lambda d: d.update(shape=[10**9, 4])),
    "a ledger of 10^9 rows": ("ledger/labels", lambda d: d.update(shape=[10**9, d["shape"][1]])),
    "chunks of no rows": ("gaps", lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[0, 4])),
    "chunks of 10^9 rows": ("gaps", lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[10**9, 4])),
    "another grid": ("gaps", lambda d: d["chunk_grid"].update(name="rectilinear")),
    "a fill value of 10^30": ("gaps", lambda d: d.update(fill_value=10**30)),
    "another type": ("gaps", lambda d: d.update(data_type="float64")),
    "a text type": ("vocabulary", lambda d: d.update(data_type="string")),
    "an object type": ("index/label", lambda d: d.update(data_type={"name": "structured"})),
    "a group": ("gaps", lambda d: d.update(node_type="group")),
    "another axis": ("gaps", lambda d: d.update(shape=[40])),
    "a shape of words": ("gaps", lambda d: d.update(shape=["40", "4"])),
    "a negative length": ("vocabulary", lambda d: d.update(shape=[-1])),
    "storage transformers": ("gaps", lambda d: d.update(storage_transformers=[{"name": "x"}])),
    "a field of the future": ("gaps", lambda d: d.update(must_understand=True)),
    "other keys of chunks": ("gaps", lambda d: d["chunk_key_encoding"].update(name="v2")),
}


@pytest.mark.parametrize("how", ARRAYS)
def test_metadata_of_an_array_that_are_not_of_the_layout_are_refused(how: str, store: Path) -> None:
    name, forge = ARRAYS[how]
    change(store, name, forge)
    seal(store)
    with pytest.raises(IntegrityError, match=f"{name}/zarr.json: "):
        LabelStore.open(store)


def packed(declared: int, size: int = 32) -> bytes:
    """A chunk whose head says that it decodes to so many bytes, with a sound checksum behind it."""
    import google_crc32c

    words = np.array([declared, min(declared, 1 << 20), size], dtype="<u4").tobytes()
    body = bytes([2, 1, 0x81, 1]) + words + bytes(size - 16)
    return body + google_crc32c.value(body).to_bytes(4, "little")


@pytest.mark.parametrize("array", ["gaps", "vocabulary", "index/key_bytes"])
def test_a_chunk_that_says_to_become_two_gigabytes_is_not_unpacked(array: str, store: Path) -> None:
    file = next(file for file in sorted((store / array / "c").rglob("*")) if file.is_file())
    file.write_bytes(packed((1 << 31) - 1))
    opened = LabelStore.open(store)
    with pytest.raises(IntegrityError, match="decodes to 2,147,483,647 bytes"):
        opened.read_chunk(LABELS, 0) if array == "gaps" else opened.static(array)


def test_a_list_that_is_longer_than_its_files_is_not_made(store: Path) -> None:
    for name in ("vocabulary", "index/key_bytes"):
        change(store, name, lambda d: d.update(shape=[10**11]))
        change(store, name, lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[65536]))
    seal(store)
    opened = LabelStore.open(store)
    for read in (opened.vocabulary, lambda: opened.static("index/key_bytes")):
        with pytest.raises(IntegrityError, match="1 of its 1525879 files are there"):
            read()
    assert len(opened.static_faults()) == 2


def test_rows_without_an_index_are_not_counted_up(store: Path) -> None:
    """Layout, arrays and index agree on 10^12 rows; only the files of the index say that there are none."""
    rows = 10**12
    change(store, "", lambda d: d["attributes"]["teachonce"]["layout"].update(rows=rows))
    for file in store.rglob("zarr.json"):
        document = json.loads(file.read_text())
        if document.get("shape", [0])[0] == 40:
            document["shape"][0] = rows
            if "index" in file.parts:
                document["chunk_grid"]["configuration"]["chunk_shape"] = [65536]
            file.write_text(json.dumps(document))
    seal(store)
    with pytest.raises(IntegrityError, match="no more than 65536 samples"):
        LabelStore.open(store)


@pytest.mark.parametrize("name", ["../outside", "/dev/zero", "a/../../b", "a\\b", ""])
def test_a_header_never_leads_out_of_the_store(name: str, store: Path) -> None:
    (store.parent / "outside").write_text("{}")
    seal(store, {name: hashlib.sha256(b"{}").hexdigest()})
    with pytest.raises(IntegrityError, match="no place in it"):
        LabelStore.open(store)


@pytest.mark.parametrize("name", ["zarr.json", "ledger/zarr.json", "gaps/zarr.json", "gaps/c/0/0", "index/label/c/0"])
@pytest.mark.parametrize("what", ["pipe", "link out"])
def test_what_is_no_file_of_the_store_is_not_opened(name: str, what: str, store: Path) -> None:
    """A pipe would be waited for without end; a link out would have its target read."""
    file = store / name
    moved = Path(shutil.move(file, store.parent / "moved"))
    os.mkfifo(file) if what == "pipe" else file.symlink_to(moved)
    with pytest.raises((IntegrityError, DataError), match="pipe" if what == "pipe" else "leads out"):
        opened = LabelStore.open(store)
        opened.read_chunk(LABELS, 0)
        opened.static("index/label")


def test_a_link_to_a_store_is_the_store(store: Path, tmp_path: Path) -> None:
    (tmp_path / "link.zarr").symlink_to(store)
    assert LabelStore.open(tmp_path / "link.zarr").store_id() == LabelStore.open(store).store_id()


def test_values_that_lead_nowhere_are_damage_and_no_mistake_of_the_reader(store: Path) -> None:
    """Digests agree, as whoever forges a store can make them; labels, places and tables are out of any range."""
    opened = LabelStore.open(store)
    with pytest.raises(IntegrityError, match="a label is none"):
        opened.in_vocabulary(np.array([0, 12]))
    for name, value in (("index/archive", 2), ("index/key_ends", 10**6), ("index/label", -7)):
        copy = Path(shutil.copytree(store, store.with_name(f"{name.replace('/', '-')}.zarr")))
        zarr.open_array(str(copy / name), mode="r+")[3] = value
        with pytest.raises(IntegrityError, match=name):
            LabelStore.open(copy).index_of_chunk(0)


ADDITIONS: dict[str, Callable[[Path], object]] = {
    "consolidated": lambda store: zarr.consolidate_metadata(str(store)),
    "an attribute of the store": lambda store: zarr.open_group(str(store)).attrs.update(mine="hello"),
    "an attribute of an array": lambda store: zarr.open_array(str(store / "gaps")).attrs.update({"units": "nats"}),
    "an array beside the others": lambda store: zarr.open_group(str(store)).create_array("mine", shape=3, dtype="i4"),
}


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("how", ADDITIONS)
def test_what_other_programs_add_does_no_harm(how: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is read and goes on, `verify` says what was added, and `repair` brings the files back to the byte."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    before = {file: file.read_bytes() for file in store.rglob("*") if file.is_file()}
    whole = LabelStore.open(store).store_id()
    ADDITIONS[how](store)
    assert LabelStore.open(store).store_id() == whole
    notes = Notes()
    assert verify(VerifyRequest(labels=store), notes).ok
    assert any("other programs have added" in line for line in notes.lines) == ("beside" not in how)
    assert verify(VerifyRequest(labels=store, repair=True), notes).ok
    nothing = b'  "consolidated_metadata": null,\n'  # Zarr 3.1.3 says so where later versions say nothing
    assert all(file.read_bytes().replace(nothing, b"") == data.replace(nothing, b"") for file, data in before.items())

    ADDITIONS[how](store) if "beside" not in how else None
    add_student(LabelStore.open(store, writable=True), "ab" * 32, 6, {"student_digest": "ab" * 32, "about": {}})
    again = LabelStore.open(store)
    assert len(again.groups) == 2 and again.read_chunk(LABELS, 0)
    shutil.rmtree(store / "mine", ignore_errors=True)
    assert len(LabelStore.open(store).groups) == 2, "what others have added may go again"


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_consolidated_metadata_are_not_obeyed(store: Path) -> None:
    """They are a second copy that nobody checks: here one that says another type."""
    zarr.consolidate_metadata(str(store))
    change(store, "", lambda d: d["consolidated_metadata"]["metadata"]["gaps"].update(data_type="int8", fill_value=0))
    assert LabelStore.open(store).root["gaps"].dtype == np.uint8  # type: ignore[union-attr]
