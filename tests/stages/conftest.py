"""Fixtures of the stage tests: the tiny world, two tiny CLIPs, and a finished store of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import worlds
from worlds import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Seventy photos of seven classes in three layouts."""
    return worlds.session_world(tmp_path_factory)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random CLIP of width 16."""
    return worlds.session_clip(tmp_path_factory, "teacher")


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another one, of width 12."""
    return worlds.session_clip(tmp_path_factory, "student")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store; never change it, copy it."""
    return worlds.session_store(tmp_path_factory)
