"""Working sets with the teacher's embeddings: they give the teacher's own distribution, for any classes of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds

from teachonce.core.progress import Silent
from teachonce.data.view_policy import ViewPolicy
from teachonce.errors import DataError, IntegrityError
from teachonce.labels.codec import decode_embeddings
from teachonce.labels.format import EMBEDDING
from teachonce.labels.selection import Rule, choose, load_selection, save_selection
from teachonce.labels.store import LabelStore
from teachonce.models.clip import load_clip
from teachonce.rows.pairing import prove_pairing
from teachonce.rows.working_set import WorkingSet, open_working_set

VIEWS = {"int8": 1, "float16": 2}  # of an image, in the two stores
KINDS = tuple(VIEWS)
CLOSE = {"int8": 0.02, "float16": 2e-3}  # nats off the stored best class
CODED = 0.05  # nats off the others, which the store keeps as coarse gaps


@pytest.fixture(scope="module")
def stores(
    tmp_path_factory: pytest.TempPathFactory, world: worlds.World, teacher: str, student: str
) -> dict[str, Path]:
    """The photos taught with embeddings of either kind."""
    folder = tmp_path_factory.mktemp("embeddings")
    for kind, views in VIEWS.items():
        worlds.teach_inline(
            world,
            folder / f"{kind}.zarr",
            teacher,
            students=(student,),
            top_k=4,
            embeddings=kind,
            views=ViewPolicy(views=views),
            chunk_rows=18,
        )
    return {kind: folder / f"{kind}.zarr" for kind in KINDS}


@pytest.fixture(autouse=True)
def own_cache(stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Working sets lie in the cache of the test, because the folder beside the stores is a file. No power fails."""
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.fsync", lambda handle: None)
    for store in stores.values():
        store.with_name(store.name + ".working").touch()


def opened(store: Path, student: str | None = None, **options: Any) -> WorkingSet:
    """The set with embeddings."""
    digest = None if student is None else load_clip(student).digest
    return open_working_set(LabelStore.open(store), digest, Silent(), **({"embeddings": True} | options))


def log_probs_of(rows: WorkingSet, embedding: Any) -> Any:
    """The teacher's ln p over the run's classes, in float64."""
    logits = rows.teacher_scale * embedding.astype(np.float64) @ rows.class_embeddings.T.astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_student", [False, True])
def test_embeddings_give_the_stored_top_k(kind: str, with_student: bool, stores: dict[str, Path], student: str) -> None:
    """scale * embedding @ class_embeddings is what the teacher said when it labelled, view by view, in any order."""
    rows = opened(stores[kind], student if with_student else None)
    batch = rows.batch(np.random.default_rng(0).permutation(len(rows)))
    assert batch.embedding is not None and batch.embedding.dtype == np.float32
    assert (batch.features is not None) is with_student
    assert np.allclose(np.linalg.norm(batch.embedding, axis=1), 1, atol=1e-6)
    assert len(rows) == worlds.PHOTOS * VIEWS[kind] and np.array_equal(rows.row_column, np.arange(len(rows)))
    log_p = np.take_along_axis(log_probs_of(rows, batch.embedding), batch.class_ids.astype(np.int64), 1)
    assert np.abs(log_p - batch.log_probs)[:, 0].max() < CLOSE[kind]
    assert np.abs(log_p - batch.log_probs).max() < CODED
    stored = np.concatenate([rows.plan.store.embeddings(chunk) for chunk in range(rows.plan.store.layout.chunks)])
    assert batch.embedding.tobytes() == stored[batch.row].tobytes()


def test_a_set_keeps_embeddings_as_they_are_stored(stores: dict[str, Path]) -> None:
    """Int8 stays int8: a quarter of the bytes of what is handed out."""
    rows = opened(stores["int8"])
    assert rows.embeddings is not None and rows.embeddings.dtype == np.int8
    assert rows.batch(np.arange(5)).embedding.tobytes() == decode_embeddings(rows.embeddings[:5]).tobytes()  # type: ignore[union-attr]


