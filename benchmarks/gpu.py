"""What only a GPU can show, in one command of at most eight minutes: speed, memory, equality and messages.

    python benchmarks/gpu.py [--out REPORT.md] [--parts facts,step,...] [--device cuda:0]
    python benchmarks/gpu.py --dry-run        every part with tiny sizes, on a CPU too; in seconds

facts    the device, the drivers and the versions
pixels   bytes of pixels scaled on the device, and the top k with ties, against the CPU: equal bits, and rates
step     a training step with a text tower of ViT-B/16's size by number format, candidates and class_chunk: seconds,
         kernels, peak memory beside the estimate of `train --dry-run`
repeat   two equal runs of some steps: are the prompts equal to the bit?
teach    stage one over made-up photos, a teacher of ViT-L/14's size and a student of ViT-B/16's: rates, phases
memory   memory that is not there: what loading, a step and a batch of images say
tests    pytest -m gpu

A part that runs out of its seconds says what it left out; a part that fails says so, the others still run, and the
script ends with exit code 1. The report grows part by part, so that an end in the middle leaves what was measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_facts import facts, kernels_of
from teach_images import write_photos
from teach_parts import made_up_clip as made_up_folder
from train_parts import made_up_clip, made_up_trainer, seconds_of, some_names

from teachonce.core.progress import Silent
from teachonce.errors import TeachOnceError
from teachonce.memory.step import step_need
from teachonce.models.clip import LoadedClip, load_clip, tune_process
from teachonce.stages import teach
from teachonce.teaching.teacher import begin_soft_labels, exact_topk
from teachonce.training.config import TrainConfig

Row = Sequence[str]
MEGA = 1e6
SECONDS = {"facts": 5, "pixels": 25, "step": 150, "repeat": 40, "teach": 130, "memory": 30, "tests": 95}
"""The seconds of each part; together at most eight minutes. A part looks at its clock between measurements."""
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "TF32": {"tf32": True},
    "bf16": {"precision": "bf16"},
    "bf16, class_chunk 8192": {"precision": "bf16", "class_chunk": 8192},
    "bf16, class_chunk auto": {"precision": "bf16", "class_chunk": "auto"},
    "fp32, class_chunk 8192": {"class_chunk": 8192},
}
FOR_ESTIMATES = 40  # seconds that must be left for an estimate to be made beside a measurement


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    names: int = 21_000
    batch: int = 1024
    drawn: int = 1000
    width: int = 512
    layers: int = 12
    repeats: int = 5
    photos: int = 200
    copies: int = 100
    rows: int = 128
    teacher: tuple[int, int, int] = (24, 1024, 14)
    """Layers, width and patch of the teacher's image tower."""
    student: tuple[int, int, int] = (12, 768, 16)
    vocabulary: str | None = "timm:imagenet22k/first-lemma"


TINY = Sizes(60, 16, 20, 64, 1, 1, 6, 2, 4, (1, 64, 32), (1, 64, 32), None)


class Clock:
    """The seconds that a part has left."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        """Seconds until the end of the part; below zero behind it."""
        return self._end - time.perf_counter()


@dataclass(frozen=True)
class Bench:
    """What all parts share."""

    device: torch.device
    sizes: Sizes
    folder: Path
    dry: bool

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU of CUDA."""
        return self.device.type == "cuda"


def facts_part(bench: Bench, clock: Clock) -> tuple[Row, list[Row]]:
    """The machine."""
    return ("fact", "value"), facts(bench.device)


def pixels_part(bench: Bench, clock: Clock) -> tuple[Row, list[Row]]:
    """Scaling and top k against the CPU."""
    clip = load_clip(made_up_folder(bench.folder / "pixels", 64, **_vision(TINY.teacher)))
    there = dataclasses.replace(clip, device=bench.device)
    pixels = torch.randint(0, 256, (bench.sizes.rows, 3, 224, 224), dtype=torch.uint8)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    pixels = pixels.pin_memory() if bench.cuda else pixels
    same = torch.equal(there.placed(pixels).cpu(), clip.placed(pixels))
    seconds = seconds_of(lambda: there.placed(pixels), bench.device)
    floats = clip.placed(pixels)
    before = seconds_of(lambda: there.placed(floats), bench.device)
    rows: list[Row] = [
        ("bytes scaled on the device equal the CPU's", _yes(same)),
        (f"{len(pixels)} images of bytes placed, ms", f"{1000 * seconds:.2f}"),
        (f"{len(pixels)} images of floats placed (pageable), ms", f"{1000 * before:.2f}"),
    ]
    logits = (3 * torch.randn(bench.sizes.rows, bench.sizes.names)).round_()
    there_logits = logits.to(bench.device)
    ids, values = exact_topk(there_logits, 10)
    equal = all(torch.equal(a.cpu(), b) for a, b in zip((ids, values), exact_topk(logits, 10), strict=True))
    began = seconds_of(lambda: begin_soft_labels(there_logits, 10, (1.0, 2.0, 4.0)), bench.device)
    plain = seconds_of(lambda: torch.topk(there_logits, 10), bench.device)
    rows += [
        ("top 10 with ties in every row equals the CPU's", _yes(equal)),
        (f"top 10 and tails of {len(logits)} x {logits.shape[1]:,}, ms", f"{1000 * began:.2f}"),
        ("torch.topk alone, ties as they come, ms", f"{1000 * plain:.2f}"),
    ]
    return ("what", "found"), rows


