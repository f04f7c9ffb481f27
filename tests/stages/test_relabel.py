"""relabel: labels from stored embeddings are those that the teacher would give from the images."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from worlds import CHUNKS, IDS, NAMES, PHOTOS, Notes, World, all_arrays, teach_inline

from teachonce.core.progress import Silent
from teachonce.errors import FingerprintError, IncompleteError, IntegrityError, UsageError
from teachonce.labels.codec import TopK, max_error
from teachonce.labels.format import EMBEDDING, LABELS
from teachonce.labels.store import LabelStore
from teachonce.stages.relabel import RelabelRequest, RelabelResult, relabel
from teachonce.stages.verify import VerifyRequest, verify

TEMPLATES = ("a drawing of a {}.", "a blurry photo of a {}.")


@pytest.fixture(scope="module")
def parent(world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels, float16 embeddings and a student's features; never change it."""
    path = tmp_path_factory.mktemp("relabel") / "parent.zarr"
    teach_inline(world, path, teacher, students=(student,), top_k=5, embeddings="float16")
    return path


def run(parent: Path, labels: Path, **options: Any) -> RelabelResult:
    """Run `relabel` in this process; models are loaded once a session, nothing waits for the disk."""
    with worlds.inline_tasks():
        return relabel(RelabelRequest(parent=parent, labels=labels, **options), Silent())


