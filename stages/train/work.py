"""The work of `train`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

from teachonce.core.progress import Reporter
from teachonce.errors import UsageError
from teachonce.labels.selection import Selection, load_selection
from teachonce.labels.store import LabelStore
from teachonce.models.spec import require_model
from teachonce.phrases import phrase
from teachonce.rows.pairing import Expected, require_origin
from teachonce.runs import folder as run_folder
from teachonce.runs.tensorboard import require_packages
from teachonce.stages.train.request import TrainDryRun, TrainRequest, TrainResult
from teachonce.stages.train.served import holdings, require_images, require_served


def train(request: TrainRequest, reporter: Reporter) -> TrainResult:
    """Train until the configured number of steps; SIGTERM and Ctrl-C checkpoint first.

    The stage's `train` says what is raised.
    """
    began = time.monotonic()
    _check_request(request)
    if request.resume:
        request = _as_begun(request)
        _check_folder(request)
    else:
        run_folder.holds_run(request.folder)  # refuses a folder of something else before a lock file is made there
    if not request.folder.exists():  # the folder is made when all else is in order
        return _train(request, lambda: _owned(request), began, reporter)
    with _owned(request):
        return _train(request, contextlib.nullcontext, began, reporter)


@contextlib.contextmanager
def _owned(request: TrainRequest) -> Iterator[None]:
    """Hold the run folder as its only writer, and check again that a run may be begun or resumed there."""
    with run_folder.only_writer(request.folder):
        _check_folder(request)  # checked again, because another process may have begun a run meanwhile
        yield


def _train(
    request: TrainRequest, own_folder: Callable[[], AbstractContextManager[None]], began: float, reporter: Reporter
) -> TrainResult:
    store, selection = _opened(request)

    from teachonce.stages.train.steps import take_steps  # torch and open_clip, when all is in order

    return take_steps(request, store, selection, own_folder, began, reporter)


def dry_run(request: TrainRequest, reporter: Reporter) -> TrainDryRun:
    """Check a run and estimate its memory; the stage's `dry_run` says what is raised."""
    _check_request(request)
    if request.out is not None or request.resume:
        request = _as_begun(request) if request.resume else request
        run_folder.holds_run(request.folder)
        _check_folder(request)
    store, selection = _opened(request)

    from teachonce.stages.train.dry import estimated  # torch and open_clip, when all is in order

    return estimated(request, store, selection, reporter)


def _opened(request: TrainRequest) -> tuple[LabelStore, Selection | None]:
    """The store and the selection of a run that they can serve."""
    store = LabelStore.open(request.labels)
    require_served(request.config, store, holdings(store))
    expected = Expected(manifest=request.manifest, split=request.split, vocabulary=request.vocabulary)
    require_origin(store, expected, request.root)
    selection = None if request.selection is None else load_selection(request.selection, store)
    require_served(request.config, store, holdings(store, selection))
    return store, selection


def _check_request(request: TrainRequest) -> None:
    """What can be known before a store is opened."""
    require_packages(request.log)
    require_model(request.student)
    require_images(request.config, request.root)
    if request.init is not None and not request.init.is_dir():
        raise UsageError(
            f"{request.init} is not a folder with prompts",
            hint=phrase("give the {out} folder of `teachonce train` or of `teachonce import`"),
        )


def _as_begun(request: TrainRequest) -> TrainRequest:
    """The request with the number format that the run has, where the device should decide: it has been decided."""
    if request.config.loop.precision != "auto":
        return request
    stored = run_folder.stored_value(request.folder, "precision")
    return request if stored is None else replace(request, config=request.config.changed(precision=stored))


def _check_folder(request: TrainRequest) -> None:
    if request.resume:
        run_folder.require_same(request.folder, request.config.to_dict())
    else:
        run_folder.require_new(request.folder)
