"""What README and docs say is so: command lines parse, the tree is complete, the format page decodes a store."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from teachonce.cli.app import EXAMPLES, app
from teachonce.cli.jobs import Job
from teachonce.labels.store import LabelStore

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("    teachonce ")]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_readme_parses(line: str) -> None:
    """A copied line is never a usage error."""
    assert isinstance(app(shlex.split(line)[1:], prog_name="teachonce", standalone_mode=False), Job)


def test_the_readme_has_commands() -> None:
    """The test above checks something: one line at least for each command."""
    assert {line.split()[1] for line in COMMANDS} == set(EXAMPLES)


def test_the_tree_in_the_readme_is_complete() -> None:
    """Every module of the library is named with a comment."""
    modules = {file.name for file in (ROOT / "pipeline").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert [name for name in sorted(modules) if name not in README] == []


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
    found = np.load(tmp_path / "found.npz")
    assert found["ok"].all() and len(found["ok"]) == store.layout.rows
    assert np.array_equal(found["ids"], np.concatenate([part.class_ids for part in parts]))
    assert np.allclose(found["log_probs"], np.concatenate([part.log_probs for part in parts]), atol=1e-6)
    outside = np.concatenate([part.log_residual[:, 0] for part in parts])
    assert np.allclose(found["outside"], np.exp(outside), rtol=1e-6)
    assert json.loads(done.stdout) == list(store.vocabulary().names)
