"""merge: the stored labels are the weighted mean of the teachers' calibrated probabilities, and nothing is mixed up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from worlds import CHUNKS, PHOTOS, Notes, World, all_arrays, teach_inline

from teachonce.core.progress import Silent
from teachonce.errors import DataError, FingerprintError, IncompleteError, UsageError
from teachonce.labels.codec import max_error
from teachonce.labels.format import LABELS
from teachonce.labels.store import LabelStore
from teachonce.stages.inspect import InspectRequest, inspect
from teachonce.stages.merge import MergeRequest, MergeResult, merge
from teachonce.stages.relabel import RelabelRequest, relabel
from teachonce.stages.verify import VerifyRequest, verify

Doubles = np.ndarray[Any, np.dtype[np.float64]]


@pytest.fixture(scope="module")
def pair(world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two teachers of different widths over the same photos, in chunks of different sizes; never change them.

    The second one is the `student` model; it keeps the features of a third.
    """
    folder = tmp_path_factory.mktemp("merge")
    other = worlds.session_clip(tmp_path_factory, "other")
    teach_inline(world, folder / "a.zarr", teacher, students=(student,), top_k=5, embeddings="float16")
    teach_inline(
        world, folder / "b.zarr", student, students=(student, other), top_k=3, embeddings="int8", chunk_rows=16
    )
    return folder / "a.zarr", folder / "b.zarr"


def run(parents: tuple[Path, ...], labels: Path, reporter: Any = None, **options: Any) -> MergeResult:
    """Run `merge`; nothing waits for the disk."""
    with worlds.inline_tasks():
        return merge(MergeRequest(parents=parents, labels=labels, **options), reporter or Silent())


def cosines(path: Path) -> Doubles:
    """Of every row with every class, from the store's own embeddings."""
    store = LabelStore.open(path)
    images = np.concatenate([store.embeddings(chunk) for chunk in range(store.layout.chunks)])
    products: Doubles = images.astype(np.float64) @ store.class_embeddings().astype(np.float64).T
    return products


