"""Steps of training on a GPU: times, kernels, equal runs, and what each improvement is worth."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from gpu_bench import Bench, Clock, Row, config_of, emptied, products, text_clip, yes
from gpu_facts import kernels_of
from torch import Tensor
from train_parts import made_up_trainer, seconds_of, some_names

from teachonce.errors import TeachOnceError
from teachonce.memory.step import step_need
from teachonce.models.clip import LoadedClip
from teachonce.towers import blocks, causal_text, packing
from teachonce.towers.packing import KeptLayouts
from teachonce.towers.text_parts import TextParts
from teachonce.training import schedule, trainer
from teachonce.training.trainer import Trainer

MEGA = 1e6
FORMATS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "fp32": {"precision": "fp32"},
    "TF32": {"precision": "fp32", "tf32": True},
}
KINDS = ("sampled", "all")
FOR_ESTIMATES = 40  # seconds that must be left for an estimate to be made beside a measurement
FAILURES = (TeachOnceError, torch.OutOfMemoryError, ValueError, TypeError)


class CannotBeSwitchedError(Exception):
    """An improvement that this version lacks, or that cannot be taken away here; says why."""


def step_part(bench: Bench, clock: Clock) -> tuple[Row, list[Row]]:
    """Steps by number format and candidates, as they are by default."""
    clip, names, rows = text_clip(bench), some_names(bench.sizes.names), []
    for label, keys in FORMATS.items():
        for kind in KINDS:
            if clock.left < 0:
                rows.append((label, kind, "no time left", *[""] * 6))
                continue
            try:
                rows.append((label, kind, *_measured_step(bench, clip, names, kind, keys, clock)))
            except FAILURES as problem:
                rows.append((label, kind, said(problem), *[""] * 6))
            emptied(bench)
    steps = ("format", "candidates", "classes", "class_chunk", "s a step", "kernels")
    return (*steps, "peak MB", "estimated MB", "peak of estimate"), rows


def said(problem: BaseException) -> str:
    """One short line of an error, for a table."""
    return f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0][:90]}".replace("|", "/")


def pace(run: Trainer, bench: Bench, late: bool = True) -> float:
    """Seconds a step of some steps in a row.

    Args:
        late: a step's report is read when the next one is queued, as `train` does; else at once.
    """

    def steps() -> None:
        before = None
        for _ in range(bench.sizes.repeats):
            report = run.begin(1)
            if before is not None:
                before.read()
            before = report
            if not late:
                report.read()
        if before is not None:
            before.read()

    return seconds_of(steps, bench.device) / bench.sizes.repeats


def _measured_step(
    bench: Bench, clip: LoadedClip, names: Sequence[str], kind: str, keys: dict[str, Any], clock: Clock
) -> Row:
    config = config_of(bench, kind, **keys)
    with products(config):
        run = made_up_trainer(config, clip, names)
        candidates, chunk = int(run.step(0)["candidates"]), run.class_chunk
        if bench.cuda:
            torch.cuda.reset_peak_memory_stats(bench.device)
        seconds = pace(run, bench)
        peak = torch.cuda.max_memory_allocated(bench.device) if bench.cuda else 0
        kernels = kernels_of(lambda: run.step(1), bench.device)
    # The estimate is of bytes that are alive in tensors, as torch counts them in its maximum.
    tried = config.changed(class_chunk=min(chunk, candidates))
    estimate = step_need(tried, clip, run.rows).peak if bench.dry or clock.left > FOR_ESTIMATES else 0
    share = f"{peak / estimate:.2f}" if peak and estimate else ""
    figures = (f"{peak / MEGA:,.0f}", f"{estimate / MEGA:,.0f}" if estimate else "no time left", share)
    return f"{candidates:,}", f"{chunk:,}", f"{seconds:.4f}", f"{kernels:,}", *figures


@dataclass(frozen=True)
class Without:
    """How one improvement is taken away."""

    what: str
    patch: Callable[[], AbstractContextManager[object]] = nullcontext
    """Takes it away while it is open.

    Raises:
        CannotBeSwitchedError: says why that cannot be done here.
    """
    keys: dict[str, Any] = field(default_factory=dict)
    """Keys of the configuration that take it away."""
    anew: bool = True
    """Whether it needs a run of its own; else the run that has it is measured again."""
    late: bool = True
    of_run: Callable[[Trainer], None] = lambda run: None
    """Changes a run that has not begun."""
    formats: tuple[str, ...] = tuple(FORMATS)


class _Sliced:
    """torch, with slices in place of `split`: each writes a gradient of its own as large as the whole."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def split(x: Tensor, sizes: Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
        ends = torch.tensor(list(sizes)).cumsum(0).tolist()
        return tuple(x.narrow(dim, end - size, size) for size, end in zip(sizes, ends, strict=True))


@contextmanager
def _replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """Put something else in the place of a name of a module or a class, if it has that name."""
    if not hasattr(owner, name):
        raise CannotBeSwitchedError(f"this version has no {name}")
    with mock.patch.object(owner, name, value):
        yield


@contextmanager
def _slices() -> Iterator[None]:
    """Slices in both ways of attention: that of names as they are, and that of padded ones."""
    with _replaced(causal_text, "torch", _Sliced()), _replaced(blocks, "torch", _Sliced()):
        yield


