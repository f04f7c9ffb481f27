"""What a worker process keeps (models, the store's tables, the teacher's text side), and whose turn it is to use it.

Nothing here runs a model, or writes more than a trial whether it may.
"""

from __future__ import annotations

import functools
import os
import pwd
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from teachonce.cluster.client import worker_index
from teachonce.core.devices import pick_device, take_device
from teachonce.core.files import is_remote, write_failed
from teachonce.core.machine import installed_version
from teachonce.errors import EnvironmentFault, FingerprintError
from teachonce.keeping.bucket import BucketKeeper
from teachonce.keeping.staging import drop_staging, new_staging
from teachonce.labels.store import LabelStore
from teachonce.models.classifier import ensemble_features
from teachonce.models.clip import LoadedClip, load_clip
from teachonce.models.spec import Resize
from teachonce.objects.patience import tell_all
from teachonce.teaching.teacher import TeacherHead, head_of

# A worker runs two tasks: while one task is in the models, the other decodes its first images or writes its chunk.
OUTAGES = "teachonce-outages"  # the topic under which workers log that a server is away
BUILDERS = ("torch", "open_clip_torch", "timm", "transformers")
MODEL_TURN = threading.Lock()
_LOADING = threading.Lock()
_LENT: dict[str, LoadedClip] = {}


def worker_models(specs: Iterable[tuple[str, str]], compiled: bool, resize: Resize = "pillow") -> list[LoadedClip]:
    """Return the models of these (spec, weights digest), which are loaded on first use.

    Raises:
        FingerprintError: the weights are not those that the driver saw.
        DeviceFault: the device of this worker has no room for them.
    """
    with _LOADING:
        return [_model(spec, digest, compiled, resize, pick_device()) for spec, digest in specs]


def encode_names(
    model: tuple[str, str], compiled: bool, asked: str, names: Sequence[str], templates: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Class embeddings of names by a model of this worker, [C, D]: a task for drivers that hold no model on a GPU.

    Raises:
        FingerprintError, DeviceFault: as `worker_models`.
    """
    take_device(asked, worker_index())
    (clip,) = worker_models([model], compiled)
    with MODEL_TURN:
        return np.asarray(ensemble_features(clip, names, templates).cpu().numpy())


def lend(models: Iterable[LoadedClip]) -> None:
    """Let tasks in this process use models that it has loaded already."""
    _LENT.update({model.digest: model for model in models})


@functools.lru_cache(maxsize=8)
def _model(spec: str, digest: str, compiled: bool, resize: Resize, device: str) -> LoadedClip:
    loaded = _LENT.get(digest) or load_clip(spec, device)
    if loaded.digest != digest:
        raise FingerprintError(
            f"'{spec}' is the model {loaded.digest[:16]} on {socket.gethostname()} and {digest[:16]} where teach was "
            f"started: other weights, or the same weights in other modules of the libraries that build it, which are "
            f"here {_builders()}",
            hint="compare these versions with those of the driver (`pip list`), and install the same; then the files",
        )
    loaded = loaded.resized_by(resize)
    return loaded.compiled() if compiled else loaded


def _builders() -> str:
    """The libraries whose versions decide which modules a model is made of: their text is part of its digest."""
    return ", ".join(
        f"{name} {installed_version(name)}" for name in ("torch", "open_clip_torch", "timm", "transformers")
    )


@functools.lru_cache(maxsize=2)
def require_writable(store: Path, token: int) -> None:
    """Refuse to compute what this worker could not hand over: it tries once a run whether it may write there.

    Raises:
        EnvironmentFault: it may not, such as under another user than the driver's.
        IncompleteError: the write failed for another reason, such as a full disk.
    """
    if is_remote(store):
        keeper = BucketKeeper(store)
        keeper.discard(keeper.hand_over(token, 0, {"tried": b""})[0])
        return
    try:
        drop_staging(new_staging(store, token, 0))
    except OSError as problem:
        failed = write_failed(store, problem)
        if not isinstance(failed, EnvironmentFault):
            raise failed from problem
        raise failed.reworded(
            f"the worker on {socket.gethostname()} cannot write beside the label store, as user {_user()}: "
            + failed.message,
            "start the workers under a user who may write there, or let them: the folder of the store, and what is "
            f"called {store.name}.staging in it",
        ) from problem


def _user() -> str:
    try:
        return f"{pwd.getpwuid(os.geteuid()).pw_name} (uid {os.geteuid()})"
    except KeyError:  # containers run as numbers without a name
        return f"{os.geteuid()}"


def worker_store(path: Path, token: int) -> LabelStore:
    """Open the store of a run for reading; its vocabulary and tables are decoded once and not for every chunk.

    Raises:
        DataError, IntegrityError: as `LabelStore.open` raises them.
    """
    header = path / "zarr.json"
    changed = header.stat().st_mtime_ns if not is_remote(path) and header.exists() else 0
    with _LOADING:
        return _store(path, token, changed)


@functools.lru_cache(maxsize=2)
def _store(path: Path, token: int, changed: int) -> LabelStore:
    return LabelStore.open(path)


def worker_head(store: Path, store_key: str, logit_scale: float) -> TeacherHead:
    """Return the teacher's text side as the store keeps it; `store_key` tells apart stores at one path."""
    with _LOADING:
        return _head(store, store_key, logit_scale, pick_device())


@functools.lru_cache(maxsize=2)
def _head(store: Path, store_key: str, logit_scale: float, device: str) -> TeacherHead:
    return head_of(worker_class_embeddings(store, store_key), logit_scale, device)


@functools.lru_cache(maxsize=2)
def worker_class_embeddings(store: Path, store_key: str) -> npt.NDArray[np.float32]:
    """Return the class embeddings of a store, [C, D]."""
    return LabelStore.open(store).class_embeddings()


def timed_event() -> torch.cuda.Event:
    """Make a mark in a CUDA stream that knows when it was passed."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class PhaseClock:
    """Seconds by phase. Device phases are timed on the device's own clock, which is read once, at the end."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def add(self, phase: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    @contextmanager
    def on_host(self, phase: str) -> Iterator[None]:
        """Count the time of the block."""
        began = time.perf_counter()
        yield
        self.add(phase, time.perf_counter() - began)

    @contextmanager
    def on_device(self, phase: str) -> Iterator[None]:
        """Count the time that the block's work takes on the device, without waiting for the device."""
        if self._device.type != "cuda":
            with self.on_host(phase):
                yield
            return
        stream = torch.cuda.current_stream(self._device)
        first, last = timed_event(), timed_event()
        first.record(stream)
        yield
        last.record(stream)
        self._events.append((phase, first, last))

    def finish(self) -> dict[str, float]:
        """Return the seconds by phase; waits for the device."""
        for phase, first, last in self._events:
            last.synchronize()
            self.add(phase, first.elapsed_time(last) / 1000)  # elapsed_time is in milliseconds
        self._events.clear()
        return dict(self._seconds)


@functools.cache
def report_outages() -> None:
    """From now on, this worker's driver hears of servers that do not answer it; in a process without Dask nobody."""
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:
        return
    name = f"{worker.name} on {socket.gethostname()}"
    tell_all(lambda outage: worker.log_event(OUTAGES, {"who": name, **asdict(outage)}))