def softmax(logits: Doubles) -> Doubles:
    """In float64."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    result: Doubles = p / p.sum(1, keepdims=True)
    return result


def trained_scale(path: Path) -> float:
    """As the teacher was trained."""
    return float(LabelStore.open(path).groups[LABELS].fingerprint["logit_scale"])


def check_mean(path: Path, p: Doubles, good: Any = slice(None)) -> None:
    """Values, order and tail sums of every temperature against the full mean."""
    store = LabelStore.open(path)
    row = 0
    for chunk in range(store.layout.chunks):
        decoded = store.decode_labels(store.read_chunk(LABELS, chunk))
        for ids, log_probs, tails in zip(decoded.class_ids, decoded.log_probs, decoded.log_residual, strict=True):
            truth = np.log(p[row])
            row += 1
            if ids[0] < 0:
                continue
            wanted = truth[ids].astype(np.float32)
            assert (np.abs(log_probs - wanted) <= max_error(wanted[None], store.tables)[0] + 1e-4).all()
            outside = np.delete(truth, ids)
            assert outside.size == 0 or outside.max() <= wanted.min() + 1e-5
            for tail, tau in zip(tails, store.layout.temperatures, strict=True):
                mass = np.log(np.exp(outside / tau).sum()) if outside.size else -np.inf
                assert tail == pytest.approx(mass, rel=1e-3, abs=2e-3)


@pytest.mark.parametrize("weights", [None, (0.25, 0.75)])
def test_the_mean_of_probabilities(weights: tuple[float, ...] | None, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """At the trained scales, with equal and other weights; rows, students, fingerprint, soundness."""
    result = run(pair, tmp_path / "ab.zarr", weights=weights, calibrate=False, top_k=4)
    w = weights or (0.5, 0.5)
    p = sum(share * softmax(trained_scale(path) * cosines(path)) for share, path in zip(w, pair, strict=True))
    assert isinstance(p, np.ndarray)
    check_mean(tmp_path / "ab.zarr", p)
    assert (result.rows_ok, result.rows_failed, result.top_k, result.chunks_written) == (PHOTOS, 0, 4, CHUNKS)
    assert [t["scale"] for t in result.teachers] == [trained_scale(path) for path in pair]
    assert [t["weight"] for t in result.teachers] == list(w)
    child, first = LabelStore.open(tmp_path / "ab.zarr"), LabelStore.open(pair[0])
    fingerprint = child.groups[LABELS].fingerprint
    assert fingerprint["derivation"] == "merge" and fingerprint["scales"] == [t["scale"] for t in result.teachers]
    assert [part["weight"] for part in fingerprint["parents"]] == list(w)
    assert child.layout.chunk_rows == first.layout.chunk_rows and "embedding" not in child.groups
    before, after = all_arrays(pair[0]), all_arrays(tmp_path / "ab.zarr")
    for name in ("label", "sample", "view", "status", "image_crc", "key_digest"):
        assert np.array_equal(before[name], after[name]), name
    for path in pair:  # students of both, whatever their chunks; the one that both have once
        for name, data in all_arrays(path).items():
            if name.startswith("students/"):
                np.testing.assert_allclose(after[name].astype(np.float32), data.astype(np.float32), atol=1e-3)
    assert sum(name.startswith("students/") for name in after) == 2
    seen = inspect(InspectRequest(labels=tmp_path / "ab.zarr"), Silent())
    assert seen.fingerprint["derivation"] == "merge" and seen.fidelity["rows"] > 0 and seen.embeddings == {}
    assert verify(VerifyRequest(labels=tmp_path / "ab.zarr"), Silent()).ok


@pytest.mark.parametrize(
    "rule", ["margin", *(pytest.param(rule, marks=pytest.mark.slow) for rule in ("confidence", "entropy"))]
)
def test_rows_weigh_their_teachers(rule: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """By how sure each is of the row, names counted once; it is in the fingerprint, and continues the same store."""
    result = run(pair, tmp_path / "ab.zarr", row_weights=rule, calibrate=False, top_k=4)
    parts = [softmax(trained_scale(path) * cosines(path)) for path in pair]
    sure = []
    for path, p in zip(pair, parts, strict=True):
        names = np.unique(LabelStore.open(path).class_embeddings(), axis=0, return_inverse=True)[1]
        of_name = np.stack([p[:, names == name].sum(1) for name in range(names.max() + 1)], axis=1)
        best = np.sort(of_name, axis=1)[:, ::-1]
        entropy = -(of_name * np.log(of_name)).sum(1)
        sure.append({"confidence": best[:, 0], "entropy": np.exp(-entropy), "margin": best[:, 0] - best[:, 1]}[rule])
    weights = np.stack(sure) / np.sum(sure, axis=0)
    check_mean(tmp_path / "ab.zarr", (weights[:, :, None] * np.stack(parts)).sum(0))
    for teacher, share in zip(result.teachers, weights.mean(1), strict=True):
        assert teacher["mean_row_weight"] == pytest.approx(share, abs=1e-4)
    fingerprint = LabelStore.open(tmp_path / "ab.zarr").groups[LABELS].fingerprint
    assert fingerprint["row_weights"] == rule
    again = run(pair, tmp_path / "ab.zarr", row_weights=rule, calibrate=False, top_k=4)
    assert (again.chunks_written, again.store_id) == (0, result.store_id)
    with pytest.raises(FingerprintError, match="row_weights: stored"):
        run(pair, tmp_path / "ab.zarr", calibrate=False, top_k=4)
    with pytest.raises(UsageError, match="not both"):
        run(pair, tmp_path / "no.zarr", row_weights=rule, weights=(0.5, 0.5))


def test_calibration_makes_the_labels_more_probable(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The scales are said, stored and used; each lowers its teacher's mean -ln p(label)."""
    notes = Notes()
    result = run(pair, tmp_path / "ab.zarr", notes)
    scales = [teacher["scale"] for teacher in result.teachers]
    p = sum(0.5 * softmax(scale * cosines(path)) for scale, path in zip(scales, pair, strict=True))
    assert isinstance(p, np.ndarray)
    check_mean(tmp_path / "ab.zarr", p)
    label = all_arrays(pair[0])["label"]  # the vocabulary is the manifest's own class list
    same, inside = np.array([0, 1, 2, 3, 4, 3, 6, 7]), 0  # crane and Crane are one name
    for scale, path in zip(scales, pair, strict=True):

        def loss(s: float, path: Path = path) -> float:
            p = softmax(s * cosines(path))
            return float(-np.log((p * (same[None] == same[label][:, None])).sum(1)).mean())

        assert loss(scale) <= min(loss(trained_scale(path)), loss(scale * 1.01)) + 1e-9
        at_bound = scale < trained_scale(path) / 29  # a random teacher that knows less than nothing
        assert at_bound or loss(scale) <= loss(scale / 1.01) + 1e-9
        assert at_bound == any(str(path) in line and "the end of the range" in line for line in notes.lines)
        inside += not at_bound
    assert inside, "one teacher at least has a scale"
    assert sum("mean -ln p(label)" in line for line in notes.lines) == 2
    again = run(pair, tmp_path / "ab.zarr")
    assert (again.chunks_written, again.store_id) == (0, result.store_id)
    with pytest.raises(FingerprintError, match="calibrate: stored True, asked for False"):
        run(pair, tmp_path / "ab.zarr", calibrate=False)


