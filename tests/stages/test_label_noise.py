"""relabel with wrong labels on purpose: as many as stated, nested, and nothing else of a store changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_faults import Planted, planted_store
from worlds import all_arrays

from teachonce.core.progress import Silent
from teachonce.errors import DataError, FingerprintError, UsageError
from teachonce.labels.store import LabelStore
from teachonce.stages.relabel import RelabelRequest, RelabelResult, relabel
from teachonce.stages.verify import VerifyRequest, verify


def run(parent: Path, labels: Path, **options: Any) -> RelabelResult:
    """Run `relabel`."""
    return relabel(RelabelRequest(parent=parent, labels=labels, **options), Silent())


def labels_of(store: Path) -> Any:
    """Label by sample number."""
    arrays = all_arrays(store)
    return arrays["label"][np.argsort(arrays["sample"])]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """600 photos of ten classes with right labels, and two names without photos."""
    return planted_store(tmp_path_factory.mktemp("noise") / "x.zarr")


def test_as_many_labels_as_stated_become_wrong_and_nothing_else_changes(parent: Planted, tmp_path: Path) -> None:
    result = run(parent.store.path, tmp_path / "n.zarr", label_noise=0.4)
    before, after = labels_of(parent.store.path), labels_of(tmp_path / "n.zarr")
    wrong = before != after
    assert result.labels_changed == wrong.sum() and wrong.mean() == pytest.approx(0.4, abs=0.06)
    assert set(np.unique(after)) == set(range(10)), "no name without photos gets any"
    turned = np.bincount((after - before)[wrong] % 10, minlength=10)
    assert turned[0] == 0 and turned[1:].min() > 10, "every other class is as probable"
    old, new = all_arrays(parent.store.path), all_arrays(tmp_path / "n.zarr")
    assert np.array_equal(old["class_ids"], new["class_ids"]) and np.array_equal(old["sample"], new["sample"])
    store = LabelStore.open(tmp_path / "n.zarr")
    assert store.groups["labels"].fingerprint["label_noise"] == {"share": 0.4, "seed": 0}
    assert verify(VerifyRequest(labels=tmp_path / "n.zarr"), Silent()).ok


@pytest.mark.slow  # whole runs of several trainings or stores
def test_a_smaller_share_is_part_of_a_larger_one_and_another_seed_is_another_draw(
    parent: Planted, tmp_path: Path
) -> None:
    for name, share, seed in (("a", 0.2, 0), ("b", 0.6, 0), ("c", 0.2, 1)):
        run(parent.store.path, tmp_path / f"{name}.zarr", label_noise=share, noise_seed=seed)
    before = labels_of(parent.store.path)
    a, b, c = (labels_of(tmp_path / f"{name}.zarr") for name in "abc")
    assert (b[a != before] == a[a != before]).all()
    assert ((a != before) != (c != before)).any()


def test_noise_keeps_to_the_classes_that_the_new_store_names(parent: Planted, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("".join(f"c{i:05d}\n" for i in range(4)))
    run(parent.store.path, tmp_path / "n.zarr", label_noise=0.5, classes=tmp_path / "some.txt")
    before, after = labels_of(parent.store.path), labels_of(tmp_path / "n.zarr")
    assert (before != after)[before < 4].mean() == pytest.approx(0.5, abs=0.1)
    assert (after[before < 4] < 4).all() and (after == before)[before >= 4].all()


def test_the_same_command_again_goes_on_and_another_share_is_refused(parent: Planted, tmp_path: Path) -> None:
    run(parent.store.path, tmp_path / "n.zarr", label_noise=0.2)
    first = labels_of(tmp_path / "n.zarr")
    LabelStore.open(tmp_path / "n.zarr", writable=True).drop("labels", 1)
    assert run(parent.store.path, tmp_path / "n.zarr", label_noise=0.2).chunks_written == 1
    assert np.array_equal(labels_of(tmp_path / "n.zarr"), first)
    with pytest.raises(FingerprintError, match="label_noise"):
        run(parent.store.path, tmp_path / "n.zarr", label_noise=0.3)


def test_what_cannot_be_is_refused(parent: Planted, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        run(parent.store.path, tmp_path / "n.zarr", label_noise=1.5)
    run(parent.store.path, tmp_path / "n.zarr", label_noise=0.2)
    with pytest.raises(UsageError, match="wrong labels already"):
        run(tmp_path / "n.zarr", tmp_path / "m.zarr", label_noise=0.2)
    (tmp_path / "one.txt").write_text("c00001\n")
    with pytest.raises(DataError, match="two classes"):
        run(parent.store.path, tmp_path / "o.zarr", label_noise=0.2, classes=tmp_path / "one.txt")