def decoded(path: Path) -> TopK:
    """All soft labels of a store."""
    store = LabelStore.open(path)
    parts = [store.decode_labels(store.read_chunk(LABELS, chunk)) for chunk in range(store.layout.chunks)]
    names = ("class_ids", "log_probs", "log_residual")
    return TopK(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def best(labels: TopK, top_k: int, temperatures: tuple[float, ...]) -> TopK:
    """The first k classes of each row; the others move to the tail sums."""
    moved = labels.log_probs[:, top_k:]
    tails = [
        np.logaddexp.reduce(np.column_stack([tail, moved / tau]), axis=1)
        for tail, tau in zip(labels.log_residual.T, temperatures, strict=True)
    ]
    return TopK(labels.class_ids[:, :top_k], labels.log_probs[:, :top_k], np.stack(tails, axis=1))


def check_same(child: Path, wanted: Path, slack: float) -> None:
    """The same labels but for what the embeddings' rounding does: near-ties may swap, values move by `slack`."""
    ours = decoded(child)
    theirs = best(decoded(wanted), ours.class_ids.shape[1], LabelStore.open(wanted).layout.temperatures)
    tables = LabelStore.open(wanted).tables
    assert ours.class_ids.shape == theirs.class_ids.shape
    for row in range(len(ours.class_ids)):
        here, there = (
            dict(zip(x.class_ids[row].tolist(), x.log_probs[row].tolist(), strict=True)) for x in (ours, theirs)
        )
        limit = 2 * float(max_error(theirs.log_probs[row : row + 1], tables).max()) + slack
        for class_id in set(here) & set(there):
            assert abs(here[class_id] - there[class_id]) <= limit
        least = min(*here.values(), *there.values())
        for class_id in set(here) ^ set(there):  # the last place only, and nearly tied for it
            assert (here | there)[class_id] - least <= limit
    assert (ours.class_ids[:, 0] == theirs.class_ids[:, 0]).mean() > 0.95
    np.testing.assert_allclose(ours.log_residual, theirs.log_residual, atol=slack + 0.05)


def exact_log_probs(path: Path, keep: slice | list[int] = slice(None)) -> np.ndarray[Any, np.dtype[np.float64]]:
    """ln softmax over the kept classes, from a store's own embeddings, in float64."""
    store = LabelStore.open(path)
    images = np.concatenate([store.embeddings(chunk) for chunk in range(store.layout.chunks)]).astype(np.float64)
    logits = store.groups[LABELS].fingerprint["logit_scale"] * images @ store.class_embeddings()[keep].T
    shifted = logits - logits.max(1, keepdims=True)
    result: np.ndarray[Any, np.dtype[np.float64]] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def check_exact(path: Path, truth: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    """Values, order and tail sums of every temperature against the full softmax."""
    store, labels = LabelStore.open(path), decoded(path)
    for row, ids in enumerate(labels.class_ids):
        wanted = truth[row, ids].astype(np.float32)
        limit = max_error(wanted[None], store.tables)[0] + 1e-4
        assert (np.abs(labels.log_probs[row] - wanted) <= limit).all()
        outside = np.delete(truth[row], ids)
        assert outside.size == 0 or outside.max() <= wanted.min() + 1e-5
        for column, tau in enumerate(store.layout.temperatures):
            mass = np.log(np.exp(outside / tau).sum()) if outside.size else -np.inf
            assert labels.log_residual[row, column] == pytest.approx(mass, rel=1e-3, abs=2e-3)


def test_the_same_classes_give_the_same_labels(parent: Path, tmp_path: Path) -> None:
    """Another k only: the parent's labels, rows and students; the child says where it comes from; it is sound."""
    result = run(parent, tmp_path / "child.zarr", top_k=3)
    assert (result.rows_ok, result.rows_failed, result.chunks_written, result.chunks_skipped) == (PHOTOS, 0, CHUNKS, 0)
    assert (result.classes, result.top_k, result.temperatures) == (len(IDS), 3, (1.0, 2.0, 4.0))
    check_same(tmp_path / "child.zarr", parent, 0.01)
    check_exact(tmp_path / "child.zarr", exact_log_probs(parent))
    before, after = all_arrays(parent), all_arrays(tmp_path / "child.zarr")
    for name in before:
        if name not in ("class_ids", "gaps", "top_log_prob", "log_residual", "fidelity"):
            assert before[name].tobytes() == after[name].tobytes(), name
    child = LabelStore.open(tmp_path / "child.zarr")
    fingerprint = child.groups[LABELS].fingerprint
    assert fingerprint["derivation"] == "relabel" and fingerprint["embedding_kind"] == "float16"
    assert fingerprint["about"]["parent"]["store_id"] == LabelStore.open(parent).store_id()
    assert set(child.groups) == set(LabelStore.open(parent).groups) and result.store_id == child.store_id()
    assert verify(VerifyRequest(labels=tmp_path / "child.zarr"), Silent()).ok
    assert [path.name for path in tmp_path.iterdir()] == ["child.zarr"], "no lock, no draft"


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"vocabulary": "other.tsv"}, "float16"),
        pytest.param({"templates": TEMPLATES[:1]}, "float16", marks=pytest.mark.slow),
        pytest.param({"templates": TEMPLATES}, "float16", marks=pytest.mark.slow),
        ({"vocabulary": "other.tsv", "templates": TEMPLATES, "top_k": 3}, "int8"),
    ],
    ids=["vocabulary", "template", "ensemble", "all"],
)
def test_new_names_equal_teaching_them(
    options: dict[str, Any], kind: str, world: World, teacher: str, parent: Path, tmp_path: Path
) -> None:
    """As if the teacher had been run on the images with these names and templates."""
    lines = [f"x{i}\t{name}\n" for i, name in enumerate(("old piano", "red fox", "Red Fox", "lamp", "boat", "tree"))]
    (world.root / "other.tsv").write_text("".join(lines) + "n07\tmug\n")
    source = parent
    if kind == "int8":
        source = tmp_path / "int8.zarr"
        teach_inline(world, source, teacher, top_k=5, embeddings="int8")
    top_k = options.get("top_k", 5)
    teach_inline(world, tmp_path / "taught.zarr", teacher, **(options | {"top_k": top_k}))
    run(source, tmp_path / "child.zarr", root=world.root, **options)
    check_same(tmp_path / "child.zarr", tmp_path / "taught.zarr", 0.01 if kind == "float16" else 0.15)
    child, taught = LabelStore.open(tmp_path / "child.zarr"), LabelStore.open(tmp_path / "taught.zarr")
    np.testing.assert_allclose(child.class_embeddings(), taught.class_embeddings(), atol=1e-6)  # threads differ
    assert child.vocabulary() == taught.vocabulary() and child.label_classes() == taught.label_classes()
    if "vocabulary" in options:
        embeddings = child.class_embeddings()
        assert np.array_equal(embeddings[1], embeddings[2]), "one name in two spellings: exact ties"


