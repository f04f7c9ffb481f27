"""Make label stores and add column groups to them; each appears whole or not at all. Run by the driver only.

This module writes no row: `LabelStore.write_chunk` does.
"""

from __future__ import annotations

import dataclasses
import glob
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from teachonce.core.files import is_remote, neighbour, sync_tree, sync_up, whole_folder, write_failed
from teachonce.core.progress import Reporter
from teachonce.core.streams import ROW_ORDER
from teachonce.data.index import SampleIndex
from teachonce.data.places import name_bytes
from teachonce.data.vocabulary import Vocabulary
from teachonce.keeping.bucket import BucketKeeper
from teachonce.labels import format as store_format
from teachonce.labels.access import METADATA
from teachonce.labels.codec import class_dtype, class_order, default_gap_levels
from teachonce.labels.direct import Skeleton
from teachonce.labels.format import EMBEDDING, LABELS, ArraySpec, Layout
from teachonce.labels.header import Header, read_header, write_header
from teachonce.labels.ledger import create_ledger, ledger_path, require_fingerprint
from teachonce.labels.metadata import Fingerprint, Group, group_arrays
from teachonce.labels.store import Arrays, LabelStore
from teachonce.models.spec import EmbeddingKind

BLOCK = 64  # consecutive samples that stay together in a store: reads stay mostly sequential

INDEX_COLUMNS = ("archive", "offset", "size", "label", "key_bytes", "key_ends")


def create_store(
    path: Path,
    layout: Layout,
    fingerprint: Mapping[str, Any],
    vocabulary: Vocabulary,
    label_classes: Vocabulary,
    index: SampleIndex,
    order: npt.NDArray[np.int64],
    class_embeddings: npt.NDArray[np.float32] | None,
    reporter: Reporter | None = None,
) -> LabelStore:
    """Make an empty store; it appears under its name only when it is whole.

    Args:
        path: must not exist.
        layout: fixes every array.
        fingerprint: of the column group `labels`.
        vocabulary: the classes that stored soft labels index.
        label_classes: the manifest's own class list, which `label` indexes.
        index: the samples in the manifest's order.
        order: the samples in row order.
        class_embeddings: [classes, D], the teacher's unit text features; None where there is no one teacher.
        reporter: told what killed processes had left here.

    Raises:
        IncompleteError, EnvironmentFault: a write failed (disk full, no permission); nothing is left.
    """
    ordered = index.take(order)
    static: Arrays = {f"index/{name}": getattr(ordered, name) for name in INDEX_COLUMNS}
    static["index/archives"] = np.frombuffer(name_bytes("\n".join(index.archives)), np.uint8)
    static["index/sample"] = order.astype(np.uint32)
    static["label_classes"] = np.frombuffer(label_classes.to_tsv(), np.uint8)
    return _create(path, layout, fingerprint, vocabulary, static, class_embeddings, reporter)


def create_child(
    path: Path,
    parent: LabelStore,
    layout: Layout,
    fingerprint: Mapping[str, Any],
    vocabulary: Vocabulary,
    class_embeddings: npt.NDArray[np.float32] | None,
    reporter: Reporter | None = None,
    labels: npt.NDArray[np.int32] | None = None,
) -> LabelStore:
    """Make an empty store of the parent's samples in the same order; other arguments as in `create_store`.

    Args:
        labels: [samples] in row order, in place of the parent's.

    Raises:
        IncompleteError, EnvironmentFault: a write failed.
        IntegrityError: the parent's index is damaged.
    """
    names = ["label_classes", *(f"index/{name}" for name in ("archives", "sample", *INDEX_COLUMNS))]
    static = {name: parent.static(name) for name in names}
    if labels is not None:
        static["index/label"] = labels.astype(static["index/label"].dtype)
    return _create(path, layout, fingerprint, vocabulary, static, class_embeddings, reporter)


def add_student(store: LabelStore, digest: str, width: int, fingerprint: Mapping[str, Any]) -> str:
    """Add the empty column group of a student's features; returns its name.

    Raises:
        FingerprintError: the group is there with another fingerprint.
    """
    return _add_group(store, store_format.student_group(digest), width, fingerprint)


def add_embedding(store: LabelStore, kind: EmbeddingKind, width: int, fingerprint: Mapping[str, Any]) -> str:
    """Add the empty column group of the teacher's image embeddings; returns its name.

    Raises:
        FingerprintError: the group is there with another fingerprint, another kind for instance.
    """
    return _add_group(store, EMBEDDING, width, {**fingerprint, "kind": kind})


def add_group_like(store: LabelStore, parent: LabelStore, name: str) -> str:
    """Add an empty column group with the arrays and the fingerprint of the parent's."""
    group = parent.groups[name]
    return _add_group(store, name, group.vectors.tail[0], group.fingerprint)


