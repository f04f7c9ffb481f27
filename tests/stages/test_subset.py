"""subset: a selection file from a taught store; the store is not touched."""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from worlds import IDS, PER_CLASS, PHOTOS, Notes, World, all_arrays, keys_of, teach_inline

from teachonce.core.progress import Silent
from teachonce.errors import DataError, EnvironmentFault, FingerprintError, IncompleteError, IntegrityError, UsageError
from teachonce.labels.selection import load_selection
from teachonce.labels.store import LabelStore
from teachonce.rows.working_set import open_working_set
from teachonce.stages.relabel import RelabelRequest, relabel
from teachonce.stages.subset import SubsetRequest, SubsetResult, subset


def run(labels: Path, out: Path, **options: Any) -> SubsetResult:
    """Run `subset`."""
    return subset(SubsetRequest(labels=labels, out=out, **options), Silent())


def by_hand(store: Path, shots: int, seed: int) -> list[str]:
    """The keys of each class's photos with the smallest hashes."""

    def rank(key: str) -> int:
        digest = hashlib.blake2b(key.encode(), digest_size=8, key=seed.to_bytes(8, "little")).digest()
        return int.from_bytes(digest, "little")

    keys = keys_of(store)
    return sorted(
        key
        for class_id in IDS
        for key in sorted((k for k in keys if k.rpartition("/")[2][:3] == class_id), key=rank)[:shots]
    )


def test_few_shots_of_each_class(finished: Path, tmp_path: Path) -> None:
    """By hand from the keys; the class without photos is counted; the store stays as it was."""
    before = {file: file.read_bytes() for file in worlds.files_of(finished)}
    notes = Notes()
    result = subset(SubsetRequest(labels=finished, out=tmp_path / "few.json", shots=3, seed=5), notes)
    assert (result.samples, result.rows, result.classes) == (21, 21, 7)
    assert (result.classes_short, result.short) == (1, {"n08": 0})
    assert any("1 classes have fewer than 3 samples" in line for line in notes.lines)
    selection = load_selection(tmp_path / "few.json", LabelStore.open(finished))
    assert (selection.shots, selection.seed, selection.top_k, selection.classes) == (3, 5, None, None)
    assert selection.digest == result.digest
    rows = np.flatnonzero(np.isin(all_arrays(finished)["sample"], selection.samples))
    assert sorted(keys_of(finished)[row] for row in rows) == by_hand(finished, 3, 5)
    assert sorted(json.loads((tmp_path / "few.json").read_text())["keys"]) == by_hand(finished, 3, 5)
    assert {file: file.read_bytes() for file in worlds.files_of(finished)} == before


def test_all_of_a_class_when_there_are_no_more(finished: Path, tmp_path: Path) -> None:
    """More shots than photos: every photo, and every class is short."""
    result = run(finished, tmp_path / "few.json", shots=PER_CLASS + 1)
    assert (result.samples, result.classes_short) == (PHOTOS, len(IDS))
    assert result.short["n01"] == PER_CLASS


def test_classes_and_top_k(finished: Path, tmp_path: Path) -> None:
    """A file of ids, with names or without; k' up to the stored k."""
    (tmp_path / "some.txt").write_text("n05\tyellow bus\nn02\n")
    result = run(finished, tmp_path / "a.json", classes=tmp_path / "some.txt", top_k=5)
    selection = load_selection(tmp_path / "a.json", LabelStore.open(finished))
    assert selection.classes == ("n02", "n05") and selection.top_k == 5 and result.samples == 2 * PER_CLASS
    label = dict(zip(*(all_arrays(finished)[name].tolist() for name in ("sample", "label")), strict=True))
    assert {label[sample] for sample in selection.samples.tolist()} == {1, 4}


