"""Cases `all`, `memory` and `gpu`: time and memory of steps over the whole vocabulary, on rows that are made up.

These cases read no store: what a step from cache costs does not depend on what the rows hold.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from train_parts import (
    GIGA,
    StepResult,
    by_turns,
    count_flops,
    made_up_clip,
    made_up_trainer,
    same_prompts,
    say,
    seconds_of,
    some_names,
    step_of,
    table,
)

from teachonce.core.devices import pick_device
from teachonce.models.clip import LoadedClip, load_clip, tune_process
from teachonce.recipe.config import TrainConfig
from teachonce.training.trainer import Trainer

Kind = Literal["all", "all-sampled", "sampled"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CPU = torch.device("cpu")
IMAGES, EPOCHS, GPU_BATCH = 167_200, 5, 1024  # 16 shots of ImageNet-21K-P, POMP's pre-training
MEGA = 1e6


def config_of(args: argparse.Namespace, candidates: Kind, **changes: Any) -> TrainConfig:
    """Configure a run that takes every class, or some classes."""
    drawn = args.candidates
    return TrainConfig.of(
        structure=args.structure,
        batch_size=args.batch,
        candidates=candidates,
        sampled_fill=drawn,
        sampled_backward=drawn,
        sampled_top=0,
        **changes,
    )


@dataclass(frozen=True)
class Request:
    """A request for one step in a fresh process."""

    student: str | None  # None: a random tower of ViT-B/16's size
    config: TrainConfig
    names: int
    repeats: int
    threads: int


@dataclass(frozen=True, eq=False)
class Growth:
    """What a fresh process measured."""

    distinct: int
    before: float
    """Bytes of memory before the step."""
    grown: float
    """Bytes at the peak of the first step beyond those before it."""
    first: float
    seconds: float
    """Median seconds of later steps; of the first step if there were no others."""
    result: StepResult


def grow(request: Request) -> Growth:
    """Measure the growth of memory; run this in a process of its own."""
    torch.set_num_threads(request.threads)
    clip = made_up_clip() if request.student is None else load_clip(request.student)
    trainer = made_up_trainer(request.config, clip, some_names(request.names))
    results: list[StepResult] = []
    # `getrusage` would start from the peak of the process that started this one, so the kernel's own marks are read.
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    first = seconds_of(lambda: results.append(step_of(trainer, 0)), CPU)
    peak = _memory("VmHWM")
    tune_process(request.threads)  # as `teachonce train` does; before this call, freed memory goes back to the system
    times = by_turns({"": lambda: step_of(trainer, 1)}, request.repeats, CPU) if request.repeats else {"": first}
    return Growth(trainer.student.names.count, before, peak - before, first, times[""], results[0])


def _memory(mark: str) -> float:
    """Return VmRSS or VmHWM of this process, in bytes."""
    match = re.search(rf"{mark}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if match is None:
        raise SystemExit(f"/proc/self/status does not tell {mark}; memory is measured on Linux only")
    return 1024.0 * int(match[1])


def in_fresh_process(request: Request) -> Growth:
    """Run `grow` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(grow, request).result()


def all_case(args: argparse.Namespace) -> None:
    """Compare all classes with some, and measure all of them as their number grows."""
    _modes(args, load_clip(args.student))
    sizes = [size for size in (1_000, 2_000, 5_000, 10_000) if size < args.most_names] + [args.most_names]
    small, large = args.chunks
    cases = [(size, large) for size in sizes] + [(sizes[-1], small)]
    rows, growths = [], []
    for size, chunk in cases:
        request = Request(args.student, config_of(args, "all", class_chunk=chunk), size, args.repeats, args.threads)
        growths.append(in_fresh_process(request))
        last = growths[-1]
        rows.append(
            [
                f"{size:,}",
                f"{last.distinct:,}",
                str(chunk),
                f"{last.seconds:.2f}",
                f"{1000 * last.seconds / last.distinct:.2f}",
                f"{last.grown / MEGA:,.0f}",
            ]
        )
    say(f"### all: an all-class step as the vocabulary grows, batch {args.batch}, {args.structure}, fresh processes")
    table(["classes", "distinct names", "class_chunk", "seconds", "ms a name", "peak memory of the step, MB"], rows)
    loss, gradients = growths[-1].result.apart(growths[-2].result)
    say(
        f"Both chunk sizes at {sizes[-1]:,} classes: loss differs by {loss:.1e}, gradients by {gradients:.1e}. "
        f"The logits of a step, batch x classes, take {4 * args.batch * sizes[-1] / MEGA:,.0f} MB a copy."
    )


def _modes(args: argparse.Namespace, clip: LoadedClip) -> None:
    names, kinds = some_names(args.most_names), KINDS
    runs = {kind: made_up_trainer(config_of(args, kind), clip, names) for kind in kinds}
    results: dict[Kind, StepResult] = {}

    def one(kind: Kind) -> None:
        results[kind] = step_of(runs[kind], 0)

    flops = {kind: count_flops(partial(one, kind)) for kind in kinds}
    first = dict(results)  # these steps are the first ones, where prompts are equal
    same_prompts(list(runs.values()))
    times = by_turns({kind: partial(one, kind) for kind in kinds}, args.repeats, CPU)
    rows = []
    for kind in kinds:
        loss, gradients = first[kind].apart(first["all"])
        rows.append(
            [
                kind,
                f"{first[kind].candidates:,}",
                f"{times[kind]:.2f}",
                f"{times[kind] / times['sampled']:.1f}",
                f"{flops[kind] / GIGA:,.1f}",
                f"{flops[kind] / flops['sampled']:.1f}",
                f"{loss:.1e}",
                f"{gradients:.1e}",
            ]
        )
    say(f"### all: {args.most_names:,} classes, batch {args.batch}, {args.structure}, {args.threads} threads")
    table(
        [
            "candidates",
            "classes in the softmax",
            "seconds, median",
            "over sampled",
            "GFLOP",
            "over sampled",
            "loss differs from `all` by",
            "gradients, worst tensor, by",
        ],
        rows,
    )
    say(
        f"all-sampled pulls back {args.candidates:,} names on average: its loss is exact, its gradient unbiased. "
        "sampled estimates both. On real rows their errors differ: these are random."
    )


