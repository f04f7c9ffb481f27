"""How probable it is that a sample's label is wrong, from three witnesses that were not trained on this sample's label.

The witnesses are the teacher (its zero-shot probabilities), the labels of the nearest neighbours, and the distance to
the mean vector of each class without the sample itself. A softmax of their weighted sum gives p(class | sample). The
weights and the share e of wrong labels are fitted together, by maximum likelihood of the labels as they stand:

    P(label y | sample) = (1 - e) p(y | sample) + e / K,

so that a witness that is often unsure does not make labels look wrong. The probability that a label is wrong is then
(1 - p(y | sample)) (e / K) / P(label y | sample), and e (K - 1) / K of all labels are: a label that is drawn by chance
may be the right one. This is the noise model of uniform flips (Natarajan et al., NIPS 2013) with a class
distribution that is fitted beside it; `confident_joint` is the count of confident learning (arXiv 1911.00068), from the
teacher's probabilities alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from teachonce.audit.evidence import BLOCK_NUMBERS, Evidence, Floats, Ids, log_softmax
from teachonce.core.progress import Reporter
from teachonce.core.streams import AUDIT

NEIGHBOURS = 20
SHARPNESS = np.float32(10)
"""A neighbour that is nearer by a cosine of 0.1 votes e times as much."""
FLOOR = np.float32(1e-3)
"""Share of the votes that a class without a vote gets, since its logarithm is taken."""
MEANS_SCALE = np.float32(20)
"""What cosines to class means are multiplied with, so that the three witnesses are of one order of size."""
FEWEST = 5
"""Classes with fewer photos are not judged: their mean and their neighbours say too little."""
FITTED_ON = 6000
STEPS, RATE = 150, 0.1

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Judgement:
    """What is thought of every label."""

    p_wrong: Floats
    """[n] probability that the label is wrong; NaN where it is not judged."""
    suggested: Ids
    """[n] the most probable class, as a place in `photographed`."""
    p_label: Floats
    """[n] p(label | sample); NaN where it is not judged."""
    p_suggested: Floats
    """[n] p(suggested | sample)."""
    teacher_p_label: Floats
    """[n] what the teacher alone says of the label."""
    confident: Ids
    """[n] the class that confident learning would put the sample in, by the teacher alone; -1 for none."""
    share: float
    """The estimated share of wrong labels among those that are judged."""
    weights: dict[str, float]
    """Of the witnesses."""


@dataclass(frozen=True, eq=False)
class _Means:
    """Sums of the vectors of each class, for means that leave one sample out."""

    sums: Floats
    lengths: Floats

    def cosines(self, vectors: Floats, label: Ids) -> Floats:
        """To the mean of each class, without the sample itself in that of its own, [b, K]."""
        dots = vectors @ self.sums.T
        result: Floats = (dots / np.maximum(self.lengths, np.float32(1e-6))).astype(np.float32)
        rows = np.flatnonzero(label >= 0)
        mine = label[rows]
        along, length = dots[rows, mine], self.lengths[mine]
        rest = np.sqrt(np.maximum(length * length - 2 * along + 1, np.float32(1e-6)))
        result[rows, mine] = (along - 1) / rest
        return result


def judge(evidence: Evidence, neighbours: Ids, cosines: Floats, reporter: Reporter) -> Judgement:
    """Judge every label of a class with enough photos.

    Args:
        evidence: of the store.
        neighbours: [n, k] places of the nearest samples, -1 for none.
        cosines: [n, k].
        reporter: told about progress.
    """
    counts = evidence.counts()
    judged = (evidence.label >= 0) & (counts[np.maximum(evidence.label, 0)] >= FEWEST)
    empty = np.full(len(evidence), np.nan, np.float32)
    none = np.full(len(evidence), -1, np.int64)
    if len(counts) < 2 or not judged.any():
        return Judgement(empty, none, empty, empty, empty, none, 0.0, {})
    witnesses = _Witnesses(evidence, neighbours, cosines)
    weights, share = _fit(witnesses, judged)
    thresholds = _thresholds(witnesses)
    p_wrong, p_label, p_suggested, teacher = (empty.copy() for _ in range(4))
    suggested, confident = none.copy(), none.copy()
    for rows in evidence.blocks(len(counts)):
        names, table = witnesses.of(rows)
        p = np.exp(log_softmax(np.tensordot(weights.astype(np.float32), table, 1)))
        every, label = np.arange(len(p)), np.maximum(evidence.label[rows], 0)
        suggested[rows] = p.argmax(axis=1)
        p_suggested[rows], p_label[rows] = p.max(axis=1), p[every, label]
        chance = share / len(counts)
        label_p = p[every, label]
        p_wrong[rows] = (1 - label_p) * chance / np.maximum((1 - share) * label_p + chance, 1e-30)
        if "teacher" in names:
            alone = np.exp(table[names.index("teacher")])
            teacher[rows] = alone[every, label]
            confident[rows] = _confident(alone, thresholds)
        reporter.progress("judge", rows.stop, len(evidence), "samples")
    for column in (p_wrong, p_label, teacher):
        column[~judged] = np.nan
    names = witnesses.names
    return Judgement(
        p_wrong=p_wrong,
        suggested=suggested,
        p_label=p_label,
        p_suggested=p_suggested,
        teacher_p_label=teacher,
        confident=confident,
        share=share * (1 - 1 / len(counts)),
        weights=dict(zip(names, weights.tolist(), strict=True)),
    )


class _Witnesses:
    """The three tables of logits, block by block."""

    def __init__(self, evidence: Evidence, neighbours: Ids, cosines: Floats) -> None:
        self._evidence, self._neighbours, self._cosines = evidence, neighbours, cosines
        sums = np.zeros((len(evidence.photographed), evidence.vectors.shape[1]), np.float32)
        for rows in evidence.blocks(sums.shape[1]):
            known = evidence.label[rows] >= 0
            np.add.at(sums, evidence.label[rows][known], evidence.vectors[rows][known].astype(np.float32))
        self._means = _Means(sums, np.linalg.norm(sums, axis=1))
        self.has_teacher = bool(evidence.store.layout.top_k)
        self.names = [*(["teacher"] if self.has_teacher else []), "neighbours", "class means"]

    def teacher(self, rows: slice) -> Floats:
        """ln p of the teacher."""
        return np.maximum(self._evidence.teacher_log_p(rows), np.float32(-20))

    def of(self, rows: slice) -> tuple[list[str], Floats]:
        """The names of the witnesses and their logits, [witnesses, b, K]."""
        evidence = self._evidence
        classes = len(evidence.photographed)
        ids, cosines = self._neighbours[rows], self._cosines[rows]
        label = np.where(ids >= 0, evidence.label[ids], -1)
        votes = np.zeros((len(ids), classes + 1), np.float32)
        voices = np.exp(SHARPNESS * (cosines - cosines.max(axis=1, keepdims=True, initial=-1)))
        np.add.at(votes, (np.arange(len(ids))[:, None], label), np.where(label >= 0, voices, np.float32(0)))
        shares = votes[:, :-1] / np.maximum(votes[:, :-1].sum(axis=1, keepdims=True), np.float32(1e-9))
        means = MEANS_SCALE * self._means.cosines(evidence.vectors[rows].astype(np.float32), evidence.label[rows])
        teacher = [self.teacher(rows)] if self.has_teacher else []
        return self.names, np.stack([*teacher, np.log(shares + FLOOR), means])


def _fit(witnesses: _Witnesses, judged: npt.NDArray[np.bool_]) -> tuple[Doubles, float]:
    """Weights of the witnesses and the share of wrong labels, by Adam on a sample of the judged rows."""
    evidence = witnesses._evidence
    classes = len(evidence.photographed)
    places = np.flatnonzero(judged)
    most = max(200, min(FITTED_ON, 2 * BLOCK_NUMBERS // classes))
    if len(places) > most:
        places = np.sort(AUDIT.at(0, 1).choice(places, most, replace=False))
    tables = []
    for rows in evidence.blocks(classes):
        inside = places[(places >= rows.start) & (places < rows.stop)]
        if len(inside):
            tables.append(witnesses.of(rows)[1][:, inside - rows.start])
    table, label = np.concatenate(tables, axis=1), evidence.label[places]
    parameters = np.append(np.full(len(table), 0.5 / len(table)), np.log(0.1 / 0.9))
    first, second = np.zeros_like(parameters), np.zeros_like(parameters)
    for step in range(1, STEPS + 1):
        slope = _slope(parameters, table, label)
        first, second = 0.9 * first + 0.1 * slope, 0.98 * second + 0.02 * slope * slope
        rate = RATE * min(1.0, 2 * (1 - step / (STEPS + 1)))
        parameters = parameters + rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.98**step)) + 1e-9)
        parameters[:-1] = np.maximum(parameters[:-1], 0)
    return parameters[:-1], float(1 / (1 + np.exp(-parameters[-1])))


def _slope(parameters: Doubles, table: Floats, label: Ids) -> Doubles:
    """Gradient of the mean log-likelihood with respect to the weights and the logit of the share."""
    rows, share = np.arange(len(label)), 1 / (1 + np.exp(-parameters[-1]))
    p = np.exp(log_softmax(np.tensordot(parameters[:-1].astype(np.float32), table, 1)))
    right = (1 - share) * p[rows, label]
    right = right / (right + share / table.shape[2])  # the probability that the label is right
    slopes = [float((right * (logits[rows, label] - (p * logits).sum(axis=1))).mean()) for logits in table]
    return np.array([*slopes, float((1 - right).mean() - share)])


def _thresholds(witnesses: _Witnesses) -> Floats:
    """Confident learning's: the teacher's mean probability of a class over the samples that carry its label, [K]."""
    evidence = witnesses._evidence
    counts = evidence.counts()
    sums = np.zeros(len(counts))
    if not witnesses.has_teacher:
        return np.full(len(counts), np.inf, np.float32)
    for rows in evidence.blocks(len(counts)):
        label = evidence.label[rows]
        known = np.flatnonzero(label >= 0)
        np.add.at(sums, label[known], np.exp(witnesses.teacher(rows))[known, label[known]])
    return (sums / np.maximum(counts, 1)).astype(np.float32)


def _confident(p: Floats, thresholds: Floats) -> Ids:
    """The most probable class among those that reach their threshold, [b]; -1 where none does."""
    reached = p >= thresholds
    return np.where(reached.any(axis=1), np.where(reached, p, -1).argmax(axis=1), -1)


def confident_joint(label: Ids, confident: Ids, counts: Ids) -> float:
    """Confident learning's estimate of the share of wrong labels (arXiv 1911.00068, equations 1 to 3).

    Samples are counted by label and confident class; each label's line is scaled to the number of samples that carry
    it, and the share off the diagonal is what is asked for.
    """
    known = (label >= 0) & (confident >= 0)
    agrees = known & (label == confident)
    counted = np.bincount(label[known], minlength=len(counts))
    right = np.bincount(label[agrees], minlength=len(counts))
    share = np.divide(right, counted, out=np.ones(len(counts)), where=counted > 0)
    return float(1 - (share * counts).sum() / max(counts.sum(), 1))
