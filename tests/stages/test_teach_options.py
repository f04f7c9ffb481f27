"""teach: views, shots, failed images tried again, tiles of classes: each compared with doing it the plain way."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from worlds import CHUNK_ROWS, IDS, NAMES, PHOTOS, TEMPLATE, World, all_arrays, keys_of, teach_inline

from teachonce.core.progress import Silent
from teachonce.data.view_policy import ViewPolicy
from teachonce.data.views import draw_view
from teachonce.errors import FingerprintError, UsageError
from teachonce.labels.format import LABELS, student_group
from teachonce.labels.ledger import PHASES
from teachonce.labels.store import LabelStore
from teachonce.models.clip import load_clip
from teachonce.stages.relabel import RelabelRequest, relabel
from teachonce.stages.verify import VerifyRequest, verify

VIEWS = ViewPolicy(views=3, seed=5, randaugment=(1, 9))


@pytest.fixture(scope="module")
def viewed(world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three views of each photo."""
    path = tmp_path_factory.mktemp("views") / "a.zarr"
    done = teach_inline(world, path, teacher, students=(student,), top_k=5, views=VIEWS, embeddings="float16")
    assert done.rows_ok == 3 * PHOTOS and done.rows_failed == 0
    return path


@torch.inference_mode()
def test_every_view_is_what_the_models_make_of_it(viewed: Path, world: World, teacher: str, student: str) -> None:
    """Rows are photo by photo; parameters in the store are those drawn; labels and features are of that very crop."""
    import open_clip

    store, arrays = LabelStore.open(viewed), all_arrays(viewed)
    names = [key.rpartition("/")[2] for key in keys_of(viewed)]
    decoded = store.decode_labels(arrays)
    assert arrays["view"].tolist() == [0, 1, 2] * PHOTOS and store.layout.chunk_rows % 3 == 0
    clip, small = load_clip(teacher), load_clip(student)
    tokens = open_clip.get_tokenizer(teacher)([TEMPLATE.format(name.lower()) for name in NAMES])
    text = clip.model.encode_text(tokens, normalize=True)  # type: ignore[operator]
    features = arrays[f"{student_group(small.digest)}/features"].astype(np.float32)
    for row in range(0, 3 * PHOTOS, 7):
        image = Image.open(io.BytesIO(world.photos[names[row // 3]]))
        view = draw_view(VIEWS, names[row // 3], row % 3, *image.size)
        assert arrays["view_params"][row].tolist() == [*view.box, int(view.flip)]
        if row % 3 == 0:
            assert torch.equal(clip.prepare_view(image, view), clip.preprocess(image)), "view 0 is open_clip's own"
        pixels = clip.prepare_view(image, view)[None]
        logits = clip.logit_scale * clip.model.encode_image(pixels, normalize=True) @ text.T  # type: ignore[operator]
        truth = logits[0].double().log_softmax(0).numpy()
        assert np.abs(truth[decoded.class_ids[row]] - decoded.log_probs[row]).max() < 0.2
        assert truth.max() - truth[decoded.class_ids[row, 0]] < 1e-3
        seen = small.encode_images(small.prepare_view(image, view)[None])[0].numpy()
        assert np.abs(seen - features[row]).max() < 2e-3
    assert len({tuple(box) for box in arrays["view_params"][:, :4].tolist()}) > PHOTOS, "crops differ"


@pytest.mark.slow  # test_teach_formats compares layouts without views
def test_views_do_not_depend_on_the_layout_of_the_archives(
    viewed: Path, world: World, teacher: str, tmp_path: Path
) -> None:
    """The same photos as class folders: photo by photo the same crops and the same soft labels, bit for bit."""
    other = tmp_path / "b.zarr"
    teach_inline(world, other, teacher, top_k=5, views=VIEWS, manifest=world.manifest("tars"))
    of_photo = []
    for path in (viewed, other):
        arrays = all_arrays(path)
        names = [key.rpartition("/")[2] for key in keys_of(path)]
        labels = LabelStore.open(path).decode_labels(arrays)
        of_photo.append(
            {
                name: (labels.class_ids[3 * i : 3 * i + 3].tolist(), arrays["view_params"][3 * i : 3 * i + 3].tolist())
                for i, name in enumerate(names)
            }
        )
    assert of_photo[0] == of_photo[1]


@pytest.mark.slow  # each of the four has tests of its own in CI
def test_views_survive_verify_relabel_and_another_batch_size(
    viewed: Path, world: World, teacher: str, student: str, tmp_path: Path
) -> None:
    """verify runs the teacher on the stored crops; a child keeps their parameters; other batches change none."""
    checked = verify(VerifyRequest(labels=viewed, teacher=teacher, sample=60, root=world.root), Silent())
    assert checked.ok and checked.teacher["rows"] == 60
    relabel(RelabelRequest(parent=viewed, labels=tmp_path / "child.zarr", top_k=3), Silent())
    wanted = all_arrays(viewed)["view_params"]
    assert np.array_equal(all_arrays(tmp_path / "child.zarr")["view_params"], wanted)
    teach_inline(world, tmp_path / "b.zarr", teacher, students=(student,), top_k=5, views=VIEWS, batch_size=7)
    assert np.array_equal(all_arrays(tmp_path / "b.zarr")["view_params"], wanted)


def test_another_view_policy_is_refused(viewed: Path, world: World, teacher: str) -> None:
    """One more view, or another seed, is another store."""
    for policy in (ViewPolicy(views=2, seed=5), ViewPolicy(views=3, seed=6, randaugment=(1, 9))):
        with pytest.raises(FingerprintError, match="views: stored"):
            teach_inline(world, viewed, teacher, top_k=5, views=policy)


def test_shots_teach_few_of_each_class_and_list_them(world: World, teacher: str, tmp_path: Path) -> None:
    """Two of each class, the same photos in every layout; three contain them; the file says which."""
    chosen = []
    for layout, shots in (("wds", 2), ("tars", 2), ("wds", 3)):
        path = tmp_path / f"{layout}{shots}.zarr"
        done = teach_inline(world, path, teacher, top_k=5, shots=shots, seed=4, manifest=world.manifest(layout))
        assert done.rows_ok == shots * (len(IDS) - 1)
        chosen.append({key.rpartition("/")[2] for key in keys_of(path)})
        listed = json.loads(path.with_name(path.name + ".shots.json").read_text())
        assert {key.rpartition("/")[2] for key in listed["keys"]} == chosen[-1] and listed["shots"] == shots
    assert chosen[0] == chosen[1] < chosen[2]
    assert all(sum(name.startswith(class_id) for name in chosen[0]) == 2 for class_id in IDS[:-1])
    with pytest.raises(FingerprintError, match="shots: stored"):
        teach_inline(world, tmp_path / "wds2.zarr", teacher, top_k=5, shots=3, seed=4)


def test_retry_failed_computes_chunks_with_failures_again(world: World, teacher: str, tmp_path: Path) -> None:
    """A photo cannot be decoded, is mended in place, and is tried again only when that is asked for."""
    root = tmp_path / "world"
    shutil.copytree(world.root, root)
    photo = next(iter(world.photos.values()))
    archive = root / "wds/part-0.tar"
    whole = archive.read_bytes()
    archive.write_bytes(whole.replace(photo, bytes(len(photo))))
    mine = World(root, world.photos)
    options = {"top_k": 5, "max_failed_share": 0.1}
    assert teach_inline(mine, tmp_path / "a.zarr", teacher, **options).rows_failed == 1
    archive.write_bytes(whole)
    assert teach_inline(mine, tmp_path / "a.zarr", teacher, **options).rows_failed == 1
    again = teach_inline(mine, tmp_path / "a.zarr", teacher, retry_failed=True, **options)
    assert (again.rows_failed, again.chunks_written) == (0, 1)
    teach_inline(mine, tmp_path / "b.zarr", teacher, **options)
    assert again.store_id == LabelStore.open(tmp_path / "b.zarr").store_id()


@pytest.mark.parametrize("tile", [1, 3, 100])
def test_tiles_of_classes_change_nothing(tile: int, world: World, teacher: str, finished: Path, tmp_path: Path) -> None:
    """Logits of so many names at a time: the same classes in the same order, ties included, and the same masses."""
    teach_inline(world, tmp_path / "a.zarr", teacher, top_k=5, class_tile=tile)
    ours, whole = (LabelStore.open(path).decode_labels(all_arrays(path)) for path in (tmp_path / "a.zarr", finished))
    assert np.array_equal(ours.class_ids, whole.class_ids)
    np.testing.assert_allclose(ours.log_probs, whole.log_probs, atol=1e-2)
    np.testing.assert_allclose(ours.log_residual, whole.log_residual, atol=2e-3)


def test_the_ledger_says_where_the_time_went(finished: Path) -> None:
    """Every chunk has seconds of every phase, also in a store that is opened anew."""
    for record in LabelStore.open(finished).records(LABELS):
        assert record is not None and set(record.phases) == set(PHASES)
        assert all(0 < record.phases[phase] < 60 for phase in ("read", "decode", "forward", "top_k", "write"))


@pytest.mark.slow
def test_a_compiled_tower_gives_the_same_labels(world: World, teacher: str, finished: Path, tmp_path: Path) -> None:
    """`compile = true`: another order of additions, the same classes."""
    teach_inline(world, tmp_path / "a.zarr", teacher, top_k=5, compiled=True)
    ours, whole = (LabelStore.open(path).decode_labels(all_arrays(path)) for path in (tmp_path / "a.zarr", finished))
    assert (ours.class_ids == whole.class_ids).mean() > 0.97
    np.testing.assert_allclose(ours.log_residual, whole.log_residual, atol=5e-2)


def test_options_that_exclude_each_other_are_refused(world: World, teacher: str, tmp_path: Path) -> None:
    """Workers come from one place; said before anything is loaded or written."""
    with pytest.raises(UsageError, match="`workers` and `scheduler` exclude each other"):
        teach_inline(world, tmp_path / "a.zarr", teacher, workers=2, scheduler="tcp://127.0.0.1:8786")
    with pytest.raises(UsageError, match="is not an address"):
        teach_inline(world, tmp_path / "a.zarr", teacher, scheduler="127.0.0.1:8786")
    assert list(tmp_path.iterdir()) == [] and CHUNK_ROWS % 3 == 0
