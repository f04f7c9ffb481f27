"""What an audit found, one line a sample, and the list `audit.csv` that people look through and `subset` reads.

A person may change the column `leave_out` after a look at the photo; every other column only explains.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from teachonce.audit.duplicates import Pair, groups
from teachonce.audit.evidence import Evidence, Floats, Ids
from teachonce.audit.wrong_labels import Judgement
from teachonce.core.documents import cell_text, csv_bytes, readable
from teachonce.core.outside import read_plain
from teachonce.errors import DataError, FingerprintError
from teachonce.labels.store import LabelStore
from teachonce.phrases import phrase

Kind = Literal["label", "duplicate", "across", "outside", "far"]
MEANINGS: dict[Kind, str] = {
    "label": "the label is probably wrong",
    "duplicate": "a near-duplicate of another photo of the store, which is kept",
    "across": "a near-duplicate of one of the new photos",
    "outside": "the teacher is sure of a class that no photo carries as its label",
    "far": "a new photo that lies further from all taught ones than those from each other",
}
LEFT_OUT: tuple[Kind, ...] = ("label", "duplicate", "across")
"""What `subset` leaves out unless a person says otherwise."""
SURE_OUTSIDE = 0.95
DOUBTED = 0.05
MOST_BYTES = 1 << 30
YES, NO = "yes", "no"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sample and what is the matter with it."""

    finding: Kind
    leave_out: bool
    sample: int
    """The number of the sample in the manifest's own order, of the store or, for `far`, of the new one."""
    key: str
    label: str = ""
    """Class id."""
    label_name: str = ""
    suggested: str = ""
    suggested_name: str = ""
    p_wrong: float | None = None
    p_label: float | None = None
    """Of the three witnesses together; so `p_suggested`."""
    p_suggested: float | None = None
    teacher_p_label: float | None = None
    teacher_class: str = ""
    """The name that the teacher prefers, over the whole vocabulary."""
    neighbours_with_label: float | None = None
    """Share of the nearest samples with a label that carry the same one."""
    confident_learning: str = ""
    """Whether confident learning, by the teacher alone, puts the sample in another class: yes or no."""
    other_key: str = ""
    """The photo that this one is a near-duplicate of."""
    other_label_name: str = ""
    cosine: float | None = None
    place: int = -1
    """Place in the evidence; it does not go into the list."""


def wrong_labels(evidence: Evidence, judgement: Judgement, neighbours: Ids, confidence: float) -> list[Finding]:
    """Samples whose label is wrong with at least this probability, the most probable first."""
    names = evidence.names()
    doubted = np.flatnonzero(np.nan_to_num(judgement.p_wrong) >= confidence)
    order = doubted[np.lexsort((doubted, -judgement.p_wrong[doubted]))]
    places = [
        place for place in order.tolist() if names[int(judgement.suggested[place])] != names[int(evidence.label[place])]
    ]
    return _described("label", evidence, judgement, neighbours, places)


def outside(evidence: Evidence, judgement: Judgement, neighbours: Ids, but: set[int]) -> list[Finding]:
    """Samples of which the teacher is sure that they show a class without photos, and whose label little speaks for."""
    photographed = np.isin(evidence.best_class, evidence.photographed)
    sure = np.nan_to_num(evidence.best_p) >= SURE_OUTSIDE
    doubted = np.nan_to_num(judgement.p_label, nan=1.0) <= DOUBTED
    places = np.flatnonzero(~photographed & (evidence.best_class >= 0) & sure & doubted)
    order = places[np.argsort(-evidence.best_p[places], kind="stable")]
    return _described("outside", evidence, judgement, neighbours, [p for p in order.tolist() if p not in but])


