"""The folder of a training run: what lies where, whether a run may begin or go on there, one process in it at a time.

It trains nothing and does not look into checkpoints and prompts: their own modules do.

    OUT/checkpoints/                  one checkpoint, of step 0, before the run is marked
    OUT/events.jsonl                  what happened
    OUT/config.toml                   written last of what a run begins with: a folder with it can be resumed
    OUT/prompts.*, OUT/results.json   what came out
    OUT/.teachonce.lock               there while a process works on the run, and says which; one that was killed may
                                      leave the file, which then stops nobody
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from teachonce.core.documents import read_object
from teachonce.core.files import cannot_write
from teachonce.core.locks import exclusive
from teachonce.core.machine import this_process
from teachonce.errors import FingerprintError, IncompleteError, IntegrityError, UsageError
from teachonce.training.config import TrainConfig

CONFIG, CHECKPOINTS, LOG, RESULTS = "config.toml", "checkpoints", "events.jsonl", "results.json"
LOCK = ".teachonce.lock"
# What a run has written before config.toml marks it, and what `ablate` lays beside.
BEFORE_MARKER = {CHECKPOINTS, LOG, LOCK, "cell.json", "failure.json", "evaluations"}
MOST_KEYS = 5  # that a message lists

_DRAFT = re.compile(r"\.config\.toml\.\d+\.partial")
_CHECKPOINT = re.compile(r"step-(\d{8})\.safetensors")
_OF_CHECKPOINTS = re.compile(r"\.?step-\d{8}\.safetensors.*")  # and drafts of them


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Be the only process that works on a run; a folder that is not there is made.

    The system frees the lock when the process ends, however it ends. What was read before must be read again inside.

    Raises:
        IncompleteError: another process works on it; says which.
        EnvironmentFault: the folder cannot be written.
    """
    file = out / LOCK
    with ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(exclusive(file, wait=False, create=True))
            if lock is not None:
                os.ftruncate(lock, 0)
                os.pwrite(lock, json.dumps(dataclasses.asdict(this_process())).encode(), 0)
        except OSError as problem:
            raise cannot_write(file, problem) from problem
        if lock is None:
            raise IncompleteError(
                f"{out} is being trained by {_owner(file)}",
                hint="wait for it, or end that process and continue with --resume; another run needs another --out",
            )
        try:
            yield
        finally:
            with suppress(OSError):
                file.unlink()  # while it is held: nobody else can hold what is gone


def require_new(out: Path) -> None:
    """Refuse a folder in which no run may begin; nothing is changed.

    Raises:
        UsageError: it holds a run, or something that is no run's.
        IntegrityError: it holds a run whose config is lost or damaged.
    """
    if holds_run(out):
        raise UsageError(f"{out} holds a run", hint="continue it with --resume, or give another --out")


def holds_run(out: Path) -> bool:
    """Whether a folder holds a run, rather than nothing but what a run may begin over; nothing is changed.

    Raises:
        UsageError: it holds something that is no run's.
        IntegrityError: it holds a run whose config is lost or damaged.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out is a folder", hint="give another --out")
    if (out / CONFIG).is_file():
        _stored(out)
        return True
    ours = _is_ours(out)
    if ours:
        _require_config(out)
    foreign = {name for name in _names(out) - BEFORE_MARKER if not _DRAFT.fullmatch(name)}
    if foreign or not ours:
        raise UsageError(f"{out} is not empty and holds no run", hint="give another --out; nothing was changed")
    return False


def require_same(out: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with what is no run, or one of another config; nothing is changed.

    Args:
        out: the folder.
        wanted: `TrainConfig.to_dict()`.

    Raises:
        UsageError: there is no run.
        IntegrityError: its config is lost or damaged.
        FingerprintError: it has another config; names every difference.
    """
    if not (out / CONFIG).is_file():
        if _is_ours(out):
            _require_config(out)
        raise UsageError(f"{out} holds no run: there is nothing to resume", hint="start without --resume")
    stored = _stored(out)
    different = [f"{k}: there {stored[k]!r}, here {wanted[k]!r}" for k in sorted(wanted) if stored[k] != wanted[k]]
    if different:
        raise FingerprintError(
            f"{out} was started with another config:\n  " + "\n  ".join(different),
            hint=f"resume with --config {out / CONFIG}",
        )


def clear(out: Path) -> None:
    """Remove what a run left that died before its config marked it, but for its log; inside `only_writer`."""
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    for name in filter(_DRAFT.fullmatch, _names(out)):
        (out / name).unlink()


def read_results(out: Path) -> dict[str, Any] | None:
    """results.json; None where there is none, or not what a run writes."""
    return read_object(out / RESULTS, schema=1)


def _stored(out: Path) -> dict[str, Any]:
    """config.toml, with exactly the keys of a config."""
    file = out / CONFIG
    try:
        stored = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise IntegrityError(f"{file} is damaged: {problem}", hint="restore it, or give another --out") from problem
    known = [field.name for field in dataclasses.fields(TrainConfig)]
    unknown = [key for key in stored if key not in known]
    if unknown:
        raise UsageError(
            f"{file} is not the config of a run: unknown keys {_listed(unknown)}",
            hint="give another --out; nothing was changed",
        )
    missing = [key for key in known if key not in stored]
    if missing:
        raise IntegrityError(
            f"{file} is not the whole config of a run: it lacks {_listed(missing)}",
            hint="restore it, or give another --out; nothing was changed",
        )
    return stored


def _require_config(out: Path) -> None:
    """Refuse a folder without config.toml in which a run has got further than its start."""
    found = (_CHECKPOINT.fullmatch(name) for name in _names(out / CHECKPOINTS))
    reached = max((int(match[1]) for match in found if match), default=0)
    if reached:
        raise IntegrityError(
            f"{out} holds a run at step {reached} whose {CONFIG} is lost; nothing was changed",
            hint=f"restore {out / CONFIG} and continue with --resume, or give another --out",
        )


def _is_ours(out: Path) -> bool:
    """Whether what is called as a run calls it is a run's: it would be removed."""
    checkpoints, log = out / CHECKPOINTS, out / LOG
    if checkpoints.is_symlink() or (checkpoints.exists() and not checkpoints.is_dir()):
        return False
    if not all(_OF_CHECKPOINTS.fullmatch(name) for name in _names(checkpoints)):
        return False
    try:
        head = log.read_bytes()[:4096].partition(b"\n")[0]
    except FileNotFoundError:
        return True
    except OSError:  # a folder
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
    mark = read_object(lock) or {}  # nothing, where it has taken the lock this very moment
    return f"process {mark['pid']} on {mark['host']}" if {"pid", "host"} <= mark.keys() else "another process"
