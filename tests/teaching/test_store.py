"""A store remembers what lay beside its samples when it was made."""

from __future__ import annotations

from pathlib import Path

from worlds import Notes

from teachonce.data.manifests import Manifest, Split
from teachonce.data.view_policy import ViewPolicy
from teachonce.data.vocabulary import Vocabulary
from teachonce.labels.format import LABELS
from teachonce.labels.store import LabelStore
from teachonce.stages.inspect import InspectRequest, inspect
from teachonce.teaching.store import WantedStore, open_or_create


def wanted(root: Path, name: str) -> WantedStore:
    """A store without a teacher, over two class folders."""
    classes = Vocabulary(("n1", "n2"), ("fox", "jay"))
    split = Split(format="image-folder", path="data")
    return WantedStore(
        path=root / name,
        manifest=Manifest(schema=1, name="m", title="M", classes="folders", splits={"train": split}, get=""),
        split="train",
        root=root,
        own_classes=classes,
        vocabulary=classes,
        vocabulary_spec=None,
        top_k=0,
        templates=("a photo of a {}.",),
        precision="fp32",
        embeddings=None,
        chunk_rows=None,
        views=ViewPolicy(),
        shots=None,
        seed=0,
    )


def test_what_was_passed_over_is_said_once_and_kept(tmp_path: Path) -> None:
    """In numbers, without names of files, and without a part in what makes two stores the same."""
    for name in ("n1/a.jpg", "n2/b.jpg"):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        (tmp_path / "data" / name).write_bytes(b"x")
    notes = Notes()
    whole = open_or_create(wanted(tmp_path, "whole.zarr"), {}, notes)
    assert not any("passed over" in line for line in notes.lines)
    (tmp_path / "data/n1/private.heic").write_bytes(b"x")
    (tmp_path / "data/n1/c.xcf").write_bytes(b"x")
    rest = open_or_create(wanted(tmp_path, "rest.zarr"), {}, notes)
    assert sum("passed over: 2 other endings (.heic 1, .xcf 1)" in line for line in notes.lines) == 1
    assert whole.groups[LABELS].digest == rest.groups[LABELS].digest
    open_or_create(wanted(tmp_path, "rest.zarr"), {}, notes)
    assert sum("passed over" in line for line in notes.lines) == 1, "a store that goes on is not scanned again"
    kept = inspect(InspectRequest(labels=tmp_path / "rest.zarr"), Notes()).passed_over
    assert kept == {"counts": {"other_endings": 2}, "endings": {".heic": 1, ".xcf": 1}}
    assert inspect(InspectRequest(labels=tmp_path / "whole.zarr"), Notes()).passed_over == {}
    assert "private" not in str(LabelStore.open(tmp_path / "rest.zarr").groups[LABELS].fingerprint)
