"""Packs: the same bytes for the same content, nothing taken in that was not written, nothing written outside."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from worlds import Notes

from teachonce.core.progress import Silent
from teachonce.core.sums import parse_sums, sums_text
from teachonce.errors import IncompleteError, IntegrityError, UsageError
from teachonce.sharing.entries import Hashed, files_of
from teachonce.sharing.packing import PackHead, check_pack, unpack, write_pack

FILES = {"a.txt": b"one", "deep/er/b.bin": bytes(range(256)) * 5, "deep/empty": b"", "é 🦊": b"odd name"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "things"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def head_of(folder: Path) -> PackHead:
    files = files_of(folder)
    return PackHead(kind="prompts", name="things", id="f00d", files=len(files), bytes=sum(size for _, size in files))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def accept(head: PackHead, folder: Path) -> None:
    """Any pack is proved."""


@pytest.fixture
def packed(source: Path, tmp_path: Path) -> Path:
    write_pack(source, head_of(source), tmp_path / "pack.tar", Silent())
    return tmp_path / "pack.tar"


@pytest.mark.parametrize("name", ["pack.tar", "pack"])
def test_a_pack_gives_back_what_went_in(name: str, source: Path, tmp_path: Path) -> None:
    """As a tar and as a folder; progress adds up; check and unpack agree on the digest."""
    digest = write_pack(source, head_of(source), tmp_path / name, Notes())
    assert check_pack(tmp_path / name, Notes()) == (head_of(source), digest)
    assert unpack(tmp_path / name, tmp_path / "out", accept, Notes()) == (head_of(source), digest)
    assert contents(tmp_path / "out/things") == FILES
    listed = (tmp_path / "out/SHA256SUMS").read_bytes()
    assert hashlib.sha256(listed).hexdigest() == digest
    sums = {f"things/{name}": hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    sums["digests.json"] = hashlib.sha256((tmp_path / "out/digests.json").read_bytes()).hexdigest()
    assert parse_sums(listed.decode(), "list") == sums
    assert check_pack(tmp_path / "out", Silent()) == (head_of(source), digest)


def test_the_same_content_gives_the_same_bytes(source: Path, packed: Path, tmp_path: Path) -> None:
    """Whatever the times, modes and the order of creation."""
    twin = tmp_path / "elsewhere" / "things"
    for name, data in reversed(FILES.items()):
        (twin / name).parent.mkdir(parents=True, exist_ok=True)
        (twin / name).write_bytes(data)
        (twin / name).chmod(0o600)
        os.utime(twin / name, (1, 1))
    write_pack(twin, head_of(twin), tmp_path / "twin.tar", Silent())
    assert (tmp_path / "twin.tar").read_bytes() == packed.read_bytes()
    with tarfile.open(packed) as tar:
        members = tar.getmembers()
    assert [m.name for m in members[1:-1]] == sorted(f"things/{name}" for name in FILES)
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_any_changed_byte_is_found(packed: Path, tmp_path: Path) -> None:
    """In headers, contents, list, head, padding and the end mark: each 101st byte; nothing is left behind."""
    data = packed.read_bytes()
    for place in range(0, len(data), 101):
        changed = bytearray(data)
        changed[place] ^= 0x41
        packed.write_bytes(changed)
        with pytest.raises(IntegrityError) as caught:
            unpack(packed, tmp_path / "out", accept, Silent())
        assert str(packed) in caught.value.message or "things/" in caught.value.message
        assert not (tmp_path / "out").exists()
    assert [item.name for item in tmp_path.iterdir() if "partial" in item.name] == []


def test_every_byte_of_a_pack_is_accounted_for(source: Path, packed: Path, tmp_path: Path) -> None:
    """Owners and times in headers, padding behind files, zeros behind the end, spaces in the list, empty folders."""
    sound = packed.read_bytes()
    member = tarfile.TarInfo("digests.json")
    member.size = int(sound[124:135], 8)
    member.mtime, member.uname = 7, "someone"
    other_header = member.tobuf(tarfile.PAX_FORMAT) + sound[512:]
    padding = bytearray(sound)
    padding[512 + member.size] = 1
    behind = bytearray(sound)
    behind[-1] = 1
    for forged_bytes in (other_header, bytes(padding), bytes(behind), sound + bytes(10240)):
        packed.write_bytes(forged_bytes)
        with pytest.raises(IntegrityError, match="between its files|behind its last"):
            check_pack(packed, Silent())
    folder = tmp_path / "folder"
    write_pack(source, head_of(source), folder, Silent())
    check_pack(folder, Silent())
    (folder / "things" / "empty").mkdir()
    with pytest.raises(IntegrityError, match="empty folder"):
        check_pack(folder, Silent())
    (folder / "things" / "empty").rmdir()
    sums = folder / "SHA256SUMS"
    sums.write_text(sums.read_text().replace("  ", " *", 1))
    with pytest.raises(IntegrityError, match="not written as"):
        check_pack(folder, Silent())


def test_a_pack_that_miscounts_its_files_is_refused(tmp_path: Path) -> None:
    """The list and all digests agree; the head says another number."""
    pack = forged(tmp_path / "p.tar", lambda tar: None, {"things/a": b"data", "things/b": b"more"})
    check_pack(pack, Silent())
    data = pack.read_bytes().replace(b'"bytes": 8', b'"bytes": 9')
    head = data[512 : 512 + int(data[124:135], 8)]
    listed = data.index(b"  digests.json") - 64
    pack.write_bytes(data[:listed] + hashlib.sha256(head).hexdigest().encode() + data[listed + 64 :])
    with pytest.raises(IntegrityError, match="says 2 files of 9 bytes, and there are 2 of 8"):
        check_pack(pack, Silent())


@pytest.mark.parametrize("cut", [1, 511, 512, 5000, 10239])
def test_a_cut_pack_is_found(cut: int, packed: Path) -> None:
    packed.write_bytes(packed.read_bytes()[:-cut])
    with pytest.raises(IntegrityError):
        check_pack(packed, Silent())


def forged(file: Path, add: Callable[[tarfile.TarFile], None], body: dict[str, bytes] | None = None) -> Path:
    """A pack with a right list of digests, and whatever `add` puts before the list."""
    files = {"things/a": b"data"} if body is None else body
    head = json.dumps(
        {
            "schema": 1,
            "format": "teachonce-pack",
            "kind": "prompts",
            "name": "things",
            "id": "f00d",
            "files": len(files),
            "bytes": sum(map(len, files.values())),
        }
    ).encode()
    with tarfile.open(file, "w") as tar:
        put(tar, "digests.json", head)
        for name, data in files.items():
            put(tar, name, data)
        add(tar)
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in {"digests.json": head, **files}.items()}
        put(tar, "SHA256SUMS", sums_text(sums).encode())
    return file


def put(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def special(kind: bytes, name: str = "things/x", target: str = "") -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        tar.addfile(member)

    return add


HOSTILE: dict[str, Callable[[tarfile.TarFile], None]] = {
    "a link out": special(tarfile.SYMTYPE, target="/etc"),
    "a link inside": special(tarfile.SYMTYPE, target="a"),
    "a hard link": special(tarfile.LNKTYPE, target="things/a"),
    "a device": special(tarfile.CHRTYPE),
    "a pipe": special(tarfile.FIFOTYPE),
    "a folder": special(tarfile.DIRTYPE, "things/folder/"),
    "an absolute name": lambda tar: put(tar, "/evil", b"x"),
    "a name that leads out": lambda tar: put(tar, "things/../../evil", b"x"),
    "a name beside": lambda tar: put(tar, "evil", b"x"),
    "a name that hides": lambda tar: put(tar, "things/./a", b"x"),
    "a name twice": lambda tar: put(tar, "things/a", b"data"),
    "a file as a folder": lambda tar: put(tar, "things/a/b", b"data"),
    "a backslash": lambda tar: put(tar, "things\\..\\evil", b"x"),
    "a drive": lambda tar: put(tar, "things/c:evil", b"x"),
    "a line break": lambda tar: put(tar, "things/b\nc", b"x"),
    "a second head": lambda tar: put(tar, "digests.json", b"{}"),
    "a file that is not listed": lambda tar: put(tar, "things/more", b"x"),
    "a second list": lambda tar: put(tar, "SHA256SUMS", b"x"),
}


@pytest.mark.parametrize("add", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_tar_writes_nothing(add: Callable[[tarfile.TarFile], None], tmp_path: Path) -> None:
    """Refused by check and by unpack; no file appears anywhere."""
    (tmp_path / "in").mkdir()
    pack = forged(tmp_path / "in" / "pack.tar", add)
    for tried in (lambda: check_pack(pack, Silent()), lambda: unpack(pack, tmp_path / "out", accept, Silent())):
        with pytest.raises(IntegrityError):
            tried()
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["in", "pack.tar"]


def test_the_forger_would_be_believed(tmp_path: Path) -> None:
    """Without anything hostile the same tar passes, so that the test above proves what it says."""
    pack = forged(tmp_path / "pack.tar", lambda tar: None)
    unpack(pack, tmp_path / "out", accept, Silent())
    assert contents(tmp_path / "out/things") == {"a": b"data"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../out"}, "no name of a folder"),
        ({"name": "SHA256SUMS"}, "no name of a folder"),
        ({"schema": 2}, "schema"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"kind": "weights"}, "kind"),
    ],
)
def test_a_head_of_another_form_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    head = {
        "schema": 1,
        "format": "teachonce-pack",
        "kind": "prompts",
        "name": "things",
        "id": "f",
        "files": 0,
        "bytes": 0,
    }
    with tarfile.open(tmp_path / "pack.tar", "w") as tar:
        put(tar, "digests.json", json.dumps(head | change).encode())
    with pytest.raises(IntegrityError, match=message):
        check_pack(tmp_path / "pack.tar", Silent())


def test_other_files_are_no_packs(tmp_path: Path, source: Path) -> None:
    """A text, a folder of anything, a place where nothing is, a pack with bytes behind its end."""
    (tmp_path / "text.tar").write_text("no tar at all")
    for other in (tmp_path / "text.tar", source):
        with pytest.raises(IntegrityError):
            check_pack(other, Silent())
    with pytest.raises(UsageError, match="no file or folder"):
        check_pack(tmp_path / "nowhere", Silent())
    pack = forged(tmp_path / "long.tar", lambda tar: None)
    with open(pack, "ab") as file:
        file.write(b"more")
    with pytest.raises(IntegrityError, match="behind its last file"):
        check_pack(pack, Silent())


def test_a_folder_pack_that_was_changed_is_refused(source: Path, tmp_path: Path) -> None:
    write_pack(source, head_of(source), tmp_path / "pack", Silent())
    (tmp_path / "pack/things/a.txt").write_text("two")
    with pytest.raises(IntegrityError, match="things/a.txt is not what was packed"):
        check_pack(tmp_path / "pack", Silent())
    (tmp_path / "pack/things/a.txt").unlink()
    with pytest.raises(IntegrityError, match="missing"):
        check_pack(tmp_path / "pack", Silent())
    (tmp_path / "pack/things/a.txt").symlink_to(source / "a.txt")
    with pytest.raises(IntegrityError, match="is a link"):
        check_pack(tmp_path / "pack", Silent())


@pytest.mark.parametrize("name", ["pack.tar", "pack"])
def test_links_are_not_packed_and_nothing_is_replaced(name: str, source: Path, tmp_path: Path) -> None:
    head, out = head_of(source), tmp_path / name
    (source / "link").symlink_to("/etc/hostname")
    with pytest.raises(IntegrityError, match="is a link"):
        write_pack(source, head, out, Silent())
    (source / "link").unlink()
    (source / "late").write_text("a file that came after the head")
    with pytest.raises(IntegrityError, match="changed before"):
        write_pack(source, head, out, Silent())
    assert not out.exists()
    (source / "late").unlink()
    write_pack(source, head, out, Silent())
    with pytest.raises(UsageError, match="is not empty|is there already"):
        write_pack(source, head, out, Silent())
    assert [item.name for item in tmp_path.iterdir() if "partial" in item.name] == []


@pytest.mark.parametrize("name", ["pack.tar", "pack"])
def test_a_full_disk_leaves_nothing(name: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails half-way: a clear error, no pack, no draft."""
    real = Hashed.read

    def failing(self: Hashed, count: int) -> bytes:
        if b"\x05" in (block := real(self, count)):
            raise OSError(28, "No space left on device")
        return block

    monkeypatch.setattr(Hashed, "read", failing)
    with pytest.raises(IncompleteError, match="No space left"):
        write_pack(source, head_of(source), tmp_path / name, Silent())
    assert sorted(item.name for item in tmp_path.iterdir()) == ["things"]


