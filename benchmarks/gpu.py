"""What only a GPU can show, in one command of at most eight minutes: speed, memory, equality and messages.

    python benchmarks/gpu.py [--out REPORT.md] [--parts facts,step,...] [--device cuda:0]
    python benchmarks/gpu.py --dry-run        every part with tiny sizes, on a CPU too; in seconds

facts    the device, the drivers and the versions
pixels   bytes of pixels scaled on the device, and the top k with ties, against the CPU: equal bits, and rates
step     a training step with a text tower of ViT-B/16's size by number format and candidates: seconds, kernels, peak
         memory beside the estimate of `train --dry-run`
without  the same steps without each of the things that make them fast: seconds and kernels with and without
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
from pathlib import Path

import torch
from gpu_bench import TINY, Bench, Clock, Row, Sizes, config_of, emptied, text_clip, yes
from gpu_facts import facts
from gpu_steps import repeat_part, step_part, without_part
from teach_images import write_photos
from teach_parts import made_up_clip as made_up_folder
from train_parts import made_up_trainer, seconds_of, some_names

from teachonce.core.progress import Silent
from teachonce.errors import TeachOnceError
from teachonce.models.clip import load_clip, tune_process
from teachonce.stages import teach
from teachonce.teaching.teacher import begin_soft_labels, exact_topk

SECONDS = {"facts": 5, "pixels": 25, "step": 50, "without": 100, "repeat": 40, "teach": 130, "memory": 30, "tests": 95}
"""The seconds of each part; together at most eight minutes. A part looks at its clock between measurements."""


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
        ("bytes scaled on the device equal the CPU's", yes(same)),
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
        ("top 10 with ties in every row equals the CPU's", yes(equal)),
        (f"top 10 and tails of {len(logits)} x {logits.shape[1]:,}, ms", f"{1000 * began:.2f}"),
        ("torch.topk alone, ties as they come, ms", f"{1000 * plain:.2f}"),
    ]
    return ("what", "found"), rows


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
        ("within forward: copying and scaling the pixels once, measured alone, s", f"{_copy(bench, student):.1f}"),
        ("bottleneck", done.bottleneck),
    ]
    return ("what", "found"), rows


def _copy(bench: Bench, spec: str) -> float:
    """Seconds in which the pixels of all photos get to the device and are scaled there: models alike share them."""
    clip, sizes = load_clip(spec, str(bench.device)), bench.sizes
    pixels = torch.zeros(sizes.rows, 3, 224, 224, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    pixels = pixels.pin_memory() if bench.cuda else pixels
    clip.placed(pixels)
    return seconds_of(lambda: clip.placed(pixels), bench.device) * sizes.photos * sizes.copies / sizes.rows


def memory_part(bench: Bench, clock: Clock) -> tuple[Row, list[Row]]:
    """What is said where memory is short; the process gives itself a small share of the GPU for it."""
    head = ("place", "error", "exit", "message and hint")
    if not bench.cuda:
        return head, [("all", "not tried: no GPU", "", "")]
    spec = made_up_folder(bench.folder / "short", 768, **_vision(bench.sizes.teacher))
    clip, names = text_clip(bench), some_names(bench.sizes.names)
    run = made_up_trainer(config_of(bench, "all", class_chunk=8192), clip, names)
    images = load_clip(spec, str(bench.device))
    pixels = torch.zeros(4096, 3, 224, 224, dtype=torch.uint8)
    places: dict[str, Callable[[], object]] = {
        "load a model": lambda: load_clip(spec, str(bench.device)),
        "training step": lambda: run.step(0),
        "batch of images": lambda: images.encode_images(pixels),
    }
    rows = []
    for place, work in places.items():
        emptied(bench)
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
    "without": without_part,
    "repeat": repeat_part,
    "teach": teach_part,
    "memory": memory_part,
    "tests": tests_part,
}


def _vision(size: tuple[int, int, int]) -> dict[str, int]:
    layers, width, patch = size
    return {"layers": layers, "width": width, "head_width": 64, "patch_size": patch, "image_size": 224}


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