def _described(
    kind: Kind, evidence: Evidence, judgement: Judgement, neighbours: Ids, places: list[int]
) -> list[Finding]:
    vocabulary, keys = evidence.vocabulary, evidence.keys(np.array(places, np.int64))
    lines = []
    for place in places:
        label = int(evidence.photographed[evidence.label[place]])
        suggested = int(evidence.photographed[judgement.suggested[place]])
        if kind == "outside":
            suggested = int(evidence.best_class[place])
        around = evidence.label[neighbours[place][neighbours[place] >= 0]]
        around = around[around >= 0]
        confident = int(judgement.confident[place])
        best = int(evidence.best_class[place])
        lines.append(
            Finding(
                finding=kind,
                leave_out=kind in LEFT_OUT,
                sample=int(evidence.sample[place]),
                key=keys[place],
                label=vocabulary.ids[label],
                label_name=vocabulary.names[label],
                suggested=vocabulary.ids[suggested],
                suggested_name=vocabulary.names[suggested],
                p_wrong=_number(judgement.p_wrong[place]),
                p_label=_number(judgement.p_label[place]),
                p_suggested=_number(judgement.p_suggested[place]),
                teacher_p_label=_number(judgement.teacher_p_label[place]),
                teacher_class=vocabulary.names[best] if best >= 0 else "",
                neighbours_with_label=float((around == evidence.label[place]).mean()) if len(around) else None,
                confident_learning=YES if confident >= 0 and confident != evidence.label[place] else NO,
                place=place,
            )
        )
    return lines


def duplicates(evidence: Evidence, judgement: Judgement, pairs: Sequence[Pair]) -> list[Finding]:
    """Every photo of a group of near-duplicates but one: the one whose label is the least doubtful is kept."""
    cosine = {frozenset((pair.first, pair.second)): pair.cosine for pair in pairs}
    doubt = np.nan_to_num(judgement.p_wrong, nan=1.0)
    chosen = [
        (place, kept)
        for group in groups(list(pairs))
        for kept in [min(group, key=lambda place: (float(doubt[place]), int(evidence.sample[place])))]
        for place in group
        if place != kept
    ]
    keys = evidence.keys(np.unique(np.array([place for pair in chosen for place in pair], np.int64)))
    return [
        Finding(
            finding="duplicate",
            leave_out=True,
            sample=int(evidence.sample[place]),
            key=keys[place],
            label=_class(evidence, place)[0],
            label_name=_class(evidence, place)[1],
            p_wrong=_number(judgement.p_wrong[place]),
            other_key=keys[kept],
            other_label_name=_class(evidence, kept)[1],
            cosine=cosine.get(frozenset((place, kept)), _cosine(evidence, place, evidence, kept)),
            place=place,
        )
        for place, kept in chosen
    ]


def across(evidence: Evidence, new: Evidence, pairs: Sequence[Pair]) -> list[Finding]:
    """Every taught photo that is a near-duplicate of a new one, with the nearest of these."""
    best: dict[int, Pair] = {}
    for pair in pairs:
        if pair.first not in best or pair.cosine > best[pair.first].cosine:
            best[pair.first] = pair
    keys = evidence.keys(np.array(sorted(best), np.int64))
    new_keys = new.keys(np.unique(np.array([pair.second for pair in best.values()], np.int64)))
    return [
        Finding(
            finding="across",
            leave_out=True,
            sample=int(evidence.sample[place]),
            key=keys[place],
            label=_class(evidence, place)[0],
            label_name=_class(evidence, place)[1],
            other_key=new_keys[pair.second],
            other_label_name=_class(new, pair.second)[1],
            cosine=pair.cosine,
            place=place,
        )
        for place, pair in sorted(best.items())
    ]


def far(new: Evidence, places: Ids, cosines: Floats) -> list[Finding]:
    """New photos that lie far from all taught ones, the furthest first."""
    order = places[np.argsort(cosines[places], kind="stable")]
    keys = new.keys(order)
    return [
        Finding(
            finding="far",
            leave_out=False,
            sample=int(new.sample[place]),
            key=keys[place],
            label=_class(new, place)[0],
            label_name=_class(new, place)[1],
            cosine=float(cosines[place]),
            place=place,
        )
        for place in order.tolist()
    ]