def _rows_of_the_host() -> AbstractContextManager[object]:
    """Rows that are read and copied for each step, where rows can stay on the GPU at all."""
    source = getattr(trainer, "RowSource", None)
    if source is None:
        raise CannotBeSwitchedError("this version keeps no rows on the GPU")
    return _replaced(trainer, "source_of", lambda rows, wanted, device, taken: source(rows, wanted, device))


def _plain_optimiser(run: Trainer) -> None:
    if "fused" not in inspect.signature(schedule.optimizer_of).parameters:
        raise CannotBeSwitchedError("this version's optimiser is not fused")
    run.optimizer = schedule.optimizer_of(run.config, run.student, fused=False)  # type: ignore[call-arg, unused-ignore]


def _make_anew(kept: KeptLayouts[Any], names: object, chunk: object, key: object, make: Callable[[], object]) -> object:
    return make()


WITHOUT = (
    Without("a: split in attention (slices)", _slices, anew=False),
    Without("b: layouts kept (made in each step)", lambda: _replaced(KeptLayouts, "of", _make_anew), anew=False),
    Without(
        "d: frozen matrices cast once (by autocast)",
        lambda: _replaced(TextParts, "prepared", lambda parts: parts),
        anew=False,
        formats=("bf16",),
    ),
    Without("g: report read late (at once)", anew=False, late=False),
    Without("c: class_chunk auto (1,024)", keys={"class_chunk": 1024}),
    Without("e: lengths merged (a call for each)", lambda: _replaced(packing, "merges_lengths", lambda device: False)),
    Without("b: rows resident (read for each step)", _rows_of_the_host),
    Without("g: fused optimiser (plain)", of_run=_plain_optimiser),
)
"""In this order, and first those that need no run of their own; `compile`, f, is added and not taken away."""
COMPILED = Without("f: nothing compiled (with compile)", keys={"compile": True})
COMPILING = 45.0  # seconds that are not begun with fewer left


def without_part(bench: Bench, clock: Clock) -> tuple[Row, list[Row]]:
    """Each improvement taken away alone."""
    clip, names, rows = text_clip(bench), some_names(bench.sizes.names), list[Row]()
    for label, keys in FORMATS.items():
        for kind in KINDS:
            if clock.left < 0:
                rows.append((label, kind, "no time left", *[""] * 4))
                continue
            rows += [(label, kind, *row) for row in _taken_away(bench, clock, clip, names, kind, label, keys)]
            emptied(bench)
    if bench.dry or clock.left < COMPILING:
        rows.append(
            ("bf16", "all", COMPILED.what, "not tried: " + ("a dry run" if bench.dry else "no time"), *[""] * 3)
        )
    else:
        seconds, kernels = _one(bench, clip, names, "all", FORMATS["bf16"], COMPILED)
        rows.append(("bf16", "all", COMPILED.what, "", seconds, "", kernels))
    return ("format", "candidates", "improvement (and without it)", "s with", "s without", "kernels", "without"), rows


def _taken_away(
    bench: Bench, clock: Clock, clip: LoadedClip, names: Sequence[str], kind: str, label: str, keys: dict[str, Any]
) -> Iterator[Row]:
    config = config_of(bench, kind, **keys)
    with products(config):
        try:
            run = made_up_trainer(config, clip, names)
            run.step(0)
            seconds = pace(run, bench)
            kernels = kernels_of(lambda: run.step(1), bench.device)
        except FAILURES as problem:
            yield "all of them", said(problem), "", "", ""
            return
        for one in WITHOUT:
            if label not in one.formats:
                continue
            if clock.left < 0:
                yield one.what, "no time left", "", "", ""
                return
            alone = _one(bench, clip, names, kind, keys, one, None if one.anew else run)
            yield one.what, f"{seconds:.4f}", alone[0], f"{kernels:,}", alone[1]


def _one(
    bench: Bench,
    clip: LoadedClip,
    names: Sequence[str],
    kind: str,
    keys: dict[str, Any],
    one: Without,
    run: Trainer | None = None,
) -> tuple[str, str]:
    """Seconds and kernels of a step without one improvement, or what is in the way, and nothing."""
    try:
        with one.patch():
            if run is None:
                run = made_up_trainer(config_of(bench, kind, **keys, **one.keys), clip, names)
                one.of_run(run)
            run.step(0)  # the first step without it makes ready what later ones use
            seconds = pace(run, bench, one.late)
            kernels = kernels_of(lambda: run.step(1), bench.device)
        return f"{seconds:.4f}", f"{kernels:,}"
    except CannotBeSwitchedError as problem:
        return f"not tried: {problem}", ""
    except FAILURES as problem:
        return said(problem), ""


def repeat_part(bench: Bench, clock: Clock) -> tuple[Row, list[Row]]:
    """Two equal runs."""
    clip, names, rows = text_clip(bench), some_names(bench.sizes.names), []
    for label in ("fp32", "bf16"):
        for kind in ("sampled", "all"):
            if clock.left < 0:
                rows.append((label, kind, "no time left"))
                continue
            config, results = config_of(bench, kind, **FORMATS[label]), []
            for _ in range(2):
                run = made_up_trainer(config, clip, names)
                for number in range(3):
                    run.step(number)
                results.append([parameter.detach().cpu() for parameter in run.learners.parameters()])
            rows.append((label, kind, yes(all(map(torch.equal, *results)))))
            emptied(bench)
    return ("number format", "candidates", "prompts equal to the bit after 3 steps"), rows
