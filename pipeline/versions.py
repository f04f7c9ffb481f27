"""The versions of what a result depends on, for fingerprints and run folders. Imports none of the packages."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "open_clip_torch", "timm", "torchvision", "pillow", "zarr", "numcodecs", "numpy", "dask")


def package_versions() -> dict[str, str]:
    """Package -> installed version, and Python's own."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
