"""`index` lists every fault of the data on disk against its manifest, and ends with 3 when there is one."""

from __future__ import annotations

import gzip
import hashlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import worlds
from layouts import LAYOUTS, laid_out
from worlds import IDS, World, teach_inline

from teachonce.core.progress import Silent
from teachonce.data.index import build_index
from teachonce.data.manifests import load_manifest
from teachonce.stages.index import IndexRequest, IndexResult, index

USED = IDS[:-1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Seventy photos."""
    return worlds.session_world(tmp_path_factory)


def look(manifest: str, root: Path, **options: Any) -> IndexResult:
    """What `index` says."""
    return index(IndexRequest(manifest=manifest, root=root, **options), Silent())


def changed(manifest: str, **values: Any) -> str:
    """The same manifest with other values in its first split."""
    path = Path(manifest)
    text = tomllib.loads(path.read_text())
    next(iter(text["splits"].values())).update(values)
    path.write_bytes(tomli_w.dumps(text).encode())
    return manifest


@pytest.mark.parametrize("name", LAYOUTS)
def test_complete_data_has_no_fault(name: str, world: World, tmp_path: Path) -> None:
    """Counts of every split, exit 0, and the digest that a store would have."""
    manifest = laid_out(name, tmp_path, world.photos, USED)
    result = look(manifest, tmp_path)
    assert result.faults == () and result.exit_code == 0
    assert {survey.split for survey in result.splits} == set(load_manifest(manifest).splits)
    for survey in result.splits:
        assert (survey.images, survey.classes, survey.classes_seen) == (70, 7, 7)
        assert survey.digest == build_index(load_manifest(manifest), survey.split, tmp_path, Silent()).digest


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name.startswith(("imagenet", "timm"))])
def test_the_shipped_manifest_itself_says_what_is_missing(name: str, world: World, tmp_path: Path) -> None:
    """A tiny part of a release, or other classes: exit 3 with both counts, or the unknown class."""
    laid_out(name, tmp_path, world.photos, USED)
    result = look(name, tmp_path)
    assert result.exit_code == 3
    faults = " ".join(f"{fault.expected} {fault.found}" for fault in result.faults)
    assert "archives" in faults or "not in the class list" in faults or "images" in faults


def test_every_fault_at_once(world: World, tmp_path: Path) -> None:
    """A missing archive, a cut one, an unknown class, a wrong count: four faults, each with its name."""
    manifest = laid_out("imagenet21k-fall11-tars", tmp_path, world.photos, USED)
    folder = tmp_path / "fall11_whole"
    (folder / "n02.tar").unlink()
    whole = (folder / "n03.tar").read_bytes()
    (folder / "n03.tar").write_bytes(whole[: len(whole) // 2])
    (folder / "n99.tar").write_bytes((folder / "n04.tar").read_bytes())
    (folder / "n05.tar").unlink()
    result = look(manifest, tmp_path)
    faults = {fault.where.rpartition("/")[2]: fault for fault in result.faults}
    assert result.exit_code == 3
    assert "cut off" in faults["n03.tar"].found and "'n99' is not in the class list" in faults["n99.tar"].found
    counts = [fault for fault in result.faults if fault.where.endswith("*.tar")]
    assert [fault.expected for fault in counts] == ["7 archives", "70 images"]
    assert "missing: n02, n05" in counts[0].found and "too few" in counts[1].found
    assert 40 <= result.splits[0].images < 50


def test_missing_shards_are_named_by_number(world: World, tmp_path: Path) -> None:
    """Downloads lose single shards."""
    manifest = laid_out("timm-imagenet-12k-wds", tmp_path, world.photos, USED)
    (tmp_path / "imagenet12k-train-0001.tar").unlink()
    result = look(manifest, tmp_path, split="train")
    assert result.faults[0].found == "2; missing: number 0001"
    assert result.faults[1].expected == "70 images" and "too few" in result.faults[1].found


def test_nothing_there(tmp_path: Path) -> None:
    """The path, what was expected there, and one fault a split."""
    result = look("timm-imagenet-12k-wds", tmp_path)
    assert [fault.split for fault in result.faults] == ["train", "validation"] and result.splits == ()
    assert result.faults[0].expected == "webdataset: 1,024 archives, 12,129,687 images"


def test_doubled_keys_and_empty_images(world: World, tmp_path: Path) -> None:
    """A shard that was copied under another name; an image of zero bytes is counted, and no fault of the archive."""
    photos = dict(world.photos) | {"n01_03": b""}
    manifest = laid_out("timm-imagenet-12k-wds", tmp_path, photos, USED)
    (tmp_path / "imagenet12k-train-0003.tar").write_bytes((tmp_path / "imagenet12k-train-0002.tar").read_bytes())
    result = look(manifest, tmp_path, split="train")
    assert result.splits[0].empty == 1
    doubled = [fault for fault in result.faults if fault.where.startswith("the key")]
    assert len(doubled) == 5 and doubled[0].found == "in imagenet12k-train-0002.tar and imagenet12k-train-0003.tar"
    assert result.faults[0].expected == "3 archives" and "too many" in result.faults[1].found


@pytest.mark.parametrize("name", ["imagenet21k-fall11-tars", "image-folder"])
def test_images_that_are_none_and_classes_without_any_are_said(name: str, world: World, tmp_path: Path) -> None:
    """A page, zeros and an empty file that are called images, and a class with nothing in it: no faults, but said."""
    broken = {"n01_01": b"<!DOCTYPE html>", "n01_02": bytes(20), "n01_03": b""}
    photos = {name: data for name, data in (world.photos | broken).items() if not name.startswith("n02")}
    survey = look(laid_out(name, tmp_path, photos, USED), tmp_path, split="train").splits[0]
    assert (survey.images, survey.empty) == (60, 1)
    assert survey.foreign == {"HTML (a web page)": 1, "zeros": 1}
    assert "n01_01" in survey.foreign_examples["HTML (a web page)"][0]
    assert (survey.empty_parts, survey.empty_part_examples) == (1, ("n02",))
    assert survey.passed_over.counts == {}


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_digests_of_released_files(kind: str, world: World, tmp_path: Path) -> None:
    """Only on request; a wrong one is a fault, a file that is gone is not."""
    manifest = laid_out("imagenet21k-winter21", tmp_path, world.photos, USED)
    file = tmp_path / "winter21_whole.tar.gz"
    text = tomllib.loads(Path(manifest).read_text())
    text["digests"] = {file.name: f"{kind}:{hashlib.new(kind, b'the release').hexdigest()}"}
    Path(manifest).write_bytes(tomli_w.dumps(text).encode())
    notes = worlds.Notes()
    assert index(IndexRequest(manifest=manifest, root=tmp_path, digests=True), notes).faults == ()
    assert "is not there" in notes.lines[0]
    file.write_bytes(b"the release")
    assert look(manifest, tmp_path, digests=True).faults == ()
    file.write_bytes(b"the relaese")
    assert look(manifest, tmp_path).faults == ()
    fault = look(manifest, tmp_path, digests=True).faults[0]
    assert fault.found == f"{kind}:{hashlib.new(kind, b'the relaese').hexdigest()}" and str(file) == fault.where


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny CLIP."""
    return worlds.session_clip(tmp_path_factory, "teacher")


def test_known_bad_images_fail_without_being_failures(world: World, teacher: str, tmp_path: Path) -> None:
    """fall 2011 with a gzipped member and its one file that is no image: taught with no failing share allowed."""
    photos = dict(world.photos) | {"n02_05": b"no image", "n01_01": gzip.compress(world.photos["n01_01"])}
    manifest = changed(laid_out("imagenet21k-fall11", tmp_path / "data", photos, USED), known_bad=["n02/n02_05"])
    assert look(manifest, tmp_path / "data").splits[0].known_bad == 1
    here = World(tmp_path / "data", photos)
    result = teach_inline(here, tmp_path / "a.zarr", teacher, manifest=manifest, max_failed_share=0.0, top_k=5)
    assert (result.rows_ok, result.rows_failed) == (69, 1)