def test_samples_of_some_classes_among_all_names(finished: Path, student: str, tmp_path: Path) -> None:
    """all_names: the rows of two classes, with the labels and soft labels that they have among all classes."""
    (tmp_path / "some.txt").write_text("n05\nn02\n")
    run(finished, tmp_path / "a.json", classes=tmp_path / "some.txt", all_names=True)
    store = LabelStore.open(worlds.copy_store(finished, tmp_path))
    selection = load_selection(tmp_path / "a.json", store)
    assert selection.classes is None and len(selection.samples) == 2 * PER_CLASS
    with (
        closing(open_working_set(store, None, Silent(), selection)) as some,
        closing(open_working_set(store, None, Silent())) as every,
    ):
        assert some.vocabulary == every.vocabulary and set(some.label_column.tolist()) == {1, 4}
        places = np.flatnonzero(np.isin(every.row_column, some.row_column))
        ours, theirs = some.batch(np.arange(len(some))), every.batch(places)
        for name in ("class_ids", "log_probs", "log_residual", "label", "row"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    with pytest.raises(UsageError, match="there is no `classes`"):
        run(finished, tmp_path / "b.json", shots=1, all_names=True)


def test_failed_images_are_not_chosen(world: World, teacher: str, tmp_path: Path) -> None:
    """A photo that cannot be decoded takes no place among the shots."""
    photos = dict(world.photos)
    for name in ("n01_00", "n01_01", "n02_05"):
        photos[name] = b"broken"
    hurt = worlds.make_world(tmp_path / "hurt", photos)
    teach_inline(hurt, tmp_path / "a.zarr", teacher, top_k=3, max_failed_share=0.1)
    assert run(tmp_path / "a.zarr", tmp_path / "all.json", top_k=3).samples == PHOTOS - 3
    result = run(tmp_path / "a.zarr", tmp_path / "most.json", shots=PER_CLASS - 1)
    assert result.short == {"n01": PER_CLASS - 2, "n08": 0}
    keys = json.loads((tmp_path / "most.json").read_text())["keys"]
    assert not any(name in key for key in keys for name in ("n01_00", "n01_01", "n02_05"))


def test_a_relabelled_store_takes_the_same_selection(world: World, teacher: str, tmp_path: Path) -> None:
    """The samples are the same; only classes that it lost, or a smaller k, are in the way."""
    teach_inline(world, tmp_path / "a.zarr", teacher, top_k=5, embeddings="int8", chunk_rows=35)
    (tmp_path / "six.txt").write_text("\n".join(IDS[:6]))
    with worlds.inline_tasks():
        relabel(
            RelabelRequest(
                parent=tmp_path / "a.zarr", labels=tmp_path / "b.zarr", classes=tmp_path / "six.txt", top_k=2
            ),
            Silent(),
        )
    child = LabelStore.open(tmp_path / "b.zarr")
    run(tmp_path / "a.zarr", tmp_path / "few.json", shots=2)
    first = load_selection(tmp_path / "few.json", LabelStore.open(tmp_path / "a.zarr"))
    assert np.array_equal(load_selection(tmp_path / "few.json", child).samples, first.samples)
    (tmp_path / "last.txt").write_text("n07\nn01\n")
    run(tmp_path / "a.zarr", tmp_path / "last.json", classes=tmp_path / "last.txt")
    with pytest.raises(DataError, match="'n07'"):
        load_selection(tmp_path / "last.json", child)
    run(tmp_path / "a.zarr", tmp_path / "k.json", top_k=3)
    with pytest.raises(UsageError, match="uses 3 classes of each soft label; .* holds 2"):
        load_selection(tmp_path / "k.json", child)


def test_other_samples_refuse_a_selection(finished: Path, world: World, teacher: str, tmp_path: Path) -> None:
    """The same photos less one are other samples."""
    other = worlds.make_world(tmp_path / "less", {n: world.photos[n] for n in list(world.photos)[:-1]})
    teach_inline(other, tmp_path / "a.zarr", teacher, top_k=3)
    run(finished, tmp_path / "few.json", shots=2)
    with pytest.raises(FingerprintError, match="was made on other samples") as caught:
        load_selection(tmp_path / "few.json", LabelStore.open(tmp_path / "a.zarr"))
    assert "teachonce subset" in caught.value.hint


def test_an_incomplete_or_damaged_store_gives_no_selection(finished: Path, tmp_path: Path) -> None:
    """Exit 5 and 4; no file is written."""
    copy = worlds.copy_store(finished, tmp_path)
    victim = copy / "status" / "c" / "2"
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x00")
    with pytest.raises(IntegrityError, match="status"):
        run(copy, tmp_path / "few.json", shots=1)
    LabelStore.open(copy, writable=True).drop("labels", 1)
    with pytest.raises(IncompleteError, match="not committed"):
        run(copy, tmp_path / "few.json", shots=1)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "nothing to select"),
        ({"shots": 0}, "`shots`"),
        ({"top_k": 6}, "`top_k` 6 is more than the 5"),
        ({"out": Path("few.txt"), "shots": 1}, r"ends in \.json"),
    ],
)
def test_a_wrong_option_is_refused(change: dict[str, Any], message: str, finished: Path, tmp_path: Path) -> None:
    """Exit 2 with the option; nothing is written."""
    given: dict[str, Any] = {"out": tmp_path / "few.json", **change}
    with pytest.raises(UsageError, match=message):
        run(finished, **given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["other", "text", "folder"])
def test_a_file_that_is_there_is_never_replaced(there: str, finished: Path, tmp_path: Path) -> None:
    """Runs may depend on it; the same command again is fine."""
    out = tmp_path / "few.json"
    if there == "folder":
        out.mkdir()
    elif there == "text":
        out.write_text("mine")
    else:
        run(finished, out, shots=1)
        assert run(finished, out, shots=1).samples == len(IDS) - 1
    before = None if there == "folder" else out.read_bytes()
    with pytest.raises(UsageError, match="few.json exists and is not what this command would write"):
        run(finished, out, shots=2)
    assert before is None or out.read_bytes() == before


def test_what_cannot_be_chosen_or_written(finished: Path, tmp_path: Path) -> None:
    """A class without photos leaves nothing; an unknown class is named; a missing folder is said."""
    (tmp_path / "some.txt").write_text("n08\n")
    with pytest.raises(DataError, match="no sample with an image is left"):
        run(finished, tmp_path / "few.json", classes=tmp_path / "some.txt")
    (tmp_path / "some.txt").write_text("n081\n")
    with pytest.raises(DataError, match=r"'n081' \(did you mean 'n08'\?\)"):
        run(finished, tmp_path / "few.json", classes=tmp_path / "some.txt")
    with pytest.raises(EnvironmentFault, match="cannot write"):
        run(finished, tmp_path / "none" / "few.json", shots=1)
