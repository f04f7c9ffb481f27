"""Stores that earlier versions wrote stay readable: what stands in `vN.expected.json` was recorded when they were new.

A new format version adds a store here; none is ever written again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teachonce.core.progress import Silent
from teachonce.errors import DataError
from teachonce.labels.format import EMBEDDING, FORMAT_VERSION, LABELS, READABLE_VERSIONS
from teachonce.labels.store import LabelStore
from teachonce.stages.inspect import InspectRequest, inspect
from teachonce.stages.verify import VerifyRequest, verify

HERE = Path(__file__).parent
VERSIONS = sorted(int(path.name[1:-5]) for path in HERE.glob("v*.zarr"))


def test_there_is_a_store_of_every_readable_version() -> None:
    """A version is added with its store, or not at all."""
    assert tuple(VERSIONS) == READABLE_VERSIONS and VERSIONS[-1] == FORMAT_VERSION


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_store_reads_as_when_it_was_written(version: int) -> None:
    """Classes exactly, values to the recorded digits, labels, keys, identity; verify and inspect agree."""
    path = HERE / f"v{version}.zarr"
    wanted: dict[str, Any] = json.loads((HERE / f"v{version}.expected.json").read_text())
    store = LabelStore.open(path)
    assert store.version == version and store.store_id() == wanted["store_id"]
    keys: list[str] = []
    parts, labels = [], []
    for chunk in range(store.layout.chunks):
        data, index = store.read_chunk(LABELS, chunk), store.index_of_chunk(chunk)
        parts.append(store.decode_labels(data))
        labels += data["label"].tolist()
        keys += [index.key(i) for i in range(len(index))]
    assert np.concatenate([part.class_ids for part in parts]).tolist() == wanted["class_ids"]
    for name in ("log_probs", "log_residual"):
        assert np.allclose(np.concatenate([getattr(part, name) for part in parts]), wanted[name], atol=1e-4)
    assert (labels, keys) == (wanted["label"], wanted["keys"])
    checked = verify(VerifyRequest(labels=path), Silent())
    assert checked.ok and checked.chunks_checked == store.layout.chunks * len(store.groups)
    inspected = inspect(InspectRequest(labels=path), Silent())
    assert (inspected.rows, inspected.top_k, inspected.vocabulary_size) == (70, 5, 8) and len(inspected.students) == 1
    assert bool(inspected.fidelity) == (version > 1) and (EMBEDDING in store.groups) == (version > 1)


def test_a_store_of_version_1_is_not_written_to(tmp_path: Path) -> None:
    """It is refused before anything changes, with what to do."""
    path = tmp_path / "old.zarr"
    shutil.copytree(HERE / "v1.zarr", path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(DataError, match="format version 1, which is read but no longer written") as caught:
        LabelStore.open(path, writable=True)
    assert "`labels`" in caught.value.hint
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