def step_part(bench: Bench, clock: Clock) -> tuple[Row, list[Row]]:
    """Steps by number format, candidates and class_chunk."""
    clip, names, rows = _text_clip(bench), some_names(bench.sizes.names), []
    for label, keys in VARIANTS.items():
        for kind in ("sampled", "all"):
            if clock.left < 0:
                rows.append((label, kind, "no time left", *[""] * 5))
                continue
            try:
                rows.append((label, kind, *_measured_step(bench, clip, names, kind, keys, clock)))
            except (TeachOnceError, torch.OutOfMemoryError, ValueError, TypeError) as problem:
                rows.append((label, kind, f"{type(problem).__name__}: {str(problem).splitlines()[0][:90]}", *[""] * 5))
            _empty(bench)
    head = ("variant", "candidates", "classes", "s a step", "kernels", "peak MB", "estimated MB", "peak of estimate")
    return head, rows


def _measured_step(
    bench: Bench, clip: LoadedClip, names: Sequence[str], kind: str, keys: dict[str, Any], clock: Clock
) -> Row:
    config = _config(bench, kind, **keys)
    with _products(config):
        run = made_up_trainer(config, clip, names)
        candidates = int(run.step(0)["candidates"])
        if bench.cuda:
            torch.cuda.reset_peak_memory_stats(bench.device)
        seconds = sorted(seconds_of(lambda: run.step(1), bench.device) for _ in range(bench.sizes.repeats))
        peak = torch.cuda.max_memory_allocated(bench.device) if bench.cuda else 0
        kernels = kernels_of(lambda: run.step(2), bench.device)
    # The estimate is of bytes that are alive in tensors, as torch counts them in its maximum.
    estimate = step_need(config, clip, run.rows).peak if bench.dry or clock.left > FOR_ESTIMATES else 0
    share = f"{peak / estimate:.2f}" if peak and estimate else ""
    figures = (f"{peak / MEGA:,.0f}", f"{estimate / MEGA:,.0f}" if estimate else "no time left", share)
    return (f"{candidates:,}", f"{seconds[len(seconds) // 2]:.4f}", f"{kernels:,}", *figures)


def repeat_part(bench: Bench, clock: Clock) -> tuple[Row, list[Row]]:
    """Two equal runs."""
    clip, names, rows = _text_clip(bench), some_names(bench.sizes.names), []
    for label in ("fp32", "bf16"):
        for kind in ("sampled", "all"):
            if clock.left < 0:
                rows.append((label, kind, "no time left"))
                continue
            config, results = _config(bench, kind, **VARIANTS[label]), []
            for _ in range(2):
                run = made_up_trainer(config, clip, names)
                for number in range(3):
                    run.step(number)
                results.append([parameter.detach().cpu() for parameter in run.learners.parameters()])
            rows.append((label, kind, _yes(all(map(torch.equal, *results)))))
            _empty(bench)
    return ("number format", "candidates", "prompts equal to the bit after 3 steps"), rows


def teach_part(bench: Bench, clock: Clock) -> tuple[Row, list[Row]]:
    """Stage one, with a worker of its own; photos and models are made up before."""
    sizes, root = bench.sizes, bench.folder / "photos"
    began = time.perf_counter()
    write_photos(root, sizes.photos, sizes.copies)
    teacher = made_up_folder(bench.folder / "teacher", 768, **_vision(sizes.teacher))
    student = made_up_folder(bench.folder / "student", 512, **_vision(sizes.student))
    prepared = time.perf_counter() - began
    request = teach.TeachRequest(
        labels=bench.folder / "labels.zarr",
        data=teach.TaughtData(manifest="local-tars", root=root, vocabulary=sizes.vocabulary),
        teacher=teacher,
        students=(student,),
        kept=teach.Kept(top_k=100 if sizes.vocabulary else 2),
        computing=teach.Computing(precision="bf16" if bench.cuda else "fp32", batch_size=sizes.rows),
    )
    began = time.perf_counter()
    done = teach.teach(request, Silent())
    seconds = time.perf_counter() - began
    images = sizes.photos * sizes.copies
    rows: list[Row] = [
        ("photos and models made up, s", f"{prepared:.1f}"),
        ("whole command, s", f"{seconds:.1f}"),
        ("rows", f"{done.rows_ok:,} of {images:,}"),
        ("rows a second, from the first task on", f"{done.rows_per_second:,.0f}"),
        *(
            (f"phase {name}, s (reading and decoding: summed over threads)", f"{s:.1f}")
            for name, s in done.phases.items()
        ),
        ("bottleneck", done.bottleneck),
    ]
    return ("what", "found"), rows


