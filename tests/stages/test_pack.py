"""pack: only sound things are packed; what comes out is what went in; docs/sharing.md reads it without teachonce."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from share_runs import make_run
from worlds import Notes, World

import teachonce
from teachonce.core.progress import Silent
from teachonce.core.sums import digest_of
from teachonce.errors import DataError, IncompleteError, IntegrityError, UsageError
from teachonce.labels.store import LabelStore
from teachonce.objects.remote import location
from teachonce.stages.export import ExportRequest, export
from teachonce.stages.pack import PackRequest, PackResult, pack

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_power_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing hundreds of small files is most of the time otherwise."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


def packed(source: Path, out: Path | None = None, **options: Any) -> PackResult:
    return pack(PackRequest(source=source, out=out, **options), Silent())


@pytest.fixture(scope="module")
def shared(student: str, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export for the names of the tiny world."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("packs")
    run = make_run(folder / "run", student)
    export(ExportRequest(run=run, out=folder / "shared", classes=str(world.root / "classes.tsv"), threads=1), Silent())
    return folder / "shared"


@pytest.mark.parametrize("name", ["labels.tar", "labels"])
def test_a_store_comes_out_as_it_went_in(name: str, finished: Path, tmp_path: Path) -> None:
    """Every file, every decoded array, the store's id; packed twice, the same bytes."""
    result = pack(PackRequest(source=finished, out=tmp_path / name), Notes())
    assert (result.kind, result.name, result.id) == ("label-store", "done.zarr", LabelStore.open(finished).store_id())
    assert result.files == len(worlds.files_of(finished)) and result.out == str(tmp_path / name)
    assert packed(tmp_path / name, check=True).digest == result.digest
    again = packed(tmp_path / name, tmp_path / "out", unpack=True)
    assert (again.digest, again.id) == (result.digest, result.id)
    out = tmp_path / "out" / "done.zarr"
    before, after = (
        {file.relative_to(store): file.read_bytes() for file in worlds.files_of(store)} for store in (finished, out)
    )
    assert before == after
    arrays = worlds.all_arrays(finished)
    assert all(
        np.array_equal(data, arrays[key], equal_nan=data.dtype.kind == "f")
        for key, data in worlds.all_arrays(out).items()
    )
    assert packed(finished, tmp_path / f"again-{name}").digest == result.digest
    if name.endswith(".tar"):
        assert digest_of(tmp_path / name) == digest_of(tmp_path / f"again-{name}")


def test_an_export_comes_out_as_it_went_in(shared: Path, tmp_path: Path) -> None:
    """Also with a card that its owner has written into."""
    copy = Path(shutil.copytree(shared, tmp_path / "mine"))
    (copy / "README.md").write_text("my own words")
    result = packed(copy, tmp_path / "p.tar")
    assert (result.kind, result.id) == ("prompts", teachonce.load_prompts(shared).tensors_digest)
    packed(tmp_path / "p.tar", tmp_path / "out", unpack=True)
    assert teachonce.load_prompts(tmp_path / "out/mine").tensors_digest == result.id
    assert (tmp_path / "out/mine/README.md").read_text() == "my own words"


def test_a_store_that_is_not_sound_is_not_packed(finished: Path, tmp_path: Path) -> None:
    """Missing chunks: incomplete, resumable. A flipped bit: damaged. Nothing is written."""
    store = worlds.copy_store(finished, tmp_path)
    LabelStore.open(store, writable=True).drop("labels", 2)
    with pytest.raises(IncompleteError, match="not complete: 1 chunks are missing"):
        packed(store, tmp_path / "p.tar")
    store = worlds.copy_store(finished, tmp_path)
    chunk = store / "gaps/c/0/0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)
    notes = Notes()
    with pytest.raises(IntegrityError, match="is damaged: 1 faults, the first: .*chunk 0") as caught:
        pack(PackRequest(source=store, out=tmp_path / "p.tar"), notes)
    assert "`repair`" in caught.value.hint and notes.lines == [], "said once"
    store = worlds.copy_store(finished, tmp_path)
    (store / "label_classes/c/0").write_bytes(b"")
    with pytest.raises(IntegrityError, match="is damaged: 1 faults, the first: .*label_classes") as caught:
        packed(store, tmp_path / "p.tar")
    assert "from a backup" in caught.value.hint and "`repair`" not in caught.value.hint
    assert [item.name for item in tmp_path.iterdir()] == ["copy.zarr"]


