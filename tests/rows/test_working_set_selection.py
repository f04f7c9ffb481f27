"""Selections of rows, of classes and of the first k', against sums over plain lists; rows that lack classes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds

from teachonce.core.progress import Silent
from teachonce.errors import IncompleteError
from teachonce.labels.format import LABELS
from teachonce.labels.selection import Selection
from teachonce.labels.store import LabelStore
from teachonce.losses.row_losses import ghost_rows, renormalise_rows
from teachonce.losses.targets import SoftTargets
from teachonce.rows.working_set import WorkingSet, open_working_set

CLASSES = ("c00002", "c00011", "c00003", "c00007")  # not in the vocabulary's order
IN_ORDER = ("c00002", "c00003", "c00007", "c00011")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    """Forty rows of twelve classes, the best six of each."""
    made, _ = worlds.synthetic_store(tmp_path_factory.mktemp("selection") / "labels.zarr", top_k=6)
    assert isinstance(made, LabelStore)
    return made


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into the user's cache; no power fails here."""
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.fsync", lambda handle: None)


def selected(store: LabelStore, **fields: Any) -> Selection:
    """A selection as if it had been loaded."""
    whole: dict[str, Any] = {
        "top_k": None,
        "classes": None,
        "samples": np.arange(store.layout.rows, dtype=np.uint32),
        "shots": None,
        "seed": 0,
    }
    return Selection(**(whole | fields), digest=str(sorted(map(str, fields.items()))))


def plain_rows(store: LabelStore) -> list[dict[str, Any]]:
    """Every row of the store as Python values."""
    rows = []
    for chunk in range(store.layout.chunks):
        data = store.read_chunk(LABELS, chunk)
        top = store.decode_labels(data)
        for i in range(len(data["label"])):
            rows.append(
                {
                    "row": len(rows),
                    "label": int(data["label"][i]),
                    "sample": int(data["sample"][i]),
                    "classes": list(
                        zip(top.class_ids[i].tolist(), top.log_probs[i].astype(float).tolist(), strict=True)
                    ),
                    "residual": top.log_residual[i].astype(float).tolist(),
                }
            )
    return rows


def by_row(rows: WorkingSet) -> dict[int, dict[str, Any]]:
    """The set's rows as Python values, by row of the store."""
    batch = rows.batch(np.arange(len(rows)))
    return {
        int(batch.row[i]): {
            "label": int(batch.label[i]),
            "classes": list(zip(batch.class_ids[i].tolist(), batch.log_probs[i].astype(float).tolist(), strict=True)),
            "residual": batch.log_residual[i].astype(float).tolist(),
        }
        for i in range(len(rows))
    }


@pytest.mark.parametrize("top_k", [1, 2, 5, 6])
def test_fewer_classes_move_into_the_tail(top_k: int, store: LabelStore) -> None:
    """The first k' stay; each tail sum gains what was dropped, so that the mass of a row stays what it was."""
    restricted = by_row(open_working_set(store, None, Silent(), selected(store, top_k=top_k)))
    for row in plain_rows(store):
        ours = restricted[row["row"]]
        assert ours["classes"] == row["classes"][:top_k]
        for tau, tail, kept in zip((1.0, 2.0), row["residual"], ours["residual"], strict=True):
            dropped = sum(math.exp(value / tau) for _, value in row["classes"][top_k:])
            assert kept == pytest.approx(math.log(math.exp(tail) + dropped), abs=1e-6)


def test_the_whole_k_changes_nothing(store: LabelStore) -> None:
    """Also where nothing is outside the stored classes."""
    whole, cut = (open_working_set(store, None, Silent(), s) for s in (None, selected(store, top_k=6)))
    assert whole.digest != cut.digest and by_row(whole) == by_row(cut)