def test_k_temperatures_and_classes_need_no_model(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the store is read; values equal the softmax over the classes that are left."""
    (tmp_path / "some.txt").write_text("n07\nn02\tanything\n\nn05\nn04\n")
    monkeypatch.setattr("teachonce.models.classifier.template_features", None)
    options: dict[str, Any] = {"classes": tmp_path / "some.txt", "top_k": 3, "temperatures": (1.0, 0.5, 3.0)}
    result = relabel(RelabelRequest(parent=parent, labels=tmp_path / "child.zarr", **options), Silent())
    child = LabelStore.open(tmp_path / "child.zarr")
    kept = [1, 3, 4, 6]
    assert child.vocabulary().ids == tuple(IDS[c] for c in kept) == ("n02", "n04", "n05", "n07")
    assert child.vocabulary().names == tuple(NAMES[c] for c in kept)
    assert (result.classes, result.top_k, child.layout.temperatures) == (4, 3, (1.0, 0.5, 3.0))
    check_exact(tmp_path / "child.zarr", exact_log_probs(parent, kept))
    assert np.array_equal(all_arrays(child.path)["label"], all_arrays(parent)["label"]), "of the manifest's own classes"
    assert verify(VerifyRequest(labels=child.path), Silent()).ok


def test_more_classes_than_the_parent_kept(parent: Path, tmp_path: Path) -> None:
    """k may grow to the whole vocabulary: nothing is outside then; equal names tie."""
    run(parent, tmp_path / "child.zarr", top_k=8)
    check_exact(tmp_path / "child.zarr", exact_log_probs(parent))
    labels = decoded(tmp_path / "child.zarr")
    assert np.isneginf(labels.log_residual).all()
    for row in range(PHOTOS):
        value = dict(zip(labels.class_ids[row].tolist(), labels.log_probs[row].tolist(), strict=True))
        assert value[3] == value[5], "crane and Crane"


def test_a_vocabulary_without_as_many_classes(parent: Path, tmp_path: Path) -> None:
    """k shrinks to the vocabulary unless it was asked for; names that the store knows need no model."""
    (tmp_path / "two.tsv").write_text("a\tred  fox\nb\tpiano\n")
    notes = Notes()
    with worlds.inline_tasks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("teachonce.models.clip.load_clip", None)
        request = RelabelRequest(
            parent=parent,
            labels=tmp_path / "child.zarr",
            vocabulary=str(tmp_path / "two.tsv"),
            teacher="RN50/openai",
            threads=1,
        )
        result = relabel(request, notes)
    ours, theirs = (LabelStore.open(path).groups[LABELS].fingerprint for path in (tmp_path / "child.zarr", parent))
    assert ours["about"]["teacher"] == theirs["about"]["teacher"] != "RN50/openai"
    assert any("the teacher is not needed" in line for line in notes.lines)
    assert (result.classes, result.top_k) == (2, 2)
    check_exact(tmp_path / "child.zarr", exact_log_probs(parent, [0, 7]))
    with pytest.raises(UsageError, match="`top_k` 3 is larger than the vocabulary of 2 classes"):
        run(parent, tmp_path / "b.zarr", vocabulary=str(tmp_path / "two.tsv"), top_k=3)


class Killed(BaseException):
    """Stands for a signal that ends the process."""


@contextmanager
def killed_after(writes: int, where: str) -> Iterator[None]:
    """`write_chunk` or `commit` works so often and then never returns."""
    real, count = getattr(LabelStore, where), 0

    def counted(self: LabelStore, *args: Any) -> Any:
        nonlocal count
        count += 1
        if count > writes:
            raise Killed
        return real(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelStore, where, counted)
        with pytest.raises(Killed):
            yield


OTHER_WORDS: dict[str, Any] = {"templates": TEMPLATES[:1], "top_k": 4}


@pytest.fixture(scope="module")
def never_stopped(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The child of other words, made in one go."""
    whole = tmp_path_factory.mktemp("whole") / "whole.zarr"
    run(parent, whole, **OTHER_WORDS)
    return whole


MORE_KILLS = [pytest.param(*at, marks=pytest.mark.slow) for at in ((0, "write_chunk"), (3 * CHUNKS - 1, "commit"))]


@pytest.mark.parametrize(("writes", "where"), [(7, "commit"), *MORE_KILLS])
def test_killed_and_continued_gives_the_same_bits(
    writes: int, where: str, parent: Path, never_stopped: Path, tmp_path: Path
) -> None:
    """What is committed stays, the rest is made again; the child equals one that was never stopped."""
    with killed_after(writes, where):
        run(parent, tmp_path / "cut.zarr", **OTHER_WORDS)
    result = run(parent, tmp_path / "cut.zarr", **OTHER_WORDS)
    assert result.store_id == LabelStore.open(never_stopped).store_id()
    assert result.chunks_written == CHUNKS - writes // 3, "three groups a chunk"
    ours, theirs = all_arrays(tmp_path / "cut.zarr"), all_arrays(never_stopped)
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)
    again = run(parent, tmp_path / "cut.zarr", **OTHER_WORDS)
    assert (again.chunks_written, again.store_id) == (0, result.store_id)


