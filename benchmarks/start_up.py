"""How long `teachonce --help` takes beside `import torch`, which it must not pay for: medians of interleaved starts.

python benchmarks/start_up.py --runs 9
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

STARTS = {
    "python": ["-c", "pass"],
    "teachonce --help": ["-m", "teachonce", "--help"],
    "teachonce train --help": ["-m", "teachonce", "train", "--help"],
    "import torch": ["-c", "import torch"],
}


def seconds_of(arguments: list[str]) -> float:
    """How long a process takes from its start to its end."""
    began = time.monotonic()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def main() -> None:
    """Print one JSON document: median seconds, and the share of `import torch` that each start takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    times: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(runs):
        for name, arguments in STARTS.items():
            times[name].append(seconds_of(arguments))
    medians = {name: statistics.median(values) for name, values in times.items()}
    share = {name: round(value / medians["import torch"], 3) for name, value in medians.items()}
    sys.stdout.write(json.dumps({"runs": runs, "median_seconds": medians, "share_of_import_torch": share}) + "\n")


if __name__ == "__main__":
    main()
