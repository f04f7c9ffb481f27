"""No version that CI installs has a known hole. Slow: it asks the package index about each, so it needs a network."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LOCK = Path(__file__).resolve().parents[2] / ".ci" / "lock-3.11.txt"


def judged(report: dict[str, Any]) -> tuple[list[str], list[str], int]:
    """The holes of a report of pip-audit, the packages that it could not look up, and how many it was asked about."""
    packages = report["dependencies"]
    holes = [
        f"{one['name']} {one['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no version'}"
        for one in packages
        for hole in one.get("vulns", ())
    ]
    return holes, [one["name"] for one in packages if "skip_reason" in one], len(packages)


def test_a_report_is_read_whole() -> None:
    sound = {"name": "zarr", "version": "3.1.6", "vulns": []}
    holed = {"name": "torch", "version": "2.5.0", "vulns": [{"id": "PYSEC-2025-41", "fix_versions": ["2.6.0"]}]}
    lost = {"name": "typer", "skip_reason": "not found"}
    assert judged({"dependencies": [sound, holed, lost]}) == (
        ["torch 2.5.0: PYSEC-2025-41, mended in 2.6.0"],
        ["typer"],
        3,
    )


@pytest.mark.slow
def test_no_locked_version_has_a_known_hole() -> None:
    if importlib.util.find_spec("pip_audit") is None:
        pytest.skip("pip-audit is not installed: `make test-slow` installs it, or pip install 'teachonce[audit]'")
    command = ["-m", "pip_audit", "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(
        [sys.executable, *command, "-r", str(LOCK)], capture_output=True, text=True, check=False, timeout=900
    )
    if not done.stdout.strip():
        pytest.skip(f"no list of known holes can be reached from here: {done.stderr.strip()[-300:]}")
    holes, unknown, asked = judged(json.loads(done.stdout))
    assert asked == sum("==" in line for line in LOCK.read_text(encoding="utf-8").splitlines())
    assert holes == []
    if len(unknown) == asked:
        pytest.skip(f"the index that can be reached from here knows no holes of any of {asked} packages")
    assert unknown == [], "the index knows nothing of these"