def test_what_is_not_proved_does_not_appear(packed: Path, tmp_path: Path) -> None:
    def refuse(head: PackHead, folder: Path) -> None:
        assert contents(folder) == FILES
        raise IntegrityError("another id")

    with pytest.raises(IntegrityError, match="another id"):
        unpack(packed, tmp_path / "out", refuse, Silent())
    assert not (tmp_path / "out").exists()


def test_memory_does_not_grow_with_files(tmp_path: Path) -> None:
    """48 MB of file through a buffer: to a tar, checked, and out again."""
    folder = tmp_path / "things"
    folder.mkdir()
    with open(folder / "large", "wb") as file:
        file.truncate(48 << 20)
    tracemalloc.start()
    try:
        write_pack(folder, head_of(folder), tmp_path / "pack.tar", Silent())
        check_pack(tmp_path / "pack.tar", Silent())
        unpack(tmp_path / "pack.tar", tmp_path / "out", accept, Silent())
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "line", ["", "abc  name", f"{'a' * 64}  ../x", f"{'a' * 64}  /x", f"{'a' * 64} x", f"{'A' * 64}  x"]
)
def test_a_list_of_another_form_is_refused(line: str) -> None:
    with pytest.raises(IntegrityError, match="line 1"):
        parse_sums(line + "\n", "list")
    with pytest.raises(IntegrityError, match="line 2"):
        parse_sums(f"{'a' * 64}  x\n{'b' * 64}  x\n", "list")
