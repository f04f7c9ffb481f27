"""Every command that writes is killed at twenty of its changes, run again, and leaves what an undisturbed run leaves.

The twenty are spread evenly over the changes of an undisturbed run: creations, renames, removals, whichever library
makes them. What an undisturbed run writes differently each time (clocks, durations) is found by running it twice, and
is compared by name only.

With TEACHONCE_KILL_TABLE=FILE, a line of JSON a command is appended there: kills, leftovers, differences.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grids
import pytest
from safetensors import safe_open
from worlds import World, teach_inline

from teachonce.labels.format import LABELS

KILLS = 20
TRAIN = [f"--set={setting}" for setting in ("steps=12", "batch_size=8", "checkpoint_every=3", "log_every=1")]


@dataclass(frozen=True)
class Case:
    """A command, and what stands in its folder before it is run."""

    line: str
    """Its words; FOLDER/ stands before what the ground holds, and the rest is below the case's own folder."""
    again: str = ""
    """Words that the second run has in addition."""
    copies: tuple[str, ...] = ()
    """What of the ground lies in the case's own folder, because the command changes it."""


CASES = {
    "teach": Case("teach GROUND/world/wds.toml --root GROUND/world --teacher TEACHER --labels s.zarr --chunk-rows 9"),
    "train": Case("train s.zarr --student STUDENT --out run " + " ".join(TRAIN), " --resume", ("s.zarr",)),
    "ablate": Case("ablate GROUND/grid.toml --labels s.zarr --student STUDENT --out grid", "", ("s.zarr",)),
    "relabel": Case("relabel GROUND/e.zarr --labels new.zarr --template 'a drawing of a {}.'"),
    "merge": Case("merge GROUND/e.zarr GROUND/t.zarr --labels both.zarr"),
    "export": Case("export GROUND/run --out shared --classes GROUND/world/classes.tsv --licence cc-by-4.0"),
    "pack": Case("pack GROUND/s.zarr --out s.tar"),
    "pack --unpack": Case("pack GROUND/s.tar --unpack --out s.zarr"),
    "cache": Case("cache clear s.zarr", "", ("s.zarr", "s.zarr.working")),
    "repair": Case("verify bad.zarr --repair", "", ("bad.zarr",)),
}


class Host:
    """The program `kill_host`, which runs one command line at a time."""

    def __init__(self, cache: Path) -> None:
        support = os.pathsep.join([str(Path(__file__).parent.parent / "support"), str(Path(__file__).parent)])
        self.cache = cache
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("kill_host.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": support, "OMP_NUM_THREADS": "1", "TEACHONCE_CACHE": str(cache)},
        )

    def run(self, argv: list[str], folder: Path, kill_at: int | None = None) -> tuple[int, int, str]:
        """Run a command line in a folder: its exit code (-9: killed), its changes, and what it printed."""
        assert self.process.stdin and self.process.stdout
        log = folder.parent / f"{folder.name}.log"
        job = {"argv": argv, "cwd": str(folder), "log": str(log), "kill_at": kill_at}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["code"], answer["changes"], log.read_text()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The one host of all cases."""
    started = Host(tmp_path_factory.mktemp("cache"))
    yield started
    started.process.communicate()  # it ends where its input does


@pytest.fixture(scope="module")
def ground(
    host: Host, world: World, finished: Path, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What the commands read: stores, a run, a grid file, a pack, working sets."""
    folder = tmp_path_factory.mktemp("ground")
    shutil.copytree(world.root, folder / "world")
    shutil.copytree(finished, folder / "s.zarr")
    teach_inline(world, folder / "t.zarr", _other(tmp_path_factory), embeddings="float16")
    teach_inline(world, folder / "e.zarr", teacher, embeddings="float16")
    shutil.copytree(finished, folder / "bad.zarr")
    for file in sorted((folder / "bad.zarr" / LABELS).rglob("c/*"))[:3]:
        if file.is_file():
            file.write_bytes(b"damaged")
    grids.write(folder / "grid.toml", grids.BASE + "[axes]\nseed = [0, 1]\n")
    for argv in (
        ["train", "s.zarr", "--student", student, "--out", "run", *TRAIN],
        ["pack", "s.zarr", "--out", "s.tar"],
    ):
        code, _, printed = host.run(argv, folder)
        assert code == 0, printed
    return folder


