"""Names of files, folders and members are bytes: index and store hold them as they are and lead back to images."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from worlds import add_member

from teachonce.core.documents import SHOWN, csv_bytes, plain, readable, visible
from teachonce.core.progress import Silent
from teachonce.data.index import build_index
from teachonce.data.manifests import Manifest, Split
from teachonce.data.reader import ImageReader
from teachonce.data.views import uniforms
from teachonce.data.vocabulary import folder_vocabulary, load_vocabulary
from teachonce.errors import DataError
from teachonce.labels.create import create_store
from teachonce.labels.format import new_layout
from teachonce.labels.selection import key_hashes
from teachonce.labels.store import LabelStore

BYTES = b"caf\xe9"
NAME = os.fsdecode(BYTES)
IMAGE = b"an image"


def a_split(root: Path, layout: str) -> Split:
    """One image, of class 0, whose archive, folder and name are no UTF-8."""
    if layout == "folders":
        (root / NAME / NAME).mkdir(parents=True)
        (root / NAME / NAME / f"{NAME}.jpg").write_bytes(IMAGE)
        return Split(format="image-folder", path=NAME)
    with tarfile.open(root / f"{NAME}.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        inside = {"wds": f"{NAME}/{NAME}", "members": f"{NAME}/{NAME}", "class": NAME}[layout]
        add_member(tar, f"{inside}.jpg", IMAGE)
        if layout == "wds":
            add_member(tar, f"{inside}.cls", BYTES)
    formats = {"wds": "webdataset", "members": "folder-tars", "class": "class-tars"}
    return Split(format=formats[layout], path="*.tar")  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["folders", "wds", "members", "class"])
def test_a_name_that_is_no_utf8_goes_into_a_store_and_back_to_its_image(layout: str, tmp_path: Path) -> None:
    (tmp_path / "classes.tsv").write_bytes(BYTES + b"\tcoffee house\n")
    split = a_split(tmp_path, layout)
    manifest = Manifest(schema=1, name="m", title="M", classes="classes.tsv", splits={"train": split})
    index = build_index(manifest, "train", tmp_path, Silent())
    assert index.key_bytes.tobytes().count(BYTES) >= 1 and index.label.tolist() == [0]
    classes = load_vocabulary("classes.tsv", tmp_path)
    store = create_store(
        tmp_path / "x.zarr", new_layout(1, 1, 0, (), None, 1), {}, classes, classes, index, np.array([0]), None
    )
    again = LabelStore.open(store.path)
    stored = again.index_of_chunk(0)
    assert stored.archives == index.archives and stored.key(0) == index.key(0)
    assert again.label_classes() == classes and key_hashes(stored, 0).tolist() == key_hashes(index, 0).tolist()
    with ImageReader(stored, tmp_path) as reader:
        assert reader.read(0) == IMAGE
    assert len(uniforms(0, NAME, 1, 0)) == 8


def test_a_class_folder_without_a_text_for_a_name_is_refused_by_name(tmp_path: Path) -> None:
    """A text model hears names, and nobody knows which letters these bytes are."""
    (tmp_path / NAME).mkdir()
    with pytest.raises(DataError, match="no UTF-8 text") as caught:
        folder_vocabulary(tmp_path)
    assert readable(str(caught.value)).count(r"caf\xe9")


def test_documents_show_bytes_as_escapes_and_stay_valid() -> None:
    document = json.dumps(plain({NAME: [NAME, Path(NAME), "café"]}), ensure_ascii=False)
    assert json.loads(document.encode()) == {r"caf\xe9": [r"caf\xe9", r"caf\xe9", "café"]}
    assert readable("café") == "café"
    assert visible(NAME) == r"caf\xe9" and csv_bytes([[NAME]]) == b"caf\\xe9\n", "on pages and in tables, too"
    assert f"{NAME} café 猫".encode("ascii", SHOWN) == rb"caf\xe9 caf\xe9 \u732b"
