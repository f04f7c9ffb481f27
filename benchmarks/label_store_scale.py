"""A label store of the size of ImageNet-21K, without a teacher: what it weighs and how long things take.

    python benchmarks/label_store_scale.py [--rows 14197122 --folder DIR]

Real class ids and values are not to be had at this size, so each chunk draws rows of one coded pool of 16,384 synthetic
rows anew; sizes are those of the flat to middling teacher it is made from. Needs some 15 GB of disk. Memory is the peak
of a process of its own for each step.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numcodecs import blosc

from teachonce.core.progress import Silent
from teachonce.data.index import SampleIndex
from teachonce.data.vocabulary import Vocabulary
from teachonce.labels.codec import CodedTopK, TopK, encode
from teachonce.labels.create import create_store, row_order
from teachonce.labels.format import LABELS, new_layout
from teachonce.labels.ledger import key_digest
from teachonce.labels.size import bytes_per_row
from teachonce.labels.store import Arrays, LabelStore
from teachonce.rows.working_set import open_working_set
from teachonce.stages.inspect import InspectRequest, inspect
from teachonce.stages.verify import VerifyRequest, verify
from teachonce.teaching.teacher import soft_labels

CLASSES, K, POOL = 21_841, 100, 16_384


def pool(class_order: np.ndarray, levels: np.ndarray) -> CodedTopK:
    """Make coded rows of random logits whose best classes cluster, as similar names do."""
    from teachonce.labels.codec import CodecTables

    rng = np.random.default_rng(0)
    parts = []
    for _ in range(POOL // 512):
        centre = rng.integers(0, CLASSES, (512, 8))
        near = (centre[:, :, None] + rng.geometric(0.01, (512, 8, 32)) - 50) % CLASSES
        logits = np.full((512, CLASSES), -9.0, np.float32) + rng.normal(0, 0.7, (512, CLASSES)).astype(np.float32)
        np.put_along_axis(logits, near.reshape(512, -1), rng.normal(0, 2.2, (512, 256)).astype(np.float32), 1)
        parts.append(soft_labels(torch.from_numpy(logits), K, (1.0, 2.0, 4.0)))
    whole = TopK(*(np.concatenate([getattr(part, name) for part in parts]) for name in TopK.__dataclass_fields__))
    # Similarity was made along the coded order, so places and not classes are what was drawn.
    return encode(
        TopK(class_order[whole.class_ids], whole.log_probs, whole.log_residual), CodecTables(class_order, levels)
    )


def big_index(rows: int) -> SampleIndex:
    """Make samples with ImageNet's kind of keys, class after class as in its archives."""
    label = (np.arange(rows) * CLASSES // rows).astype(np.int32)
    text = np.char.add(np.char.mod("n%08d/n_", label), np.char.mod("%08d", np.arange(rows))).astype("S")
    width = text.dtype.itemsize
    return SampleIndex(
        tuple(f"n{i:08d}.tar" for i in range(CLASSES)),
        label.astype(np.uint32),
        (np.arange(rows, dtype=np.uint64) % 650) * np.uint64(110_080),
        np.random.default_rng(1).integers(20_000, 200_000, rows).astype(np.uint64),
        label,
        np.frombuffer(text.tobytes(), np.uint8),
        np.arange(width, width * rows + 1, width, dtype=np.uint64),
    )


def write(path: Path, rows: int) -> None:
    """Create the store and commit every chunk."""
    ids = tuple(f"n{i:08d}" for i in range(CLASSES))
    vocabulary, index = Vocabulary(ids, ids), big_index(rows)
    layout = new_layout(rows, CLASSES, K, (1.0, 2.0, 4.0))
    embeddings = np.random.default_rng(2).normal(size=(CLASSES, 64)).astype(np.float32)
    store = create_store(
        path,
        layout,
        {"samples": index.digest, "about": {}},
        vocabulary,
        vocabulary,
        index,
        row_order(rows, 0),
        embeddings,
    )
    say(f"| create: index and tables of the empty store | {time.perf_counter() - STARTED[0]:.0f} s |")
    coded, rng = pool(store.tables.class_order, store.gap_levels), np.random.default_rng(3)
    spec = next(spec for spec in store.groups[LABELS].arrays if spec.path == "fidelity")
    began = time.perf_counter()
    for chunk in range(layout.chunks):
        part = store.index_of_chunk(chunk)
        count = len(part)
        pick, zeros = rng.integers(0, POOL, count), np.zeros(count, np.uint8)
        data: Arrays = {name: array[pick] for name, array in vars(coded).items()}
        data |= {
            "label": part.label,
            "sample": store.samples(*layout.bounds(chunk)),
            "view": zeros,
            "status": zeros,
            "image_crc": rng.integers(0, 2**32, count, dtype=np.uint32),
            "key_digest": key_digest(part),
            "fidelity": np.full((spec.per_chunk, *spec.tail), 0.1, np.float16),
        }
        store.commit(LABELS, chunk, 1, count, 0, store.write_chunk(LABELS, chunk, data))
    seconds = time.perf_counter() - began
    say(f"| write, sync, read back and commit | {seconds:.0f} s, {rows / seconds:,.0f} rows/s |")


def size(path: Path, rows: int) -> None:
    """Print the bytes on disk."""
    parts = bytes_per_row(LabelStore.open(path))
    for name, value in parts.items():
        if value:
            say(f"| bytes a row, {name} | {value:.1f} ({value * rows / 1e9:.2f} GB) |")


def opened(path: Path, rows: int) -> None:
    """Open and read the first chunk."""
    store = LabelStore.open(path)
    store.decode_labels(store.read_chunk(LABELS, 0))


def inspected(path: Path, rows: int) -> None:
    """Run `teachonce inspect`."""
    assert inspect(InspectRequest(labels=path), Silent()).rows == rows


def verified(path: Path, rows: int) -> None:
    """Run `teachonce verify`."""
    assert verify(VerifyRequest(labels=path), Silent()).ok


def working_set(path: Path, rows: int) -> None:
    """Make the working set of the label columns, or open it."""
    assert len(open_working_set(LabelStore.open(path), None, Silent())) == rows


def random_batches(path: Path, rows: int) -> None:
    """Read random batches over all rows, warm, in one process."""
    opened_set = open_working_set(LabelStore.open(path), None, Silent())
    rng = np.random.default_rng(4)
    batches = [rng.integers(0, rows, 1024) for _ in range(1000)]
    began = time.perf_counter()
    for batch in batches:
        opened_set.batch(batch)
    say(f"| random batches of 1,024 rows | {1024 * len(batches) / (time.perf_counter() - began):,.0f} rows/s |")


STEPS: list[tuple[str, Callable[[Path, int], None]]] = [
    ("write", write),
    ("size", size),
    ("open and read one chunk", opened),
    ("inspect", inspected),
    ("verify: every chunk, the index and the ledger", verified),
    ("first decode into a working set", working_set),
    ("open the working set again, with its checksums", working_set),
    ("random", random_batches),
]
STARTED = [0.0]


def step(number: int, path: Path, rows: int) -> None:
    """Run one step in a process of its own."""
    blosc.set_nthreads(1)
    torch.set_num_threads(1)
    name, work = STEPS[number]
    STARTED[0] = time.perf_counter()
    work(path, rows)
    seconds = time.perf_counter() - STARTED[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    if len(name) > 6:
        say(f"| {name} | {seconds:.1f} s, peak memory {peak:.2f} GB |")


def say(line: str) -> None:
    """Print one line of the report at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run all steps, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=14_197_122)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    args = parser.parse_args()
    say(f"| {args.rows:,} rows, k = {K}, {CLASSES:,} classes | |\n|---|---|")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for number in range(len(STEPS)):
            child = multiprocessing.get_context("spawn").Process(
                target=step, args=(number, Path(folder) / "big.zarr", args.rows)
            )
            child.start()
            child.join()
            if child.exitcode:
                sys.exit(f"the step '{STEPS[number][0]}' failed")


if __name__ == "__main__":
    main()
