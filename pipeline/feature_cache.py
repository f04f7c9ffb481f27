"""Image features of an evaluation split, computed once for each model and kept in the user's cache folder.

It never serves training: stage two reads the label store. An entry is trusted only if its own digest still holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from teachonce.errors import EnvironmentFault
from teachonce.files import atomic_write_bytes
from teachonce.sample_index import SampleIndex

CACHE_VARIABLE = "TEACHONCE_CACHE"


@dataclass(frozen=True)
class SplitFeatures:
    """Unit image features of a split; NaN rows where an image failed."""

    features: npt.NDArray[np.float32]  # [N, E]


def cache_folder() -> Path:
    """$TEACHONCE_CACHE, or teachonce below the user's cache folder."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "teachonce"


def feature_key(index: SampleIndex, root: Path, *parts: str) -> str:
    """What features depend on: the samples, the size and time of every archive, and the model's own `parts`."""
    archives = [[name, (stat := (root / name).stat()).st_size, stat.st_mtime_ns] for name in index.archives]
    for name in index.archives:
        if (root / name).is_dir():  # a file that is written anew does not change the time of its folder
            files = sorted((entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(root / name))
            archives.append([name, *files])
    return hashlib.sha256(json.dumps([index.digest, archives, parts]).encode()).hexdigest()[:32]


def cached_features(key: str, compute: Callable[[], SplitFeatures]) -> tuple[SplitFeatures, bool]:
    """The features under `key`, computed when they are not there or not whole.

    Returns:
        The features, and whether they came from the cache.
    """
    file = cache_folder() / "features" / f"{key}.npy"
    stated = file.with_suffix(".sha256")
    if file.is_file() and stated.is_file():
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() == stated.read_text(encoding="ascii").strip():
            return SplitFeatures(np.load(file, allow_pickle=False)), True
    found = compute()
    with contextlib.suppress(OSError, EnvironmentFault):  # a cache that cannot be written must not cost the result
        file.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, found.features, allow_pickle=False)
        atomic_write_bytes(file, buffer.getvalue())
        atomic_write_bytes(stated, hashlib.sha256(buffer.getvalue()).hexdigest().encode())
    return found, False
