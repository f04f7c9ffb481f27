"""relabel with a better teacher: prompts of the teacher, temperatures of rows, priors; each against plain float64."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from moved_prompts import save_moved_prompts
from relabel_reference import Doubles, at_entropy, check_exact, decoded, log_softmax, logits_of
from worlds import CHUNKS, IDS, PHOTOS, World, teach_inline

from teachonce.core.progress import Silent
from teachonce.errors import DataError, FingerprintError, UsageError
from teachonce.labels.format import EMBEDDING, LABELS
from teachonce.labels.store import LabelStore
from teachonce.models.prompt_files import load_prompts
from teachonce.stages.inspect import InspectRequest, inspect
from teachonce.stages.relabel import RelabelRequest, RelabelResult, relabel
from teachonce.stages.verify import VerifyRequest, verify


@pytest.fixture(scope="module")
def parent(world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels, float16 embeddings and a student's features; never change it."""
    path = tmp_path_factory.mktemp("better") / "parent.zarr"
    teach_inline(world, path, teacher, students=(student,), top_k=5, embeddings="float16")
    return path


@pytest.fixture(scope="module")
def prompts(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts whose student is the teacher."""
    return save_moved_prompts(tmp_path_factory.mktemp("prompts"), teacher)


def run(parent: Path, labels: Path, **options: Any) -> RelabelResult:
    """Run `relabel` in this process; models are loaded once a session, nothing waits for the disk."""
    with worlds.inline_tasks():
        return relabel(RelabelRequest(parent=parent, labels=labels, threads=1, **options), Silent())


def test_prompts_make_the_class_vectors(parent: Path, prompts: Path, tmp_path: Path) -> None:
    """As the prompted teacher classifies; embeddings stay, the store says what made it, and no image was read."""
    result = run(parent, tmp_path / "child.zarr", prompts=prompts)
    vectors = load_prompts(prompts).classifier(LabelStore.open(parent).vocabulary().names).double().numpy()
    assert np.abs(vectors - LabelStore.open(parent).class_embeddings()).max() > 0.01, "the prompts do something"
    check_exact(tmp_path / "child.zarr", log_softmax(logits_of(parent, vectors)))
    child = LabelStore.open(tmp_path / "child.zarr")
    np.testing.assert_allclose(child.class_embeddings(), vectors, atol=1e-6)
    assert EMBEDDING in child.groups and result.embeddings_kept and result.prompts == str(prompts)
    fingerprint = inspect(InspectRequest(labels=tmp_path / "child.zarr"), Silent()).fingerprint
    assert fingerprint["prompts"] == load_prompts(prompts).tensors_digest
    assert fingerprint["about"]["prompts"] == str(prompts)
    assert verify(VerifyRequest(labels=tmp_path / "child.zarr"), Silent()).ok


@pytest.mark.slow
def test_a_child_of_prompts_keeps_them(parent: Path, prompts: Path, tmp_path: Path) -> None:
    """Fewer classes and another k need no model; new names need the prompts again; templates end them."""
    run(parent, tmp_path / "a.zarr", prompts=prompts)
    (tmp_path / "some.txt").write_text("\n".join(IDS[:4]))
    run(tmp_path / "a.zarr", tmp_path / "b.zarr", classes=tmp_path / "some.txt")
    a, b, c = (LabelStore.open(tmp_path / f"{x}.zarr") for x in "aba")
    assert np.array_equal(b.class_embeddings(), a.class_embeddings()[:4])
    assert b.groups[LABELS].fingerprint["prompts"] == c.groups[LABELS].fingerprint["prompts"]
    (tmp_path / "new.tsv").write_text("x\tlighthouse\ny\tkettle\n")
    with pytest.raises(UsageError, match="come from prompts") as problem:
        run(tmp_path / "a.zarr", tmp_path / "c.zarr", vocabulary=str(tmp_path / "new.tsv"))
    assert "`prompts`" in problem.value.hint
    run(tmp_path / "a.zarr", tmp_path / "c.zarr", vocabulary=str(tmp_path / "new.tsv"), prompts=prompts)
    run(tmp_path / "a.zarr", tmp_path / "d.zarr", templates=("a drawing of a {}.",))
    assert "prompts" not in LabelStore.open(tmp_path / "d.zarr").groups[LABELS].fingerprint
    with pytest.raises(UsageError, match="nothing to change"):
        run(tmp_path / "a.zarr", tmp_path / "e.zarr", prompts=prompts)


def test_prompts_of_another_model_are_refused(parent: Path, student: str, tmp_path: Path) -> None:
    """Exit 4, with both digests; so is a folder without prompts, and templates beside prompts."""
    (tmp_path / "run").mkdir()
    other = save_moved_prompts(tmp_path / "run", student)
    with pytest.raises(FingerprintError, match="belong to another model than the teacher") as problem:
        run(parent, tmp_path / "child.zarr", prompts=other)
    assert "teacher_digest: stored" in problem.value.message and "teachonce train" in problem.value.hint
    with pytest.raises(UsageError, match="there is no such folder"):
        run(parent, tmp_path / "child.zarr", prompts=tmp_path / "none")
    with pytest.raises(UsageError, match="give one of them"):
        run(parent, tmp_path / "child.zarr", prompts=other, templates=("a {}.",))
    assert not (tmp_path / "child.zarr").exists()


def test_every_row_gets_its_temperature(parent: Path, tmp_path: Path) -> None:
    """Values and tails are those of the row at the entropy asked for; the result counts the rows."""
    result = run(parent, tmp_path / "child.zarr", entropy=1.2)
    check_exact(tmp_path / "child.zarr", at_entropy(log_softmax(logits_of(parent)), 1.2))
    said = result.row_temperatures
    assert (said["entropy"], said["rows"], said["too_flat"], said["too_sharp"]) == (1.2, PHOTOS, 0, 0)
    assert said["p5"] < said["p50"] < said["p95"]
    child = LabelStore.open(tmp_path / "child.zarr")
    assert EMBEDDING not in child.groups and not result.embeddings_kept
    assert child.groups[LABELS].fingerprint["entropy"] == 1.2
    assert sorted(name for name in child.groups) == sorted(g for g in LabelStore.open(parent).groups if g != EMBEDDING)
    assert verify(VerifyRequest(labels=tmp_path / "child.zarr"), Silent()).ok
    with pytest.raises(DataError, match="no image features of its teacher") as problem:
        run(tmp_path / "child.zarr", tmp_path / "next.zarr", top_k=2)
    assert "relabel its parent" in problem.value.hint


@pytest.mark.slow
def test_rows_that_cannot_have_the_entropy_are_counted(parent: Path, tmp_path: Path) -> None:
    """Two classes share a name: less than ln 2 cannot be had where that name is the best."""
    result = run(parent, tmp_path / "child.zarr", entropy=1e-4)
    best = decoded(tmp_path / "child.zarr").log_probs[:, 0]
    assert result.row_temperatures["too_flat"] >= int((np.abs(best - np.log(0.5)) < 0.01).sum()) > 0


def predicted(logits: Doubles) -> Doubles:
    """How often the teacher names each class."""
    mean: Doubles = np.exp(log_softmax(logits)).mean(0)
    return mean


def test_a_balanced_prior_is_logit_adjustment(parent: Path, tmp_path: Path) -> None:
    """ln wanted - ln predicted on the classes with photos; other names are left alone; rows are as they were."""
    result = run(parent, tmp_path / "child.zarr", prior="balanced")
    store, logits = LabelStore.open(parent), logits_of(parent)
    p = predicted(logits)
    labels = np.concatenate([store.read_chunk(LABELS, c, ("label",))["label"] for c in range(store.layout.chunks)])
    with_photos = np.unique(store.in_vocabulary(labels))
    shift = np.zeros(len(p))
    shift[with_photos] = np.log(p[with_photos].sum() / len(with_photos)) - np.log(p[with_photos])
    check_exact(tmp_path / "child.zarr", log_softmax(logits + shift))
    assert result.prior["classes"] == len(with_photos) < len(p), "a name without photos is left alone"
    assert result.prior["mass"] == pytest.approx(p[with_photos].sum(), abs=1e-5)
    above = result.prior["most_above"][0]
    assert above[1] == pytest.approx(p[with_photos].max(), abs=1e-5) and above[1] > above[2]
    assert LabelStore.open(tmp_path / "child.zarr").groups[LABELS].fingerprint["prior"]["wanted"] == "balanced"


def test_prompts_prior_and_temperatures_go_together(parent: Path, prompts: Path, tmp_path: Path) -> None:
    """In this order: class vectors, prior, temperature; killed and continued gives the same bits."""
    (tmp_path / "prior.tsv").write_text(f"{IDS[0]}\t3\n{IDS[1]}\t1\n")
    options: dict[str, Any] = {"prompts": prompts, "prior": str(tmp_path / "prior.tsv"), "entropy": 0.9, "top_k": 4}
    whole = run(parent, tmp_path / "child.zarr", **options)
    logits = logits_of(parent, LabelStore.open(tmp_path / "child.zarr").class_embeddings().astype(np.float64))
    p = predicted(logits)
    shift = np.zeros(len(p))
    shift[:2] = np.log(np.array([0.75, 0.25]) * p[:2].sum()) - np.log(p[:2])
    check_exact(tmp_path / "child.zarr", at_entropy(log_softmax(logits + shift), 0.9))
    store = LabelStore.open(tmp_path / "child.zarr", writable=True)
    shutil.rmtree(tmp_path / "child.zarr" / "gaps" / "c" / "2")
    store.drop(LABELS, 2)
    again = run(parent, tmp_path / "child.zarr", **options)
    assert (again.chunks_written, again.chunks_skipped) == (1, CHUNKS - 1) and again.store_id == whole.store_id
    assert again.row_temperatures["rows"] == store.layout.chunk_rows < PHOTOS
    for changed in ({"entropy": 1.0}, {"prior": "balanced"}):
        with pytest.raises(FingerprintError, match="stored"):
            run(parent, tmp_path / "child.zarr", **(options | changed))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"entropy": 0.0}, "must be a positive number of nats"),
        ({"entropy": float("nan")}, "must be a positive number of nats"),
        ({"entropy": 50.0}, "cannot be had: the largest entropy over"),
        ({"prior": "balenced"}, "cannot read the prior"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], said: str, parent: Path, tmp_path: Path) -> None:
    """Before anything is written."""
    with pytest.raises((UsageError, DataError), match=said):
        run(parent, tmp_path / "child.zarr", **options)
    assert not (tmp_path / "child.zarr").exists()
