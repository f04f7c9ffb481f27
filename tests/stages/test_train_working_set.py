"""Training from a working set: the same prompts as from plain arrays, with selections and expectations of the store."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds

from teachonce.core.documents import read_events
from teachonce.core.progress import Silent
from teachonce.errors import FingerprintError, ImageChangedError, UsageError
from teachonce.labels.format import LABELS
from teachonce.labels.selection import Rule, choose, save_selection
from teachonce.labels.store import LabelStore
from teachonce.recipe.config_file import load_train_config
from teachonce.rows import build as working_build
from teachonce.rows.resident import ResidentRows, RowsAhead
from teachonce.rows.working_set import Batch, WorkingSet
from teachonce.stages.train import TrainRequest, train

BASE = ("steps=12", "batch_size=16", "checkpoint_every=4", "log_every=1")


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished store, without a working set beside it."""
    return worlds.copy_store(finished, tmp_path)


def run(labels: Path, student: str, out: Path, *overrides: str, **options: Any) -> str:
    """Train; returns the digest of the prompts."""
    config = load_train_config(None, [*BASE, *overrides])
    train(TrainRequest(labels=labels, student=student, out=out, config=config, threads=1, **options), Silent())
    return hashlib.sha256((out / "prompts.safetensors").read_bytes()).hexdigest()


def select(store: Path, file: Path, **rule: Any) -> Path:
    """A selection file."""
    opened = LabelStore.open(store)
    made = Rule(**rule)
    save_selection(file, opened, made, choose(opened, made, Silent()))
    return file


def plain_batches(path: Path) -> Any:
    """`WorkingSet.batch` from arrays that are decoded whole in memory, as training once worked."""
    store = LabelStore.open(path)
    (group,) = [name for name in store.groups if name.startswith("students/")]
    parts = []
    for chunk in range(store.layout.chunks):
        data, top = store.read_chunk(LABELS, chunk), store.decode_labels(store.read_chunk(LABELS, chunk))
        features = store.read_chunk(group, chunk)[f"{group}/features"]
        parts.append(
            (
                features,
                store.label_to_vocabulary[data["label"]],
                top.class_ids.astype(np.int32),
                top.log_probs,
                top.log_residual,
                np.arange(*store.layout.bounds(chunk)),
            )
        )
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]

    def batch(self: WorkingSet, indices: Any) -> Batch:
        return Batch(*(column[indices] for column in columns))

    return batch


CHOICES = [
    "supervision=hard+soft",
    "supervision=soft temperature=2",
    "candidates=sampled sampled_fill=2 sampled_top=1 tail=renormalise",
]


@pytest.mark.parametrize("choice", CHOICES)
def test_prompts_are_those_of_plain_arrays(choice: str, store: Path, student: str, tmp_path: Path) -> None:
    """Bit for bit: a working set changes where values lie, not one of them."""
    mapped = run(store, student, tmp_path / "mapped", *choice.split())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkingSet, "batch", plain_batches(store))
        assert run(store, student, tmp_path / "plain", *choice.split()) == mapped


@pytest.mark.parametrize("choice", [*CHOICES, "held_out=0.3 evaluate_every=6 hard_over=seen"])
@pytest.mark.parametrize("way", [ResidentRows, RowsAhead])
def test_prompts_are_those_of_rows_that_stay_on_the_device_or_are_read_ahead(
    way: Any, choice: str, store: Path, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; both ways are a GPU's and run here on the CPU. Classes outside a selection leave gaps in labels."""
    chosen = select(store, tmp_path / "some.json", classes=tuple(worlds.IDS[:5]))
    plain = run(store, student, tmp_path / "plain", *choice.split(), selection=chosen)
    monkeypatch.setattr(
        "teachonce.training.trainer.source_of", lambda rows, wanted, device, _: way(rows, wanted, device)
    )
    assert run(store, student, tmp_path / "there", *choice.split(), selection=chosen) == plain


def test_runs_share_one_set(store: Path, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another seed, another config: the second run decodes nothing but the rows that prove the pairing."""
    run(store, student, tmp_path / "a")
    monkeypatch.setattr(working_build, "write_arrays", None)
    monkeypatch.setattr("teachonce.rows.working_set.write_arrays", None)
    run(store, student, tmp_path / "b", "seed=3", "supervision=hard")
    assert len([p for p in store.with_name(store.name + ".working").iterdir() if p.is_dir()]) == 1


@pytest.mark.slow
def test_a_selection_is_part_of_the_run(store: Path, student: str, tmp_path: Path) -> None:
    """It changes the prompts, stands in the log and the results, and --resume refuses another or none."""
    few, fewer = (select(store, tmp_path / f"{n}.json", shots=n) for n in (4, 2))
    out = tmp_path / "run"
    prompts = run(store, student, out, selection=few)
    assert prompts != run(store, student, tmp_path / "all")
    digest = json.loads(few.read_text())["digest"]
    assert json.loads((out / "results.json").read_text())["selection_digest"] == digest
    assert read_events(out / "events.jsonl")[0]["selection_digest"] == digest
    for other in (fewer, None):
        with pytest.raises(FingerprintError, match=f"another selection: selection there {digest[:16]}, here "):
            run(store, student, out, selection=other, resume=True)
    assert run(store, student, out, selection=few, resume=True) == prompts


@pytest.mark.parametrize("rule", [{"top_k": 2}, {"classes": ("n01", "n05", "n03")}, {"shots": 3, "top_k": 1}], ids=str)
@pytest.mark.parametrize("choice", CHOICES)
def test_every_rule_trains(rule: dict[str, Any], choice: str, store: Path, student: str, tmp_path: Path) -> None:
    """Finite losses; with classes the run knows these names only, in the vocabulary's order.

    One class a row, renormalised, is certain whatever the prompts: that is refused.
    """
    file = select(store, tmp_path / "s.json", **rule)
    if "renormalise" in choice and rule.get("top_k") == 1:
        with pytest.raises(UsageError, match="nothing would be learned"):
            run(store, student, tmp_path / "run", *choice.split(), selection=file)
        return
    run(store, student, tmp_path / "run", *choice.split(), selection=file)
    events = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["event"] == "step"]
    assert len(events) == 12 and all(np.isfinite(e["loss"]) for e in events)
    if "classes" in rule:
        assert all(e["candidates"] <= 3 for e in events)


def test_the_data_set_is_checked_before_the_run_begins(
    store: Path, student: str, world: worlds.World, tmp_path: Path
) -> None:
    """The right one trains, images compared; another manifest or other images are refused and nothing is written."""
    right: dict[str, Any] = {
        "manifest": world.manifest(),
        "split": "train",
        "vocabulary": "classes.tsv",
        "root": world.root,
    }
    prompts = run(store, student, tmp_path / "right", **right)
    assert prompts == run(store, student, tmp_path / "unchecked")
    with pytest.raises(FingerprintError, match="manifest_digest"):
        run(store, student, tmp_path / "wrong", **(right | {"manifest": world.manifest("folders")}))
    root = Path(shutil.copytree(world.root, tmp_path / "world"))
    for archive in (root / "wds").glob("*.tar"):
        data = bytearray(archive.read_bytes())
        for start in range(2048, len(data), 512):
            data[start] ^= 1
        archive.write_bytes(data)
    with pytest.raises(ImageChangedError, match="has CRC-32 .*, and had"):
        run(store, student, tmp_path / "wrong", **(right | {"root": root}))
    assert not (tmp_path / "wrong").exists()