def memory_part(bench: Bench, clock: Clock) -> tuple[Row, list[Row]]:
    """What is said where memory is short; the process gives itself a small share of the GPU for it."""
    head = ("place", "error", "exit", "message and hint")
    if not bench.cuda:
        return head, [("all", "not tried: no GPU", "", "")]
    spec = made_up_folder(bench.folder / "short", 768, **_vision(bench.sizes.teacher))
    clip, names = _text_clip(bench), some_names(bench.sizes.names)
    run = made_up_trainer(_config(bench, "all", class_chunk=8192), clip, names)
    images = load_clip(spec, str(bench.device))
    pixels = torch.zeros(4096, 3, 224, 224, dtype=torch.uint8)
    places: dict[str, Callable[[], object]] = {
        "load a model": lambda: load_clip(spec, str(bench.device)),
        "training step": lambda: run.step(0),
        "batch of images": lambda: images.encode_images(pixels),
    }
    rows = []
    for place, work in places.items():
        _empty(bench)
        with _short_memory(bench.device):
            rows.append((place, *_said(work)))
    return head, rows


def _said(work: Callable[[], object]) -> Row:
    try:
        work()
    except TeachOnceError as problem:
        return type(problem).__name__, str(problem.exit_code), f"{problem.message} / {problem.hint}".replace("\n", " ")
    except Exception as problem:  # noqa: BLE001 - the report shows whatever comes
        return type(problem).__name__, "not ours", " ".join(str(problem).split())[:200]
    return "none", "", "there was memory enough"


@contextmanager
def _short_memory(device: torch.device) -> Iterator[None]:
    """Leave this process 64 MB more than it has."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + 64e6) / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def tests_part(bench: Bench, clock: Clock) -> tuple[Row, list[Row]]:
    """The tests that need a GPU; a dry run only collects them."""
    tests = Path(__file__).resolve().parent.parent / "tests/gpu"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(tests)]
    command += ["--collect-only"] if bench.dry else []
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, clock.left), check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError("the tests took longer than this part may") from None
    lines = ran.stdout.strip().splitlines()
    if ran.returncode:
        raise RuntimeError("\n".join([f"pytest ended with {ran.returncode}", *lines[-25:]]))
    return ("pytest -m gpu",), [(line,) for line in lines[-1:]]


PARTS: dict[str, Callable[[Bench, Clock], tuple[Row, list[Row]]]] = {
    "facts": facts_part,
    "pixels": pixels_part,
    "step": step_part,
    "repeat": repeat_part,
    "teach": teach_part,
    "memory": memory_part,
    "tests": tests_part,
}


def _yes(holds: bool) -> str:
    return "yes" if holds else "NO"


def _vision(size: tuple[int, int, int]) -> dict[str, int]:
    layers, width, patch = size
    return {"layers": layers, "width": width, "head_width": 64, "patch_size": patch, "image_size": 224}


def _text_clip(bench: Bench) -> LoadedClip:
    clip = made_up_clip(bench.sizes.width, bench.sizes.layers)
    clip.model.to(bench.device)
    return dataclasses.replace(clip, device=bench.device)


def _config(bench: Bench, kind: str, **keys: Any) -> TrainConfig:
    sizes = bench.sizes
    return TrainConfig.of(
        batch_size=sizes.batch,
        candidates=kind,
        sampled_fill=sizes.drawn,
        sampled_backward=sizes.drawn,
        sampled_top=0,
        **keys,
    )


@contextmanager
def _products(config: TrainConfig) -> Iterator[None]:
    """Take products in TF32 where the configuration allows it."""
    torch.set_float32_matmul_precision("high" if config.loop.tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def _empty(bench: Bench) -> None:
    if bench.cuda:
        torch.cuda.empty_cache()


def report(bench: Bench, parts: Sequence[str], write: Callable[[str], None]) -> bool:
    """Run the parts and write a table of each; returns whether none of them failed."""
    sound = True
    for name in parts:
        began = time.perf_counter()
        try:
            head, rows = PARTS[name](bench, Clock(SECONDS[name]))
            lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
        except Exception:  # noqa: BLE001 - one part that fails leaves the others their turn
            sound, lines = False, ["FAILED", "", "```", traceback.format_exc().strip(), "```"]
        seconds = time.perf_counter() - began
        write("\n".join([f"## {name}: {seconds:.1f} s of {SECONDS[name]}", "", *lines, ""]))
    return sound


def main() -> int:
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a file for the report, which is printed in any case")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated; default: all")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if wrong := set(parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(wrong))}: none of {', '.join(PARTS)}")
    if args.device == "cpu" and not args.dry_run:
        parser.error("there is no GPU here; --dry-run tries the script without one")
    tune_process(1 if args.dry_run else 4)
    if args.out:
        args.out.write_text("")

    def write(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        if args.out:
            with args.out.open("a") as file:
                file.write(text + "\n")

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(torch.device(args.device), TINY if args.dry_run else Sizes(), Path(folder), args.dry_run)
        return 0 if report(bench, parts, write) else 1


if __name__ == "__main__":
    sys.exit(main())
