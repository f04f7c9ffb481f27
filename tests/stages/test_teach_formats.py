"""The same photos give the same rows from every layout: labels, top-k, features, to the bit."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from layouts import LAYOUTS, laid_out
from worlds import IDS, World, all_arrays, keys_of, teach_inline

from teachonce.data.view_policy import ViewPolicy
from teachonce.data.views import sample_name

USED = IDS[:-1]
PLACE = {"sample", "key_digest"}  # say where a row came from
SHARED = Path(__file__).resolve().parents[3] / "shared"


def rows_by_name(store: Path, views: int) -> dict[tuple[str, int], list[bytes]]:
    """Every stored number of each row, under the sample's name and the number of the view."""
    names = [(sample_name(key), view) for key in keys_of(store) for view in range(views)]
    arrays = {n: data for n, data in all_arrays(store).items() if len(data) == len(names) and n not in PLACE}
    assert {"class_ids", "gaps", "label", "image_crc"} <= set(arrays)
    order = sorted(arrays)
    return {name: [np.asarray(arrays[n][row]).tobytes() for n in order] for row, name in enumerate(names)}


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_do_not_depend_on_the_layout(name: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Two views of each photo, a teacher and a student."""
    world = worlds.session_world(tmp_path_factory)
    teacher, student = (worlds.session_clip(tmp_path_factory, model) for model in ("teacher", "student"))
    views = ViewPolicy(views=2, seed=3)
    options: dict[str, Any] = {"students": (student,), "top_k": 5, "views": views, "chunk_rows": 28}
    base = tmp_path_factory.getbasetemp() / "formats" / "base.zarr"
    compare(name, world.photos, list(USED), base, tmp_path, teacher, options)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="the real photos and models are not beside the checkout")
@pytest.mark.parametrize("name", LAYOUTS)
def test_real_photos_by_a_real_teacher(name: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """1,200 real photos of 120 classes, laid out anew; the student's features too."""
    photos, ids = real_photos(SHARED / "data" / "tiny-imagenet")
    teacher, student = (f"local-dir:{SHARED / 'models' / model}" for model in ("tin-teacher", "tin-student"))
    options: dict[str, Any] = {"students": (student,), "chunk_rows": 256, "batch_size": 64}
    base = tmp_path_factory.getbasetemp() / "real-formats" / "base.zarr"
    compare(name, photos, ids, base, tmp_path, teacher, options)


def compare(
    name: str, photos: dict[str, bytes], ids: list[str], base: Path, folder: Path, teacher: str, options: dict[str, Any]
) -> None:
    """Teach from the layout, and once from another one; all rows must be equal."""
    if not base.exists():
        manifest = laid_out("folder-tars", base.parent / "data", photos, ids)
        teach_inline(World(base.parent / "data", photos), base, teacher, manifest=manifest, **options)
    manifest = laid_out(name, folder / "data", photos, ids)
    teach_inline(World(folder / "data", photos), folder / "a.zarr", teacher, manifest=manifest, **options)
    views = options["views"].views if "views" in options else 1
    rows, wanted = rows_by_name(folder / "a.zarr", views), rows_by_name(base, views)
    assert len(rows) == views * len(photos) and set(rows) == set(wanted)
    assert rows == wanted


def real_photos(data: Path) -> tuple[dict[str, bytes], list[str]]:
    """Ten photos of each class, from the tars of the validation split."""
    ids = [line.partition("\t")[0] for line in (data / "classes.tsv").read_text().splitlines()]
    photos = {}
    for class_id in ids:
        with tarfile.open(data / "val" / f"{class_id}.tar") as tar:
            for number, member in enumerate([member for member in tar if member.isfile()][:10]):
                content = tar.extractfile(member)
                assert content is not None
                photos[f"{class_id}_{number}"] = content.read()
    return photos, ids
