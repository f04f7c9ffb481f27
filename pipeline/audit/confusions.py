"""Pairs of classes that the teacher takes for each other, and which of them are two names of one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from teachonce.audit.evidence import Evidence, Floats
from teachonce.data.spelling import spoken

MOST = 50
FEWEST = 5
"""Samples that must be taken for the other class."""
SHARE = 0.1
"""Share of the samples of one class that must be taken for the other, for the pair to be called names of one thing."""
NEAR_NAMES = 0.9
"""Quantile of the nearest other name's cosine, over the photographed classes, that such names reach."""

Kind = Literal["one name", "kind of", "synonyms", "confused"]


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Samples that carry one class's label and that the teacher takes for another class of the vocabulary."""

    label: int
    """Place in the vocabulary."""
    predicted: int
    photos: int
    """Samples that carry the label."""
    taken: int
    """Of these, taken for the other class."""
    back: int | None
    """Samples of the other class that are taken for this one; None where the other class has no photos."""
    names_cosine: float
    """Of the teacher's two class vectors; NaN where the store keeps none."""
    kind: Kind
    """`one name`: the tokenizer sees no difference. `kind of`: all words of one name are in the other. `synonyms`: the
    names lie as near as the nearest, and many photos are taken for the other, in both directions where both have
    photos. `confused`: all else."""


def confusions(evidence: Evidence) -> list[Confusion]:
    """The pairs with the most samples, at most `MOST`; empty without soft labels."""
    known = np.flatnonzero((evidence.label >= 0) & (evidence.best_class >= 0))
    label, best = evidence.photographed[evidence.label[known]], evidence.best_class[known]
    size = len(evidence.vocabulary)
    pairs, numbers = np.unique(label[label != best] * size + best[label != best], return_counts=True)
    taken = dict(zip(pairs.tolist(), numbers.tolist(), strict=True))
    photos = dict(zip(evidence.photographed.tolist(), evidence.counts().tolist(), strict=True))
    vectors = evidence.class_vectors
    near = _near(vectors, evidence)
    pairs_seen: list[Confusion] = []
    for pair, count in sorted(taken.items(), key=lambda item: (-item[1], item[0])):
        if count < FEWEST or len(pairs_seen) == MOST:
            break
        first, second = divmod(pair, size)
        back = taken.get(second * size + first, 0) if second in photos else None
        cosine = float(vectors[first] @ vectors[second]) if vectors is not None else float("nan")
        often = count >= SHARE * photos[first] and (back is None or back >= SHARE * photos[second] / 2)
        kind: Kind = "synonyms" if often and cosine >= near else "confused"
        kind = _by_name(evidence.vocabulary.names[first], evidence.vocabulary.names[second]) or kind
        pairs_seen.append(
            Confusion(
                label=first,
                predicted=second,
                photos=photos[first],
                taken=count,
                back=back,
                names_cosine=cosine,
                kind=kind,
            )
        )
    return pairs_seen


def _by_name(first: str, second: str) -> Kind | None:
    """What the two names say by themselves."""
    if spoken(first) == spoken(second):
        return "one name"
    words = [set(spoken(name).replace(",", " ").split()) for name in (first, second)]
    return "kind of" if words[0] <= words[1] or words[1] <= words[0] else None


def _near(vectors: Floats | None, evidence: Evidence) -> float:
    """The cosine that two names must reach to be called near."""
    if vectors is None or len(evidence.photographed) < 3:
        return float("inf")
    some = vectors[evidence.photographed[:: max(1, len(evidence.photographed) // 2000)]]
    cosines = some @ some.T
    np.fill_diagonal(cosines, -1)
    return float(np.quantile(cosines.max(axis=1), NEAR_NAMES))
