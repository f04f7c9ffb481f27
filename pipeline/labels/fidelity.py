"""What a store loses, measured while it is written: on a few rows of each chunk, against the teacher's full softmax.

Directions of the divergences: `ghost` and `residual-uniform` give every class (or the lump of all others) some mass,
so KL(teacher || target) is finite and stated. `renormalise` and `to-label` give most classes none, so that would be
infinite; theirs is KL(target || teacher). `ghost` compares k + 1 outcomes only: the student decides inside the lump.
All in nats, at the teacher's own temperature, from the values as they are decoded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from teachonce.labels.codec import TopK
from teachonce.labels.format import EMBEDDING, EMBEDDING_SCALES, LABELS, TAIL_RULES, fidelity_columns
from teachonce.labels.store import LabelStore

Doubles = npt.NDArray[np.float64]
QUANTILES = (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100))


def measured_rows(rows: int, wanted: int) -> npt.NDArray[np.int64]:
    """Which rows of a chunk are measured: evenly spread, all when there are few."""
    return np.unique(np.linspace(0, rows - 1, min(wanted, rows)).astype(np.int64))


def label_fidelity(log_p: Doubles, decoded: TopK, label: npt.NDArray[np.int64], ks: tuple[int, ...]) -> Doubles:
    """Measure stored soft labels.

    Args:
        log_p: [S, V] the teacher's log-softmax.
        decoded: of the same S rows, as a reader gets them.
        label: [S] ground truth in the vocabulary, -1 for none.
        ks: for which k, the last one being that of the store.

    Returns:
        [S, columns] in the order of `format.fidelity_columns`; NaN where a rule needs a label and there is none.
    """
    report = np.empty((len(log_p), len(fidelity_columns(ks))))
    for row in range(len(log_p)):
        ids, log_q = decoded.class_ids[row], decoded.log_probs[row].astype(np.float64)
        outside = float(np.exp(np.float64(decoded.log_residual[row, 0])))
        q = np.exp(log_q)
        report[row, 0] = _kl(_normal(np.exp(log_p[row, ids])), _normal(q))
        q, outside = q / (q.sum() + outside), outside / (q.sum() + outside)
        figures = [_row_figures(log_p[row], ids[:k], q[:k], outside + float(q[k:].sum()), int(label[row])) for k in ks]
        report[row, 1:] = np.concatenate(figures)
    return report


def _row_figures(log_p: Doubles, ids: npt.NDArray[np.int64], q: Doubles, outside: float, label: int) -> list[float]:
    """The mass inside, then the divergence of each of `TAIL_RULES`, of one row at one k."""
    p = np.exp(log_p[ids])
    others = np.delete(log_p, ids)
    tail = np.exp(others)
    lumped = _kl(np.append(p, tail.sum()), np.append(q, outside))
    uniform = _kl(np.append(p, tail), np.append(q, np.full(len(tail), outside / max(1, len(tail)))))
    renormalised = _kl(_normal(q), p)
    to_label = float("nan")
    if label >= 0:
        target = np.where(ids == label, q + outside, q)
        missing = [] if (ids == label).any() else [(outside, float(np.exp(log_p[label])))]
        to_label = _kl(np.append(target, [t for t, _ in missing]), np.append(p, [t for _, t in missing]))
    return [float(p.sum()), lumped, uniform, renormalised, to_label]


def _kl(p: Doubles, q: Doubles) -> float:
    """KL(p || q); p sums to 1, of q only the entries that p covers are looked at."""
    inside = p > 0
    return float((p[inside] * (np.log(p[inside]) - np.log(np.maximum(q[inside], 1e-300)))).sum())


def _normal(x: Doubles) -> Doubles:
    total: Doubles = x / x.sum()
    return total


def embedding_fidelity(
    exact: npt.NDArray[np.float32],
    decoded: npt.NDArray[np.float32],
    class_embeddings: npt.NDArray[np.float32],
    logit_scale: float,
) -> Doubles:
    """KL(teacher || softmax from the stored embedding) over the whole vocabulary.

    Args:
        exact, decoded: [S, D] unit embeddings.
        class_embeddings: [V, D].
        logit_scale: the teacher's own.

    Returns:
        [S, 1 + scales]: at the teacher's own scale, then at each of `EMBEDDING_SCALES`.
    """
    cosines = [x.astype(np.float64) @ class_embeddings.T.astype(np.float64) for x in (exact, decoded)]
    columns = []
    for scale in (logit_scale, *EMBEDDING_SCALES):
        log_p, log_q = (_log_softmax(scale * cosine) for cosine in cosines)
        columns.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
    return np.stack(columns, axis=1)


def _log_softmax(logits: Doubles) -> Doubles:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Doubles = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def fidelity_report(store: LabelStore) -> dict[str, Any]:
    """The report of a store, over all committed chunks; empty for a store without soft labels or of version 1.

    Returns:
        `rows` measured, `k`, `value_kl`, `mass`, `topk_kl` by tail rule and `embedding_kl` by logit scale, each as
        mean and quantiles; `by_k`: the means of mass and divergences at smaller k.
    """
    ks = store.layout.fidelity_k
    if not ks:
        return {}
    table = _column_table(store, LABELS, "fidelity")
    columns = dict(zip(fidelity_columns(ks), table.T, strict=True))
    report: dict[str, Any] = {
        "rows": len(table),
        "k": ks[-1],
        "value_kl": _quantiles(columns["value_kl"]),
        "mass": _quantiles(columns[f"mass@{ks[-1]}"]),
        "topk_kl": {rule: _quantiles(columns[f"{rule}@{ks[-1]}"]) for rule in TAIL_RULES},
        "embedding_kl": {},
        "by_k": [
            {
                "k": k,
                "mass": _mean(columns[f"mass@{k}"]),
                **{rule: _mean(columns[f"{rule}@{k}"]) for rule in TAIL_RULES},
            }
            for k in ks
        ],
    }
    # A derived store has its parent's embeddings, measured over the parent's classes: no figure of its own.
    if EMBEDDING in store.groups and "derivation" not in store.groups[LABELS].fingerprint:
        table = _column_table(store, EMBEDDING, f"{EMBEDDING}/fidelity")
        names = ("own scale", *(f"scale {scale:.0f}" for scale in EMBEDDING_SCALES))
        report["embedding_kl"] = {name: _quantiles(column) for name, column in zip(names, table.T, strict=True)}
    return report


def _column_table(store: LabelStore, group: str, array: str) -> Doubles:
    """All measured rows, [S, columns]."""
    parts = [store.read_chunk(group, chunk, (array,))[array] for chunk in store.committed(group)]
    width = next(spec.tail[0] for spec in store.groups[group].arrays if spec.path == array)
    table = np.concatenate([np.zeros((0, width)), *parts]).astype(np.float64)
    measured: Doubles = table[~np.isnan(table[:, 0])]
    return measured


def _quantiles(values: Doubles) -> dict[str, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return {}
    return {"mean": float(values.mean()), **{name: float(np.percentile(values, q)) for name, q in QUANTILES}}


def _mean(values: Doubles) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None
