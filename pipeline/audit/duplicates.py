"""Near-duplicates: photos that are the same file, or nearer to each other than anything else is near to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from teachonce.audit.evidence import Evidence, Floats, Ids

SURE = 0.98
"""A cosine at which two photos are taken for one, whatever lies around them."""
LEAST = 0.7
"""Below this cosine two photos are not taken for one."""
RATIO = 0.35
"""Two photos are taken for one whose distance is at most this share of the usual distance around them."""
AROUND = 10
"""Neighbours whose median distance is the usual one."""


@dataclass(frozen=True)
class Pair:
    """Two photos that are taken for one."""

    first: int
    second: int
    cosine: float
    same_file: bool


def usual_distance(cosines: Floats) -> Floats:
    """The median of 1 - cosine over the nearest `AROUND` neighbours of each sample, [n]; 1 where there are none."""
    near = 1 - cosines[:, :AROUND]
    return np.median(near, axis=1) if near.shape[1] else np.ones(len(cosines), np.float32)


def pairs_within(evidence: Evidence, neighbours: Ids, cosines: Floats) -> list[Pair]:
    """Near-duplicates inside one store, each pair once, the lower place first."""
    usual = usual_distance(cosines)
    near_pairs = _near(neighbours, cosines, usual, usual)
    chosen = {(min(pair), max(pair)): cosine for pair, cosine in near_pairs.items()}
    for first, second in _same_files(evidence.crc):
        chosen.setdefault((first, second), float("nan"))
    return [_pair(evidence, evidence, pair, cosine) for pair, cosine in sorted(chosen.items())]


def pairs_between(
    evidence: Evidence, other: Evidence, neighbours: Ids, cosines: Floats, usual: Floats, of_others: Floats
) -> list[Pair]:
    """Near-duplicates of two stores.

    Args:
        evidence: of the store that was taught; `Pair.first` is a place in it.
        other: the new photos; `Pair.second` is a place in it.
        neighbours: [m, k] of the new photos among the taught ones, with their cosines.
        cosines: [m, k].
        usual: the usual distance around each taught photo.
        of_others: the usual distance around each new photo.
    """
    near_pairs = {(b, a): cosine for (a, b), cosine in _near(neighbours, cosines, of_others, usual).items()}
    places = {int(crc): place for place, crc in enumerate(evidence.crc.tolist()) if crc}
    for second, crc in enumerate(other.crc.tolist()):
        if crc in places:
            near_pairs.setdefault((places[crc], second), float("nan"))
    return [_pair(evidence, other, pair, cosine) for pair, cosine in sorted(near_pairs.items())]


def _near(neighbours: Ids, cosines: Floats, mine: Floats, theirs: Floats) -> dict[tuple[int, int], float]:
    """Pairs (row, neighbour) whose cosine is sure, or whose distance is small beside those around both."""
    theirs_there = np.where(neighbours >= 0, theirs[neighbours], 1)
    distance = 1 - cosines
    share = (distance / np.maximum(mine[:, None], 1e-6) + distance / np.maximum(theirs_there, 1e-6)) / 2
    near = (neighbours >= 0) & ((cosines >= SURE) | ((cosines >= LEAST) & (share <= RATIO)))
    rows, columns = np.nonzero(near)
    ends = zip(rows.tolist(), neighbours[rows, columns].tolist(), strict=True)
    return dict(zip(ends, cosines[rows, columns].tolist(), strict=True))


def _same_files(crc: npt.NDArray[np.uint32]) -> list[tuple[int, int]]:
    """Each sample whose file has the checksum of an earlier one, with the first of them; 0 is no checksum."""
    order = np.argsort(crc, kind="stable")
    first = np.searchsorted(crc[order], crc[order], side="left")
    again = (first < np.arange(len(order))) & (crc[order] != 0)
    return list(zip(order[first[again]].tolist(), order[again].tolist(), strict=True))


def _pair(evidence: Evidence, other: Evidence, ends: tuple[int, int], cosine: float) -> Pair:
    """A checksum of 32 bits meets by chance among some ten thousand files: the vectors must be alike as well."""
    first, second = ends
    exact = float(evidence.vectors[first].astype(np.float32) @ other.vectors[second].astype(np.float32))
    same = bool(evidence.crc[first] == other.crc[second] != 0) and exact >= SURE
    return Pair(first, second, exact if np.isnan(cosine) else cosine, same)


def groups(pairs: list[Pair]) -> list[list[int]]:
    """Samples that are taken for one photo, over any number of pairs; each group rising, groups by their first."""
    top: dict[int, int] = {}

    def root(place: int) -> int:
        while top.setdefault(place, place) != place:
            place = top[place]
        return place

    for pair in pairs:
        low, high = sorted((root(pair.first), root(pair.second)))
        top[high] = low
    members: dict[int, list[int]] = {}
    for place in sorted(top):
        members.setdefault(root(place), []).append(place)
    return list(members.values())