def test_only_who_asks_for_embeddings_gets_another_set(stores: dict[str, Path], student: str) -> None:
    """Sets of runs without them keep their name, so that they are found again."""
    plain, rich = (opened(stores["int8"], student, embeddings=wanted) for wanted in (False, True))
    assert plain.digest != rich.digest and plain.embeddings is None
    assert plain.batch(np.arange(3)).embedding is None
    assert plain.records.tobytes() == rich.records.tobytes()
    groups = open_working_set(LabelStore.open(stores["int8"]), None, Silent())
    assert len({plain.digest, rich.digest, groups.digest}) == 3


def test_class_embeddings_are_those_of_the_runs_classes(stores: dict[str, Path], tmp_path: Path) -> None:
    """With a selection of classes: in its own order, so that the distribution is the teacher's over these alone."""
    store = LabelStore.open(stores["float16"])
    rule, file = Rule(classes=("n05", "n01", "n03")), tmp_path / "few.json"
    save_selection(file, store, rule, choose(store, rule, Silent()))
    rows = opened(stores["float16"], selection=load_selection(file, store))
    whole = store.class_embeddings()
    places = [store.vocabulary().ids.index(class_id) for class_id in rows.vocabulary.ids]
    assert rows.vocabulary.ids == ("n01", "n03", "n05") and np.array_equal(rows.class_embeddings, whole[places])
    batch = rows.batch(np.arange(len(rows)))
    log_p = log_probs_of(rows, batch.embedding)
    values = np.take_along_axis(log_p, np.maximum(batch.class_ids, 0).astype(np.int64), 1)
    pairs = (batch.class_ids[:, :1] >= 0) & (batch.class_ids[:, 1:2] >= 0)
    gaps = [column[:, :1] - column[:, 1:2] for column in (values, np.where(batch.class_ids < 0, 0, batch.log_probs))]
    assert pairs.any() and np.abs(gaps[0] - gaps[1])[pairs].max() < CODED


def test_a_store_without_them_is_refused_with_the_command(finished: Path, student: str, tmp_path: Path) -> None:
    """Before anything is made."""
    with pytest.raises(DataError, match="holds no image embeddings of its teacher") as caught:
        opened(finished, student)
    assert "`embeddings` int8" in caught.value.hint and not (tmp_path / "cache").exists()


def test_a_store_without_a_teacher_says_so(tmp_path: Path) -> None:
    """One of hard labels, for one."""
    worlds.synthetic_store(tmp_path / "none.zarr")
    rows = opened(tmp_path / "none.zarr", embeddings=False)
    with pytest.raises(DataError, match="no teacher"):
        _ = rows.teacher_scale
    with pytest.raises(DataError, match="no teacher"):
        _ = rows.class_embeddings


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_with_an_image_and_no_embedding_is_refused(kind: str, stores: dict[str, Path], tmp_path: Path) -> None:
    """Fill values belong to failed images; anywhere else they name the row before anything trains."""
    store = LabelStore.open(worlds.copy_store(stores[kind], tmp_path), writable=True)
    data = store.read_chunk(EMBEDDING, 1)
    data[f"{EMBEDDING}/values"][4] = -128 if kind == "int8" else np.nan
    store.commit(EMBEDDING, 1, 7, 18, 0, store.write_chunk(EMBEDDING, 1, data))
    with pytest.raises(DataError, match="row 22 in chunk 1 of embedding holds (-128|nan) in"):
        opened(store.path)


def test_the_pairing_of_embeddings_is_proved(stores: dict[str, Path], student: str) -> None:
    """Sound ones pass; those of other rows are named."""
    rows = opened(stores["int8"], student)
    assert prove_pairing(rows, 0, Silent()) == 64
    assert rows.embeddings is not None
    rows.embeddings = np.roll(rows.embeddings, 1, axis=0)
    with pytest.raises(IntegrityError, match="expected the image embedding of this row"):
        prove_pairing(rows, 0, Silent())
