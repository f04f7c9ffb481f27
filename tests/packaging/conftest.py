"""Fixtures of the packaging tests: a copy of what ships, its wheel, and the wheel installed away from the checkout.

It tests nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

FOLDERS: Mapping[str, str] = {
    "pipeline": "teachonce",
    "stages": "teachonce/stages",
    "cli": "teachonce/cli",
    "data_manifests": "teachonce/data_manifests",
    "configs": "teachonce/configs",
}


@pytest.fixture(scope="session")
def folders() -> Mapping[str, str]:
    """Folder of the checkout -> folder of the wheel."""
    return FOLDERS


@pytest.fixture(scope="session")
def copied_tree(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build reads, copied so that the build leaves nothing in the checkout."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in FOLDERS:
        shutil.copytree(project / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (project / name).exists():
            shutil.copy(project / name, tree / name)
    return tree


@pytest.fixture(scope="session")
def sdist(copied_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built without network."""
    return _built(copied_tree, tmp_path_factory.mktemp("sdist"), "sdist", "*.tar.gz")


@pytest.fixture(scope="session")
def wheel(copied_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network."""
    return _built(copied_tree, tmp_path_factory.mktemp("wheel"), "wheel", "*.whl")


def _built(tree: Path, out: Path, kind: str, pattern: str) -> Path:
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob(pattern)
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel; with PYTHONPATH there, it wins over the editable install."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target)]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return target
