"""The folder of a training run: where files lie, whether a run may begin or go on, and that one process works at it.

This module trains nothing and does not look into checkpoints and prompts: `checkpoint` and `models` do.

    OUT/checkpoints/                  one checkpoint, of step 0, before the run is marked
    OUT/events.jsonl                  what happened
    OUT/config.toml                   written last of what a run begins with: a folder with it can be resumed
    OUT/prompts.*, OUT/results.json   what came out
    OUT/evaluations/NAME.json         what `evaluate` said of it, with NAME.csv and NAME.top1.npy
    OUT/tensorboard/                  curves, if that was asked for
    OUT/cell.json, OUT/failure.json   of a cell of `ablate`: what it is; why its last attempt failed
    OUT/rungs/STEP/                   of a cell of `ablate` with a search: what the run was after so many steps
    OUT/.teachonce.lock               there while a process works on the run, and says which; one that was killed may
                                      leave the file, which then stops nobody
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachonce.core.documents import read_json, read_object, read_toml
from teachonce.core.files import atomic_write_bytes, write_failed
from teachonce.core.locks import exclusive
from teachonce.core.machine import this_process
from teachonce.core.outside import open_plain
from teachonce.errors import FingerprintError, IncompleteError, IntegrityError, UsageError
from teachonce.models.prompt_names import CHECKPOINTS_FOLDER, CONFIG_FILE, META_FILE, RESULTS_FILE, TENSORS_FILE
from teachonce.phrases import another, option, phrase
from teachonce.recipe.config import later_defaults, table_of
from teachonce.recipe.config_file import flat
from teachonce.runs.log import RunLog
from teachonce.runs.results import RunResults, decode_results
from teachonce.runs.tensorboard import Sink

LOG, RESULTS, EVALUATIONS, RUNGS = "events.jsonl", RESULTS_FILE, "evaluations", "rungs"
LOCK, CELL, FAILURE = ".teachonce.lock", "cell.json", "failure.json"
# The files that a run writes before config.toml marks the folder, and the files that `ablate` adds.
BEFORE_MARKER = {CHECKPOINTS_FOLDER, LOG, LOCK, CELL, FAILURE, EVALUATIONS, RUNGS}
MOST_KEYS = 5  # a message lists no more keys than these

_DRAFT = re.compile(r"\.config\.toml\.\d+(-[0-9a-f]+)?\.partial")
_CHECKPOINT = re.compile(r"step-(\d{8})\.safetensors")
_OF_CHECKPOINTS = re.compile(r"\.?step-\d{8}\.safetensors.*")  # checkpoints and their drafts


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of a run, each under the number of steps that were finished."""

    path: Path

    def file(self, step: int) -> Path:
        """The checkpoint after so many steps."""
        return self.path / f"step-{step:08d}.safetensors"

    def files(self) -> list[Path]:
        """All files with the name of a checkpoint, the newest last; none where the folder does not exist."""
        return sorted(self.path.glob("step-*.safetensors")) if self.path.is_dir() else []

    def newest_step(self) -> int | None:
        """Steps that the newest checkpoint has finished, by its name; None where there is none."""
        matches = (_CHECKPOINT.fullmatch(name) for name in _names(self.path))
        return max((int(match[1]) for match in matches if match), default=None)

    def holds_nothing_else(self) -> bool:
        """Whether there is nothing but checkpoints and drafts of them."""
        return all(_OF_CHECKPOINTS.fullmatch(name) for name in _names(self.path))


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, which may not be there yet, with every file that a run or a reader of runs looks for."""

    path: Path

    @property
    def config(self) -> Path:
        """The training config; its presence marks a run that can be resumed."""
        return self.path / CONFIG_FILE

    @property
    def events(self) -> Path:
        """What happened, a line each."""
        return self.path / LOG

    @property
    def checkpoints(self) -> CheckpointFolder:
        """The checkpoints that a resumed run goes on from."""
        return CheckpointFolder(self.path / CHECKPOINTS_FOLDER)

    @property
    def tensors(self) -> Path:
        """The trained prompts; there once the run has made its last step."""
        return self.path / TENSORS_FILE

    @property
    def meta(self) -> Path:
        """What describes `tensors`."""
        return self.path / META_FILE

    @property
    def results(self) -> Path:
        """What came out; the last file of a run."""
        return self.path / RESULTS

    @property
    def evaluations(self) -> Path:
        """The folder of results of `evaluate`."""
        return self.path / EVALUATIONS

    @property
    def lock(self) -> Path:
        """There while a process works on the run, and says which."""
        return self.path / LOCK

    @property
    def cell(self) -> Path:
        """Which cell of a grid the run is; only in folders of `ablate`."""
        return self.path / CELL

    @property
    def failure(self) -> Path:
        """Why the last attempt of a cell failed; there only while it did."""
        return self.path / FAILURE

    def evaluation(self, name: str) -> Path:
        """One result of `evaluate`."""
        return self.evaluations / f"{name}.json"

    def log(self, sinks: Sequence[Sink] = ()) -> RunLog:
        """The log, to write or to read; what is written goes to the sinks, too."""
        return RunLog(self.events, sinks)

    def prompts_digest(self) -> str | None:
        """SHA-256 (hex) of `tensors` as they are now; None where the file is not there."""
        return hashlib.sha256(self.tensors.read_bytes()).hexdigest() if self.tensors.is_file() else None

    def read_results(self) -> RunResults | None:
        """What came out; None where `results` is not there, or is not what a run writes."""
        try:
            return decode_results(read_json(self.results), str(self.results))
        except IntegrityError:
            return None

    def write_results(self, results: RunResults) -> None:
        """Write `results` whole.

        Raises:
            IncompleteError, EnvironmentFault: it cannot be written.
        """
        text = json.dumps(results.document(), indent=1, allow_nan=False)
        atomic_write_bytes(self.results, (text + "\n").encode())

    def looks_begun(self) -> bool:
        """Whether so much of a run is here that a search for runs should name the folder."""
        config, log = self.config.is_file(), self.events.is_file()
        return (config and (log or self.results.is_file())) or (log and self.checkpoints.path.is_dir())


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Be the only process that works on a run; a folder that is not there is made.

    The system frees the lock when the process ends, however it ends. What was read before must be read again inside.

    Raises:
        IncompleteError: another process works on it; says which.
        IncompleteError, EnvironmentFault: the folder cannot be written.
    """
    file = RunFolder(out).lock
    with ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(exclusive(file, wait=False, create=True))
            if lock is not None:
                os.ftruncate(lock, 0)
                os.pwrite(lock, json.dumps(dataclasses.asdict(this_process())).encode(), 0)
        except OSError as problem:
            raise write_failed(file, problem) from problem
        if lock is None:
            raise IncompleteError(
                f"{out} is being trained by {_owner(file)}",
                hint=phrase(
                    "wait for it, or end that process and continue with {resume}; another run needs another {out}"
                ),
            )
        try:
            yield
        finally:
            with suppress(OSError):
                file.unlink()  # still locked here, so no other process can have locked the file that goes


