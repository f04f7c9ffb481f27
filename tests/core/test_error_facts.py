"""One fact is one error, and one exit code, whoever meets it: the table of `errors`, each line by two places or more.

That an image changed needs a world of images: tests/rows/test_taught_images.py, tests/rows/test_pairing.py and
tests/stages/test_embeddings_fidelity.py raise it in three places, and the class is held here.
"""

from __future__ import annotations

import errno
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from worlds import synthetic_store

from teachonce import errors
from teachonce.cluster.description import load_description
from teachonce.core.files import atomic_write_bytes, new_folder
from teachonce.core.locks import owned
from teachonce.core.progress import Silent
from teachonce.core.sums import read_sums
from teachonce.data.manifests import load_manifest
from teachonce.data.vocabulary import load_vocabulary
from teachonce.demo.world import WorldSizes, write_world
from teachonce.evaluation.protocols import load_protocol
from teachonce.labels.ledger import require_fingerprint
from teachonce.labels.selection import load_selection
from teachonce.labels.store import LabelStore
from teachonce.models.prompt_files import load_prompts
from teachonce.objects.remote import location
from teachonce.recipe.config_file import load_train_config
from teachonce.runs.folder import only_writer
from teachonce.runs.grid import load_grid
from teachonce.runs.grid_documents import GridDocument
from teachonce.runs.grid_folder import GridFolder, write_document
from teachonce.runs.tensorboard import require_packages

SIZES = WorldSizes(train=1, train_archives=1, val_per_class=1, unseen_per_class=1)
Place = Callable[[Path], Any]


def full(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _folder(at: Path) -> None:
    with new_folder(at / "out"):
        pass


def _lock(at: Path) -> None:
    with owned(at / "a.zarr", Silent()):
        pass


def _run(at: Path) -> None:
    with only_writer(at / "run"):
        pass


WRITES: dict[str, Place] = {
    "a file": lambda at: atomic_write_bytes(at / "a", b"x"),
    "a folder": _folder,
    "a label store, resumable work": lambda at: synthetic_store(at / "a.zarr"),
    "the lock of a label store": _lock,
    "the lock of a run": _run,
    "the demo's world": lambda at: write_world(at / "world", 0, SIZES),
}


@pytest.mark.parametrize("place", WRITES.values(), ids=WRITES)
def test_on_a_full_disk_work_is_incomplete(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 5: with room again, the same command goes on."""
    for name in ("replace", "fsync", "link", "ftruncate", "rename"):
        monkeypatch.setattr(os, name, full)
    with pytest.raises(errors.IncompleteError, match=r"cannot write .*No space left on device.*MB free") as caught:
        place(tmp_path)
    assert caught.value.exit_code == 5 and "free space" in caught.value.hint


PACKAGES: dict[str, Place] = {
    "curves": lambda at: require_packages(["tensorboard"]),
    "remote stores": lambda at: location("s3://bucket/x"),
}


@pytest.mark.parametrize("place", PACKAGES.values(), ids=PACKAGES)
def test_a_package_that_is_missing_is_a_fault_of_the_machine(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.EnvironmentFault, match="not installed") as caught:
        place(tmp_path)
    assert "pip install" in caught.value.hint


INSTRUCTIONS: dict[str, Place] = {
    "manifest": lambda at: load_manifest(str(at / "gone.toml")),
    "config": lambda at: load_train_config(at / "gone.toml"),
    "grid": lambda at: load_grid(at / "gone.toml"),
    "protocol": lambda at: load_protocol(str(at / "gone.toml")),
    "cluster": lambda at: load_description(at / "gone.toml"),
}
DATA: dict[str, Place] = {
    "class list": lambda at: load_vocabulary(str(at / "gone.tsv")),
    "selection": lambda at: load_selection(at / "gone.json", None),  # type: ignore[arg-type]  # it is read first
    "label store": lambda at: LabelStore.open(at / "gone.zarr"),
}


def _damaged_sums(at: Path) -> None:
    (at / "SUMS").write_bytes(b"\xff\xfe")
    read_sums(at / "SUMS")


def _damaged_grid(at: Path) -> None:
    (at / "grid.json").write_text("{")
    GridFolder(at).stored()


def _damaged_prompts(at: Path) -> None:
    (at / "prompts.json").write_text("{")
    (at / "prompts.safetensors").write_bytes(b"x")
    load_prompts(at)


def _other_grid(at: Path) -> None:
    write_document(at / "grid.json", GridDocument(content_id="a", student_digest="b", cells=()).document())
    GridFolder(at).require_ours(GridDocument(content_id="c", student_digest="b", cells=()))


def _twice(held: Callable[[Path], Any]) -> Place:
    def take(at: Path) -> None:
        with held(at), held(at):
            pass

    return take


FACTS: dict[str, tuple[type[errors.TeachOnceError], int, dict[str, Place]]] = {
    "what to do is not there": (errors.UsageError, 2, INSTRUCTIONS),
    "data is not there": (errors.DataError, 3, DATA),
    "what we wrote is damaged": (
        errors.IntegrityError,
        4,
        {"sums": _damaged_sums, "grid": _damaged_grid, "prompts": _damaged_prompts},
    ),
    "of something else": (
        errors.FingerprintError,
        4,
        {
            "label store": lambda at: require_fingerprint(at, "labels", {"split": "a"}, {"split": "b"}),
            "grid": _other_grid,
        },
    ),
    "someone else is at work": (
        errors.IncompleteError,
        5,
        {
            "label store": _twice(lambda at: owned(at / "a.zarr", Silent())),
            "run": _twice(lambda at: only_writer(at / "run")),
        },
    ),
}
LINES = [(fact, place) for fact, (_, _, places) in FACTS.items() for place in places]


@pytest.mark.parametrize(("fact", "place"), LINES, ids=[f"{fact}: {place}" for fact, place in LINES])
def test_one_fact_is_one_error_whoever_meets_it(fact: str, place: str, tmp_path: Path) -> None:
    kind, code, places = FACTS[fact]
    with pytest.raises(errors.TeachOnceError) as caught:
        places[place](tmp_path)
    assert type(caught.value) is kind and caught.value.exit_code == code, str(caught.value)


def test_an_image_that_changed_is_a_fault_of_the_data() -> None:
    assert issubclass(errors.ImageChangedError, errors.DataError) and errors.ImageChangedError.exit_code == 3
