"""A training step of stage two against the ways it replaces: time, FLOPs, memory, and proof that results are equal.

    python benchmarks/train_step.py --labels STORE --root DATA --student MODEL --teacher MODEL [--cases tower,step,...]

tower   the text tower's forward and backward against 77 positions, and against truncation to the longest name
step    a whole step from cache against decoding and encoding the student's images, and running the teacher, in it
flops   the operations of a step's parts with ViT-L/14 and ViT-B/16; on a GPU their times
all     an all-class step against sampled ones; time and memory as the vocabulary grows
memory  an all-class step with a text tower of ViT-B/16's size: peak memory by chunk, and in one shot
until   time until the same held-out accuracy, from cache and with both models in every step
gpu     with CUDA: a step over all classes in fp32, TF32 and bf16, and the hours that a pre-training takes

tower, flops, memory and gpu need no option; all needs --student; step and until need a complete store with that
student's features, its images and its teacher. Sides alternate within one process, except where memory is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from train_growth import all_case, gpu_case, memory_case
from train_parts import say
from train_store import step_case, until_case
from train_towers import flops_case, tower_case

from teachonce.models.clip import tune_process

CASES: dict[str, tuple[Callable[[argparse.Namespace], None], tuple[str, ...]]] = {
    "tower": (tower_case, ()),
    "step": (step_case, ("labels", "root", "student", "teacher")),
    "flops": (flops_case, ()),
    "all": (all_case, ("student",)),
    "memory": (memory_case, ()),
    "until": (until_case, ("labels", "root", "student", "teacher")),
    "gpu": (gpu_case, ()),
}


def two(text: str) -> tuple[int, int]:
    """Read two rising numbers."""
    small, large = sorted(int(part) for part in text.split(","))
    return small, large


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cases", default=",".join(CASES), help="comma-separated; default: all")
    add("--labels", type=Path, help="a label store")
    add("--root", type=Path, help="the folder of its images")
    add("--student", help="a model, as for `teachonce train`")
    add("--teacher", help="the model that taught the store")
    add("--repeats", type=int, default=5)
    add("--threads", type=int, default=1)
    add("--structure", default="unshared", help="of prompts, but in tower and flops")
    add("--seed", type=int, default=0)
    add("--batch", type=int, default=256, help="rows of a step in step, all, memory, until")
    add("--candidates", type=int, default=1000, help="sampled: classes drawn; all-sampled: names pulled back")
    add("--names", type=int, default=64, help="tower: names")
    add("--full-batch", type=int, default=1024, help="flops: images")
    add("--full-candidates", type=int, default=1000, help="flops: names")
    add("--most-names", type=int, default=21_841, help="all, gpu: classes")
    add("--memory-names", type=int, default=21_841, help="memory: classes")
    add("--chunks", type=two, default=(128, 512), help="all, memory: two values of class_chunk")
    add("--shots", type=two, default=(512, 1024), help="memory: two numbers of names in one shot")
    add("--target", type=float, default=0.42, help="until: top-1 on held-out samples, a fraction")
    add("--held-out", type=float, default=0.1, help="until: share of the samples")
    add("--every", type=int, default=10, help="until: steps between measurements")
    add("--most-steps", type=int, default=600, help="until: steps of the run's schedule, and the most to do")
    args = parser.parse_args()
    args.cases = args.cases.split(",")
    for case in args.cases:
        if case not in CASES:
            parser.error(f"--cases: '{case}' is none of {', '.join(CASES)}")
        missing = [f"--{name}" for name in CASES[case][1] if getattr(args, name) is None]
        if missing:
            parser.error(f"the case '{case}' needs {', '.join(missing)}")
    return args


def main() -> None:
    """Run every case that the command line asks for."""
    args = parse()
    tune_process(args.threads)
    for case in args.cases:
        CASES[case][0](args)
        say()


if __name__ == "__main__":
    main()