def require_new(out: Path) -> None:
    """Refuse a folder in which no run may begin; nothing is changed.

    Raises:
        UsageError: it holds a run, or something that is no run's.
        IntegrityError: it holds a run whose config is lost or damaged.
    """
    if holds_run(out):
        raise UsageError(f"{out} holds a run", hint=phrase("continue it with {resume}, or {another out}"))


def holds_run(out: Path) -> bool:
    """Whether a folder holds a run, rather than nothing but what a run may begin over; nothing is changed.

    Raises:
        UsageError: it holds something that is no run's.
        IntegrityError: it holds a run whose config is lost or damaged.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; " + option("out") + " is a folder", hint=another("out"))
    if RunFolder(out).config.is_file():
        _stored(out)
        return True
    ours = _is_ours(out)
    if ours:
        _require_config(out)
    foreign = {name for name in _names(out) - BEFORE_MARKER if not _DRAFT.fullmatch(name)}
    if foreign or not ours:
        raise UsageError(f"{out} is not empty and holds no run", hint=phrase("{another out}; nothing was changed"))
    return False


def require_same(out: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse to resume a folder without a run, or a run of another config; nothing is changed.

    Args:
        out: the folder.
        wanted: `TrainConfig.to_dict()`.

    Raises:
        UsageError: there is no run.
        IntegrityError: its config is lost or damaged.
        FingerprintError: it has another config; names every difference.
    """
    if not RunFolder(out).config.is_file():
        if _is_ours(out):
            _require_config(out)
        raise UsageError(f"{out} holds no run: there is nothing to resume", hint=phrase("start without {resume}"))
    stored = _stored(out)
    different = [f"{k}: there {stored[k]!r}, here {wanted[k]!r}" for k in sorted(wanted) if stored[k] != wanted[k]]
    if different:
        raise FingerprintError(
            f"{out} was started with another config:\n  " + "\n  ".join(different),
            hint=phrase("resume with {config}") + f" {RunFolder(out).config}",
        )


