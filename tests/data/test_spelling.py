"""Class lists and labels mean the same thing: headers, Unicode forms, names that are no names, names that are one."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
from worlds import add_member

from teachonce.core.progress import Silent
from teachonce.data.index import build_index, split_classes
from teachonce.data.manifests import Manifest, Split
from teachonce.data.spelling import is_bare_id, is_header
from teachonce.data.vocabulary import Vocabulary, folder_vocabulary, load_vocabulary, parse_tsv, read_class_ids
from teachonce.errors import DataError
from teachonce.stages.index.survey import survey_split

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def a_manifest(classes: str, **split: Any) -> Manifest:
    """A manifest with one split, `train`."""
    return Manifest(schema=1, name="m", title="M", classes=classes, splits={"train": Split(**split)}, get="Fetch it.")


def images(folder: Path, *names: str) -> None:
    """Files that an index takes for images."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"an image")


@pytest.mark.parametrize(
    "line",
    [
        "id\tname",
        "class_id\tclass_name",
        "Class ID\tClass Name",
        "#wnid\twords",
        "wnid\twords\tdefinition",
        "synset\tlabel",
        "classId\tclassName",
        '"label"\t"name"',
        "index\tclass",
        "folder\tlabel",
        "imagenet_id\thuman_readable_label",
    ],
)
def test_a_header_of_a_class_list_is_refused_by_name(line: str, tmp_path: Path) -> None:
    (tmp_path / "classes.tsv").write_text(f"{line}\ncat\tcat\ndog\tdog\n")
    with pytest.raises(DataError, match="line 1: .* looks like a header") as caught:
        load_vocabulary("classes.tsv", tmp_path)
    assert "empty line" in caught.value.hint


@pytest.mark.parametrize("line", ["0\tname tag", "key\tkey", "label\tlabel maker", "n03\tfolder", "id\tidol"])
def test_a_class_that_resembles_a_header_is_none(line: str) -> None:
    assert not is_header(line)


def test_classes_that_are_called_like_columns_are_said_with_an_empty_line(tmp_path: Path) -> None:
    """Labels by number still count them from 0."""
    (tmp_path / "classes.tsv").write_text("\nfolder\tdirectory\ncat\tcat\n")
    assert load_vocabulary("classes.tsv", tmp_path).ids == ("folder", "cat")
    assert parse_tsv("folder\tdirectory\n", "a store").ids == ("folder",), "what a store holds is never a header"


def test_a_header_of_names_a_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("class_name\nred fox\n")
    manifest = a_manifest("lines:names.txt", format="webdataset", path="*.tar")
    with pytest.raises(DataError, match="header"):
        split_classes(manifest, "train", tmp_path)


def test_a_list_in_utf16_is_said(tmp_path: Path) -> None:
    """As spreadsheets write `Unicode text`."""
    (tmp_path / "classes.tsv").write_text("cat\tcat\n", encoding="utf-16")
    with pytest.raises(DataError, match="UTF-16"):
        load_vocabulary("classes.tsv", tmp_path)


def test_a_name_that_is_no_utf8_is_refused_and_an_id_is_not(tmp_path: Path) -> None:
    (tmp_path / "classes.tsv").write_bytes(b"caf\xe9\tcoffee house\n")
    vocabulary = load_vocabulary("classes.tsv", tmp_path)
    assert vocabulary.to_tsv() == b"caf\xe9\tcoffee house\n"
    (tmp_path / "classes.tsv").write_bytes(b"cafe\tcaf\xe9\n")
    with pytest.raises(DataError, match="no UTF-8"):
        load_vocabulary("classes.tsv", tmp_path)


def test_wordnet_folders_have_the_names_of_timms_lists(tmp_path: Path) -> None:
    """An id that timm does not know keeps what it says, and that is remarked."""
    for name in ("n01440764", "n02112018", "n99999999", "red_fox"):
        (tmp_path / name).mkdir()
    vocabulary = folder_vocabulary(tmp_path)
    assert vocabulary.names == ("tench", "Pomeranian", "n99999999", "red fox")
    assert [remark.partition(",")[0] for remark in vocabulary.remarks()] == ["1 of 4 class names are ids or numbers"]


