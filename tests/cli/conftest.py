"""Fixtures of the command-line tests: stub stages, and the command line in this or another process.

It tests nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import stage_stubs

from teachonce.cli.app import run


@dataclass(frozen=True)
class Ended:
    """A command line that has ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """stdout, which must be one JSON document and nothing else."""
        loaded = json.loads(self.out)
        assert isinstance(loaded, dict)
        return loaded


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> stage_stubs.Stubs:
    """All stages replaced; a real one that another test has imported comes back afterwards."""
    made = stage_stubs.Stubs()
    for module, name, function in made.functions():
        monkeypatch.setattr(module, name, function)
    return made


@pytest.fixture
def teachonce_here(stubs: stage_stubs.Stubs, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a command line in this process on the stub stages."""

    def call(*arguments: str) -> Ended:
        capfd.readouterr()
        code = run(arguments)
        out, err = capfd.readouterr()
        return Ended(code, out, err)

    return call


@pytest.fixture
def stubbed_command() -> list[str]:
    """The start of a command line that runs in a process of its own on the stub stages."""
    return [sys.executable, stage_stubs.__file__]


@pytest.fixture
def teachonce_process() -> Callable[..., Ended]:
    """Run the real `python -m teachonce` in a process of its own, from `/`."""

    def call(*arguments: str) -> Ended:
        command = [sys.executable, "-m", "teachonce", *arguments]
        done = subprocess.run(command, cwd=Path("/"), env=os.environ, capture_output=True, text=True, timeout=60)
        return Ended(done.returncode, done.stdout, done.stderr)

    return call
