"""No file that comes from outside ends a command as a bug, for ever, or with all the memory.

A mutated file is read as a command reads it. It may be refused (exit 2, 3 or 4), or still be a sound file (exit 0).
With TEACHONCE_FUZZ_TABLE=FILE each kind adds a JSON line: inputs, exits by code, the slowest, the largest.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grid_folders
import pytest
import worlds
from hypothesis import HealthCheck, given, settings
from mutations import Mutation, mutated, mutations

from teachonce.cli.app import describe, run
from teachonce.cluster.description import load_description
from teachonce.runs.cells import expand
from teachonce.runs.grid import load_grid

REFUSED_OR_SOUND = {0, 2, 3, 4}
SLOWEST_S = 10.0
MOST_BYTES = 2 << 30

MANIFEST = """schema = 1
name = "x"
title = "a set"
classes = "classes.tsv"
template = "a photo of a {}."
licence = "none"

[splits.train]
format = "webdataset"
path = "wds/*.tar"
label = "cls"
samples = 4
archives = 1
known_bad = ["k9"]
"""
GRID = """schema = 1
title = "tiny"
design = "one-factor"

[base]
steps = 4
batch_size = 8
learning_rate = 0.03

[axes]
seed = [0, 1]
structure = ["unshared", "shared"]
"data.shots" = [0, 4]

[[cells]]
name = "other"
context = "a picture of a"

[[exclude]]
structure = "shared"
seed = 1

[[evaluate]]
name = "dev"
manifest = "set.toml"
split = "val"
wise = 0.5

[choose]
by = "dev"
metric = "top1"
"""
CONFIG = """[prompts]
structure = "unshared"
length = 4
depth = 2

[loss]
supervision = "hard+soft"
temperature = 2.0

[optimiser]
learning_rate = 0.01

[loop]
steps = 100
seed = 3
"""
CLUSTER = """kind = "slurm"
jobs = 2
cores = 4
memory = "16 GB"
walltime = "04:00:00"
account = "lab"
environment = {HF_HOME = "/scratch/hf"}
job_script_prologue = ["module load cuda"]
patience = "30 minutes"
"""


@dataclass(frozen=True)
class Target:
    """A file, and what reads it: gives the exit code that the command would end with."""

    file: Path
    read: Callable[[], int]


def outcome(read: Callable[[], object]) -> int:
    """The exit code that the command line gives to what a reader raises."""
    try:
        read()
    except Exception as problem:  # noqa: BLE001 - what the command line would make of it is the question
        return describe(problem).exit_code
    return 0


def small_set(folder: Path) -> Path:
    """Four photos in a shard, with their class list and manifest."""
    import tarfile

    (folder / "wds").mkdir()
    (folder / "classes.tsv").write_text("n01\tred fox\nn02\tblue jay\n")
    (folder / "set.toml").write_text(MANIFEST)
    with tarfile.open(folder / "wds/a.tar", "w") as tar:
        for number in range(4):
            worlds.add_member(tar, f"k{number}.jpg", worlds.encoded(worlds.make_photo(0, number)))
            worlds.add_member(tar, f"k{number}.cls", b"01"[number % 2 : number % 2 + 1])
    return folder


def index_of(folder: Path, file: str) -> Target:
    """A file of a data set, looked at by `index`."""
    manifest = small_set(folder) / "set.toml"
    return Target(folder / file, lambda: run(["index", str(manifest), "--root", str(folder), "--json"]))


def a_run(folder: Path, file: str) -> Target:
    """A file of a run, read by `show` and `status`."""
    run_folder = grid_folders.write_run(folder / "run", top1=0.5)
    grid_folders.write_evaluation(run_folder / "evaluations/dev.json", 0.5)
    commands = [[verb, str(run_folder), "--json"] for verb in ("show", "status")]
    return Target(run_folder / file, lambda: max(run(command) for command in commands))


def a_grid(folder: Path) -> Target:
    """A grid file, with its cells."""
    file = folder / "grid.toml"
    file.write_text(GRID)
    return Target(file, lambda: outcome(lambda: expand(load_grid(file))))


def a_config(folder: Path) -> Target:
    """A training config."""
    file = folder / "config.toml"
    file.write_text(CONFIG)
    return Target(file, lambda: run(["train", "--print-config", "--config", str(file)]))


def a_cluster(folder: Path) -> Target:
    """A description of a cluster."""
    file = folder / "cluster.toml"
    file.write_text(CLUSTER)
    return Target(file, lambda: outcome(lambda: load_description(file)))


def prompts(folder: Path, file: str) -> Target:
    """Prompts in their two files."""
    import torch

    from teachonce.models.prompt_files import load_prompts, save_prompts
    from teachonce.models.prompts import PromptMeta
    from teachonce.towers.slots import SlotPrompts

    meta = PromptMeta(
        structure="shared",
        context="a photo of a",
        slots=4,
        depth=0,
        width=8,
        layers=2,
        student="local-dir:student",
        student_digest="ab" * 32,
        suffix=".",
        version="1",
    )
    save_prompts(folder, SlotPrompts(torch.ones(4, 8)), None, meta)
    return Target(folder / file, lambda: outcome(lambda: load_prompts(folder)))


def a_store(folder: Path, file: str) -> Target:
    """Metadata of a label store, looked at by `verify`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        store, _ = worlds.synthetic_store(folder / "labels.zarr", **worlds.SMALL)
    return Target(store.path / file, lambda: run(["verify", str(store.path), "--json"]))


