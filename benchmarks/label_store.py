"""The label store against other ways to keep top-k soft labels: bytes, KL, write and read rates, in one run.

    pip install 'teachonce[bench]'
    python benchmarks/label_store.py [--store LABELS.zarr] [--rows 131072 --repeats 5]

Teachers are embeddings and class embeddings whose full softmax is at hand: a flat and a peaked synthetic one, and that
of a store taught with --embeddings. Records of others are built as their sources describe them, by our own code:
TinyViT keeps 4 bytes of seed, k float16 probabilities and k 16-bit ids, uncompressed; DistillKit keeps the best 16 in
bfloat16, six float32 coefficients of a curve through the other log-probabilities and packed ids. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numcodecs import Blosc, blosc
from readers import CONTAINERS, Columns

from teachonce.data.index import SampleIndex
from teachonce.data.vocabulary import Vocabulary
from teachonce.labels.codec import TopK
from teachonce.labels.create import create_store
from teachonce.labels.format import LABELS, new_layout
from teachonce.labels.ledger import key_digest
from teachonce.labels.size import bytes_per_row
from teachonce.labels.store import LabelStore
from teachonce.teaching.soft_chunk import SoftChunk
from teachonce.teaching.teacher import soft_labels

CLASSES, WIDTH, K, BATCH = 21_841, 256, 100, 1024
Teacher = tuple[np.ndarray, np.ndarray, float, int]  # images [N, D], classes [C, D], logit scale, rows of a chunk


def synthetic(rows: int, scale: float, noise: float) -> Teacher:
    """Make unit embeddings of a tree of classes four levels deep, and images near their class."""
    rng = np.random.default_rng(0)
    classes = np.zeros((CLASSES, WIDTH))
    for level in range(1, 5):
        nodes = rng.normal(size=(12**level, WIDTH))
        classes += nodes[np.arange(CLASSES) * len(nodes) // CLASSES] * 0.9**level
    classes = classes[rng.permutation(CLASSES)]  # the vocabulary's own order says nothing about likeness
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    images = classes[rng.integers(0, CLASSES, rows)] + noise * rng.normal(size=(rows, WIDTH)) / WIDTH**0.5
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    return images.astype(np.float32), classes.astype(np.float32), scale, 16_384


def of_store(path: Path, rows: int) -> Teacher:
    """Return the embeddings of a real store."""
    store = LabelStore.open(path)
    images = np.concatenate([store.embeddings(chunk) for chunk in range(store.layout.chunks)])
    images = images[np.isfinite(images[:, 0])][:rows]
    scale = float(store.groups[LABELS].fingerprint["logit_scale"])
    return images, store.class_embeddings(), scale, store.layout.chunk_rows


def exact_top(teacher: Teacher) -> TopK:
    """Return the exact best classes of every row."""
    images, classes, scale, _ = teacher
    parts = [
        soft_labels(scale * torch.from_numpy(images[i : i + 512]) @ torch.from_numpy(classes).T, K, (1.0, 2.0, 4.0))
        for i in range(0, len(images), 512)
    ]
    return TopK(*(np.concatenate([getattr(part, name) for part in parts]) for name in TopK.__dataclass_fields__))


def write_store(path: Path, teacher: Teacher) -> LabelStore:
    """Write a finished store of these rows, each with a key such as ImageNet's."""
    images, classes, scale, chunk_rows = teacher
    rows = len(images)
    vocabulary = Vocabulary(
        tuple(f"n{i:08d}" for i in range(len(classes))), tuple(f"class {i}" for i in range(len(classes)))
    )
    keys = [f"n{i % len(classes):08d}_{i}" for i in range(rows)]
    label = (np.arange(rows) % len(classes)).astype(np.int32)
    index = SampleIndex(
        ("all.tar",),
        np.zeros(rows, np.uint32),
        np.arange(rows, dtype=np.uint64) * 110_000,
        np.full(rows, 100_000, np.uint64),
        label,
        np.frombuffer("".join(keys).encode(), np.uint8),
        np.cumsum([len(key) for key in keys]).astype(np.uint64),
    )
    layout = new_layout(rows, len(classes), K, (1.0, 2.0, 4.0), chunk_rows)
    store = create_store(
        path, layout, {"samples": index.digest, "about": {}}, vocabulary, vocabulary, index, np.arange(rows), classes
    )
    for chunk in range(layout.chunks):
        start, stop = layout.bounds(chunk)
        soft = SoftChunk(store, chunk)
        for at in range(start, stop, 512):
            part = torch.from_numpy(images[at : min(at + 512, stop)])
            soft.add(scale * part @ torch.from_numpy(classes).T)
        rows_of = store.index_of_chunk(chunk)
        status = np.zeros(stop - start, np.uint8)
        data = {
            **soft.finish(status, rows_of.label),
            "label": rows_of.label,
            "sample": store.samples(start, stop),
            "view": np.zeros(stop - start, np.uint8),
            "status": status,
            "image_crc": np.random.default_rng(chunk).integers(0, 2**32, stop - start, dtype=np.uint32),
            "key_digest": key_digest(rows_of),
        }
        store.commit(LABELS, chunk, 1, stop - start, 0, store.write_chunk(LABELS, chunk, data))
    return store