def test_killed_while_groups_are_added(parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child with only some of its groups gets the others."""
    import teachonce.labels.derived as derived_store

    def stop(*args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(derived_store, "add_group_like", stop)
        with pytest.raises(Killed):
            run(parent, tmp_path / "cut.zarr", top_k=4)
    assert set(LabelStore.open(tmp_path / "cut.zarr").groups) == {LABELS}
    continued, whole = (run(parent, tmp_path / f"{name}.zarr", top_k=4) for name in ("cut", "whole"))
    assert continued.store_id == whole.store_id


def test_dropped_chunks_are_made_again(parent: Path, tmp_path: Path) -> None:
    """verify --repair on a child, then the same command: the same store; the advice names relabel."""
    before = run(parent, tmp_path / "child.zarr", top_k=4).store_id
    victim = tmp_path / "child.zarr" / "gaps" / "c" / "2" / "0"
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x00")
    shutil.rmtree(tmp_path / "child.zarr" / EMBEDDING / "values" / "c" / "3")
    notes = Notes()
    assert verify(VerifyRequest(labels=tmp_path / "child.zarr", repair=True), notes).chunks_dropped == 2
    assert any("`teachonce relabel`" in line for line in notes.lines)
    result = run(parent, tmp_path / "child.zarr", top_k=4)
    assert (result.chunks_written, result.store_id) == (2, before)


def test_a_student_that_the_parent_gets_later_is_copied_too(
    world: World, teacher: str, student: str, tmp_path: Path
) -> None:
    """The parent is the same as far as labels go: the child is continued, not refused."""
    teach_inline(world, tmp_path / "a.zarr", teacher, top_k=5, embeddings="int8", chunk_rows=35)
    run(tmp_path / "a.zarr", tmp_path / "child.zarr", top_k=3)
    teach_inline(world, tmp_path / "a.zarr", teacher, top_k=5, embeddings="int8", chunk_rows=35, students=(student,))
    result = run(tmp_path / "a.zarr", tmp_path / "child.zarr", top_k=3)
    assert result.chunks_written == 2
    group = next(name for name in LabelStore.open(tmp_path / "child.zarr").groups if name.startswith("students/"))
    name = f"{group}/features"
    assert np.array_equal(all_arrays(tmp_path / "child.zarr")[name], all_arrays(tmp_path / "a.zarr")[name])


def test_rows_without_an_image_stay_without_one(world: World, teacher: str, student: str, tmp_path: Path) -> None:
    """Their status is kept, everything about them is blank."""
    photos = {name: b"broken" if name in ("n03_04", "n06_07") else data for name, data in world.photos.items()}
    hurt = worlds.make_world(tmp_path / "hurt", photos)
    teach_inline(
        hurt,
        tmp_path / "a.zarr",
        teacher,
        students=(student,),
        top_k=5,
        embeddings="int8",
        max_failed_share=0.1,
        chunk_rows=35,
    )
    result = run(tmp_path / "a.zarr", tmp_path / "child.zarr", top_k=3)
    assert (result.rows_ok, result.rows_failed) == (PHOTOS - 2, 2)
    status = [all_arrays(tmp_path / name)["status"] for name in ("a.zarr", "child.zarr")]
    bad = np.flatnonzero(status[1])
    assert len(bad) == 2 and np.array_equal(*status)
    labels = decoded(tmp_path / "child.zarr")
    assert (labels.class_ids[bad] == -1).all() and np.isnan(labels.log_probs[bad]).all()
    assert (np.delete(labels.class_ids, bad, axis=0) >= 0).all()
    child = LabelStore.open(tmp_path / "child.zarr")
    records = [child.record(group, chunk) for group in child.groups for chunk in range(2)]
    assert sum(record.rows_failed for record in records if record) == 2 * len(child.groups)
    assert verify(VerifyRequest(labels=tmp_path / "child.zarr"), Silent()).ok


def test_a_child_may_be_a_parent(parent: Path, tmp_path: Path) -> None:
    """Twice relabelled is once relabelled."""
    run(parent, tmp_path / "a.zarr", templates=TEMPLATES)
    run(tmp_path / "a.zarr", tmp_path / "b.zarr", top_k=2)
    run(parent, tmp_path / "c.zarr", templates=TEMPLATES, top_k=2)
    twice, once = decoded(tmp_path / "b.zarr"), decoded(tmp_path / "c.zarr")
    assert np.array_equal(twice.class_ids, once.class_ids) and np.array_equal(twice.log_probs, once.log_probs)


def test_another_teacher_is_refused(parent: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its text tower does not fit the stored image features; nothing is left behind."""
    other = worlds.session_clip(tmp_path_factory, "other")
    with pytest.raises(FingerprintError, match="is not the teacher of") as caught:
        run(parent, tmp_path / "child.zarr", templates=TEMPLATES, teacher=other)
    assert "teacher_digest: stored" in caught.value.message and "`teacher`" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_moved_teacher_is_named(parent: Path, tmp_path: Path, teacher: str) -> None:
    """The same weights under another path: fine, and remembered for the next time."""
    shutil.copytree(teacher.removeprefix("local-dir:"), tmp_path / "moved")
    moved = f"local-dir:{tmp_path / 'moved'}"
    result = run(parent, tmp_path / "child.zarr", templates=TEMPLATES, teacher=moved)
    assert result.store_id == run(parent, tmp_path / "b.zarr", templates=TEMPLATES).store_id
    assert LabelStore.open(tmp_path / "child.zarr").groups[LABELS].fingerprint["about"]["teacher"] == moved


def test_an_incomplete_parent_is_refused(parent: Path, tmp_path: Path) -> None:
    """Exit 5: which group lacks how many chunks."""
    for group in (LABELS, EMBEDDING):
        copy = worlds.copy_store(parent, tmp_path)
        LabelStore.open(copy, writable=True).drop(group, 3)
        with pytest.raises(IncompleteError, match=f"1 of {CHUNKS} chunks of {group} are not committed"):
            run(copy, tmp_path / "child.zarr")


def test_a_damaged_parent_is_refused(parent: Path, tmp_path: Path) -> None:
    """A lost class list, and a flipped bit in an embedding: never quietly other labels."""
    copy = worlds.copy_store(parent, tmp_path)
    victim = copy / EMBEDDING / "values" / "c" / "3" / "0"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match="embedding/values"):
        run(copy, tmp_path / "a.zarr", top_k=4)
    shutil.rmtree(copy / "class_embeddings" / "c")
    with pytest.raises(IntegrityError, match="class_embeddings"):
        run(copy, tmp_path / "b.zarr", top_k=4)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"top_k": 3}, "top_k"),
        ({"templates": TEMPLATES}, "templates"),
        ({"temperatures": (1.0, 8.0)}, "temperatures"),
        ({"classes": "some.txt"}, "vocabulary_digest"),
    ],
)
def test_another_request_does_not_continue_a_child(
    change: dict[str, Any], field: str, parent: Path, tmp_path: Path
) -> None:
    """The differing field is named with both values."""
    (tmp_path / "some.txt").write_text("\n".join(IDS[:6]))
    change = {name: tmp_path / value if name == "classes" else value for name, value in change.items()}
    run(parent, tmp_path / "child.zarr", top_k=4)
    with pytest.raises(FingerprintError, match=f"{field}: stored"):
        run(parent, tmp_path / "child.zarr", **change)
    with pytest.raises(FingerprintError, match="parent: stored"):  # a taught store is no child either
        run(parent, worlds.copy_store(parent, tmp_path), top_k=4)
