"""teach: what lies in the store is what open_clip says about these images, however the run came about."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import worlds
import zarr
from worlds import CHUNKS, IDS, NAMES, PHOTOS, TEMPLATE, Notes, World, all_arrays, keys_of, request_for, teach_inline

from teachonce.core.progress import Reporter, Silent
from teachonce.errors import DataError, FingerprintError, IncompleteError, UsageError
from teachonce.labels.codec import max_error
from teachonce.labels.format import default_chunk_rows, student_group
from teachonce.labels.store import LabelStore
from teachonce.models.clip import load_clip
from teachonce.rows.working_set import Batch, open_working_set
from teachonce.stages.teach import teach


def names_of(store: Path) -> list[str]:
    """The photo of every row, without folder and extension."""
    return [key.rpartition("/")[2].removesuffix(".jpg") for key in keys_of(store)]


def all_rows(store: LabelStore, student: str, reporter: Reporter | None = None) -> Batch:
    """Every row with an image, as training reads it."""
    rows = open_working_set(store, load_clip(student).digest, reporter or Silent())
    return rows.batch(np.arange(len(rows)))


@torch.inference_mode()
def open_clips_own(spec: str, photos: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Unit image features and logits of the class names, by open_clip's functions alone, one image at a time."""
    import io

    from PIL import Image

    model, preprocess = open_clip.create_model_from_pretrained(spec)
    model.eval()
    tokens = open_clip.get_tokenizer(spec)([TEMPLATE.format(name.lower()) for name in NAMES])
    text = model.encode_text(tokens, normalize=True)
    images = torch.cat(
        [model.encode_image(preprocess(Image.open(io.BytesIO(photo)))[None], normalize=True) for photo in photos]
    )
    return images.numpy(), (model.logit_scale.exp() * images @ text.T).numpy()


def check_labels(store: Path, teacher: str, photos: dict[str, bytes], top_k: int, slack: float = 2e-4) -> None:
    """Ids and values of every row against open_clip's own softmax."""
    opened = LabelStore.open(store)
    decoded = LabelStore.open(store).decode_labels(all_arrays(store))
    _, logits = open_clips_own(teacher, [photos[name] for name in names_of(store)])
    truth = np.log(torch.from_numpy(logits).double().softmax(1).numpy())
    assert decoded.class_ids.shape == (PHOTOS, top_k) and opened.layout.top_k == top_k
    for row in range(PHOTOS):
        ids = decoded.class_ids[row]
        wanted = truth[row, ids].astype(np.float32)
        best_first = np.concatenate([[truth[row].max()], wanted]).astype(np.float32)
        limit = max_error(best_first[None], opened.tables)[0, 1:] + slack
        assert (np.abs(decoded.log_probs[row] - wanted) <= limit).all()
        outside = np.delete(truth[row], ids)
        assert outside.size == 0 or outside.max() <= wanted.min() + slack, "the k best, ties aside"
        assert truth[row].max() - truth[row, ids[0]] <= slack
        for column, tau in enumerate((1.0, 2.0, 4.0)):
            mass = np.log(np.exp(outside / tau).sum()) if outside.size else -np.inf
            assert decoded.log_residual[row, column] == pytest.approx(mass, rel=1e-3, abs=2e-3)


