"""`make docs`: the pages build as they are, what is dead in them is found, and a reader's browser fetches nothing."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import teachonce
from teachonce import errors

ROOT = Path(__file__).resolve().parents[2]
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.TeachOnceError)]


def built(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """The site of a project, as `make docs` builds it."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(site)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def hooks() -> ModuleType:
    """docs/site_hooks.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_build_and_fetch_nothing(tmp_path: Path) -> None:
    """No warning, and no script, style, font or picture of another host in what a browser reads."""
    done = built(ROOT / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted((tmp_path / "site").glob("*.html"))
    assert {page.stem for page in (ROOT / "docs").glob("*.md") if page.stem != "README"} <= {p.stem for p in pages}
    remote = re.compile(r"""<(?:script|img|link|iframe|source)\b[^>]*(?:src|href)=["'](?:https?:)?//""")
    assert [page.name for page in pages if remote.search(page.read_text(encoding="utf-8"))] == []
    styles = [file for file in (tmp_path / "site").rglob("*.css")]
    assert [file.name for file in styles if re.search(r"url\(\s*[\"']?https?:", file.read_text("utf-8"))] == []
    assert list((tmp_path / "site").rglob("*.py")) == []


DEAD = {
    "gone.md": "[a page](gone.md)",
    "#gone": "[a heading](other.md#gone)",
    "../pipeline/gone.py": "[a file](../pipeline/gone.py)",
    "gone.svg": "![a picture](gone.svg)",
}
DEAD_NAME = {"teachonce.errors.Gone": "::: teachonce.errors.Gone"}  # it ends the build at once, so it stands apart


@pytest.mark.slow  # the test above builds the pages in CI
@pytest.mark.parametrize("lines", [DEAD, DEAD_NAME], ids=["links", "name"])
def test_what_is_dead_on_a_page_fails_the_build(tmp_path: Path, lines: dict[str, str]) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("mkdocs.yml", "docs/site_hooks.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "docs" / "other.md").write_text("# Other\n", encoding="utf-8")
    (tmp_path / "docs" / "index.md").write_text("# Page\n\n" + "\n\n".join(lines.values()), encoding="utf-8")
    done = built(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert [said for said in lines if said not in done.stdout + done.stderr] == []


def test_a_link_out_of_docs_becomes_a_path(hooks: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """In text, not in code; words that are the path already are not said twice."""
    page = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    text = "See [the recipes](../configs/) and [configs/rpp.toml](../configs/rpp.toml), `[x](../configs/)`.\n"
    with caplog.at_level(logging.WARNING):
        made = hooks.on_page_markdown(text + "\n    [x](../configs/)\n", page=page)
    assert made.startswith("See the recipes (`configs`) and configs/rpp.toml, `[x](../configs/)`.")
    assert made.endswith("\n    [x](../configs/)\n") and caplog.records == []


def test_a_fence_that_names_a_file_keeps_its_language(hooks: ModuleType) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    assert hooks.on_page_markdown("```toml grid.toml\na = 1\n```\n", page=page) == "```toml\na = 1\n```\n"


@pytest.mark.parametrize("name", teachonce.__all__)
def test_every_public_name_is_on_the_api_page(name: str) -> None:
    assert f"teachonce.{name}" in API


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_on_the_api_page_with_its_exit_code(kind: type[errors.TeachOnceError]) -> None:
    row = re.search(rf"^\| `{kind.__name__}`[^|]* \| (\d+) \|", API, re.MULTILINE)
    assert row is not None and int(row[1]) == kind.exit_code
