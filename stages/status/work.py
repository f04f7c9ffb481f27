"""The work of `status`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from teachonce.core.files import is_remote
from teachonce.core.progress import Reporter
from teachonce.errors import DataError
from teachonce.labels.status import StoreStatus, is_store, store_status
from teachonce.objects.remote import exists
from teachonce.phrases import phrase
from teachonce.runs.folder import RunFolder
from teachonce.runs.grid_status import GridStatus, grid_status, is_grid
from teachonce.runs.status import RunStatus, is_run, run_status
from teachonce.stages.status.request import StatusRequest

Status = StoreStatus | RunStatus | GridStatus
Test = Callable[[Path], bool]
Look = Callable[[Path, float], Status]

KINDS: tuple[tuple[Test, Look], ...] = ((is_grid, grid_status), (is_run, run_status), (is_store, store_status))
EXPECTED = phrase("a label store (OUT.zarr of teach), a run folder ({out} of train) or a grid folder ({out} of ablate)")
NAMED, SEARCHED = 5, 200  # how many inner folders a message names, and how many are searched


def status(request: StatusRequest, reporter: Reporter) -> Status:
    """Say where the work in a folder stands. The stage's `status` says what is raised."""
    del reporter  # `status` reports nothing before its answer
    folder, now = request.folder, time.time()
    look = _look_of(folder)
    if look is not None:
        return look(folder, now)
    raise _unknown(folder)


def _look_of(folder: Path) -> Look | None:
    if is_remote(folder):  # runs and grids lie in folders only
        return store_status if is_store(folder) else None
    return next((look for is_one, look in KINDS if is_one(folder)), None)


def _unknown(folder: Path) -> DataError:
    if not exists(folder):
        return DataError(
            f"{folder} does not exist; expected " + EXPECTED,
            hint="check the path; a run makes its folder once its model is loaded",
        )
    if is_remote(folder):
        return DataError(f"{folder} is no label store", hint="runs and grids are looked at in their folders only")
    if not folder.is_dir():
        return DataError(f"{folder} is a file; expected " + EXPECTED, hint=f"teachonce status {folder.parent}")
    inside = list(itertools.islice(_inside(folder), NAMED))
    if inside:
        return DataError(
            f"{folder} holds such folders and is none itself; expected " + EXPECTED,
            hint="teachonce status " + " or ".join(map(str, inside)),
        )
    if RunFolder(folder).tensors.is_file():
        return DataError(
            f"{folder} holds finished prompts and no run; expected " + EXPECTED,
            hint="look at the run that they were exported from",
        )
    return DataError(f"{folder} is none of these: " + EXPECTED, hint="check the path")


def _inside(folder: Path) -> Iterator[Path]:
    """What could be looked at in a folder and in the folders in it."""
    for item in itertools.islice(sorted(folder.iterdir()), SEARCHED):
        if not item.is_dir():
            continue
        if _look_of(item) is not None:
            yield item
        else:
            yield from (inner for inner in itertools.islice(sorted(item.iterdir()), SEARCHED) if _look_of(inner))
