"""The cache of evaluation in the user's cache folder: image features of splits, and outcomes.

The cache never serves training: stage two reads the label store. An entry is trusted only if its own digest, which
covers its key too, still holds: neither half a file nor another entry's file under this name is ever read.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from teachonce.core.digests import MIDDLE, canonical_digest
from teachonce.core.files import atomic_write_bytes
from teachonce.core.machine import cache_folder
from teachonce.data.index import SampleIndex
from teachonce.errors import EnvironmentFault

FEATURES, RESULTS = "features", "results"  # folders below the cache folder
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class SplitFeatures:
    """Unit image features of a split; rows are NaN where an image failed."""

    features: npt.NDArray[np.float32]  # [N, E]


def feature_key(index: SampleIndex, root: Path, *parts: str) -> str:
    """Return what features depend on: the samples, the size and time of every archive, and the model's own `parts`."""
    archives = [[name, (stat := (root / name).stat()).st_size, stat.st_mtime_ns] for name in index.archives]
    for name in index.archives:
        if (root / name).is_dir():  # a file that is written anew does not change the time of its folder
            files = sorted((entry.name, entry.stat().st_mtime_ns) for entry in (root / name).iterdir())
            archives.append([name, *files])
    return digest_key(index.digest, archives, parts)


def digest_key(*parts: Any) -> str:
    """Name an entry by the digest of all that it depends on, which may be anything that JSON can hold."""
    return canonical_digest(parts, MIDDLE, spaced=True, in_order=True)


def cached_features(key: str, compute: Callable[[], SplitFeatures]) -> tuple[SplitFeatures, bool]:
    """Return the features under `key`; they are computed if the cache does not hold them whole.

    Returns:
        The features, and whether they came from the cache.
    """
    features = kept_features(key)
    if features is not None:
        return features, True
    features = compute()
    buffer = io.BytesIO()
    np.save(buffer, features.features, allow_pickle=False)
    _keep(_file(FEATURES, key), key, buffer.getvalue())
    return features, False


def kept_features(key: str) -> SplitFeatures | None:
    """Return the features under `key`; None if the cache does not hold them whole."""
    data = _trusted(_file(FEATURES, key), key)
    return None if data is None else SplitFeatures(np.load(io.BytesIO(data), allow_pickle=False))


def kept_arrays(key: str) -> dict[str, npt.NDArray[Any]] | None:
    """Return the arrays of a result; None if the cache does not hold them whole."""
    data = _trusted(_file(RESULTS, key), key)
    if data is None:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return dict(file)


def keep_arrays(key: str, arrays: Arrays) -> None:
    """Keep the arrays of a result. A cache that cannot be written is passed over."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    _keep(_file(RESULTS, key), key, buffer.getvalue())


def _file(kind: str, key: str) -> Path:
    return cache_folder() / kind / f"{key}{'.npy' if kind == FEATURES else '.npz'}"


def _digest_file(file: Path) -> Path:
    return file.with_suffix(".sha256")


def _digest(key: str, data: bytes) -> str:
    return hashlib.sha256(key.encode() + data).hexdigest()


def _trusted(file: Path, key: str) -> bytes | None:
    try:
        data, digest_beside = (
            file.read_bytes(),
            _digest_file(file).read_text(encoding="ascii", errors="replace").strip(),
        )
    except OSError:
        return None
    return data if _digest(key, data) == digest_beside else None


def _keep(file: Path, key: str, data: bytes) -> None:
    with contextlib.suppress(OSError, EnvironmentFault):  # a cache that cannot be written must not cost the result
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(file, data)
        atomic_write_bytes(_digest_file(file), _digest(key, data).encode())
