"""Fault 6 beyond label stores: no flipped bit of a run, grid, export, pack or working set is read in silence.

A flip is silent if what reads the whole thing neither complains nor shows what it showed before. Where a flip leaves
what is shown as it was (the case of a letter in hex digits, a space in a log), nothing is mistaken.

With TEACHONCE_FLIP_TABLE=FILE, a line of JSON a kind is appended there: flips, complaints, flips without effect.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grids
import pytest
import torch
import worlds
from torch import nn
from worlds import World, files_of

from teachonce.core.progress import Silent
from teachonce.core.sums import CARD_FILE
from teachonce.errors import FingerprintError, TeachOnceError
from teachonce.labels.store import LabelStore
from teachonce.models.prompt_files import load_prompts
from teachonce.recipe.config_file import load_train_config
from teachonce.reports.folder import read_folder
from teachonce.rows.working_set import open_working_set
from teachonce.runs.checkpoint import Identity, load_checkpoint
from teachonce.runs.folder import RunFolder
from teachonce.stages.export import ExportRequest, export
from teachonce.stages.pack import PackRequest, pack
from teachonce.stages.show import ShowRequest, show
from teachonce.stages.train import TrainRequest, train

pytestmark = pytest.mark.slow  # a thousand flips of each kind
FLIPS = 1000
SETTINGS = ["steps=12", "batch_size=8", "checkpoint_every=6", "log_every=1", "held_out=0.2"]


class Complaint(Exception):
    """What reading said, where it raised nothing."""


@dataclass(frozen=True)
class Kind:
    """One kind of thing: where it lies, and what reads all of it and returns what it shows."""

    place: Path
    read: Callable[[Path], Any]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is cached for others, and no power fails here."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEACHONCE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("os.fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module")
def run(finished: Path, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run with checkpoints."""
    out = tmp_path_factory.mktemp("runs") / "run"
    config = load_train_config(None, SETTINGS)
    train(TrainRequest(labels=finished, student=student, out=out, config=config, threads=1), Silent())
    return out


@pytest.fixture(scope="module")
def grid(world: World, finished: Path, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of four cells, each with an evaluation."""
    folder = tmp_path_factory.mktemp("grids")
    grids.run(
        grids.write(folder / "grid.toml", grids.TWO + grids.evaluation(world, "val")), finished, student, folder / "out"
    )
    return folder / "out"


def shown(place: Path) -> Any:
    """What `show` says of a folder, and what its runs' damaged files are.

    Raises:
        Complaint: a file is named.
    """
    folder = read_folder(place)
    damaged = [line for one in folder.runs for line in one.damaged]
    damaged += [line for one in folder.runs for evaluation in one.evaluations.values() for line in evaluation.foreign]
    if damaged or folder.unusable:
        raise Complaint(str([*damaged, *folder.unusable]))
    return asdict(show(ShowRequest(path=place), Silent()))


def read_run_folder(place: Path) -> Any:
    """All that others read of a run: figures, prompts, checkpoints."""
    seen = shown(place)
    prompts = load_prompts(place)
    for file in sorted((place / "checkpoints").glob("*.safetensors")):
        module = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        nobody = Identity("0", "0", "0", "0", "0")
        others = [other for other in file.parent.glob("*.safetensors") if other > file]
        aside = [other.rename(other.with_suffix(".aside")) for other in others]
        try:
            load_checkpoint(file.parent, module, optimizer, nobody)
        except FingerprintError:  # it is sound, and of another run than of nobody
            pass
        finally:
            for other in aside:
                other.rename(other.with_suffix(".safetensors"))
    return seen, prompts.meta, prompts.tensors_digest


def read_working_set(labels: Path, student_digest: str) -> Callable[[Path], Any]:
    """Open the working set beside a store, which is made again where it is damaged."""

    def read(place: Path) -> Any:
        notes = worlds.Notes()
        rows = open_working_set(LabelStore.open(labels), student_digest, notes)
        rows.close()
        if any("thrown away" in line for line in notes.lines):
            raise Complaint(str(notes.lines))
        return notes.lines

    return read


def packed_again(place: Path) -> Any:
    """`pack` proves an export before it packs it. Its digest is that of the card, too, which people write into."""
    out = place.parent / "again.tar"
    out.unlink(missing_ok=True)
    result = pack(PackRequest(source=place, out=out), Silent())
    return result.id, result.files


def flip_all(kind: Kind, seed: int) -> dict[str, Any]:
    """Flip a bit a time, spread evenly over all files; returns the counts, and each silent flip."""
    rng = random.Random(seed)
    sound = repr(kind.read(kind.place))
    counts: dict[str, Any] = {"flips": FLIPS, "complaints": 0, "no_effect": 0, "silent": []}
    files = [kind.place] if kind.place.is_file() else [file for file in files_of(kind.place) if _is_read(file)]
    for number in range(FLIPS):
        file = files[number % len(files)]
        data = file.read_bytes()
        place, bit = rng.randrange(len(data)), rng.randrange(8)
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
        try:
            same = repr(kind.read(kind.place)) == sound
        except (TeachOnceError, Complaint):
            counts["complaints"] += 1
        else:
            if same:
                counts["no_effect"] += 1
            else:
                counts["silent"].append((str(file.relative_to(kind.place.parent)), place, bit))
        file.write_bytes(data)
    assert repr(kind.read(kind.place)) == sound
    return counts


def _is_read(file: Path) -> bool:
    """Whether a flip can matter: an empty lock has no bits, and a model card is for people, who write into it."""
    return file.stat().st_size > 0 and file.name != CARD_FILE


@pytest.mark.parametrize("name", ["run", "grid", "export", "pack", "working set"])
def test_no_flip_is_silent(name: str, run: Path, grid: Path, finished: Path, world: World, tmp_path: Path) -> None:
    kind = _kind(name, run, grid, finished, world, tmp_path)
    counts = flip_all(kind, seed=1)
    table = os.environ.get("TEACHONCE_FLIP_TABLE")
    if table:
        with open(table, "a") as file:
            file.write(json.dumps({"kind": name, **counts}) + "\n")
    assert not counts["silent"], counts
    assert counts["complaints"] > FLIPS / 2


def _kind(name: str, run: Path, grid: Path, finished: Path, world: World, folder: Path) -> Kind:
    if name == "run":
        return Kind(run, read_run_folder)
    if name == "grid":
        return Kind(grid, shown)
    if name == "working set":
        student_digest = str(RunFolder(run).read_results().student_digest)  # type: ignore[union-attr]
        read = read_working_set(finished, student_digest)
        read(finished)
        return Kind(finished.with_name(finished.name + ".working"), read)
    shared = folder / "shared"
    classes = str(world.root / "classes.tsv")
    export(ExportRequest(run=run, out=shared, classes=classes, threads=1), Silent())
    if name == "export":
        return Kind(shared, packed_again)
    pack(PackRequest(source=shared, out=folder / "shared.tar"), Silent())
    return Kind(folder / "shared.tar", lambda place: pack(PackRequest(source=place, check=True), Silent()).digest)
