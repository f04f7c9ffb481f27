"""What a training step asks of a GPU, counted without one: kernels, bytes, waits of the host, copies to the device.

    python benchmarks/gpu_counts.py [--cases sampled,all] [--names 21841] [--precision fp32]

The text tower has ViT-B/16's size (12 blocks of width 512, 16 slots, `unshared`), and the rows are made up. In fp32 the
backward pass is counted on a device without autocast; in bf16 the forward pass and the host's own work on `cuda`.
Copies and waits are those of `cuda` in both. Run it on two revisions to compare them.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "gpu_absent"))

from fake_gpu import FakeGpu, Kind, is_tried, moved
from tally import Tally
from train_parts import made_up_clip, made_up_trainer, say, some_names, table

from teachonce.recipe.config import TrainConfig

CONTEXT = " ".join(["a"] * 16)
BASE: dict[str, Any] = {"structure": "unshared", "context": CONTEXT, "length": 16, "batch_size": 1024, "steps": 10}
CASES: dict[str, dict[str, Any]] = {
    "sampled": {"candidates": "sampled", "sampled_fill": 1000, "sampled_top": 0},
    "all": {"candidates": "all"},
}


def counted(case: str, kind: Kind, precision: str, names: int, changes: dict[str, Any]) -> tuple[Tally, float]:
    """Count the second step of a run, which finds what the first has prepared."""
    config = TrainConfig.of(**BASE, **CASES[case], precision=precision, **changes)
    with FakeGpu(kind) as gpu:
        clip = moved(made_up_clip(), gpu, copy.deepcopy, replace)
        trainer = made_up_trainer(config, clip, some_names(names))
        trainer.step(0)
        gpu.tally.clear()
        began = time.perf_counter()
        trainer.step(1)
        return gpu.tally, time.perf_counter() - began


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated")
    parser.add_argument("--names", type=int, default=21_841, help="classes")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--class-chunk", type=int, help="names at once; default: all, as on a GPU with room for them")
    parser.add_argument("--details", action="store_true", help="print kernels by name, waits and copies by line")
    return parser.parse_args()


def main() -> None:
    """Print one line a case."""
    args = parse()
    if not is_tried():
        raise SystemExit("fake GPU tensors were not tried with this version of PyTorch")
    changes = {"class_chunk": args.class_chunk or args.names}
    rows = []
    for case in args.cases.split(","):
        kinds: tuple[Kind, ...] = ("fakegpu", "cuda") if args.precision == "fp32" else ("cuda",)
        tallies = {kind: counted(case, kind, args.precision, args.names, changes) for kind in kinds}
        kernels, seconds = tallies[kinds[0]]
        host = tallies["cuda"][0]
        waits = ", ".join(f"{times} x {what}" for what, times in host.asked.items())
        rows.append(
            [case, f"{kernels.launches:,}", f"{kernels.moved / 1e9:.0f}", str(host.blocking), waits, f"{seconds:.1f}"]
        )
        if args.details:
            for kind, (tally, _) in tallies.items():
                say(f"{case} on {kind}:\n{tally.text(24)}\n")
    table(["step", "kernels", "GB moved", "blocking copies", "waits of the host", "seconds to count"], rows)


if __name__ == "__main__":
    main()