def test_a_real_cluster_run_equals_open_clip(world: World, teacher: str, student: str, tmp_path: Path) -> None:
    """One worker process under Dask: labels, tail masses, features, ground truth, counts; and the promised result."""
    request = request_for(world, tmp_path / "a.zarr", teacher, students=(student,), top_k=5)
    result = teach(request, Silent())
    assert (result.rows_ok, result.rows_failed) == (PHOTOS, 0)
    assert (result.chunks_written, result.chunks_skipped) == (CHUNKS, 0)
    assert result.rows_per_second > 0 and result.bytes_per_row["total"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr"], "no lock, no draft, no failures"
    check_labels(request.labels, teacher, world.photos, 5)
    arrays, names = all_arrays(request.labels), names_of(request.labels)
    assert sorted(names) == sorted(world.photos)
    assert [IDS[label] for label in arrays["label"]] == [name[:3] for name in names]
    features, _ = open_clips_own(student, [world.photos[name] for name in names])
    group = student_group(load_clip(student).digest)
    np.testing.assert_allclose(arrays[f"{group}/features"].astype(np.float32), features, atol=6e-4)
    assert np.sum(np.abs(features[0] - features[1])) > 0.1, "features differ, or this test shows nothing"


def test_tasks_in_this_process_give_the_same_bits(world: World, teacher: str, finished: Path) -> None:
    """The store that the other tests use is the one a cluster run makes; plain Zarr reads the same values."""
    check_labels(finished, teacher, world.photos, 5)
    root = zarr.open_group(str(finished), mode="r")
    ids = root["class_order"][:].astype(np.int64)[np.cumsum(root["class_ids"][:].astype(np.int64), axis=1)]
    order = np.argsort(root["gaps"][:] * 2.0**32 + ids, axis=1)
    decoded = LabelStore.open(finished).decode_labels(all_arrays(finished))
    assert np.array_equal(np.take_along_axis(ids, order, 1), decoded.class_ids)


def test_tied_names_tie(finished: Path) -> None:
    """`crane` and `Crane` have the same probability in every row, to the last bit; the lower class comes first."""
    decoded = LabelStore.open(finished).decode_labels(all_arrays(finished))
    pair = [IDS.index("n04"), IDS.index("n06")]
    both = 0
    for row in range(PHOTOS):
        places = [np.flatnonzero(decoded.class_ids[row] == c) for c in pair]
        if all(place.size for place in places):
            both += 1
            assert places[1][0] == places[0][0] + 1
            assert decoded.log_probs[row, places[0][0]] == decoded.log_probs[row, places[1][0]]
    assert both > 10
    embeddings = LabelStore.open(finished).class_embeddings()
    assert np.array_equal(embeddings[pair[0]], embeddings[pair[1]])


def content(store: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a store: when it was written and what it holds."""
    return {str(f): (f.stat().st_mtime_ns, f.read_bytes()) for f in store.rglob("*") if f.is_file()}


def test_running_again_writes_nothing(world: World, teacher: str, student: str, finished: Path, tmp_path: Path) -> None:
    """A finished store is only checked: no file is touched, the id is the same."""
    store = worlds.copy_store(finished, tmp_path)
    before = content(store)
    result = teach_inline(world, store, teacher, students=(student,), top_k=5)
    assert (result.chunks_written, result.chunks_skipped, result.rows_ok) == (0, CHUNKS, PHOTOS)
    assert result.store_id == LabelStore.open(finished).store_id()
    assert content(store) == before


@pytest.mark.parametrize("named_again", [True, False])
def test_a_student_added_later_runs_alone(
    named_again: bool,
    world: World,
    teacher: str,
    student: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Labels are neither computed nor written again, whether or not the teacher is named; the result is the same."""
    store = tmp_path / "a.zarr"
    teach_inline(world, store, teacher, top_k=5)
    before = content(store)
    monkeypatch.setattr("teachonce.teaching.soft_chunk.begin_soft_labels", None)  # would fail if the teacher ran
    again: dict[str, Any] = {"top_k": 5} if named_again else {}
    result = teach_inline(world, store, teacher if named_again else None, students=(student,), **again)
    assert result.chunks_written == CHUNKS
    after = content(store)
    changed = [Path(name).relative_to(store).as_posix() for name in before if before[name] != after[name]]
    assert changed == ["ledger/zarr.json"], "the header, which lists the new group's metadata"
    assert result.store_id == LabelStore.open(finished).store_id()


def test_two_students_and_their_features(
    world: World, teacher: str, student: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each has its own group; the working set of one holds its features beside the same labels."""
    other = worlds.session_clip(tmp_path_factory, "other")
    store = tmp_path / "a.zarr"
    teach_inline(world, store, teacher, students=(student, other), top_k=3, chunk_rows=35)
    opened = LabelStore.open(store)
    first, second = (all_rows(opened, spec) for spec in (student, other))
    assert first.features is not None and first.features.shape == (PHOTOS, 12)
    assert second.features is not None and second.features.shape == (PHOTOS, 16)
    assert np.array_equal(first.log_probs, second.log_probs) and np.array_equal(first.label, second.label)
    with pytest.raises(DataError, match="holds no image features of this student") as caught:
        all_rows(opened, teacher)
    assert student in str(caught.value) and "`student`" in caught.value.hint


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"templates": ("a drawing of a {}.",)}, "templates"),
    ({"top_k": 4}, "top_k"),
    ({"precision": "bf16"}, "precision"),
    ({"split": "val"}, "split"),
    ({"vocabulary": "other.tsv"}, "vocabulary_digest"),
]


@pytest.mark.parametrize(("change", "field"), CHANGES, ids=[field for _, field in CHANGES])
def test_a_changed_option_is_refused_by_name(
    change: dict[str, Any], field: str, world: World, teacher: str, finished: Path
) -> None:
    """A store of something else is never continued: the field, both values, what to do; nothing is touched."""
    if "vocabulary" in change:
        (world.root / "other.tsv").write_text("".join(f"{i}\tthing {i}\n" for i in IDS))
    before = content(finished)
    with pytest.raises(FingerprintError) as caught:
        teach_inline(world, finished, teacher, **({"top_k": 5} | change))
    assert f"{field}: stored" in str(caught.value) and "asked for" in str(caught.value)
    assert "`labels`" in caught.value.hint
    assert content(finished) == before


def test_another_teacher_manifest_or_chunk_size_is_refused(
    world: World, teacher: str, student: str, finished: Path
) -> None:
    """The teacher by its weights, the manifest by what it says, the chunk size by both numbers."""
    with pytest.raises(FingerprintError, match="teacher_digest: stored"):
        teach_inline(world, finished, student, top_k=5)
    with pytest.raises(FingerprintError, match="manifest_digest: stored"):
        teach_inline(world, finished, teacher, top_k=5, manifest=world.manifest("tars"))
    with pytest.raises(FingerprintError, match="manifest_digest: stored"):
        teach_inline(world, finished, None, students=(student,), manifest=world.manifest("tars"))
    with pytest.raises(UsageError, match=f"has chunks of {worlds.CHUNK_ROWS} rows"):
        teach_inline(world, finished, teacher, top_k=5, chunk_rows=10)


def test_the_same_teacher_from_elsewhere_is_the_same(
    world: World, teacher: str, finished: Path, tmp_path: Path
) -> None:
    """Weights decide, not where they lie."""
    shutil.copytree(teacher.removeprefix("local-dir:"), tmp_path / "moved")
    store = worlds.copy_store(finished, tmp_path)
    assert teach_inline(world, store, f"local-dir:{tmp_path / 'moved'}", top_k=5).chunks_written == 0


def test_three_layouts_give_the_same_rows(
    world: World, teacher: str, student: str, finished: Path, tmp_path: Path
) -> None:
    """The same photos as WebDataset, class tars or folders: the same labels and soft labels, photo by photo."""
    wanted = all_arrays(finished)
    place = {name: row for row, name in enumerate(names_of(finished))}
    for layout in ("tars", "folders"):
        store = tmp_path / f"{layout}.zarr"
        teach_inline(
            world, store, teacher, students=(student,), top_k=5, manifest=world.manifest(layout), chunk_rows=35
        )
        arrays = all_arrays(store)
        rows = [place[name] for name in names_of(store)]
        assert np.array_equal(arrays["label"], wanted["label"][rows])
        assert (arrays["status"] == 0).all()
        opened = LabelStore.open(finished)
        ours, theirs = LabelStore.open(store).decode_labels(arrays), opened.decode_labels(wanted)
        # Batches differ between the layouts, and with them the last bits: one step of the code at most.
        np.testing.assert_allclose(ours.log_residual, theirs.log_residual[rows], atol=2e-3)
        np.testing.assert_allclose(ours.log_probs, theirs.log_probs[rows], atol=0.1)
        assert (ours.class_ids[:, 0] == theirs.class_ids[rows, 0]).mean() > 0.98
        same = [set(a) == set(b) for a, b in zip(ours.class_ids.tolist(), theirs.class_ids[rows].tolist(), strict=True)]
        assert np.mean(same) > 0.95
        group = next(name for name in arrays if name.startswith("students/"))
        np.testing.assert_allclose(arrays[group].astype(np.float32), wanted[group][rows].astype(np.float32), atol=1e-3)


def test_rows_are_in_blocks_of_the_seeded_order(world: World, finished: Path) -> None:
    """The documented row order: `sample` says which of the manifest's samples a row is."""
    sample = all_arrays(finished)["sample"]
    assert sorted(sample.tolist()) == list(range(PHOTOS))
    assert [list(world.photos)[s] for s in sample] == names_of(finished)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_does_real_work(
    precision: str, world: World, teacher: str, finished: Path, tmp_path: Path
) -> None:
    """The labels are near those of fp32, and half precisions really round."""
    store = tmp_path / "a.zarr"
    result = teach_inline(world, store, teacher, top_k=8, precision=precision, chunk_rows=70)
    assert result.rows_ok == PHOTOS
    decoded = LabelStore.open(store).decode_labels(all_arrays(store))
    _, logits = open_clips_own(teacher, [world.photos[name] for name in names_of(store)])
    truth = torch.from_numpy(logits).log_softmax(1).numpy()
    wanted = np.take_along_axis(truth, decoded.class_ids, 1)
    assert np.abs(decoded.log_probs - wanted).max() < (0.07 if precision == "fp32" else 0.5)
    clip = load_clip(teacher)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    difference = (clip.encode_images(pixels, precision) - clip.encode_images(pixels)).abs().max()
    assert (difference == 0) == (precision == "fp32")


def test_hard_labels_only(world: World, student: str, tmp_path: Path) -> None:
    """Without a teacher: labels and student features, no soft labels, no teacher's text side."""
    store = tmp_path / "a.zarr"
    result = teach_inline(world, store, None, students=(student,), chunk_rows=35)
    assert (result.rows_ok, result.chunks_written) == (PHOTOS, 2)
    opened = LabelStore.open(store)
    assert opened.layout.top_k == 0 and "class_ids" not in all_arrays(store)
    working = all_rows(opened, student)
    assert working.features is not None and working.features.shape == (PHOTOS, 12)
    assert working.class_ids.shape == (PHOTOS, 0)
    assert [IDS[label] for label in working.label] == [name[:3] for name in names_of(store)]
    assert teach_inline(world, store, None, students=(student,), chunk_rows=35).chunks_written == 0


def test_chunks_in_any_order_and_any_pieces_give_the_same_store(
    world: World, teacher: str, student: str, finished: Path, tmp_path: Path
) -> None:
    """A run that stops after three chunks, then one backwards: the same id as at once."""
    request = request_for(world, tmp_path / "a.zarr", teacher, students=(student,), top_k=5)
    with worlds.inline_tasks(lambda tasks: tasks[1:4]), pytest.raises(IncompleteError, match="not committed"):
        teach(request, Silent())
    with worlds.inline_tasks(lambda tasks: reversed(tasks)):
        result = teach(request, Silent())
    assert (result.chunks_written, result.chunks_skipped) == (CHUNKS - 3, 3)
    assert result.store_id == LabelStore.open(finished).store_id()


def test_another_vocabulary_maps_labels_by_class_id(world: World, teacher: str, student: str, tmp_path: Path) -> None:
    """Labels index the manifest's classes; a reader maps them by id, and counts what the vocabulary lacks."""
    (world.root / "fewer.tsv").write_text("n07\tcup\nn99\tpiano\nn01\tfox\n")
    store = tmp_path / "a.zarr"
    notes = Notes()
    with worlds.inline_tasks():
        teach(request_for(world, store, teacher, students=(student,), vocabulary="fewer.tsv", chunk_rows=70), notes)
    working = all_rows(LabelStore.open(store), student, notes)
    expected = [{"n07": 0, "n01": 2}.get(name[:3], -1) for name in names_of(store)]
    assert working.label.tolist() == expected and working.class_ids.shape == (PHOTOS, 3)
    assert any("50 of 70 rows have a class outside the vocabulary" in line for line in notes.lines)


def test_ties_are_said(world: World, teacher: str, tmp_path: Path) -> None:
    """Two classes that share their name are counted before the work begins."""
    notes = Notes()
    with worlds.inline_tasks():
        teach(request_for(world, tmp_path / "a.zarr", teacher, chunk_rows=70), notes)
    assert any("2 of 8 classes share their name" in line for line in notes.lines)


@pytest.mark.parametrize(
    ("rows", "size"), [(1, 512), (32_768, 512), (32_769, 1024), (1_281_167, 16_384), (14_200_000, 16_384)]
)
def test_chunk_sizes_follow_the_number_of_rows(rows: int, size: int) -> None:
    """Some 64 chunks, between 512 and 16,384 rows."""
    assert default_chunk_rows(rows) == size


def test_exact_ties_at_the_boundary_are_by_class(world: World, teacher: str, tmp_path: Path) -> None:
    """k = 1 over two equal names: always the lower class, never the other."""
    (world.root / "twins.tsv").write_text("n01\tfox\nn02\tFox\n")
    store = tmp_path / "a.zarr"
    teach_inline(world, store, teacher, vocabulary="twins.tsv", top_k=1, chunk_rows=70)
    assert (LabelStore.open(store).decode_labels(all_arrays(store)).class_ids == 0).all()
