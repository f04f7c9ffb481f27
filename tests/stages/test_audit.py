"""audit: a page, a list and tables from a store alone; `subset --clean` leaves out what the list says."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_faults import planted_store
from worlds import World, teach_inline

from teachonce.core.progress import Silent
from teachonce.errors import DataError, FingerprintError, UsageError
from teachonce.labels.selection import load_selection
from teachonce.labels.store import LabelStore
from teachonce.stages.audit import AuditRequest, AuditResult, audit
from teachonce.stages.subset import SubsetRequest, subset


def run(labels: Path, out: Path, **options: Any) -> AuditResult:
    """Run `audit`."""
    return audit(AuditRequest(labels=labels, out=out, **options), Silent())


def lines_of(file: Path) -> list[dict[str, str]]:
    """The lines of a list."""
    return list(csv.DictReader(file.read_text().splitlines()))


def clean(labels: Path, listed: Path, out: Path, **options: Any) -> set[int]:
    """The samples that `subset --clean` leaves."""
    subset(SubsetRequest(labels=labels, out=out, clean=listed, **options), Silent())
    return set(load_selection(out, LabelStore.open(labels)).samples.tolist())


def test_what_is_listed_is_what_is_left_out(tmp_path: Path) -> None:
    planted = planted_store(tmp_path / "x.zarr", noise=0.2, copies=10)
    result = run(planted.store.path, tmp_path / "audit.html")
    lines = lines_of(tmp_path / "audit.csv")
    wrong = {int(line["sample"]) for line in lines if line["finding"] == "label"}
    assert len(wrong & planted.wrong) > 0.9 * len(planted.wrong)
    assert result.found["label"] == len(wrong) and result.left_out == len({line["sample"] for line in lines})
    left = clean(planted.store.path, tmp_path / "audit.csv", tmp_path / "clean.json")
    assert left == set(range(600)) - {int(line["sample"]) for line in lines}
    few = clean(planted.store.path, tmp_path / "audit.csv", tmp_path / "few.json", shots=3)
    assert len(few) == 30 and few <= left
    page = (tmp_path / "audit.html").read_text()
    assert result.headline[0] in page and "teachonce audit" in page and "<script" not in page


def test_a_person_has_the_last_word(tmp_path: Path) -> None:
    """A line whose column `leave_out` says no stays in."""
    planted = planted_store(tmp_path / "x.zarr", noise=0.2)
    run(planted.store.path, tmp_path / "audit.html")
    listed = tmp_path / "audit.csv"
    lines = lines_of(listed)
    listed.write_text(listed.read_text().replace(",yes,", ",no,", 1))
    left = clean(planted.store.path, listed, tmp_path / "clean.json")
    assert int(lines[0]["sample"]) in left and int(lines[1]["sample"]) not in left


def test_of_near_duplicates_the_one_with_the_better_label_is_kept(tmp_path: Path) -> None:
    planted = planted_store(tmp_path / "x.zarr", rows=400, copies=8, noise=0.3)
    run(planted.store.path, tmp_path / "audit.html")
    dropped = {int(line["sample"]) for line in lines_of(tmp_path / "audit.csv") if line["finding"] == "duplicate"}
    for i in range(8):
        pair = {i, 399 - i}
        assert len(pair & dropped) >= 1
        right = pair - planted.wrong
        if len(right) == 1:
            assert pair & dropped == pair - right


def test_tables_beside_the_page(tmp_path: Path) -> None:
    planted = planted_store(tmp_path / "x.zarr", noise=0.1)
    run(planted.store.path, tmp_path / "audit.html")
    classes = lines_of(tmp_path / "audit-files" / "classes.csv")
    assert [int(line["photos"]) for line in classes] == np.bincount(planted.label, minlength=10).tolist()
    shares = [line.split("\t") for line in (tmp_path / "audit-files" / "prior.tsv").read_text().splitlines()]
    assert sum(float(share) for _, share in shares) == pytest.approx(1) and len(shares) == 10
    result = run(planted.store.path, tmp_path / "again.html")
    assert result.classes_without_photos == 2
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "audit.csv").read_bytes()


def test_photos_in_both_stores_and_drift(tmp_path: Path) -> None:
    """Half of the new photos are taught ones: they are listed, and nothing is called drift."""
    taught = planted_store(tmp_path / "x.zarr", rows=300)
    new = planted_store(tmp_path / "y.zarr", rows=300, shift=0.6)
    result = run(taught.store.path, tmp_path / "audit.html", against=new.store.path)
    assert result.drift["photos"]["p"] <= 0.01 and result.drift["new"] == 300
    same = run(taught.store.path, tmp_path / "b.html", against=planted_store(tmp_path / "z.zarr", rows=300).store.path)
    assert same.found["across"] == 300 and same.drift["photos"]["p"] > 0.5


def test_photos_stand_on_the_page(world: World, teacher: str, tmp_path: Path) -> None:
    """Each photo twice, in the store and as a new one; one that is missing does no harm."""
    labels, new = tmp_path / "a.zarr", tmp_path / "b.zarr"
    for out in (labels, new):
        teach_inline(world, out, teacher, embeddings="float16")
    result = run(labels, tmp_path / "audit.html", root=world.root, against=new)
    page = (tmp_path / "audit.html").read_text()
    assert result.found["across"] == 70 and page.count("data:image/jpeg") >= 24
    assert "data:image" not in (run(labels, tmp_path / "b.html", against=new) and (tmp_path / "b.html").read_text())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"confidence": 1.5}, "between 0 and 1"),
        ({"out": Path("audit.txt")}, "ends in .html"),
        ({"out": Path("nowhere/audit.html")}, "no folder"),
        ({"against_root": Path("x")}, "there is no `against`"),
        ({"against": Path("x.zarr")}, "is the store itself"),
    ],
)
def test_what_cannot_be_is_refused(options: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        audit(AuditRequest(**{"labels": Path("x.zarr"), **options}), Silent())


def test_a_store_without_vectors_is_refused(world: World, teacher: str, tmp_path: Path) -> None:
    teach_inline(world, tmp_path / "a.zarr", teacher)
    with pytest.raises(DataError, match="neither embeddings"):
        run(tmp_path / "a.zarr", tmp_path / "audit.html")


def test_new_photos_of_another_model_are_refused(tmp_path: Path) -> None:
    taught, new = planted_store(tmp_path / "x.zarr"), planted_store(tmp_path / "y.zarr", teacher=False)
    with pytest.raises(FingerprintError, match="other models"):
        run(taught.store.path, tmp_path / "audit.html", against=new.store.path)


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        ("sample,key,leave_out\n1,s2,yes\n", FingerprintError, "other samples"),
        ("sample,key,leave_out\n9999,s9999,yes\n", FingerprintError, "lists sample 9999"),
        ("sample,key,leave_out\n1,s1,perhaps\n", DataError, "line 2"),
        ("a,b\n1,2\n", DataError, "line 2"),
        (None, DataError, "cannot read"),
    ],
)
def test_a_list_of_something_else_is_refused(tmp_path: Path, content: str | None, kind: type, said: str) -> None:
    planted = planted_store(tmp_path / "x.zarr", rows=100)
    if content is not None:
        (tmp_path / "audit.csv").write_text(content)
    with pytest.raises(kind, match=said):
        clean(planted.store.path, tmp_path / "audit.csv", tmp_path / "clean.json")


def test_a_selection_without_a_list_is_the_file_of_before(tmp_path: Path) -> None:
    planted = planted_store(tmp_path / "x.zarr", rows=100)
    subset(SubsetRequest(labels=planted.store.path, out=tmp_path / "few.json", shots=2), Silent())
    assert set(json.loads((tmp_path / "few.json").read_text())["rule"]) == {"shots", "seed", "top_k", "classes"}
