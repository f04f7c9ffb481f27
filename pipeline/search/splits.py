"""Random splits of classes into trained and unseen ones, which depend on the ids and the number of the split alone.

A recipe that is chosen on one set of unseen classes may owe its place to that set; several splits average over it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from teachonce.data.places import name_bytes
from teachonce.errors import DataError


@dataclass(frozen=True)
class ClassSplit:
    """The parts of one split, each in the order of the classes that were split."""

    trained: tuple[str, ...]
    unseen: tuple[str, ...]
    both: tuple[str, ...]
    """All classes that were split."""


def split_classes(ids: Sequence[str], share: float, number: int) -> ClassSplit:
    """Split classes.

    The classes with the smallest keyed hashes (BLAKE2b-64 of the id, keyed with the number of the split) are unseen: no
    order of the classes and no other split changes them, and another share gives nested parts.

    Args:
        ids: of the classes.
        share: of them that are unseen, above 0 and below 1.
        number: of the split, from 1.

    Raises:
        DataError: there are fewer than two classes.
    """
    if len(ids) < 2:
        raise DataError(f"{len(ids)} class cannot be split into trained and unseen ones", hint="split more classes")
    count = min(len(ids) - 1, max(1, round(share * len(ids))))
    unseen = set(sorted(ids, key=lambda class_id: (_hash(class_id, number), class_id))[:count])
    return ClassSplit(
        trained=tuple(class_id for class_id in ids if class_id not in unseen),
        unseen=tuple(class_id for class_id in ids if class_id in unseen),
        both=tuple(ids),
    )


def _hash(class_id: str, number: int) -> bytes:
    return hashlib.blake2b(name_bytes(class_id), digest_size=8, key=number.to_bytes(8, "little")).digest()
