"""Stores of several views: every row is what open_clip makes of the crop that the store names, however it was made."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import worlds
from PIL import Image, ImageOps
from worlds import IDS, NAMES, PHOTOS, TEMPLATE, World, all_arrays, copy_store, keys_of

from teachonce.core.documents import read_events
from teachonce.core.progress import Silent
from teachonce.data import batches as image_batches
from teachonce.data.view_policy import ViewPolicy
from teachonce.data.views import NO_VIEW, UNIT
from teachonce.errors import DataError, FingerprintError
from teachonce.labels.codec import max_error
from teachonce.labels.format import LABELS
from teachonce.labels.selection import load_selection
from teachonce.labels.store import LabelStore
from teachonce.models.clip import load_clip
from teachonce.recipe.config_file import load_train_config
from teachonce.rows.working_set import open_working_set
from teachonce.stages.subset import SubsetRequest, subset
from teachonce.stages.teach import teach
from teachonce.stages.train import TrainRequest, train
from teachonce.stages.verify import VerifyRequest, verify
from teachonce.teaching.recheck import recheck_rows

V = 3
ROWS = V * PHOTOS
VIEWS = ViewPolicy(views=V, seed=11)
CHUNKS = 5  # of 45 rows, the last one short
DOCS = Path(__file__).resolve().parents[2] / "docs" / "views.md"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into the user's cache; no power fails here."""
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture(scope="module")
def viewed(world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three views of each photo with the teacher's labels and the student's features; never change it, copy it."""
    path = tmp_path_factory.mktemp("viewed") / "a.zarr"
    made = teach_views(world, path, teacher, students=(student,))
    assert (made.rows_ok, made.rows_failed) == (ROWS, 0)
    return path


def teach_views(world: World, path: Path, teacher: str | None, **options: Any) -> Any:
    """Teach three views of each photo in this process."""
    given: dict[str, Any] = {"top_k": 5 if teacher else None, "views": VIEWS, "chunk_rows": 45}
    return worlds.teach_inline(world, path, teacher, **(given | options))


def names_of(path: Path) -> list[str]:
    """The photo of every sample in row order, without folder and extension."""
    return [key.rpartition("/")[2].removesuffix(".jpg") for key in keys_of(path)]


def crop_of(photo: bytes, params: list[int]) -> np.ndarray[Any, Any]:
    """A stored view of a photo as the tiny models want it, written out: [3, 32, 32]."""
    image = Image.open(io.BytesIO(photo))
    edges = [round(edge * side / UNIT) for edge, side in zip(params[:4], image.size * 2, strict=True)]
    small = image.crop(tuple(edges)).resize((32, 32), Image.Resampling.BICUBIC)
    small = ImageOps.mirror(small) if params[4] else small
    return ((np.asarray(small, np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)


@torch.inference_mode()
def open_clips_own(spec: str, path: Path, world: World) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Unit features and log-probabilities of every row, one image at a time, from what the store says of its view."""
    model, preprocess = open_clip.create_model_from_pretrained(spec)
    model.eval()
    tokens = open_clip.get_tokenizer(spec)([TEMPLATE.format(name.lower()) for name in NAMES])
    text = model.encode_text(tokens, normalize=True)
    arrays, names, features = all_arrays(path), names_of(path), []
    for row, (view, params) in enumerate(zip(arrays["view"], arrays["view_params"].tolist(), strict=True)):
        photo = world.photos[names[row // V]]
        pixels = preprocess(Image.open(io.BytesIO(photo))) if view == 0 else torch.from_numpy(crop_of(photo, params))
        features.append(model.encode_image(pixels[None], normalize=True))
    joined = torch.cat(features)
    return joined.numpy(), (model.logit_scale.exp() * joined @ text.T).double().log_softmax(1).numpy()


def test_every_row_is_what_open_clip_says_of_its_view(viewed: Path, world: World, teacher: str, student: str) -> None:
    """Teacher's labels and student's features of all 210 rows, recomputed from `view_params` with PIL and open_clip."""
    arrays, store = all_arrays(viewed), LabelStore.open(viewed)
    assert arrays["view"].tolist() == list(range(V)) * PHOTOS
    assert arrays["sample"].tolist() == np.repeat(arrays["sample"][::V], V).tolist()
    assert (arrays["view_params"][::V] == [0, 0, UNIT, UNIT, 0]).all()
    decoded, (_, truth) = store.decode_labels(arrays), open_clips_own(teacher, viewed, world)
    slack = 2e-4
    for row in range(ROWS):
        ids = decoded.class_ids[row]
        wanted = truth[row, ids]
        limit = max_error(np.append(truth[row].max(), wanted).astype(np.float32)[None], store.tables)[0, 1:] + slack
        assert (np.abs(decoded.log_probs[row] - wanted) <= limit).all(), row
        outside = np.delete(truth[row], ids)
        assert outside.max() <= wanted.min() + slack and truth[row].max() - truth[row, ids[0]] <= slack
        mass = np.log(np.exp(outside).sum())
        assert decoded.log_residual[row, 0] == pytest.approx(mass, rel=1e-3, abs=2e-3)
    (features,) = [data for name, data in arrays.items() if name.endswith("/features")]
    expected, _ = open_clips_own(student, viewed, world)
    assert np.abs(features.astype(np.float32) - expected).max() < 1e-3
    apart = np.linalg.norm(expected.reshape(PHOTOS, V, -1)[:, 0] - expected.reshape(PHOTOS, V, -1)[:, 1], axis=1)
    assert np.median(apart) > 0.05, "views of a photo do differ, by far more than the tolerance"


def test_the_same_store_however_the_run_came_about(
    viewed: Path, world: World, teacher: str, student: str, tmp_path: Path
) -> None:
    """Stopped after two chunks and continued backwards: the same id, which covers every byte of every row."""
    request = worlds.request_for(
        world, tmp_path / "a.zarr", teacher, students=(student,), top_k=5, views=VIEWS, chunk_rows=45
    )

    def stopped(tasks: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        yield from tasks[1:3]
        raise RuntimeError("the machine went away")

    with worlds.inline_tasks(stopped), pytest.raises(RuntimeError, match="went away"):
        teach(request, Silent())
    assert len(LabelStore.open(tmp_path / "a.zarr").committed(LABELS)) == 2
    with worlds.inline_tasks(lambda tasks: reversed(tasks)):
        again = teach(request, Silent())
    assert again.chunks_skipped == 2 and again.rows_ok == ROWS
    assert again.store_id == LabelStore.open(viewed).store_id()


@pytest.mark.parametrize("change", [{"threads": 3}, {"batch_size": 1}, {"batch_size": 64, "chunk_rows": 70}], ids=str)
def test_threads_batches_and_chunks_change_no_view(
    change: dict[str, Any], viewed: Path, world: World, teacher: str, student: str, tmp_path: Path
) -> None:
    """The same crops bit for bit; labels and features but for the rounding of another batch."""
    path = tmp_path / "a.zarr"
    teach_views(world, path, teacher, students=(student,), **change)
    ours, first = all_arrays(path), all_arrays(viewed)
    for name in ("view_params", "view", "sample", "label", "image_crc"):
        assert np.array_equal(ours[name], first[name]), name
    (features,) = [name for name in first if name.endswith("/features")]
    assert np.abs(ours[features].astype(np.float32) - first[features]).max() < 1e-3
    labels = [LabelStore.open(each).decode_labels(all_arrays(each)) for each in (path, viewed)]
    assert (labels[0].class_ids == labels[1].class_ids).mean() > 0.98
    np.testing.assert_allclose(labels[0].log_residual, labels[1].log_residual, atol=4e-3)


def test_a_student_added_later_sees_the_same_views(
    viewed: Path, world: World, teacher: str, student: str, tmp_path: Path
) -> None:
    """Its features are those of a run that taught both at once; other views are refused."""
    path = tmp_path / "a.zarr"
    teach_views(world, path, teacher)
    for policy in (ViewPolicy(views=V, seed=12), ViewPolicy(views=2, seed=11), ViewPolicy()):
        with pytest.raises(FingerprintError, match="views: stored"):
            teach_views(world, path, None, students=(student,), views=policy)
    done = teach_views(world, path, None, students=(student,))
    assert (done.rows_ok, done.chunks_skipped) == (ROWS, 0)
    assert done.store_id == LabelStore.open(viewed).store_id()


def test_a_student_never_sees_other_crops_than_the_teacher(
    world: World, teacher: str, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the rule of drawing ever change, a store of the old one is not completed with the new one."""
    path = tmp_path / "a.zarr"
    teach_views(world, path, teacher)
    real = image_batches.draw_view

    def other(policy: ViewPolicy, name: str, view: int, width: int, height: int) -> Any:
        return real(policy, name, view and 3 - view, width, height)

    monkeypatch.setattr(image_batches, "draw_view", other)
    with pytest.raises(DataError, match=r"view 1 of '.*' is drawn as \[.*\] here, was \["):
        teach_views(world, path, None, students=(student,))


def test_verify_and_recheck_accept_the_store(viewed: Path, world: World, teacher: str) -> None:
    """Structure, checksums, and the teacher again on every row of every view."""
    checked = verify(VerifyRequest(labels=viewed, teacher=teacher, sample=ROWS, root=world.root), Silent())
    assert checked.ok and checked.chunks_checked == 2 * CHUNKS
    assert (checked.teacher["rows"], checked.teacher["rows_wrong"]) == (ROWS, 0)
    rows = list(recheck_rows(LabelStore.open(viewed), teacher, world.root, 40, 3, Silent()))
    assert len({check.row % V for check in rows}) == V and not any(check.problem for check in rows)
    names = names_of(viewed)
    assert all(check.key.rpartition("/")[2].startswith(names[check.row // V]) for check in rows)


@pytest.mark.parametrize("wrong", ["flips", "boxes of the next photo", "views in another order"])
def test_recheck_finds_labels_of_other_views(
    wrong: str, viewed: Path, world: World, teacher: str, tmp_path: Path
) -> None:
    """Parameters that are not those of the labels: sound by every checksum, found by the teacher."""
    path = copy_store(viewed, tmp_path)
    store = LabelStore.open(path, writable=True)
    data = store.read_chunk(LABELS, 1)
    params, drawn = data["view_params"].copy(), data["view"] > 0
    if wrong == "flips":
        params[drawn, 4] ^= 1
    elif wrong == "boxes of the next photo":
        params = np.roll(params, V, axis=0)
    else:
        params[1::V], params[2::V] = data["view_params"][2::V], data["view_params"][1::V]
    data["view_params"] = params
    store.commit(LABELS, 1, 1, len(params), 0, store.write_chunk(LABELS, 1, data))
    rows = recheck_rows(LabelStore.open(path), teacher, world.root, ROWS, 0, Silent())
    start, stop = store.layout.bounds(1)
    bad = {check.row for check in rows if check.problem}
    could = {start + place for place in np.flatnonzero(drawn).tolist()}
    assert bad <= could and len(bad) > len(could) / 2, "a few photos look the same either way"
    assert stop - start == len(params)


def test_a_photo_that_cannot_be_decoded_has_no_view(world: World, teacher: str, student: str, tmp_path: Path) -> None:
    """All its rows are holes; the crops of the others are what they are without it."""
    root = tmp_path / "world"
    shutil.copytree(world.root, root)
    archive, (name, photo) = root / "wds/part-0.tar", next(iter(world.photos.items()))
    archive.write_bytes(archive.read_bytes().replace(photo, bytes(len(photo))))
    path = tmp_path / "a.zarr"
    done = teach_views(World(root, world.photos), path, teacher, students=(student,), max_failed_share=0.1)
    assert (done.rows_ok, done.rows_failed) == (ROWS - V, V)
    arrays = all_arrays(path)
    hole = np.repeat(np.array(names_of(path)) == name, V)
    assert hole.sum() == V and (arrays["status"][hole] == 1).all() and (arrays["view_params"][hole] == NO_VIEW).all()
    assert (arrays["status"][~hole] == 0).all() and (arrays["view_params"][~hole][:, 4] <= 1).all()
    assert verify(VerifyRequest(labels=path, teacher=teacher, sample=ROWS, root=root), Silent()).ok
    (features,) = [data for key, data in arrays.items() if key.endswith("/features")]
    assert np.isnan(features[hole]).all() and np.isfinite(features[~hole]).all()


# Few-shot.


def test_shots_of_views_are_those_of_the_file_and_of_subset(
    viewed: Path, world: World, teacher: str, tmp_path: Path
) -> None:
    """`teach --shots` lists what it took; `subset` takes the same from the whole store; crops do not depend on it."""
    few = tmp_path / "few.zarr"
    done = teach_views(world, few, teacher, shots=2, seed=4)
    assert done.rows_ok == 2 * V * (len(IDS) - 1)
    listed = json.loads((tmp_path / "few.zarr.shots.json").read_text())
    chosen = subset(SubsetRequest(labels=viewed, out=tmp_path / "two.json", shots=2, seed=4), Silent())
    document = json.loads((tmp_path / "two.json").read_text())
    assert listed["keys"] == document["keys"] and listed["samples"] == document["samples"]
    assert sorted(listed["keys"]) == sorted(keys_of(few)) and chosen.rows == done.rows_ok
    whole, part = (
        {name: arrays["view_params"][V * i : V * i + V].tolist() for i, name in enumerate(names_of(path))}
        for path in (viewed, few)
        for arrays in [all_arrays(path)]
    )
    assert part == {name: whole[name] for name in part}


# Training.


def steps_of(out: Path) -> list[dict[str, Any]]:
    """The logged steps of a run."""
    return [event for event in read_events(out / "events.jsonl") if event["event"] == "step"]


def test_training_takes_every_view_of_the_chosen_photos(viewed: Path, student: str, tmp_path: Path) -> None:
    """Real steps on a few-shot selection: three times as many rows as photos, and the loss falls."""
    chosen = subset(SubsetRequest(labels=viewed, out=tmp_path / "two.json", shots=2, seed=4), Silent())
    config = load_train_config(
        None,
        [
            "steps=30",
            "batch_size=14",
            "log_every=1",
            "warmup_steps=2",
            "checkpoint_every=10",
            "supervision=soft",
        ],
    )
    out = tmp_path / "run"
    request = TrainRequest(
        labels=viewed, student=student, out=out, config=config, threads=1, selection=tmp_path / "two.json"
    )
    store = LabelStore.open(viewed)
    with contextlib.closing(
        open_working_set(store, load_clip(student).digest, Silent(), load_selection(tmp_path / "two.json", store))
    ) as rows:
        assert len(rows) == chosen.rows
    result = train(request, Silent())
    steps = steps_of(out)
    assert len(steps) == result.steps == 30 and chosen.rows == 2 * V * (len(IDS) - 1)
    losses = np.array([step["loss"] for step in steps])
    assert np.isfinite(losses).all() and losses[-6:].mean() < losses[:6].mean()


# The page.


def test_the_page_recovers_a_view(viewed: Path, world: World, tmp_path: Path) -> None:
    """Its lines of zarr and PIL, run without teachonce, give the crop of every row that a model saw."""
    match = re.search(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None and len(match[1].splitlines()) <= 16
    (tmp_path / "OUT.zarr").symlink_to(viewed)
    (tmp_path / "DATA").symlink_to(world.root)
    arrays, names = all_arrays(viewed), names_of(viewed)
    drawn = arrays["view"] > 0
    rows = [int(np.flatnonzero(drawn & (arrays["view_params"][:, 4] == flip))[-1 - flip]) for flip in (0, 1)]
    for row in rows:
        code, times = re.subn(r"^row = 1$", f"row = {row}", match[1], flags=re.MULTILINE)
        assert times == 1
        code += f"\nimport sys\nassert 'teachonce' not in sys.modules\ncrop.convert('RGB').save('{row}.png')\n"
        done = subprocess.run(
            [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        small = Image.open(tmp_path / f"{row}.png").resize((32, 32), Image.Resampling.BICUBIC)
        pixels = ((np.asarray(small, np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)
        wanted = crop_of(world.photos[names[row // V]], arrays["view_params"][row].tolist())
        assert np.abs(pixels - wanted).max() <= 2 * 2 / 255, "mirrored before resizing instead of after: a level or two"
