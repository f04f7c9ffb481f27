"""What it costs to let idle threads of OpenMP sleep, on a busy machine and on a free one.

    python benchmarks/waiting.py [--threads 2] [--burners 0,2] [--steps 30] [--rounds 3]

Each side is a process of its own, because libraries read these variables when torch is imported: the system's default
(active waiting), GOMP_SPINCOUNT=0, OMP_WAIT_POLICY=PASSIVE, and one thread. Sides alternate. The work is forward and
backward of four small transformer blocks, whose many short parallel regions are where waiting counts. `burners` are
processes that keep a core busy each meanwhile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

SIDES: dict[str, dict[str, str]] = {
    "default": {},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {},
}
BURN = "while True: pass"


def say(text: str) -> None:
    """One line on stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def work(threads: int, steps: int) -> tuple[float, float]:
    """Wall and CPU seconds of so many steps."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
    tower, tokens = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), torch.randn(64, 16, 256)
    tower(tokens).sum().backward()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        tower(tokens).sum().backward()
    return time.perf_counter() - wall, time.process_time() - cpu


def measured(variables: dict[str, str], threads: int, steps: int) -> tuple[float, float]:
    """The same in a new process with these variables."""
    command = [sys.executable, __file__, "--work", "--threads", str(threads), "--steps", str(steps)]
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    said = subprocess.run(command, env=kept | variables, check=True, capture_output=True, text=True).stdout.split()
    return float(said[0]), float(said[1])


def main() -> None:
    """Print the table, or do the work of one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--burners", default=f"0,{os.cpu_count() or 1}")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        say(" ".join(map(str, work(args.threads, args.steps))))
        return
    say(f"| {args.steps} steps, {args.threads} threads of {os.cpu_count()} cores | kept busy | seconds | CPU-s |")
    say("|---|---|---|---|")
    for burners in map(int, args.burners.split(",")):
        others = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(burners)]
        try:
            rounds = [
                {
                    side: measured(variables, 1 if side == "one thread" else args.threads, args.steps)
                    for side, variables in SIDES.items()
                }
                for _ in range(args.rounds)
            ]
        finally:
            for process in others:
                process.kill()
        for side in SIDES:
            wall, cpu = (statistics.median(one[side][i] for one in rounds) for i in (0, 1))
            say(f"| {side} | {burners} | {wall:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
