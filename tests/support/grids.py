"""Grids on the tiny world, for tests of `ablate`; nothing is tested here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from worlds import Notes, World, inline_tasks

from teachonce.cluster.description import ClusterSpec

HEAD = 'schema = 1\ntitle = "tiny"\n'
BASE = "[base]\nsteps = 4\nbatch_size = 8\ncheckpoint_every = 2\nlog_every = 1\nheld_out = 0.2\nevaluate_every = 4\n"
TWO = BASE + '[axes]\nseed = [0, 1]\nstructure = ["unshared", "shared"]\n'


def write(file: Path, text: str) -> Path:
    """A grid file."""
    file.write_text(HEAD + text)
    return file


def evaluation(world: World, name: str, **keys: str) -> str:
    """An [[evaluate]] table on the photos of the world, as TOML."""
    given = {"name": name, "manifest": world.manifest(), "root": str(world.root)} | keys
    return "[[evaluate]]\n" + "".join(f'{key} = "{value}"\n' for key, value in given.items())


def request(grid: Path, labels: Path, student: str, out: Path, **options: Any) -> Any:
    """An AblateRequest, with a thread for each cell."""
    from teachonce.stages.ablate import AblateRequest

    given: dict[str, Any] = {"cluster": ClusterSpec(workers=os.cpu_count() or 1)}  # one thread each: the same bits
    return AblateRequest(grid=grid, labels=labels, student=student, out=out, **(given | options))


def run(grid: Path, labels: Path, student: str, out: Path, notes: Notes | None = None, **options: Any) -> Any:
    """`ablate` in this process, its cells one after the other."""
    from teachonce.stages.ablate import ablate

    with inline_tasks():
        return ablate(request(grid, labels, student, out, **options), notes or Notes())


def prompts_of(out: Path) -> dict[str, bytes]:
    """The bytes of every cell's prompts."""
    return {file.parent.name: file.read_bytes() for file in sorted(out.glob("cells/*/prompts.safetensors"))}