@pytest.mark.parametrize("top_k", [None, 3])
def test_classes_restrict_rows_and_targets(top_k: int | None, store: LabelStore) -> None:
    """Rows of other labels go; stored classes of others go; what is missing is -1; nothing is known of the tail."""
    rows = open_working_set(store, None, Silent(), selected(store, classes=CLASSES, top_k=top_k))
    assert rows.vocabulary.ids == IN_ORDER and rows.vocabulary.names[1] == "class 3"
    whole = store.vocabulary()
    restricted, plain = by_row(rows), {row["row"]: row for row in plain_rows(store)}
    wanted = [row for row in plain if whole.ids[plain[row]["label"]] in CLASSES]
    assert sorted(restricted) == wanted and 0 < len(wanted) < len(plain)
    lengths = set()
    for number in wanted:
        ours, row = restricted[number], plain[number]
        assert IN_ORDER[ours["label"]] == whole.ids[row["label"]]
        expected = [(whole.ids[c], value) for c, value in row["classes"][:top_k] if whole.ids[c] in CLASSES]
        assert [(IN_ORDER[c], value) for c, value in ours["classes"] if c >= 0] == expected
        assert all(pair == (-1, -math.inf) for pair in ours["classes"][len(expected) :])
        assert ours["residual"] == [-math.inf, -math.inf]
        lengths.add(len(expected))
    assert len(lengths) > 1, "rows of different lengths are what this is about"


def test_samples_restrict_rows(store: LabelStore) -> None:
    """Just the rows of these samples, whatever order the store has them in."""
    samples = np.sort(np.random.default_rng(3).choice(store.layout.rows, 11, replace=False)).astype(np.uint32)
    restricted = by_row(open_working_set(store, None, Silent(), selected(store, samples=samples)))
    plain = plain_rows(store)
    assert sorted(plain[row]["sample"] for row in restricted) == samples.tolist()
    assert all(restricted[row]["classes"] == plain[row]["classes"] for row in restricted)


def test_a_selection_without_rows_is_refused(store: LabelStore) -> None:
    with pytest.raises(IncompleteError, match="no row with an image that is in the selection"):
        open_working_set(store, None, Silent(), selected(store, samples=np.zeros(0, np.uint32)))


def brute_soft_loss(
    logits: np.ndarray[Any, Any], classes: list[list[tuple[int, float]]], columns: list[int], tau: float, ghost: bool
) -> float:
    """tau^2 KL over each row's own classes among the candidates, written out; the lump of ghost has no teacher mass."""
    total = 0.0
    for scores, row in zip(logits.astype(float) / tau, classes, strict=True):
        weighted_columns = [(columns[c], math.exp(value / tau)) for c, value in row if c >= 0 and columns[c] >= 0]
        if not weighted_columns:
            continue
        mass = sum(p for _, p in weighted_columns)
        counted = scores if ghost else [scores[column] for column, _ in weighted_columns]
        norm = sum(math.exp(s) for s in counted)
        total += sum(
            p / mass * (math.log(p / mass) - math.log(math.exp(scores[column]) / norm))
            for column, p in weighted_columns
        )
    return tau * tau * total / len(classes)


@pytest.mark.parametrize("tail", ["ghost", "renormalise"])
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_missing_classes_count_for_nothing(tail: Any, tau: float) -> None:
    """Rows of every length down to none, with some classes outside the candidates; the gradient is finite."""
    rng = np.random.default_rng(2)
    rows, candidates, vocabulary, width = 30, 5, 9, 4
    kept = np.sort(rng.choice(vocabulary, candidates, replace=False))
    columns = [int(np.flatnonzero(kept == c)[0]) if c in kept else -1 for c in range(vocabulary)]
    log_tail = np.full(rows, -np.inf, np.float32)
    ids = np.stack([rng.choice(candidates, width, replace=False) for _ in range(rows)])
    ids = (
        kept[ids] if tail == "ghost" else np.stack([rng.choice(vocabulary, width, replace=False) for _ in range(rows)])
    )
    values = -np.sort(rng.random((rows, width)) * 6, axis=1).astype(np.float32)
    for row, length in enumerate(rng.integers(0, width + 1, rows)):
        ids[row, length:], values[row, length:] = -1, -np.inf
    ids[0], values[0] = -1, -np.inf
    logits = torch.tensor(rng.normal(size=(rows, candidates)), dtype=torch.float32, requires_grad=True)
    targets = SoftTargets(torch.from_numpy(ids), torch.from_numpy(values), torch.from_numpy(log_tail))
    rule = {"ghost": ghost_rows, "renormalise": renormalise_rows}[tail]
    loss = rule(logits, torch.zeros(candidates), targets, torch.tensor(columns), tau, tau).mean()
    pairs = [list(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
    expected = brute_soft_loss(logits.detach().numpy(), pairs, columns, tau, tail == "ghost")
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    torch.autograd.backward(loss)
    assert logits.grad is not None and bool(logits.grad.isfinite().all()) and not logits.grad[0].any()
