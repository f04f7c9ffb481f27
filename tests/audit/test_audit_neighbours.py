"""Neighbours and near-duplicates: exact where it is small, nearly so through cells, and each pair once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from planted_faults import planted_store, unit

from teachonce.audit.duplicates import Pair, groups, pairs_between, pairs_within, usual_distance
from teachonce.audit.evidence import gather
from teachonce.audit.neighbours import nearest
from teachonce.core.progress import Silent
from teachonce.labels.store import LabelStore


def cloud(rows: int, seed: int = 0) -> Any:
    """Unit vectors around 20 centres."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, 16))
    return unit(centres[rng.integers(0, 20, rows)] + 0.5 * rng.normal(size=(rows, 16))).astype(np.float16)


def test_neighbours_are_those_of_all_pairs() -> None:
    vectors = cloud(300)
    ids, cosines = nearest(vectors, 5, Silent())
    every = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    np.fill_diagonal(every, -2)
    assert np.allclose(cosines, -np.sort(-every, axis=1)[:, :5], atol=1e-3)
    assert np.allclose(np.take_along_axis(every, ids, axis=1), cosines, atol=1e-3)


def test_neighbours_in_another_store() -> None:
    ids, cosines = nearest(cloud(50, 1), 3, Silent(), among=cloud(300))
    every = cloud(50, 1).astype(np.float64) @ cloud(300).astype(np.float64).T
    assert np.allclose(cosines, -np.sort(-every, axis=1)[:, :3], atol=1e-3) and ids.max() < 300


def test_cells_find_nearly_all_and_never_the_sample_itself() -> None:
    vectors = cloud(3000)
    exact, _ = nearest(vectors, 5, Silent())
    ids, cosines = nearest(vectors, 5, Silent(), exact=100)
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(exact.tolist(), ids.tolist(), strict=True)]) > 0.8
    assert (ids != np.arange(3000)[:, None]).all() and (np.diff(cosines, axis=1) <= 0).all()


def test_one_vector_has_no_neighbour() -> None:
    ids, cosines = nearest(cloud(1), 5, Silent())
    assert ids.shape == cosines.shape == (1, 0)


def test_planted_near_duplicates_are_found(tmp_path: Path) -> None:
    planted = planted_store(tmp_path / "x.zarr", rows=400, copies=8)
    evidence = gather(LabelStore.open(planted.store.path), Silent())
    pairs = pairs_within(evidence, *nearest(evidence.vectors, 20, Silent()))
    pairs_seen = {frozenset(int(evidence.sample[end]) for end in (pair.first, pair.second)) for pair in pairs}
    assert {frozenset((i, 399 - i)) for i in range(8)} <= pairs_seen and len(pairs_seen) <= 12
    assert not any(pair.same_file for pair in pairs)


def test_near_duplicates_of_two_stores(tmp_path: Path) -> None:
    """The same photos in two stores, in another order of rows: every one is found, and so is the same file."""
    first = gather(LabelStore.open(planted_store(tmp_path / "x.zarr", rows=120).store.path), Silent())
    second = gather(LabelStore.open(planted_store(tmp_path / "y.zarr", rows=120).store.path), Silent())
    ids, cosines = nearest(second.vectors, 20, Silent(), among=first.vectors)
    usual = [usual_distance(nearest(side.vectors, 20, Silent())[1]) for side in (first, second)]
    pairs = pairs_between(first, second, ids, cosines, usual[0], usual[1])
    same = {(int(first.sample[p.first]), int(second.sample[p.second])) for p in pairs if p.same_file}
    assert same == {(sample, sample) for sample in range(120)}


def test_pairs_that_share_a_photo_are_one_group() -> None:
    pairs = [Pair(4, 9, 0.99, False), Pair(1, 7, 0.99, False), Pair(7, 4, 0.99, False), Pair(2, 3, 0.99, False)]
    assert groups(pairs) == [[1, 4, 7, 9], [2, 3]]
