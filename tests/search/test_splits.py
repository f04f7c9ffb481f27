"""splits: which classes are trained and unseen depends on ids and the number alone, and every number differs."""

from __future__ import annotations

import hashlib

import pytest

from teachonce.errors import DataError
from teachonce.search.splits import split_classes

IDS = tuple(f"n{number:08d}" for number in range(80))


def test_the_parts_are_disjoint_whole_and_of_the_declared_share() -> None:
    for number in (1, 2, 3):
        parts = split_classes(IDS, 0.25, number)
        assert len(parts.unseen) == 20 and len(parts.trained) == 60 and parts.both == IDS
        assert sorted((*parts.trained, *parts.unseen)) == list(IDS)
        assert list(parts.trained) == sorted(parts.trained), "in the order of the classes"


def test_the_smallest_keyed_hashes_are_unseen() -> None:
    def key(class_id: str) -> bytes:
        return hashlib.blake2b(class_id.encode(), digest_size=8, key=(7).to_bytes(8, "little")).digest()

    assert set(split_classes(IDS, 0.1, 7).unseen) == set(sorted(IDS, key=key)[:8])


def test_order_does_not_matter_and_shares_are_nested() -> None:
    parts = split_classes(IDS, 0.25, 1)
    assert set(split_classes(IDS[::-1], 0.25, 1).unseen) == set(parts.unseen)
    assert set(split_classes(IDS, 0.1, 1).unseen) < set(parts.unseen)


def test_splits_differ() -> None:
    unseen = [frozenset(split_classes(IDS, 0.25, number).unseen) for number in range(1, 6)]
    assert len(set(unseen)) == 5
    assert 0 < len(unseen[0] & unseen[1]) < 15


@pytest.mark.parametrize(("count", "share", "unseen"), [(2, 0.01, 1), (2, 0.99, 1), (3, 0.5, 2)])
def test_both_parts_have_a_class(count: int, share: float, unseen: int) -> None:
    parts = split_classes(IDS[:count], share, 1)
    assert len(parts.unseen) == unseen and len(parts.trained) == count - unseen


def test_one_class_cannot_be_split() -> None:
    with pytest.raises(DataError, match="cannot be split"):
        split_classes(IDS[:1], 0.5, 1)
