"""The shipped list of open_clip's models is that of the installed open_clip and of the towers' own checks, and so is
its page.
"""

from __future__ import annotations

import importlib.metadata
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from teachonce.models.catalogue import FILE, catalogue

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCRIPT = DOCS / "make_models.py"
FEW = ("ViT-B-32", "RN50", "ViTamin-S", "ViT-B-16-SigLIP2", "MobileCLIP2-S0", "coca_ViT-B-32", "nllb-clip-base")
PROBE = """
import json, runpy, sys
page = runpy.run_path(sys.argv[1])["page"]()
print(json.dumps([page, [name for name in ("torch", "open_clip", "timm", "numpy") if name in sys.modules]]))
"""


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    versions = {name: importlib.metadata.version(package) for name, package in PACKAGES.items()}
    shipped = {name: getattr(catalogue(), name) for name in versions}
    if versions != shipped:
        pytest.skip(f"the list is of {shipped}; installed are {versions}: other models, other towers")
    return runpy.run_path(str(SCRIPT))


PACKAGES = {"open_clip": "open_clip_torch", "timm": "timm"}


def test_every_released_model_is_listed_once(script: dict[str, Any]) -> None:
    import open_clip

    listed = [(one.name, tag) for one in catalogue().architectures for tag in one.weights]
    assert sorted(listed) == sorted(open_clip.list_pretrained())
    assert list(script["released"]()) == [one.name for one in catalogue().architectures]


@pytest.mark.parametrize("name", FEW)
def test_the_list_says_what_the_built_model_shows(name: str, script: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in json.loads(FILE.read_text(encoding="utf-8"))["architectures"]}
    assert script["surveyed"](name, rows[name]["weights"]) == rows[name], "run `make models`"


@pytest.mark.slow
def test_the_list_says_what_every_built_model_shows(script: dict[str, Any]) -> None:
    assert script["survey"]() == FILE.read_text(encoding="utf-8"), "run `make models`"


def test_the_page_is_current_and_made_without_anything_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(SCRIPT)], capture_output=True, text=True, check=True, timeout=60
    )
    page, heavy = json.loads(done.stdout)
    assert page == (DOCS / "models.md").read_text(encoding="utf-8"), "run `python docs/make_models.py`"
    assert heavy == []


def test_an_architecture_of_no_family_is_refused(script: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="of no family"):
        script["family_of"]("Perceiver-B")