def _create(
    path: Path,
    layout: Layout,
    fingerprint: Mapping[str, Any],
    vocabulary: Vocabulary,
    static: Arrays,
    class_embeddings: npt.NDArray[np.float32] | None,
    reporter: Reporter | None,
) -> LabelStore:
    static = {**static, "vocabulary": np.frombuffer(vocabulary.to_tsv(), np.uint8)}
    if class_embeddings is not None:
        static["class_embeddings"] = class_embeddings
    if layout.top_k:
        static["class_order"] = class_order(class_embeddings, layout.classes).astype(class_dtype(layout.classes))
        static["gap_levels"] = default_gap_levels()
    if is_remote(path):
        with TemporaryDirectory(prefix="teachonce-") as folder:
            draft = Path(folder)
            try:
                _fill(draft, layout, fingerprint, static)
            except OSError as problem:
                raise write_failed(draft, problem) from problem
            BucketKeeper(path).create(draft)
        return LabelStore.open(path, writable=True)
    place = neighbour(path, "")  # a link that leads nowhere yet stays a link
    try:
        # Killed runs of earlier versions left these drafts: the lock keeps two living runs apart.
        for left in place.parent.glob(f"{glob.escape(place.name)}.creating-*"):
            shutil.rmtree(left, ignore_errors=True)
        with whole_folder(place, reporter=reporter) as draft:
            _fill(draft, layout, fingerprint, static)
    except OSError as problem:
        raise write_failed(path, problem) from problem
    return LabelStore.open(path, writable=True)


def _fill(draft: Path, layout: Layout, fingerprint: Mapping[str, Any], static: Arrays) -> None:
    """Write the metadata and the arrays of an empty store into a folder."""
    root = zarr.create_group(str(draft), zarr_format=3)
    root.attrs["teachonce"] = {
        "format": store_format.FORMAT,
        "version": store_format.FORMAT_VERSION,
        "layout": dataclasses.asdict(layout),
        "fingerprint": dict(fingerprint),
    }
    for name, data in static.items():
        store_format.create_static_array(root, name, data)
    _create_arrays(root, LABELS, store_format.label_arrays(layout), layout)
    write_header(draft, root)


def _add_group(store: LabelStore, name: str, width: int, fingerprint: Mapping[str, Any]) -> str:
    if name in store.groups:
        require_fingerprint(store.path, name, store.groups[name].fingerprint, fingerprint)
        return name
    former, top = read_header(store.path), name.partition("/")[0]
    body: dict[str, Any] = {"width": width, "fingerprint": dict(fingerprint)}
    specs = group_arrays(name, body, store.layout)
    try:
        if is_remote(store.path):
            with Skeleton(store, former["files"]) as skeleton:
                _make_group(skeleton.path, skeleton.root, store.layout, former, name, body)
                skeleton.send()
        else:
            # A run that died before it wrote the header may have left these folders.
            shutil.rmtree(store.path / name, ignore_errors=True)
            shutil.rmtree(store.path / ledger_path(name), ignore_errors=True)
            _make_group(store.path, store.root, store.layout, former, name, body)
            sync_tree(store.path / top)
            sync_tree(store.path / ledger_path(name))
            sync_up(store.path / "ledger" / "zarr.json", store.path)
    except OSError as problem:
        raise write_failed(store.path, problem) from problem
    store.groups[name] = Group(name, Fingerprint(fingerprint), specs)
    store.admit()
    return name


def _make_group(path: Path, root: zarr.Group, layout: Layout, former: Header, name: str, body: dict[str, Any]) -> None:
    """Make the empty arrays of a column group in a folder, and extend the header by them."""
    top = name.partition("/")[0]
    if "/" in name:
        root.require_group(top)
    group = root.create_group(name)
    group.attrs["teachonce"] = body
    _create_arrays(root, name, group_arrays(name, body, layout), layout)
    write_header(path, root, former, (f"{top}/{METADATA}", f"{name}/", f"{ledger_path(name)}/"))


def _create_arrays(root: zarr.Group, name: str, specs: tuple[ArraySpec, ...], layout: Layout) -> None:
    for spec in specs:
        store_format.create_rows_array(root, spec, layout)
    root.require_group("ledger")
    create_ledger(root, name, layout.chunks, len(specs))


def row_order(samples: int, seed: int) -> npt.NDArray[np.int64]:
    """The samples in row order: blocks of the archive order, permuted, so that a chunk mixes many classes.

    Returns:
        [samples], a permutation of range(samples).
    """
    blocks = -(-samples // BLOCK)
    starts = ROW_ORDER.at(seed).permutation(blocks) * BLOCK
    order = (starts[:, None] + np.arange(BLOCK)[None]).ravel()
    return np.asarray(order[order < samples], dtype=np.int64)
