"""Planted wrong labels are found, what is right is left alone, and every figure agrees with a plain count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_faults import Planted, planted_store

from teachonce.audit.evidence import gather
from teachonce.audit.neighbours import nearest
from teachonce.audit.wrong_labels import FLOOR, MEANS_SCALE, SHARPNESS, confident_joint, judge
from teachonce.core.progress import Silent
from teachonce.labels.store import LabelStore


def judged(planted: Planted) -> tuple[Any, Any, Any, Any]:
    """Evidence, judgement, neighbours and cosines of a store."""
    evidence = gather(LabelStore.open(planted.store.path), Silent())
    neighbours, cosines = nearest(evidence.vectors, 20, Silent())
    return evidence, judge(evidence, neighbours, cosines, Silent()), neighbours, cosines


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_planted_wrong_labels_are_found_and_their_share_is_told(tmp_path: Path, noise: float) -> None:
    planted = planted_store(tmp_path / "x.zarr", noise=noise)
    evidence, judgement, _, _ = judged(planted)
    listed = set(evidence.sample[judgement.p_wrong >= 0.5].tolist())
    hits = len(listed & planted.wrong)
    assert hits / len(listed) > 0.9 and hits / len(planted.wrong) > 0.9
    assert judgement.share == pytest.approx(len(planted.wrong) / 600, abs=0.03)
    right = evidence.photographed[judgement.suggested] == planted.truth[evidence.sample]
    assert right.mean() > 0.9


def test_nothing_is_listed_where_every_label_is_right(tmp_path: Path) -> None:
    _, judgement, _, _ = judged(planted_store(tmp_path / "x.zarr"))
    assert (judgement.p_wrong < 0.5).all() and judgement.share < 0.01


def test_a_student_alone_finds_them_too(tmp_path: Path) -> None:
    """Without a teacher the neighbours and the class means are asked."""
    planted = planted_store(tmp_path / "x.zarr", noise=0.2, teacher=False)
    evidence, judgement, _, _ = judged(planted)
    listed = set(evidence.sample[judgement.p_wrong >= 0.5].tolist())
    assert set(judgement.weights) == {"neighbours", "class means"}
    assert len(listed & planted.wrong) / len(planted.wrong) > 0.85
    assert len(listed & planted.wrong) / len(listed) > 0.85


def test_the_probabilities_are_those_of_the_formula(tmp_path: Path) -> None:
    """Each witness counted anew, one sample after the other, in float64."""
    planted = planted_store(tmp_path / "x.zarr", rows=200, noise=0.2)
    evidence, judgement, neighbours, cosines = judged(planted)
    vectors = evidence.vectors.astype(np.float64)
    label, classes = evidence.label, len(evidence.photographed)
    share = judgement.share * classes / (classes - 1)
    weights = [judgement.weights[name] for name in ("teacher", "neighbours", "class means")]
    names = planted.names[evidence.photographed].astype(np.float32)
    for row in range(0, 200, 17):
        logits = 20.0 * vectors[row] @ names.T
        teacher = logits - np.log(np.exp(logits).sum())
        votes = np.zeros(classes)
        for place, cosine in zip(neighbours[row], cosines[row], strict=True):
            votes[label[place]] += np.exp(float(SHARPNESS) * (cosine - cosines[row, 0]))
        means = []
        for c in range(classes):
            members = [i for i in range(200) if label[i] == c and i != row]
            mean = vectors[members].sum(axis=0)
            means.append(float(MEANS_SCALE) * vectors[row] @ mean / np.linalg.norm(mean))
        witnesses = [np.maximum(teacher, -20), np.log(votes / votes.sum() + float(FLOOR)), np.array(means)]
        sums = sum(w * logits for w, logits in zip(weights, witnesses, strict=True))
        p = np.exp(sums) / np.exp(sums).sum()
        p_label, chance = p[label[row]], share / classes
        expected = (1 - p_label) * chance / ((1 - share) * p_label + chance)
        assert judgement.p_wrong[row] == pytest.approx(expected, rel=0.02, abs=1e-4)
        assert judgement.suggested[row] == p.argmax()


def test_confident_learning_is_counted_as_published(tmp_path: Path) -> None:
    planted = planted_store(tmp_path / "x.zarr", noise=0.3)
    evidence, judgement, _, _ = judged(planted)
    classes = len(evidence.photographed)
    logits = 20.0 * evidence.vectors.astype(np.float64) @ planted.names[evidence.photographed].T
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    joint = np.zeros((classes, classes))
    thresholds = [p[evidence.label == c, c].mean() for c in range(classes)]
    for row, given in enumerate(evidence.label):
        reached = [c for c in range(classes) if p[row, c] >= thresholds[c]]
        if reached:
            joint[given, max(reached, key=lambda c: p[row, c])] += 1
    counts = evidence.counts()
    calibrated = joint / joint.sum(axis=1, keepdims=True) * counts[:, None]
    calibrated /= calibrated.sum()
    share = confident_joint(evidence.label, judgement.confident, counts)
    assert share == pytest.approx(1 - np.trace(calibrated), abs=0.01)


def test_small_classes_are_not_judged(tmp_path: Path) -> None:
    planted = planted_store(tmp_path / "x.zarr", rows=30, classes=10)
    evidence, judgement, _, _ = judged(planted)
    few = evidence.counts()[evidence.label] < 5
    assert few.any() and np.isnan(judgement.p_wrong[few]).all() and np.isfinite(judgement.p_wrong[~few]).all()