TARGETS: dict[str, Callable[[Path], Target]] = {
    "manifest": lambda folder: index_of(folder, "set.toml"),
    "class list": lambda folder: index_of(folder, "classes.tsv"),
    "tar": lambda folder: index_of(folder, "wds/a.tar"),
    "grid": a_grid,
    "config": a_config,
    "cluster file": a_cluster,
    "results": lambda folder: a_run(folder, "results.json"),
    "evaluation": lambda folder: a_run(folder, "evaluations/dev.json"),
    "event log": lambda folder: a_run(folder, "events.jsonl"),
    "prompts description": lambda folder: prompts(folder, "prompts.json"),
    "safetensors header": lambda folder: prompts(folder, "prompts.safetensors"),
    "root zarr.json": lambda folder: a_store(folder, "zarr.json"),
    "array zarr.json": lambda folder: a_store(folder, "gaps/zarr.json"),
}


@contextmanager
def limited_memory() -> Iterator[None]:
    """Whoever asks for more than the limit gets MemoryError, which no command may end with."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MOST_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def attack(kind: str, folder: Path, capfd: pytest.CaptureFixture[str], inputs: int) -> None:
    """Read so many mutations of a file; says in the table what came of them."""
    target = TARGETS[kind](folder)
    sound = target.file.read_bytes()
    assert target.read() == 0, f"the file is not sound to begin with: {capfd.readouterr().err}"
    exits, slowest, largest = Counter[int](), 0.0, 0

    @settings(
        max_examples=inputs,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutations)
    def try_one(changes: list[Mutation]) -> None:
        nonlocal slowest, largest
        data = mutated(sound, changes)
        target.file.write_bytes(data)
        began = time.monotonic()
        code = target.read()
        seconds = time.monotonic() - began
        said = capfd.readouterr()
        exits[code] += 1
        slowest, largest = max(slowest, seconds), max(largest, len(data))
        assert code in REFUSED_OR_SOUND, said.err[-600:] + said.out[-600:]
        assert seconds < SLOWEST_S

    with limited_memory():
        try_one()
    table = os.environ.get("TEACHONCE_FUZZ_TABLE")
    if table:
        line = {"kind": kind, "exits": dict(exits), "slowest_s": round(slowest, 2), "largest_bytes": largest}
        with open(table, "a") as file:
            file.write(json.dumps({"inputs": sum(exits.values())} | line) + "\n")


@pytest.mark.parametrize("kind", TARGETS)
def test_a_mutated_file_is_refused_or_read(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A dozen mutations each, always the same ones."""
    attack(kind, tmp_path, capfd, 12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TARGETS)
def test_a_thousand_mutations_are_refused_or_read(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """1,000 each."""
    attack(kind, tmp_path, capfd, 1000)
