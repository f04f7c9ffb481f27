"""Random batches of label columns from a working set against NumPy indexing of separate plain arrays, in one run.

    python benchmarks/working_set.py [--rows 1000000 --top-k 100 --batch 1024 --batches 300 --repeats 5]

Both sides lie in memory-mapped files in the page cache, give the same values (checked) and are measured by turns, with
one process and with two at once. A working set keeps a row in one record with coded values and decodes them for the
batch; the plain way keeps decoded columns, of which each batch gathers from four.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

from teachonce.core.progress import Silent
from teachonce.labels.codec import default_gap_levels
from teachonce.rows.build import RECORDS, code_values, record_dtype
from teachonce.rows.files import ArrayWriter, building, draft, open_files, publish, set_digest
from teachonce.rows.working_set import Batch, decode_records

CLASSES, TEMPERATURES, BLOCK = 21_841, 3, 50_000
IDENTITY = {"benchmark": "working set"}
COLUMNS = ("label", "class_ids", "log_probs", "log_residual")
WAYS = ("plain arrays", "working set")


def write(folder: Path, rows: int, top_k: int) -> None:
    """The same random rows in both forms."""
    dtype, below = record_dtype(top_k, TEMPERATURES, CLASSES), code_values(default_gap_levels())
    rng, digest = np.random.default_rng(0), set_digest(IDENTITY)
    plain: dict[str, ArrayWriter] = {}
    with building(folder, digest, Silent()), draft(folder, digest) as place:
        writer = ArrayWriter(place / RECORDS, dtype)
        for start in range(0, rows, BLOCK):
            records = np.zeros(min(BLOCK, rows - start), dtype)
            records["row"] = np.arange(start, start + len(records))
            records["label"] = rng.integers(0, CLASSES, len(records))
            records["class_ids"] = rng.integers(0, CLASSES, (len(records), top_k))
            records["codes"] = np.sort(rng.integers(0, len(default_gap_levels()), (len(records), top_k)), axis=1)
            records["top_log_prob"] = -rng.random(len(records))
            records["log_residual"] = -rng.random((len(records), TEMPERATURES))
            writer.append(records)
            decoded = decode_records(records, None, below, False)
            for name in COLUMNS:
                column = getattr(decoded, name)
                if name not in plain:
                    plain[name] = ArrayWriter(folder / f"{name}.npy", column.dtype, column.shape[1:])
                plain[name].append(column)
        for written in (writer, *plain.values()):
            written.finish()
        publish(place, IDENTITY, {"store": "", "rows": rows, "without_class": 0})


def ways(folder: Path) -> dict[str, Callable[[np.ndarray], Batch]]:
    """Return both sides, each a function from row numbers to a batch."""
    files = open_files(folder, set_digest(IDENTITY))
    if files is None:
        raise SystemExit("the working set is gone")
    records, below = files.arrays[RECORDS], code_values(default_gap_levels())
    plain = [np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in COLUMNS]

    def from_plain(rows: np.ndarray) -> Batch:
        label, ids, log_probs, residual = (column[rows] for column in plain)
        return Batch(None, label, ids, log_probs, residual, rows)

    return {
        "plain arrays": from_plain,
        "working set": lambda rows: decode_records(records.take(rows), None, below, False),
    }


def measure(folder: Path, args: argparse.Namespace, seed: int, start: Barrier, results: multiprocessing.Queue) -> None:
    """Measure rows a second of this process, by turns; all processes begin each turn together."""
    sides, rng = ways(folder), np.random.default_rng(seed)
    orders = [rng.integers(0, args.rows, (args.batches, args.batch)) for _ in range(args.repeats)]
    for order in (orders[0], *orders):  # the first turn brings both sides into the page tables and is not counted
        for name in WAYS:
            start.wait()
            began = time.perf_counter()
            for rows in order:
                sides[name](rows)
            results.put((name, order.size / (time.perf_counter() - began)))
    results.close()


def rates(folder: Path, args: argparse.Namespace, processes: int) -> dict[str, float]:
    """Return rows a second of all processes together, median over the repeats."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=measure, args=(folder, args, seed, start, results)) for seed in range(processes)]
    for worker in workers:
        worker.start()
    lines = [results.get() for _ in range(processes * len(WAYS) * (args.repeats + 1))]
    for worker in workers:
        worker.join()
    values = {name: [rate for way, rate in lines if way == name][processes:] for name in WAYS}
    return {name: processes * statistics.median(of_way) for name, of_way in values.items()}


def main() -> None:
    """Write both forms, check that they agree, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 1_000_000), ("top-k", 100), ("batch", 1024), ("batches", 300), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        write(folder, args.rows, args.top_k)
        began = time.perf_counter()
        sides = ways(folder)
        opened = time.perf_counter() - began
        sample = np.random.default_rng(1).integers(0, args.rows, 10_000)
        batches = [side(sample) for side in sides.values()]
        for column in (*COLUMNS, "row"):
            if getattr(batches[0], column).tobytes() != getattr(batches[1], column).tobytes():
                raise SystemExit(f"the two sides differ in {column}")
        sizes = [
            sum((folder / f"{column}.npy").stat().st_size for column in COLUMNS),
            sum(file.stat().st_size for file in folder.glob(f"*/{RECORDS}")),
        ]
        rates_by = {processes: rates(folder, args, processes) for processes in (1, 2)}
    lines = [
        f"{args.rows:,} rows, k = {args.top_k}, batches of {args.batch:,}; both sides give equal values",
        f"opening, with every byte compared with its checksum: {opened:.2f} s",
        "",
        "| way | bytes a row | rows/s, 1 process | rows/s, 2 processes | speed, 1 and 2 |",
        "|---|---|---|---|---|",
    ]
    for way, size in zip(WAYS, sizes, strict=True):
        one, two = (rates_by[processes][way] for processes in (1, 2))
        ratio = " and ".join(f"{rates_by[n][way] / rates_by[n][WAYS[0]]:.2f}" for n in (1, 2))
        lines.append(f"| {way} | {size / args.rows:.0f} | {one:,.0f} | {two:,.0f} | {ratio} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
