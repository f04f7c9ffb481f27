"""How often an audit is right about wrong labels: they are planted into a store whose labels are taken for right.

    python benchmarks/planted_labels.py LABELS.zarr

For each share of wrong labels, over three seeds: the estimated share, and precision and recall of what is listed at two
probabilities, beside confident learning on the teacher's probabilities alone. LABELS.zarr needs --embeddings; nothing
is written.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from teachonce.audit.evidence import Evidence, gather
from teachonce.audit.label_noise import noisy_labels
from teachonce.audit.neighbours import nearest
from teachonce.audit.wrong_labels import NEIGHBOURS, confident_joint, judge
from teachonce.core.progress import Silent
from teachonce.labels.store import LabelStore

SHARES = (0.0, 0.05, 0.2, 0.4, 0.6)
SEEDS = (0, 1, 2)
CONFIDENCES = (0.5, 0.8)


def planted(evidence: Evidence, share: float, seed: int) -> Any:
    """The labels of the samples with wrong ones among them, as places in `photographed`."""
    if not share:
        return evidence.label
    noisy = noisy_labels(evidence.store, evidence.vocabulary, share, seed)
    label = evidence.store.label_to_vocabulary[noisy[evidence.row // evidence.store.layout.views]]
    return np.searchsorted(evidence.photographed, label)


def figures(evidence: Evidence, neighbours: Any, cosines: Any, label: Any) -> Iterator[float]:
    """Estimates, then number, precision and recall of each list, in percent but for numbers."""
    judgement = judge(dataclasses.replace(evidence, label=label), neighbours, cosines, Silent())
    counts = np.bincount(label, minlength=len(evidence.photographed))
    wrong = label != evidence.label
    yield 100 * judgement.share
    yield 100 * confident_joint(label, judgement.confident, counts)
    other = judgement.suggested != label
    lists = [other & (np.nan_to_num(judgement.p_wrong) >= confidence) for confidence in CONFIDENCES]
    lists.append((judgement.confident >= 0) & (judgement.confident != label))
    for listed in lists:
        hits = int((listed & wrong).sum())
        yield float(listed.sum())
        yield 100 * hits / listed.sum() if listed.any() else float("nan")
        yield 100 * hits / wrong.sum() if wrong.any() else float("nan")


def main() -> None:
    """Print a line for each share: means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", type=Path)
    evidence = gather(LabelStore.open(parser.parse_args().labels), Silent())
    neighbours, cosines = nearest(evidence.vectors, NEIGHBOURS, Silent())
    heads = ["planted", "estimated", "(CL)", *(f"{n}{at}" for at in (*CONFIDENCES, "CL") for n in ("n@", "P@", "R@"))]
    sys.stdout.write("".join(f"{head:>10}" for head in heads) + "\n")
    for share in SHARES:
        seeds = SEEDS if share else SEEDS[:1]
        lines = [[*figures(evidence, neighbours, cosines, planted(evidence, share, seed))] for seed in seeds]
        means = np.array(lines).mean(axis=0)
        sys.stdout.write("".join(f"{value:>10.1f}" for value in (100 * share, *means.tolist())) + "\n")


if __name__ == "__main__":
    main()