@pytest.mark.parametrize(("name", "bare"), [("n01440764", True), ("12", True), ("747 jet", False), ("猫", False)])
def test_names_that_are_ids_or_numbers(name: str, bare: bool) -> None:
    assert is_bare_id(name) == bare


def test_ids_in_two_unicode_forms_are_one(tmp_path: Path) -> None:
    """Of a list, of folders, of archives and their labels, of a file of classes."""
    (tmp_path / "classes.tsv").write_text(f"{COMPOSED}\tcafe\ncat\tcat\n", encoding="utf-8")
    images(tmp_path / "folders" / DECOMPOSED, "a.jpg")
    images(tmp_path / "folders" / "cat", "b.jpg")
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / f"tars/{DECOMPOSED}.tar", "w") as tar:
        add_member(tar, "a.jpg", b"an image")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        add_member(tar, "a.jpg", b"an image")
        add_member(tar, "a.cls", DECOMPOSED.encode())
    for split in (
        {"format": "image-folder", "path": "folders"},
        {"format": "class-tars", "path": "tars/*.tar"},
        {"format": "webdataset", "path": "shard.tar"},
    ):
        index = build_index(a_manifest("classes.tsv", **split), "train", tmp_path, Silent())
        assert int(index.label[0]) == 0, split
    vocabulary = load_vocabulary("classes.tsv", tmp_path)
    (tmp_path / "few.txt").write_text(DECOMPOSED, encoding="utf-8")
    assert read_class_ids(tmp_path / "few.txt", vocabulary) == (COMPOSED,)


def test_two_ids_that_differ_in_form_alone_are_said_to(tmp_path: Path) -> None:
    (tmp_path / "classes.tsv").write_text(f"{COMPOSED}\ta\n{DECOMPOSED}\tb\n", encoding="utf-8")
    with pytest.raises(DataError, match="only in their Unicode form"):
        load_vocabulary("classes.tsv", tmp_path)
    stored = Vocabulary((COMPOSED, DECOMPOSED), ("a", "b"))
    assert [stored.index[class_id] for class_id in stored.ids] == [0, 1], "stores of before stay what they are"


def test_a_listed_image_is_found_in_its_other_form(tmp_path: Path) -> None:
    """The key is that of the disk, so that reading finds the file, too."""
    images(tmp_path / "images" / DECOMPOSED, f"{DECOMPOSED}.jpg")
    (tmp_path / "names.txt").write_text(COMPOSED, encoding="utf-8")
    (tmp_path / "list.txt").write_text(f"{COMPOSED}/{COMPOSED}.jpg {DECOMPOSED}\n", encoding="utf-8")
    manifest = a_manifest("lines:names.txt", format="image-list", path="list.txt", images="images")
    index = build_index(manifest, "train", tmp_path, Silent())
    assert index.key(0).endswith(f"/{DECOMPOSED}.jpg") and index.archives == (f"images/{DECOMPOSED}",)


@pytest.mark.parametrize(("label", "remarks"), [(b"1", 1), (b"0", 1), (None, 0)])
def test_unseen_classes_beside_labels_by_number_are_remarked(label: bytes | None, remarks: int, tmp_path: Path) -> None:
    (tmp_path / "classes.tsv").write_text("cat\tcat\ndog\tdog\n")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for key, text in (("a", label or b"0"), ("b", label or b"1")):
            add_member(tar, f"{key}.jpg", b"an image")
            add_member(tar, f"{key}.cls", text)
    manifest = a_manifest("classes.tsv", format="webdataset", path="*.tar")
    survey, faults = survey_split(manifest, "train", tmp_path, Silent())
    assert survey is not None and faults == [] and len(survey.remarks) == remarks


def test_what_a_store_holds_is_read_to_the_letter() -> None:
    """Class folders may be called `red__fox` or ` cat`; digests of lists are compared later."""
    vocabulary = Vocabulary((" cat", "red__fox"), ("cat", "red  fox"))
    assert parse_tsv(vocabulary.to_tsv().decode(), "a store", exact=True) == vocabulary
