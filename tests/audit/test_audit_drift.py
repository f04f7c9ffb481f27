"""Drift is told where photos were moved or come from other classes, each by its own test, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_faults import planted_store, unit

from teachonce.audit.drift import compare, energy
from teachonce.audit.evidence import gather
from teachonce.audit.neighbours import nearest
from teachonce.core.progress import Silent
from teachonce.labels.store import LabelStore


def evidence(path: Path, **options: Any) -> Any:
    """What a planted store says."""
    return gather(LabelStore.open(planted_store(path, **options).store.path), Silent())


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """400 photos of ten classes."""
    return evidence(tmp_path_factory.mktemp("drift") / "taught.zarr", rows=400)


@pytest.mark.parametrize(
    ("changed", "photos", "within", "classes"),
    [({}, False, False, False), ({"shift": 0.5}, True, True, None), ({"some": 4}, True, False, True)],
)
def test_each_kind_of_change_has_its_test(
    taught: Any, tmp_path: Path, changed: Any, photos: bool, within: bool, classes: bool | None
) -> None:
    new = evidence(tmp_path / "new.zarr", rows=200, seed=1, **changed)
    nearest_taught = nearest(taught.vectors, 1, Silent())[1][:, 0]
    cross = nearest(new.vectors, 1, Silent(), among=taught.vectors)[1][:, 0]
    drift = compare(taught, new, nearest_taught, cross)
    assert (drift.photos.p <= 0.01) == photos
    assert drift.within_classes is not None and (drift.within_classes.p <= 0.01) == within
    assert drift.predictions is not None and classes in (None, drift.predictions.p <= 0.01)
    assert (bool(drift.classes)) == bool(classes) or classes is None


def test_the_energy_distance_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    x, y = unit(rng.normal(size=(7, 5))), unit(rng.normal(size=(4, 5)))
    every = np.concatenate([x, y])
    distance = np.linalg.norm(every[:, None] - every[None], axis=2).astype(np.float32)
    between = np.mean([np.linalg.norm(a - b) for a in x for b in y])
    inside = [
        np.mean([np.linalg.norm(side[i] - side[j]) for i in range(len(side)) for j in range(len(side)) if i != j])
        for side in (x, y)
    ]
    value = energy(distance, (np.arange(11) >= 7)[None])
    assert value[0] == pytest.approx(2 * between - sum(inside), abs=1e-5)
