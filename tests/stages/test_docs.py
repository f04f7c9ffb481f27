"""What README and docs say is so: commands parse, Python runs, the tree is whole, the format page decodes a store."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import numpy as np
import pytest
import share_runs
import worlds

from teachonce.cli.app import app
from teachonce.cli.commands.train import ConfigFile
from teachonce.cli.jobs import Job
from teachonce.labels.store import LabelStore

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (teachonce .*)$", README.replace("\\\n", ""), re.MULTILINE)
JOURNEY = ["teach", "verify", "train", "evaluate", "export"]


def test_the_readme_leads_from_photos_to_prompts() -> None:
    """The test below checks something."""
    assert [line.split()[1] for line in COMMANDS] == JOURNEY


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_readme_parses(line: str) -> None:
    """A copied line is never a usage error."""
    assert isinstance(app(shlex.split(line)[1:], prog_name="teachonce", standalone_mode=False), Job)


def test_the_readme_can_be_read_at_one_sitting() -> None:
    assert len(README.splitlines()) <= 150


def test_the_python_of_the_readme_names_what_is_in_a_photo(
    student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block is not None and len(block[1].split("\n")) <= 10, "eight lines, and an empty one"
    share_runs.make_run(tmp_path / "my-prompts", student)
    (tmp_path / "photo.jpg").write_bytes(worlds.encoded(worlds.make_photo(0, 0), quality=92))
    monkeypatch.chdir(tmp_path)
    exec(compile(block[1], "README.md", "exec"), {})  # the text is our own
    assert capsys.readouterr().out.strip() in ("red fox", "blue jay", "piano")


def test_the_tree_in_the_readme_is_the_tree() -> None:
    """Every room of the library, and every folder at the top, has its line; every line is in the tree."""
    block = README.split("## The tree\n")[1].split("\n## ")[0]
    named: list[str] = []
    for indent, name in re.findall(r"^    ( *)([\w./]+)  ", block, re.MULTILINE):
        named.append(f"pipeline/{name}" if indent else name)
    assert [name for name in named if not (ROOT / name).exists()] == []
    rooms = {f"pipeline/{file.parent.name}/" for file in (ROOT / "pipeline").glob("*/__init__.py")}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    folders = {f"{path.split('/')[0]}/" for path in tracked.splitlines() if "/" in path}
    assert rooms and (rooms | folders) - set(named) == set()


def test_the_readme_links_to_what_is_there() -> None:
    """Pages of docs/ are tested in test_tutorial.py."""
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README)
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_index_of_docs_lists_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {file.name for file in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages - set(re.findall(r"\]\(([\w-]+\.md)\)", index)) == set()


def test_the_format_page_decodes_a_store(finished: Path, tmp_path: Path) -> None:
    """Its ten lines of NumPy, run without teachonce, give what the reader gives."""
    page = (ROOT / "docs" / "label-store.md").read_text(encoding="utf-8")
    match = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert match is not None
    (tmp_path / "OUT.zarr").symlink_to(finished)
    code = match[1] + (
        "import json, sys\n"
        "assert not any(name.startswith('teachonce') for name in sys.modules)\n"
        "np.savez('found.npz', ids=ids, log_probs=log_probs, outside=outside, ok=ok)\n"
        "print(json.dumps(names))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    store = LabelStore.open(finished)
    parts = [store.decode_labels(store.read_chunk("labels", chunk)) for chunk in range(store.layout.chunks)]
    decoded = np.load(tmp_path / "found.npz")
    assert decoded["ok"].all() and len(decoded["ok"]) == store.layout.rows
    assert np.array_equal(decoded["ids"], np.concatenate([part.class_ids for part in parts]))
    assert np.allclose(decoded["log_probs"], np.concatenate([part.log_probs for part in parts]), atol=1e-6)
    outside = np.concatenate([part.log_residual[:, 0] for part in parts])
    assert np.allclose(decoded["outside"], np.exp(outside), rtol=1e-6)
    assert json.loads(done.stdout) == list(store.vocabulary().names)


def test_help_and_docs_name_every_shipped_recipe() -> None:
    """A recipe that nobody is told of is not shipped."""
    shipped = [file for file in (ROOT / "configs").glob("*.toml") if "schema" not in tomllib.loads(file.read_text())]
    assert {"rpp.toml", "rpp-reported.toml"} <= {file.name for file in shipped}
    sentence = re.search(r"a shipped one: ([^.]*)\.", typing.get_args(ConfigFile)[1].help)
    assert sentence is not None and set(sentence[1].split(", ")) == {file.stem for file in shipped}
    training = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert [file.name for file in shipped if f"`{file.name}`" not in training] == []


def test_rpp_is_the_name_of_the_structure_that_replaces_and_always_as_reported() -> None:
    """Its body was never available: no page and no docstring calls a structure RPP's own, or carried prompts RPP."""
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").glob("*.toml")]
    files += [file for room in ("pipeline", "stages", "cli", "benchmarks") for file in (ROOT / room).rglob("*.py")]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    labels = [line for line in lines if re.search(r"\(RPP(\)| as reported|, arXiv [\d.]+\))", line)]
    assert labels and [line for line in labels if "as reported" not in line or "replace" not in line] == []
    training = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    listed = {line.split()[0]: line for line in training.splitlines() if line.startswith("    ")}
    assert listed["unshared"].endswith("(ours)")
    assert listed["unshared-replace"].endswith("(RPP as reported by third parties)")
    source = (ROOT / "pipeline" / "towers" / "structures.py").read_text(encoding="utf-8")
    assert "\nunshared: ours." in source
    assert "\nunshared-replace: RPP (arXiv 2409.06166) as reported by third parties." in source