def value_kl(exact: TopK, ids: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    """Compute the KL of each row, renormalised over the k classes, exact || kept."""
    order, rows_order = np.argsort(exact.class_ids, axis=1), np.argsort(ids, axis=1)
    p = np.take_along_axis(exact.log_probs, order, 1).astype(np.float64)
    q = np.take_along_axis(log_probs, rows_order, 1).astype(np.float64)
    same = (np.take_along_axis(exact.class_ids, order, 1) == np.take_along_axis(ids, rows_order, 1)).all(1)
    p, q = p[same], q[same]  # a near-tie at the edge may have gone the other way in another batch
    p -= np.logaddexp.reduce(p, axis=1, keepdims=True)
    q -= np.logaddexp.reduce(q, axis=1, keepdims=True)
    return (np.exp(p) * (p - q)).sum(1)


def others(exact: TopK) -> Iterator[tuple[str, float, np.ndarray]]:
    """Return name, bytes a row and log-probabilities of what other systems would keep."""
    half = np.exp(exact.log_probs).astype(np.float16)
    with np.errstate(divide="ignore"):
        log_half = np.log(np.maximum(half.astype(np.float64), 2**-25))
    yield "TinyViT record", 4 + 4 * K, log_half
    packed = sum(
        len(Blosc("zstd", 3, shuffle).encode(np.ascontiguousarray(array[i : i + 16_384])))
        for array, shuffle in ((exact.class_ids.astype(np.uint16), 1), (exact.log_probs.astype(np.float16), 1))
        for i in range(0, len(half), 16_384)
    )
    yield "uint16 + float16 log p, zstd-3", packed / len(half), exact.log_probs.astype(np.float16).astype(np.float64)
    x = np.arange(16, K) / K
    basis = np.stack([x**0, x, x**2, x**3, x**4, np.sqrt(x)], axis=1)
    fitted = exact.log_probs.astype(np.float64).copy()
    fitted[:, :16] = torch.from_numpy(exact.log_probs[:, :16]).bfloat16().double().numpy()
    weights = np.linalg.lstsq(basis, fitted[:, 16:].T, rcond=None)[0].astype(np.float32)
    fitted[:, 16:] = (basis @ weights).T
    yield "DistillKit-style curve", 16 * 2 + 6 * 4 + K * np.ceil(np.log2(CLASSES)) / 8, fitted


def size_table(teachers: dict[str, Teacher], folder: Path) -> dict[str, LabelStore]:
    """Print bytes and KL of every way for every teacher; returns our stores."""
    say("| teacher | mass in top 100 | way | bytes a row | against TinyViT | value KL mean | p99 |")
    say("|---|---|---|---|---|---|---|")
    stores = {}
    for number, (name, teacher) in enumerate(teachers.items()):
        exact = exact_top(teacher)
        stores[name] = store = write_store(folder / f"{number}.zarr", teacher)
        parts = [store.decode_labels(store.read_chunk(LABELS, chunk)) for chunk in range(store.layout.chunks)]
        ids, log_probs = (
            np.concatenate([getattr(part, field) for part in parts]) for field in ("class_ids", "log_probs")
        )
        lines = [("teachonce", bytes_per_row(store)["labels"], value_kl(exact, ids, log_probs))]
        lines += [(way, size, value_kl(exact, exact.class_ids, log_p)) for way, size, log_p in others(exact)]
        mass = np.exp(exact.log_probs).sum(1).mean()
        for way, size, divergence in lines:
            say(
                f"| {name} | {mass:.2f} | {way} | {size:.1f} | {size / (4 + 4 * K):.2f} | {divergence.mean():.1e} "
                f"| {np.percentile(divergence, 99):.1e} |"
            )
    return stores


def say(line: str) -> None:
    """Print one line of the report at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def median_rate(work: Callable[[], int], repeats: int) -> float:
    """Return the median rows a second."""
    rates = []
    for _ in range(repeats):
        began = time.perf_counter()
        rows = work()
        rates.append(rows / (time.perf_counter() - began))
    return statistics.median(rates)


def rate_table(source: LabelStore, folder: Path, rows: int, repeats: int) -> None:
    """Print warm write and read rates of the label columns; the other containers hold uint16 ids and float16 values."""
    say(
        f"\n| container, {rows:,} rows | write rows/s | sequential | chunks shuffled | random batches of {BATCH:,} "
        "| random, against teachonce |\n|---|---|---|---|---|---|"
    )
    parts = [source.decode_labels(source.read_chunk(LABELS, chunk)) for chunk in range(source.layout.chunks)]
    pick = np.random.default_rng(1).integers(0, sum(len(part.class_ids) for part in parts), rows)
    soft = TopK(*(np.concatenate([getattr(p, name) for p in parts])[pick] for name in TopK.__dataclass_fields__))
    columns = Columns(
        soft.class_ids.astype(np.uint16), soft.log_probs.astype(np.float16), np.arange(rows, dtype=np.int32)
    )
    rng = np.random.default_rng(2)
    batches = [rng.integers(0, rows, BATCH) for _ in range(200)]
    shuffled = rng.permutation(-(-rows // 16_384)).tolist()
    decoded = None
    for name, make in CONTAINERS.items():
        container = make(folder / name.replace(" ", "-"), source, soft)
        began = time.perf_counter()
        container.write(columns)
        write = rows / (time.perf_counter() - began)
        container.open()
        chunks = list(range(len(shuffled)))
        sequential = median_rate(lambda c=container, o=chunks: sum(c.chunk(i) for i in o), repeats)
        mixed = median_rate(lambda c=container: sum(c.chunk(i) for i in shuffled), repeats)
        few = batches if container.quick else batches[:2]
        for batch in few[:20]:
            container.batch(batch)
        random = median_rate(lambda c=container, f=few: sum(c.batch(batch) for batch in f), repeats)
        decoded = decoded or random
        figures = (f"{rate:,.0f}" for rate in (write, sequential, mixed, random))
        say(f"| {name} | {' | '.join(figures)} | {random / decoded:.3f} |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="also measure the teacher of this store, by its embeddings")
    parser.add_argument("--rows", type=int, default=131_072, help="of the containers that are read")
    parser.add_argument("--teacher-rows", type=int, default=16_384)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    blosc.set_nthreads(1)
    torch.set_num_threads(2)
    teachers = {
        "flat synthetic": synthetic(args.teacher_rows, 20.0, 2.5),
        "peaked synthetic": synthetic(args.teacher_rows, 100.0, 2.0),
    }
    if args.store:
        teachers |= {"real": of_store(args.store, args.teacher_rows)}
    with tempfile.TemporaryDirectory() as folder:
        stores = size_table(teachers, Path(folder))
        rate_table(stores[list(teachers)[-1]], Path(folder), args.rows, args.repeats)


if __name__ == "__main__":
    sys.exit(main())
