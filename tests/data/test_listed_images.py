"""Lists of images as CoOp's data sets have them: what they say, and how a bad one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from teachonce.core.progress import Silent
from teachonce.data.index import SampleIndex, build_index, few_samples, split_classes
from teachonce.data.listed_images import lines_vocabulary, renamed, split_vocabulary
from teachonce.data.manifests import Manifest, Split
from teachonce.data.vocabulary import Vocabulary
from teachonce.errors import DataError


def a_split(root: Path, document: Any) -> Path:
    """A JSON file, as text or as an object, and two images."""
    (root / "images/a").mkdir(parents=True, exist_ok=True)
    for name in ("a/x.jpg", "y.jpg"):
        (root / "images" / name).write_bytes(name.encode())
    text = document if isinstance(document, str) else json.dumps(document)
    (root / "split.json").write_text(text, encoding="utf-8")
    return root / "split.json"


def indexed(root: Path, part: str = "test") -> SampleIndex:
    """The index of that file's part."""
    split = Split(format="coop-split", path="split.json", images="images", part=part)
    manifest = Manifest(schema=1, name="m", title="M", classes="split", splits={part: split}, get="Fetch it.")
    return build_index(manifest, part, root, Silent())


SOUND = {
    "train": [["y.jpg", 3, "blue_jay"]],
    "val": [],
    "test": [["a/x.jpg", 10, "red_fox"], ["y.jpg", 3, "blue_jay"]],
}


def test_a_split_lists_images_and_names_classes(tmp_path: Path) -> None:
    """Ids are class numbers in their order, not as text; labels are places in that list; keys are the listed paths."""
    file = a_split(tmp_path, SOUND)
    assert split_vocabulary(file) == Vocabulary(("3", "10"), ("blue jay", "red fox"))
    index = indexed(tmp_path)
    assert [(index.key(i), int(index.label[i]), int(index.size[i])) for i in range(2)] == [
        ("a/x.jpg", 1, 7),
        ("y.jpg", 0, 5),
    ]
    assert index.archives == ("images/a", "images")
    manifest = Manifest(
        schema=1,
        name="m",
        title="M",
        classes="split",
        get="",
        splits={"test": Split(format="coop-split", path="split.json", images="images", part="test")},
    )
    assert len(few_samples(manifest, "test", tmp_path, 1)) >= 1


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a split of CoOp: expected an object with the list 'train'"),
        ({"train": [], "val": [], "test": {}}, "with the list 'test'"),
        ({**SOUND, "test": [["a/x.jpg", 3]]}, r"entry 0 of 'test' is \['a/x.jpg', 3\]: expected"),
        ({**SOUND, "test": [["a/x.jpg", "x", "fox"]]}, "entry 0 of 'test'"),
        ({**SOUND, "test": [["a/x.jpg", None, "fox"]]}, "entry 0 of 'test'"),
        ({**SOUND, "test": [["a/x.jpg", 3, "fox"]]}, "the class 3 is called 'blue jay' and 'fox'"),
        ({**SOUND, "test": [["../x.jpg", 3, "blue_jay"]]}, "does not lie below"),
        ({**SOUND, "test": [["/x.jpg", 3, "blue_jay"]]}, "does not lie below"),
        ({**SOUND, "test": [["a\nb/x.jpg", 3, "blue_jay"]]}, "does not lie below"),
        ({**SOUND, "test": [["", 3, "blue_jay"]]}, "does not lie below"),
        ({**SOUND, "test": [["gone.jpg", 3, "blue_jay"]]}, "gone.jpg, which cannot be read"),
        ({**SOUND, "test": [["y.jpg", 3, "blue_jay"]] * 2}, "'y.jpg' comes twice"),
        ({**SOUND, "test": []}, "lists no image under 'test'"),
        ({"train": [], "val": [], "test": []}, "lists no image"),
    ],
)
def test_a_bad_split_is_refused(document: Any, message: str, tmp_path: Path) -> None:
    """The file, the entry, and what was expected."""
    a_split(tmp_path, document)
    with pytest.raises(DataError, match=message):
        indexed(tmp_path)


def of_lines(root: Path, names: str, images: str) -> SampleIndex:
    """The index of a text list."""
    (root / "images").mkdir(exist_ok=True)
    (root / "images/1.jpg").write_bytes(b"1")
    (root / "names.txt").write_text(names)
    (root / "list.txt").write_text(images)
    split = Split(format="image-list", path="list.txt", images="images")
    manifest = Manifest(schema=1, name="m", title="M", classes="lines:names.txt", splits={"test": split}, get="Fetch.")
    assert split_classes(manifest, "test", root).ids == tuple(str(i) for i in range(len(names.split("\n")) - 1))
    return build_index(manifest, "test", root, Silent())


@pytest.mark.parametrize("line", ["1 Boeing 707-320\n", "1.jpg Boeing 707-320\n\n", "1   Boeing_707-320  \n"])
def test_a_line_is_an_image_and_a_class_name(line: str, tmp_path: Path) -> None:
    """The name may have spaces; .jpg is added where no extension is."""
    index = of_lines(tmp_path, "A300\nBoeing 707-320\n", line)
    assert (index.key(0), index.label.tolist()) == ("1.jpg", [1])


def test_bad_lists_are_refused(tmp_path: Path) -> None:
    """An unknown name with the nearest one; a name twice, an empty or missing file."""
    with pytest.raises(DataError, match="list.txt, line 1: 'A30' is not in the class list: did you mean 'A300'"):
        of_lines(tmp_path, "A300\n", "1 A30\n")
    (tmp_path / "n.txt").write_text("a\nb\na\n")
    with pytest.raises(DataError, match="the class 'a' comes 2 times"):
        lines_vocabulary(tmp_path / "n.txt")
    (tmp_path / "n.txt").write_text(" \n")
    with pytest.raises(DataError, match="names no class"):
        lines_vocabulary(tmp_path / "n.txt")
    with pytest.raises(DataError, match="cannot read"):
        split_vocabulary(tmp_path / "gone.json")


def test_names_of_a_file_take_the_place_of_the_lists(tmp_path: Path) -> None:
    """By id, with a space or a tab; more lines than classes do no harm."""
    (tmp_path / "c.txt").write_text("n2 blue  jay\nn9 x\nn1\tred fox\n")
    assert renamed(Vocabulary(("n1", "n2"), ("a", "b")), tmp_path / "c.txt").names == ("red fox", "blue jay")


@pytest.mark.parametrize(
    "fields",
    [
        {"format": "coop-split", "part": "test"},
        {"format": "coop-split", "images": "i"},
        {"format": "image-list"},
        {"format": "webdataset", "images": "i"},
        {"format": "image-list", "images": "i", "part": "test"},
        {"format": "image-list", "images": "../i"},
    ],
)
def test_a_listed_split_needs_its_fields_and_others_do_not_take_them(fields: dict[str, Any]) -> None:
    """A manifest that would be half ignored is refused."""
    with pytest.raises(ValueError, match=r"images|part"):
        Split(path="p", **fields)