def _class(evidence: Evidence, place: int) -> tuple[str, str]:
    label = int(evidence.label[place])
    if label < 0:
        return "", ""
    return (
        evidence.vocabulary.ids[int(evidence.photographed[label])],
        evidence.vocabulary.names[int(evidence.photographed[label])],
    )


def _cosine(first: Evidence, place: int, second: Evidence, other: int) -> float:
    return float(first.vectors[place].astype(np.float32) @ second.vectors[other].astype(np.float32))


def _number(value: Any) -> float | None:
    return None if math.isnan(float(value)) else float(value)


COLUMNS = tuple(field.name for field in fields(Finding) if field.name != "place")


def to_csv(findings: Sequence[Finding]) -> bytes:
    """The list of findings."""
    return csv_bytes([list(COLUMNS), *([_cell(finding, name) for name in COLUMNS] for finding in findings)])


def _cell(finding: Finding, name: str) -> Any:
    value = getattr(finding, name)
    if isinstance(value, bool):
        return YES if value else NO
    if isinstance(value, float):
        return f"{value:.6g}"
    return readable(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class LeftOut:
    """Samples that a list says to leave out."""

    samples: tuple[int, ...]
    """By their numbers in the manifest's own order, rising."""
    digest: str
    """SHA-256 (hex) of these numbers: two lists that leave the same out are the same choice."""


def read_left_out(path: Path, store: LabelStore) -> LeftOut:
    """The samples that `audit.csv` says to leave out of a store.

    Raises:
        DataError: no such list, or a line of it cannot be read.
        FingerprintError: a sample has another key in this store.
    """
    hint = phrase("teachonce audit LABELS.zarr {out} audit.html writes audit.csv beside the page")
    try:
        text = read_plain(path, MOST_BYTES).decode()
        lines = list(csv.DictReader(io.StringIO(text, newline="")))
    except (OSError, ValueError, csv.Error) as problem:
        raise DataError(f"cannot read {path}: {problem}", hint=hint) from problem
    wanted: dict[int, str] = {}
    for number, line in enumerate(lines, 2):
        said, sample = line.get("leave_out"), line.get("sample") or ""
        if said not in (YES, NO) or not sample.isdecimal() or line.get("key") is None:
            raise DataError(
                f"{path}, line {number}: expected a whole number as `sample`, a `key`, and yes or no as `leave_out`, "
                f"found {sample!r}, {line.get('key')!r} and {said!r}",
                hint=hint,
            )
        if said == YES and line.get("finding") != "far":
            wanted[int(sample)] = cell_text(str(line["key"]))
    _require_keys(path, store, wanted)
    return left_out(list(wanted))


def left_out(samples: Sequence[int]) -> LeftOut:
    """The choice to leave these samples out; a number may come several times."""
    rising = tuple(sorted(set(samples)))
    return LeftOut(rising, hashlib.sha256(",".join(map(str, rising)).encode()).hexdigest())


def _require_keys(path: Path, store: LabelStore, wanted: dict[int, str]) -> None:
    """Compare the key of every listed sample with the store's."""
    numbers = np.array(sorted(wanted), np.int64)
    missing = set(wanted)
    for chunk in range(store.layout.chunks):
        here = store.samples(*store.layout.bounds(chunk))[:: store.layout.views].astype(np.int64)
        places = np.flatnonzero(np.isin(here, numbers))
        if not len(places):
            continue
        index = store.index_of_chunk(chunk)
        for place in places.tolist():
            sample, key = int(here[place]), readable(index.key(place))
            if wanted[sample] != key:
                raise FingerprintError(
                    f"{path} was made on other samples than {store.path} holds: sample {sample} is "
                    f"'{wanted[sample]}' there and '{key}' here",
                    hint=f"teachonce audit {store.path} makes one for this store",
                )
            missing.discard(sample)
    if missing:
        raise FingerprintError(
            f"{path} was made on other samples than {store.path} holds: it lists sample {min(missing)}, and the store "
            f"has {store.layout.rows // store.layout.views}",
            hint=f"teachonce audit {store.path} makes one for this store",
        )
