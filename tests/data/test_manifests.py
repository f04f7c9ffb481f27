"""Manifests say what a data set must be; shipped ones load; digests cover what decides samples and labels."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from teachonce.data.manifests import Manifest, Split, absent_files, load_manifest, require_root, shipped_manifests
from teachonce.data.vocabulary import load_vocabulary
from teachonce.errors import DataError, UsageError


def a_manifest() -> Manifest:
    """One with two splits."""
    splits = {
        "train": Split(format="webdataset", path="train/*.tar"),
        "val": Split(format="class-tars", path="val/*.tar", classes="val.tsv"),
    }
    return Manifest(schema=1, name="m", title="M", classes="c.tsv", splits=splits, get="Ask for it.")


@pytest.mark.parametrize("name", sorted(shipped_manifests()))
def test_every_shipped_manifest_loads_under_its_own_name(name: str) -> None:
    """The file name, the name inside and the prose that says where the data comes from agree."""
    manifest = load_manifest(name)
    assert manifest.name == name
    assert manifest.splits and manifest.get and manifest.licence


def test_a_wrong_name_is_answered_with_the_nearest_and_the_list() -> None:
    """Neither a file nor a shipped name: exit 2, a suggestion, and what there is."""
    with pytest.raises(UsageError, match="did you mean 'local-tars'") as caught:
        load_manifest("local-tar")
    assert "image-folder" in caught.value.hint


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path that ends in .toml is meant as a file."""
    with pytest.raises(UsageError, match="cannot read the manifest .*gone.toml"):
        load_manifest(str(tmp_path / "gone.toml"))


NO_PATHS = ["a\0b", "x" * 70_000, "/".join(["y" * 200] * 30), "\0"]


@pytest.mark.parametrize("path", [*NO_PATHS, ".", "./", "**x", "a/x**/b"])
def test_a_path_that_no_file_system_takes_is_refused_when_it_is_read(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        Split(format="webdataset", path=path)


@pytest.mark.parametrize("path", NO_PATHS)
def test_so_are_class_lists_names_and_digests(path: str) -> None:
    manifest = a_manifest()
    for given in ({"classes": path}, {"names": path}, {"digests": {path: "md5:0"}}):
        with pytest.raises(ValueError, match="no file system"):
            dataclasses.replace(manifest, **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no file system"):
        Split(format="webdataset", path="a", classes=path)
    with pytest.raises(ValueError, match="root"):
        dataclasses.replace(manifest, names="../outside")


def test_folders_of_classes_may_lie_in_the_root_itself(tmp_path: Path) -> None:
    split = Split(format="image-folder", path=".")
    assert (
        absent_files(dataclasses.replace(a_manifest(), classes="folders", splits={"all": split}), "all", tmp_path) == []
    )


def test_a_list_that_is_a_device_or_a_pipe_is_refused_and_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for name in ("/dev/zero", str(tmp_path / "pipe.toml"), "x" * 300):
        with pytest.raises(DataError, match="cannot read the class list"):
            load_vocabulary(name, tmp_path)
    with pytest.raises(UsageError, match="a pipe and no plain file"):
        load_manifest(str(tmp_path / "pipe.toml"))
    with pytest.raises(UsageError, match="neither a manifest file"):
        load_manifest("x" * 300)


@pytest.mark.parametrize("path", ["/etc/*.tar", "../*.tar", "a/../../b"])
def test_a_split_cannot_leave_the_root(path: str) -> None:
    """Absolute paths and `..` are refused when the manifest is read."""
    with pytest.raises(ValueError, match="must stay below the root"):
        Split(format="webdataset", path=path)


def test_an_unknown_split_is_answered_with_the_nearest() -> None:
    """Exit 2 and a suggestion."""
    with pytest.raises(UsageError, match="'m' has no split 'vla': did you mean 'val'"):
        a_manifest().split("vla")


def test_a_split_may_have_its_own_class_list() -> None:
    """`classes` of a split goes before that of the manifest."""
    assert a_manifest().classes_of("train") == "c.tsv"
    assert a_manifest().classes_of("val") == "val.tsv"


def test_the_digest_covers_what_decides_samples_and_not_prose() -> None:
    """Licence and title may be reworded; every field of the split, the name and the class list count."""
    base = a_manifest()
    digest = base.digest("train")
    assert dataclasses.replace(base, title="T", licence="L", get="G").digest("train") == digest
    others = {"format": "class-tars", "path": "x", "label": "y", "classes": "z.tsv", "samples": 9, "unlabelled": True}
    not_hashed = {"archives": 3, "known_bad": ("n1/a",)}  # what `index` expects and which failures are no news
    assert set(others) | set(not_hashed) | {"images", "part"} == {field.name for field in dataclasses.fields(Split)}
    same = dataclasses.replace(base.splits["train"], **not_hashed)
    assert dataclasses.replace(base, splits={"train": same}).digest("train") == digest
    digests = {
        digest,
        base.digest("val"),
        dataclasses.replace(base, name="other").digest("train"),
        dataclasses.replace(base, classes="d.tsv").digest("train"),
    }
    for name, value in others.items():
        split = dataclasses.replace(base.splits["train"], **{name: value})
        digests.add(dataclasses.replace(base, splits={"train": split}).digest("train"))
    of_list = Split(format="coop-split", path="s.json", images="i", part="test")
    for split in (of_list, dataclasses.replace(of_list, images="j"), dataclasses.replace(of_list, part="val")):
        digests.add(dataclasses.replace(base, splits={"train": split}).digest("train"))
    assert len(digests) == 4 + len(others) + 3


def test_the_root_must_be_given_and_be_a_folder(tmp_path: Path) -> None:
    """No root: exit 2 with the flag; no folder: exit 3; both say where the data comes from."""
    with pytest.raises(UsageError, match="needs the folder") as caught:
        require_root(a_manifest(), None)
    assert "`root`" in caught.value.hint and "Ask for it." in caught.value.hint
    with pytest.raises(DataError, match="gone is not a folder") as missing:
        require_root(a_manifest(), tmp_path / "gone")
    assert missing.value.hint == "Ask for it."
    assert require_root(a_manifest(), tmp_path) == tmp_path