def test_a_known_scale_is_recovered(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher whose stored scale is wrong by a factor gives the same calibrated scale and the same labels."""
    from teachonce.stages.merge import work as stage

    right = run(pair, tmp_path / "a.zarr")
    real = stage._trained_scale
    monkeypatch.setattr(stage, "_trained_scale", lambda store: 3.0 * real(store))
    wrong = run(pair, tmp_path / "b.zarr")
    pairs = [
        (a["scale"], b["scale"])
        for a, b in zip(wrong.teachers, right.teachers, strict=True)
        if b["scale"] > b["trained_scale"] / 9
    ]  # within both ranges
    assert pairs
    for ours, theirs in pairs:
        assert ours == pytest.approx(theirs, rel=1e-5)


class Killed(BaseException):
    """Stands for a signal that ends the process."""


@pytest.fixture(scope="module")
def never_stopped(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The merged store, made in one go."""
    whole = tmp_path_factory.mktemp("whole") / "whole.zarr"
    run(pair, whole)
    return whole


@pytest.mark.parametrize("commits", [13, pytest.param(0, marks=pytest.mark.slow)])
def test_killed_and_continued_gives_the_same_bits(
    commits: int, pair: tuple[Path, Path], never_stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two commits; the calibration is not repeated, its scales are in the store."""
    real, count = LabelStore.commit, 0

    def counted(self: LabelStore, *args: Any) -> None:
        nonlocal count
        count += 1
        if count > commits:
            raise Killed
        real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LabelStore, "commit", counted)
        with pytest.raises(Killed):
            run(pair, tmp_path / "cut.zarr")
    monkeypatch.setattr("teachonce.teaching.ensemble.calibrate", None)
    half_written = tmp_path / "cut.zarr" / "view" / "c" / f"0.{'ab' * 16}.partial"  # as Zarr calls it
    half_written.parent.mkdir(parents=True, exist_ok=True)
    half_written.write_bytes(b"x")
    notes = Notes()
    result = run(pair, tmp_path / "cut.zarr", notes)
    assert not half_written.exists() and any("removed a file of" in line for line in notes.lines)
    assert result.store_id == LabelStore.open(never_stopped).store_id()
    assert result.chunks_written == CHUNKS - commits // 3
    ours, theirs = all_arrays(tmp_path / "cut.zarr"), all_arrays(never_stopped)
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)


def edited(store: Path, to: Path, status: dict[int, int], crc: dict[int, int] | None = None) -> Path:
    """A copy whose rows have another status (with blanked labels and embeddings) or image checksum."""
    copy = worlds.copy_store(store, to)
    copy = copy.rename(to / f"{store.stem}-edited.zarr")
    opened = LabelStore.open(copy, writable=True)
    for chunk in range(opened.layout.chunks):
        start, stop = opened.layout.bounds(chunk)
        for name, group in opened.groups.items():
            data = opened.read_chunk(name, chunk)
            for row, value in status.items():
                if start <= row < stop:
                    if name == LABELS:
                        data["status"][row - start] = value
                    for spec in group.arrays:
                        if not spec.per_chunk and spec.path not in ("label", "sample", "view", "status", "image_crc"):
                            data[spec.path][row - start] = spec.fill
            for row, value in (crc or {}).items():
                if name == LABELS and start <= row < stop:
                    data["image_crc"][row - start] = value
            failed = sum(start <= row < stop for row in status)
            opened.drop(name, chunk)
            digests = opened.write_chunk(name, chunk, data)
            opened.commit(name, chunk, 1, stop - start - failed, failed, digests)
    return copy


def test_a_row_that_failed_with_any_teacher_has_no_label(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Its status is kept, its labels and features are blank; all other rows are as ever."""
    parents = edited(pair[0], tmp_path, {3: 1, 40: 2}), edited(pair[1], tmp_path, {40: 1, 41: 2})
    (tmp_path / "ab.zarr.lock").write_text('{"host": "elsewhere", "pid": 1, "started": 0.0, "token": 1}')
    with pytest.raises(IncompleteError, match="process 1 on elsewhere"):
        run(parents, tmp_path / "ab.zarr", calibrate=False)
    result = run(parents, tmp_path / "ab.zarr", calibrate=False, threads=1, force_unlock=True)
    assert (result.rows_ok, result.rows_failed) == (PHOTOS - 3, 3)
    after = all_arrays(tmp_path / "ab.zarr")
    assert {row: int(after["status"][row]) for row in np.flatnonzero(after["status"])} == {3: 1, 40: 2, 41: 2}
    for name in after:
        if name.startswith("students/"):
            assert np.flatnonzero(np.isnan(after[name][:, 0])).tolist() == [3, 40, 41]
    p = 0.5 * sum(np.nan_to_num(softmax(trained_scale(path) * cosines(path)), nan=0.1) for path in pair)
    check_mean(tmp_path / "ab.zarr", np.asarray(p))
    assert verify(VerifyRequest(labels=tmp_path / "ab.zarr"), Silent()).ok
    assert run(parents, tmp_path / "c.zarr").rows_failed == 3, "calibration takes only rows that are whole"


def test_images_that_changed_between_the_runs_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The same keys with other bytes: their labels must not be mixed."""
    parents = pair[0], edited(pair[1], tmp_path, {}, crc={20: 12345})
    with pytest.raises(DataError, match=r"hold other images in rows 15 to 30") as caught:
        run(parents, tmp_path / "ab.zarr", calibrate=False)
    assert "teach both again" in caught.value.hint


def test_stores_about_something_else_are_refused(
    world: World, teacher: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Each differing field by name with both values; nothing is written."""
    (world.root / "renamed.tsv").write_text("".join(f"{i}\tthing {i}\n" for i in worlds.IDS))
    teach_inline(world, tmp_path / "c.zarr", teacher, vocabulary="renamed.tsv", embeddings="int8", top_k=3)
    with pytest.raises(FingerprintError, match="cannot be merged") as caught:
        run((pair[0], tmp_path / "c.zarr"), tmp_path / "x.zarr")
    assert "vocabulary_digest: '" in caught.value.message and "samples" not in caught.value.message
    assert "relabel `vocabulary`" in caught.value.hint
    with worlds.inline_tasks():
        relabel(
            RelabelRequest(
                parent=tmp_path / "c.zarr", labels=tmp_path / "d.zarr", vocabulary=str(world.root / "classes.tsv")
            ),
            Silent(),
        )
    assert run((pair[1], tmp_path / "d.zarr"), tmp_path / "y.zarr").rows_ok == PHOTOS, "as the hint says"
    fewer = replace(world, root=tmp_path / "fewer")
    worlds.make_world(fewer.root, {name: world.photos[name] for name in list(world.photos)[:50]})
    teach_inline(fewer, tmp_path / "e.zarr", teacher, embeddings="int8", top_k=3)
    with pytest.raises(FingerprintError) as caught:
        run((pair[0], tmp_path / "e.zarr"), tmp_path / "x.zarr")
    assert "rows: 70 and 50" in caught.value.message and "samples: '" in caught.value.message
    teach_inline(world, tmp_path / "f.zarr", teacher, embeddings="int8", top_k=3, split="val")
    with pytest.raises(FingerprintError) as caught:
        run((pair[0], tmp_path / "f.zarr"), tmp_path / "x.zarr")
    assert "split: 'train' and 'val'" in caught.value.message and "samples" not in caught.value.message
    assert not (tmp_path / "x.zarr").exists() and not (tmp_path / "x.zarr.lock").exists()


def test_parents_must_be_whole_and_have_embeddings(pair: tuple[Path, Path], finished: Path, tmp_path: Path) -> None:
    """Exit 3 with the way to add them; exit 5 for missing chunks."""
    with pytest.raises(DataError, match="holds no image features of its teacher") as caught:
        run((pair[0], finished), tmp_path / "x.zarr")
    assert "`embeddings`" in caught.value.hint
    copy = worlds.copy_store(pair[0], tmp_path)
    LabelStore.open(copy, writable=True).drop(LABELS, 3)
    with pytest.raises(IncompleteError, match=f"1 of {CHUNKS} chunks of labels are not committed"):
        run((pair[1], copy), tmp_path / "x.zarr")
    merged = run(pair, tmp_path / "ab.zarr")
    with pytest.raises(DataError, match="holds no image features of its teacher"):
        run((pair[0], Path(merged.labels)), tmp_path / "x.zarr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": (1.0,)}, "names 1 numbers for 2 stores"),
        ({"weights": (1.0, 0.0)}, "must be positive"),
        ({"weights": (0.5, 0.50001)}, "must add up to 1, found 0.5, 0.50001, which is 1.00001"),
        ({"weights": ()}, "names 0 numbers for 2 stores"),
        ({"weights": (1.0, float("inf"))}, "must be positive"),
        ({"weights": (1e308, 1e308)}, "must add up to 1"),
        ({"weights": (1.0, float("nan"))}, "must be positive"),
        ({"top_k": 0}, "`top_k` must be at least 1"),
        ({"top_k": 9}, "`top_k` 9 is larger than the vocabulary of 8"),
        ({"labels": Path("x")}, r"ends in \.zarr"),
        ({"threads": 0}, "threads"),
        ({"parents": 1}, "at least two stores"),
        ({"parents": 3}, "the same store is given twice"),
    ],
)
def test_a_wrong_option_is_refused(
    change: dict[str, Any], message: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Exit 2 with the option; nothing is written."""
    parents = {1: pair[:1], 3: (*pair, pair[0])}.get(change.get("parents", 2), pair)
    given = {"labels": tmp_path / "ab.zarr", **change, "parents": parents}
    with pytest.raises(UsageError, match=message):
        run(**given)
    assert list(tmp_path.iterdir()) == []


def test_a_parent_is_never_written(pair: tuple[Path, Path]) -> None:
    """--labels must be a path of its own."""
    with pytest.raises(UsageError, match="is the store to read"):
        run(pair, pair[1])