def memory_case(args: argparse.Namespace) -> None:
    """Measure one all-class step of a text tower of ViT-B/16's size by chunk, and estimate what one shot would take."""

    def request(names: int, chunk: int) -> Request:
        return Request(None, config_of(args, "all", class_chunk=chunk), names, 0, args.threads)

    chunked = {chunk: in_fresh_process(request(args.memory_names, chunk)) for chunk in args.chunks}
    shots = [in_fresh_process(request(names, names)) for names in args.shots]
    two_pass = in_fresh_process(request(args.shots[0], args.chunks[0]))
    slope = (shots[1].grown - shots[0].grown) / (shots[1].distinct - shots[0].distinct)
    one = next(iter(chunked.values()))
    needed = shots[1].grown + slope * (one.distinct - shots[1].distinct)
    rows = [
        [
            f"{args.memory_names:,}",
            f"{growth.distinct:,}",
            f"chunks of {chunk}",
            f"{growth.first:.0f}",
            f"{growth.grown / MEGA:,.0f}",
        ]
        for chunk, growth in chunked.items()
    ]
    rows += [
        [f"{names:,}", f"{growth.distinct:,}", "one shot", f"{growth.first:.0f}", f"{growth.grown / MEGA:,.0f}"]
        for names, growth in zip(args.shots, shots, strict=True)
    ]
    rows.append([f"{args.memory_names:,}", f"{one.distinct:,}", "one shot, extrapolated", "", f"{needed / MEGA:,.0f}"])
    say(f"### memory: an all-class step, 12 blocks of width 512, batch {args.batch}, {args.structure}")
    table(["classes", "distinct names", "way", "seconds", "peak memory of the step, MB"], rows)
    same = [growth.result.apart(one.result) for growth in chunked.values()]
    pairs = [
        ("the chunk sizes", same[-1]),
        (f"chunks and one shot at {args.shots[0]:,} classes", two_pass.result.apart(shots[0].result)),
    ]
    for what, (loss, gradients) in pairs:
        say(f"Between {what}: loss differs by {loss:.1e}, gradients by {gradients:.1e}, relative.")
    say(f"One shot takes {slope / MEGA:.2f} MB more a name; the extrapolation is linear in names.")


def gpu_case(args: argparse.Namespace) -> None:
    """Measure steps of a ViT-B/16 student from cache over all classes, on the GPU at hand."""
    if not torch.cuda.is_available():
        say("### gpu: there is no CUDA device here; nothing was measured")
        return
    say(f"### gpu: {torch.cuda.get_device_name()}")
    gpu_steps(replace_batch(args, GPU_BATCH), torch.device(pick_device()))


def replace_batch(args: argparse.Namespace, batch: int) -> argparse.Namespace:
    """Return the same options with another batch."""
    return argparse.Namespace(**{**vars(args), "batch": batch})


def gpu_steps(args: argparse.Namespace, device: torch.device) -> None:
    """Measure time and memory by precision and candidates; `device` may be the CPU, to try it out."""
    names, rows = some_names(args.most_names), []
    clip = replace(made_up_clip(), device=device)
    clip.model.to(device)
    base: dict[str, StepResult] = {}
    for label, precision, tf32 in (("fp32", "fp32", False), ("TF32", "fp32", True), ("bf16", "bf16", False)):
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        for kind in KINDS:
            run = made_up_trainer(config_of(args, kind, precision=precision), clip, names)
            result = step_of(run, 0)
            loss, gradients = result.apart(base.setdefault(kind, result))
            seconds, peak = _on_device(run, args.repeats, device)
            hours = seconds * EPOCHS * -(-IMAGES // args.batch) / 3600
            rows.append(
                [
                    label,
                    kind,
                    f"{result.candidates:,}",
                    f"{seconds:.3f}",
                    f"{peak / MEGA:,.0f}",
                    f"{hours:.2f}",
                    f"{loss:.1e}",
                    f"{gradients:.1e}",
                ]
            )
    torch.set_float32_matmul_precision("highest")
    say(f"A ViT-B/16 student's step from cache, {args.most_names:,} classes, batch {args.batch:,}, {args.structure}")
    table(
        [
            "precision",
            "candidates",
            "classes in the softmax",
            "seconds, median",
            "peak memory, MB",
            f"hours, {IMAGES:,} images, {EPOCHS} epochs",
            "loss differs from fp32 by",
            "gradients",
        ],
        rows,
    )


def _on_device(run: Trainer, repeats: int, device: torch.device) -> tuple[float, float]:
    """Return the median seconds of a step after a first one, and bytes at the peak of these steps."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    one: dict[str, Callable[[], object]] = {"": lambda: run.step(1)}
    seconds = by_turns(one, repeats, device)[""]
    return seconds, float(torch.cuda.max_memory_allocated(device)) if cuda else 0.0