def test_a_store_that_is_written_meanwhile_is_not_shared(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its id is asked for before and after."""
    ids = iter(["one", "two"])
    monkeypatch.setattr("teachonce.stages.pack.work._store_id", lambda folder: next(ids))
    with pytest.raises(IntegrityError, match="was written to while it was packed"):
        packed(finished, tmp_path / "p.tar")


def test_what_is_no_finished_thing_is_not_packed(shared: Path, finished: Path, tmp_path: Path) -> None:
    """A run, an export that was changed or lost a file, any other folder, a place on S3, a folder inside itself."""
    with pytest.raises(DataError, match="is a run") as caught:
        packed(shared.parent / "run", tmp_path / "p.tar")
    assert "teachonce export" in caught.value.hint
    copy = Path(shutil.copytree(shared, tmp_path / "copy"))
    (copy / "classes.tsv").unlink()
    with pytest.raises(IntegrityError, match="classes.tsv is not what was exported"):
        packed(copy, tmp_path / "p.tar")
    shutil.copy(shared / "classes.tsv", copy)
    (copy / "more").mkdir()
    (copy / "more/extra.txt").write_text("x")
    with pytest.raises(IntegrityError, match="SHA256SUMS does not list more/extra.txt") as changed:
        packed(copy, tmp_path / "p.tar")
    assert "take it out" in changed.value.hint
    assert teachonce.load_prompts(copy).text is not None, "loading minds its own files only"
    with pytest.raises(DataError, match="neither a label store nor an export"):
        packed(tmp_path, tmp_path.parent / "p.tar")
    for source in (tmp_path / "nowhere", shared / "README.md"):
        with pytest.raises(UsageError, match="is no folder"):
            packed(source, tmp_path / "p.tar")
    with pytest.raises(UsageError, match="lies in"):
        packed(finished, finished / "p.tar")
    with pytest.raises(UsageError, match="not on a disk"):
        packed(location("s3://bucket/labels.zarr"), tmp_path / "p.tar")
    assert not (tmp_path / "p.tar").exists()


@pytest.mark.parametrize(
    "options", [{"check": True, "out": Path("x.tar")}, {"check": True, "unpack": True}, {}, {"unpack": True}], ids=str
)
def test_options_that_do_not_go_together(options: dict[str, Any], finished: Path) -> None:
    with pytest.raises(UsageError, match="`check` writes nothing|Missing option '`out`'"):
        packed(finished, options.pop("out", None), **options)


@pytest.mark.parametrize("options", [{"check": True}, {"unpack": True, "out": Path("out")}], ids=str)
def test_what_is_to_be_packed_first_is_no_pack(
    options: dict[str, Any], finished: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store, an export, a run: exit 2 and the command that makes a pack. A pack that lost its head is damaged."""
    monkeypatch.chdir(tmp_path)
    for source, what in ((finished, "a label store"), (shared, "an export"), (shared.parent / "run", "a run")):
        with pytest.raises(UsageError, match=f"is {what} and no pack") as caught:
            packed(source, **options)
        step = f"pack {source} `out` {source.name}.tar" if what != "a run" else f"export {source} `out` DIR"
        assert f"teachonce {step}" in caught.value.hint
    packed(shared, tmp_path / "pack")
    (tmp_path / "pack/digests.json").unlink()
    with tarfile.open(tmp_path / "plain.tar", "w") as tar:
        tar.add(shared / "classes.tsv", "shared/classes.tsv")
    for name in ("pack", "plain.tar"):
        with pytest.raises(IntegrityError, match=f"{name} is no pack, or not a whole one: it lacks digests.json"):
            packed(tmp_path / name, **options)
    assert not (tmp_path / "out").exists()


def test_nothing_is_replaced(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "p.tar").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    for out in (tmp_path / "p.tar", tmp_path / "out"):
        with pytest.raises(UsageError, match="is there already|is not empty"):
            packed(shared, out)
    packed(shared, tmp_path / "good.tar")
    with pytest.raises(UsageError, match="is not empty"):
        packed(tmp_path / "good.tar", tmp_path / "out", unpack=True)
    assert (tmp_path / "p.tar").read_text() == (tmp_path / "out/mine").read_text() == "mine"


def test_a_pack_that_says_it_is_another_store_is_refused(finished: Path, tmp_path: Path) -> None:
    """The list of digests is as easily made as the files; the store's own ledger is not deceived by it."""
    from teachonce.sharing.entries import files_of
    from teachonce.sharing.packing import PackHead, write_pack

    files = files_of(finished)
    head = PackHead(kind="label-store", name="done.zarr", id="f00d", files=len(files), bytes=sum(s for _, s in files))
    write_pack(finished, head, tmp_path / "p.tar", Silent())
    with pytest.raises(IntegrityError, match="says that it holds label-store f00d"):
        packed(tmp_path / "p.tar", tmp_path / "out", unpack=True)
    head = PackHead(kind="prompts", name="done.zarr", id="f00d", files=len(files), bytes=sum(s for _, s in files))
    write_pack(finished, head, tmp_path / "q.tar", Silent())
    with pytest.raises(IntegrityError, match="and holds none"):
        packed(tmp_path / "q.tar", tmp_path / "out", unpack=True)
    assert not (tmp_path / "out").exists()


def test_a_pack_that_cannot_be_written(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("teachonce.core.files.sync", full)
    with pytest.raises(IncompleteError, match="No space left"):
        packed(shared, tmp_path / "p.tar")
    assert list(tmp_path.iterdir()) == []


def test_tar_and_sha256sum_read_a_pack(finished: Path, tmp_path: Path) -> None:
    """As the docs say, without teachonce."""
    packed(finished, tmp_path / "p.tar")
    subprocess.run(["tar", "xf", "p.tar"], cwd=tmp_path, check=True)
    done = subprocess.run(["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0 and done.stdout == b""
    with tarfile.open(tmp_path / "p.tar") as tar:
        assert tar.getnames()[0] == "digests.json" and tar.getnames()[-1] == "SHA256SUMS"


def test_the_docs_read_both_without_teachonce(finished: Path, shared: Path, tmp_path: Path) -> None:
    """The page's NumPy, in a process of its own, gives what the library gives."""
    page = (ROOT / "docs" / "sharing.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "zarr" in block)
    packed(finished, tmp_path / "labels.tar")
    packed(tmp_path / "labels.tar", tmp_path / "DIR", unpack=True)
    (tmp_path / "DIR/done.zarr").rename(tmp_path / "DIR/labels.zarr")
    shutil.copytree(shared, tmp_path / "shared")
    code += (
        "import sys\nassert not any(name.startswith('teachonce') for name in sys.modules)\n"
        "assert np.array_equal(same, weights)\nprint(json.dumps([best, truth, float(top1)]))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    best, truth, top1 = json.loads(done.stdout)
    store = LabelStore.open(finished)
    group = next(name for name in store.groups if name.startswith("students/"))
    features = worlds.all_arrays(finished)[f"{group}/features"].astype(np.float32)
    weights = teachonce.load_prompts(shared).classifier(worlds.NAMES).numpy()
    assert best == [worlds.IDS[i] for i in (features @ weights.T).argmax(axis=1)] and len(best) == worlds.PHOTOS
    assert truth == [key[:3] for key in worlds.keys_of(finished)]
    assert top1 == np.mean([a == b for a, b in zip(best, truth, strict=True)])