def stored_value(out: Path, key: str) -> Any:
    """What the config of a run says of a key; None where there is no run.

    Raises:
        UsageError, IntegrityError: as `require_same`.
    """
    return _stored(out)[key] if RunFolder(out).config.is_file() else None


def clear(out: Path) -> None:
    """Remove all but the log of a run that died before config.toml marked it; the caller is inside `only_writer`."""
    shutil.rmtree(RunFolder(out).checkpoints.path, ignore_errors=True)
    for name in filter(_DRAFT.fullmatch, _names(out)):
        (out / name).unlink()


def _stored(out: Path) -> dict[str, Any]:
    """config.toml, with exactly the keys of a config; later keys that it lacks are at their defaults."""
    file = RunFolder(out).config
    try:
        stored = later_defaults() | flat(read_toml(file), str(file))
    except ValueError as problem:
        raise IntegrityError(f"{file} is damaged: {problem}", hint=phrase("restore it, or {another out}")) from problem
    known = list(table_of())
    unknown = [key for key in stored if key not in known]
    if unknown:
        raise UsageError(
            f"{file} is not the config of a run: unknown keys {_listed(unknown)}",
            hint=phrase("{another out}; nothing was changed"),
        )
    missing = [key for key in known if key not in stored]
    if missing:
        raise IntegrityError(
            f"{file} is not the whole config of a run: it lacks {_listed(missing)}",
            hint=phrase("restore it, or {another out}; nothing was changed"),
        )
    return stored


def _require_config(out: Path) -> None:
    """Refuse a folder without config.toml in which a run has got further than its start."""
    reached = RunFolder(out).checkpoints.newest_step()
    if reached:
        raise IntegrityError(
            f"{out} holds a run at step {reached} whose {CONFIG_FILE} is lost; nothing was changed",
            hint=f"restore {RunFolder(out).config} and continue with " + option("resume") + ", or " + another("out"),
        )


def _is_ours(out: Path) -> bool:
    """Whether the files with a run's names are those of a run, since the start of a new run would remove them."""
    run = RunFolder(out)
    checkpoints = run.checkpoints.path
    if checkpoints.is_symlink() or (checkpoints.exists() and not checkpoints.is_dir()):
        return False
    if not run.checkpoints.holds_nothing_else():
        return False
    try:
        with open_plain(run.events) as file:
            head = file.read(4096).partition(b"\n")[0]
    except FileNotFoundError:
        return True
    except OSError:  # the name is that of a folder, for instance
        return False
    return not head or b'"event": "start"' in head


def _names(folder: Path) -> set[str]:
    try:
        return {item.name for item in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - MOST_KEYS} more" if len(keys) > MOST_KEYS else ""
    return ", ".join(keys[:MOST_KEYS]) + more


def _owner(lock: Path) -> str:
    mark = read_object(lock) or {}  # empty where the other process has locked the file this very moment
    return f"process {mark['pid']} on {mark['host']}" if {"pid", "host"} <= mark.keys() else "another process"
