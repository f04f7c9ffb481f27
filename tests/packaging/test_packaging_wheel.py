"""The wheel holds exactly what the tree holds, and works far from the checkout.

Promise: what an editable install can do, an installed wheel can do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest


def shipped(tree: Path, folders: Mapping[str, str]) -> set[str]:
    """The wheel's files as the tree asks for them: modules, TOML of the two data packages, assets, the type marker."""
    names = set()
    for folder, package in folders.items():
        root = tree / folder
        files = set(root.rglob("*.py"))
        if folder in ("data_manifests", "configs"):
            files |= set(root.rglob("*.toml")) | set(root.rglob("*.tsv"))
        if folder == "pipeline":
            files |= {file for file in root.glob("*/assets/*") if file.is_file()} | {root / "py.typed"}
        names |= {f"{package}/{file.relative_to(root).as_posix()}" for file in files}
    return names


def test_the_wheel_holds_the_tree_and_nothing_else(copied_tree: Path, folders: Mapping[str, str], wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = shipped(copied_tree, folders)
    assert sorted(expected - names) == [], "in the tree, not in the wheel: [tool.setuptools] does not list it"
    assert sorted(names - expected) == [], "in the wheel, not in the tree"


def test_the_source_distribution_holds_the_tree_and_nothing_else(
    copied_tree: Path, folders: Mapping[str, str], sdist: Path
) -> None:
    """Whoever builds from source gets the wheel that the tree gives."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {
        f"{folder}{name.removeprefix(folders[folder])}"
        for folder in folders
        for name in shipped(copied_tree, {folder: folders[folder]})
    }
    inside = {name for name in names if name.partition("/")[0] in folders and "." in name.rpartition("/")[2]}
    assert sorted(expected - names) == [], "in the tree, not in the source distribution"
    assert sorted(inside - expected) == [], "in the source distribution, not in the tree"


def test_no_module_hides_a_subpackage(project: Path, folders: Mapping[str, str]) -> None:
    """`pipeline/cli.py` would win over `cli/` in an editable install and lose in the wheel."""
    subpackages = set(folders) - {"pipeline"}
    shadowing = [name for name in subpackages if (project / "pipeline" / name).exists()]
    shadowing += [name for name in subpackages if (project / "pipeline" / f"{name}.py").exists()]
    assert shadowing == []


def from_root(installed: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run with the installed wheel first on the path, from `/`, where no checkout can help."""
    env = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, timeout=120)


def test_the_installed_package_is_not_the_checkout(installed: Path) -> None:
    code = "import teachonce, teachonce.cli, teachonce.stages as s; print(teachonce.__file__, s.__file__, sep='\\n')"
    done = from_root(installed, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(str(installed)) for line in done.stdout.splitlines())


@pytest.mark.parametrize("way", ["module", "script"])
def test_the_installed_command_runs(way: str, installed: Path) -> None:
    script = str(installed / "bin" / "teachonce")
    done = from_root(installed, *([sys.executable, "-m", "teachonce"] if way == "module" else [script]), "--help")
    assert done.returncode == 0, done.stderr
    assert "teachonce demo" in done.stdout


RESOURCES = """
import importlib.resources, tomllib
for package in ("teachonce.data_manifests", "teachonce.configs"):
    for entry in importlib.resources.files(package).iterdir():
        if entry.name.endswith(".toml"):
            tomllib.loads(entry.read_text(encoding="utf-8"))
            print(package, entry.name)
"""


def test_the_installed_data_is_read_as_resources(installed: Path) -> None:
    done = from_root(installed, sys.executable, "-c", RESOURCES)
    assert done.returncode == 0, done.stderr
    assert "teachonce.data_manifests " in done.stdout


SPAWNED = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from teachonce.recipe.config_file import load_train_config
from teachonce.errors import UsageError, did_you_mean

if __name__ == "__main__":
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        print(pool.submit(did_you_mean, "teech", ["teach"]).result())
        try:
            pool.submit(load_train_config, None, ["sead=1"]).result()
        except UsageError as problem:  # an error keeps its class and its message on the way back
            print(problem.message)
"""


def test_the_installed_package_works_in_a_spawned_process(installed: Path, tmp_path: Path) -> None:
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    done = from_root(installed, sys.executable, str(script))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "did you mean 'teach'?",
        "`set` sead=1: unknown key 'sead': did you mean 'seed'?",
    ]