def _other(factory: pytest.TempPathFactory) -> str:
    from worlds import session_clip

    return session_clip(factory, "other")


@dataclass(frozen=True)
class Lab:
    """Runs one case, as often as is asked."""

    case: Case
    host: Host
    ground: Path
    models: dict[str, str]
    place: Path

    def fresh(self, name: str) -> Path:
        """A folder with what the command changes."""
        folder = self.place / name
        folder.mkdir()
        for copied in self.case.copies:
            source = self.ground / copied
            shutil.copytree(source, folder / copied) if source.is_dir() else None
        return folder

    def run(self, folder: Path, kill_at: int | None = None, again: bool = False) -> tuple[int, int, str]:
        """Run the command there."""
        import shlex

        line = self.case.line + (self.case.again if again else "")
        for word, value in {"GROUND": str(self.ground), **self.models}.items():
            line = line.replace(word, value)
        shutil.rmtree(self.host.cache)
        self.host.cache.mkdir()
        return self.host.run(shlex.split(line), folder, kill_at)


def tree(folder: Path) -> dict[str, str]:
    """Every path below a folder, with the digest of what it holds."""
    return {str(path.relative_to(folder)): content(path) if path.is_file() else "folder" for path in folder.rglob("*")}


def content(file: Path) -> str:
    """The digest of a file; of a checkpoint that of its tensors, whose order in the file means nothing."""
    digest = hashlib.sha256()
    if file.parent.name == "checkpoints":
        with safe_open(file, framework="np") as opened:
            digest.update(repr(sorted((opened.metadata() or {}).items())).encode())
            for name in sorted(opened.keys()):
                digest.update(name.encode() + opened.get_tensor(name).tobytes())
    else:
        digest.update(file.read_bytes())
    return digest.hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_command_killed_at_any_change_leaves_nothing_when_run_again(
    name: str, host: Host, ground: Path, teacher: str, student: str, tmp_path: Path
) -> None:
    lab = Lab(CASES[name], host, ground, {"TEACHER": teacher, "STUDENT": student}, tmp_path)
    outside = tree(ground)
    whole, twin = lab.fresh("whole"), lab.fresh("twin")
    code, changes, printed = lab.run(whole)
    assert code == 0, printed
    assert lab.run(twin)[0] == 0
    sound, other = tree(whole), tree(twin)
    assert sound.keys() == other.keys(), "names are the same each time"
    equal = {path for path in sound if sound[path] == other[path]}
    row: dict[str, Any] = {"command": name, "changes": changes, "files": len(sound), "equal": len(equal)}
    row |= {"killed": 0, "leftovers": [], "differences": []}
    for number in range(KILLS):
        kill_at = 1 + round(number * (changes - 1) / (KILLS - 1))
        folder = lab.fresh(f"kill-{number}")
        code, _, printed = lab.run(folder, kill_at)
        row["killed"] += code == -9
        assert code in (-9, 0), printed
        code, _, printed = lab.run(folder, again=True)
        if code == 2 and "start without --resume" in printed:  # it was killed before there was a run
            code, _, printed = lab.run(folder)
        after = tree(folder)
        done_before = code == 2 and "is there already" in printed  # it was killed behind its last step
        assert code == 0 or done_before, f"{name}, killed at change {kill_at} of {changes}: {printed}"
        row["leftovers"] += sorted(f"{kill_at}: {path}" for path in after.keys() ^ sound.keys())
        row["differences"] += sorted(
            f"{kill_at}: {path}" for path in equal & after.keys() if after[path] != sound[path]
        )
    table = os.environ.get("TEACHONCE_KILL_TABLE")
    if table:
        with open(table, "a") as file:
            file.write(json.dumps(row) + "\n")
    assert row["killed"] >= KILLS - 2
    assert not row["leftovers"] and not row["differences"], row
    assert tree(ground) == outside, "what the command reads is left as it was"
