"""CITATION.cff, CONTRIBUTING.md, SECURITY.md, CHANGELOG.md and the pre-commit hooks are well formed and true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOP = "pipeline|stages|cli|tests|configs|data_manifests|docs|benchmarks"
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/trust.md")
PATHS = sorted(
    {
        (page, path)
        for page in PAGES
        for path in re.findall(rf"[`(]((?:{TOP})/[\w./-]*)[`)]", (ROOT / page).read_text(encoding="utf-8"))
    }
)
HOLES = {"data_manifests/NAME.toml"}  # a reader puts a name in


def document(name: str) -> Any:
    """A YAML file of the project's root."""
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_citation_is_a_cff_file_of_this_version() -> None:
    """It has the keys that CFF 1.2.0 requires, and its version and licence are those of the package."""
    citation = document("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    assert citation["authors"] == [{"name": "TeachOnce contributors"}]
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference), "what CFF requires of a reference"
    assert [reference["url"].rpartition("/")[2] for reference in citation["references"]] == ["2409.06166", "2304.04704"]


def test_pre_commit_needs_no_network() -> None:
    """Every hook is local and runs a tool of the active environment."""
    repositories = document(".pre-commit-config.yaml")["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    hooks = repositories[0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "prose", "mypy"}


def test_the_changelog_begins_with_what_is_not_released() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"


@pytest.mark.parametrize(("page", "path"), PATHS)
def test_a_path_on_these_pages_is_in_the_tree(page: str, path: str) -> None:
    assert path in HOLES or (ROOT / path).exists()
