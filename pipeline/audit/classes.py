"""The teacher class by class: what it predicts too often or too rarely, how sure it is, and what would correct it.

All of it takes the stored labels for true, so it is as good as they are; the share of labels that look wrong stands
beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from teachonce.audit.evidence import Evidence, Ids

BINS = 15
MOST_FITTED = 20_000
PRIOR_ROUNDS = 200
TEMPERATURES = np.geomspace(0.1, 10, 61)

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ByClass:
    """Figures of each photographed class, [K] each."""

    photos: Ids
    predicted: Ids
    """Samples for which the teacher prefers this class to all others that have photos."""
    prior: Doubles
    """The teacher's mean probability."""
    recall: Doubles
    """Share of the class's photos for which the teacher prefers it."""
    precision: Doubles
    """Share of the samples for which the teacher prefers it that carry its label; NaN where there are none."""
    confidence: Doubles
    """The teacher's mean probability of its preferred class, over the samples for which that is this one."""
    temperature: Doubles
    """What the teacher's logits would have to be divided by for the photos of this class; 1 is as it is."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far the teacher's probabilities can be believed, among the classes that have photos."""

    top1: float
    nll: float
    ece: float
    temperature: float
    """The one that fits best; above 1 the teacher is too sure."""
    nll_temperature: float
    """With the temperature, on the half of the samples that it was not fitted on; so below."""
    ece_temperature: float
    nll_prior: float
    """With the temperature, and the class prior of the labels in place of the teacher's own."""
    ece_prior: float
    top1_prior: float


def by_class(evidence: Evidence) -> tuple[ByClass, Calibration]:
    """Count and fit; needs soft labels."""
    counts = evidence.counts()
    classes = len(counts)
    predicted, right, mass = np.zeros(classes, np.int64), np.zeros(classes), np.zeros(classes)
    sure = np.zeros(classes)
    nll = np.zeros((len(TEMPERATURES), classes))
    known = 0
    for rows in evidence.blocks(classes):
        label = evidence.label[rows]
        kept = np.flatnonzero(label >= 0)
        log_p, label = evidence.teacher_log_p(rows)[kept].astype(np.float64), label[kept]
        best = log_p.argmax(axis=1)
        p = np.exp(log_p)
        predicted += np.bincount(best, minlength=classes)
        right += np.bincount(label[best == label], minlength=classes)
        sure += np.bincount(best, weights=p.max(axis=1), minlength=classes)
        mass += p.sum(axis=0)
        known += len(kept)
        for place, tau in enumerate(TEMPERATURES):
            nll[place] += np.bincount(label, weights=-_at(log_p / tau)[np.arange(len(kept)), label], minlength=classes)
    shown = np.maximum(predicted, 1)
    figures = ByClass(
        photos=counts,
        predicted=predicted,
        prior=mass / max(known, 1),
        recall=right / np.maximum(counts, 1),
        precision=np.where(predicted > 0, right / shown, np.nan),
        confidence=np.where(predicted > 0, sure / shown, np.nan),
        temperature=TEMPERATURES[nll.argmin(axis=0)],
    )
    return figures, _calibration(evidence, float(TEMPERATURES[nll.sum(axis=1).argmin()]))


def _at(logits: Doubles) -> Doubles:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Doubles = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _calibration(evidence: Evidence, temperature: float) -> Calibration:
    """Fit on every other known sample of at most `MOST_FITTED`, and measure on the rest."""
    classes = len(evidence.photographed)
    step = max(1, int((evidence.label >= 0).sum()) * classes // (MOST_FITTED * 120))
    parts, labels = [], []
    for rows in evidence.blocks(classes):
        kept = np.flatnonzero(evidence.label[rows] >= 0)[::step]
        parts.append(evidence.teacher_log_p(rows)[kept].astype(np.float64))
        labels.append(evidence.label[rows][kept])
    log_p, label = np.concatenate(parts), np.concatenate(labels)
    fit, rest = (log_p[0::2], label[0::2]), (log_p[1::2], label[1::2])
    if not len(rest[1]):
        rest = fit
    tempered, wanted = _at(rest[0] / temperature), np.bincount(fit[1], minlength=classes) + 0.5
    offset = _offset(fit[0] / temperature, wanted / wanted.sum())
    moved = _at(rest[0] / temperature + offset)
    return Calibration(
        top1=_top1(*rest),
        nll=_nll(*rest),
        ece=_ece(*rest),
        temperature=temperature,
        nll_temperature=_nll(tempered, rest[1]),
        ece_temperature=_ece(tempered, rest[1]),
        nll_prior=_nll(moved, rest[1]),
        ece_prior=_ece(moved, rest[1]),
        top1_prior=_top1(moved, rest[1]),
    )


def _offset(logits: Doubles, wanted: Doubles) -> Doubles:
    """What is added to the logits so that the mean probabilities are the wanted prior (arXiv 2007.07314), [K]."""
    offset = np.zeros(len(wanted))
    for _ in range(PRIOR_ROUNDS):
        mean = np.exp(_at(logits + offset)).mean(axis=0)
        offset += np.log(wanted / np.maximum(mean, 1e-12))
        if np.abs(mean - wanted).max() < 1e-4:
            break
    return offset


def _nll(log_p: Doubles, label: Ids) -> float:
    return float(-log_p[np.arange(len(label)), label].mean())


def _top1(log_p: Doubles, label: Ids) -> float:
    return float((log_p.argmax(axis=1) == label).mean())


def _ece(log_p: Doubles, label: Ids) -> float:
    """Expected calibration error over bins of equal mass."""
    sure, right = np.exp(log_p.max(axis=1)), log_p.argmax(axis=1) == label
    order = np.argsort(sure, kind="stable")
    bins = np.array_split(order, min(BINS, len(order)))
    return float(sum(len(part) * abs(sure[part].mean() - right[part].mean()) for part in bins) / len(order))
