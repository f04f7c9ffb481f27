"""The names that open_clip has are read from its files, and a wrong one is answered with the right one."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from worlds import World

from teachonce.errors import UsageError
from teachonce.models import known
from teachonce.models.spec import parse_spec


def test_the_tables_are_those_that_open_clip_has_when_it_runs() -> None:
    import open_clip

    tags = known.released()
    assert tags is not None
    assert [(name, tag) for name, some in tags.items() for tag in some] == open_clip.list_pretrained()
    assert set(known.architectures()) == set(open_clip.list_models())


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("ViT-L-14/opneai", "did you mean 'ViT-L-14/openai'?"),
        ("ViT-L14/openai", "did you mean 'ViT-L-14/openai'?"),
        ("vit-b-16-siglip/webli", "did you mean 'ViT-B-16-SigLIP/webli'?"),
        ("ViT-SO400M-14-SigLIP/openai", "only webli"),
        ("ViT-B-32/webli", "and 10 more"),
        ("ViT-S-16/openai", "no weights for the architecture 'ViT-S-16'"),
        ("xyz/abc", "no architecture 'xyz'"),
    ],
)
def test_a_wrong_name_is_answered_with_what_there_is(spec: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_spec(spec)
    assert said in caught.value.message and spec in caught.value.message and caught.value.hint


@pytest.mark.parametrize("spec", ["ViT-B-32/LAION400M-E31", "RN50-quickgelu/openai"])
def test_a_name_that_open_clip_takes_is_taken(spec: str) -> None:
    """Also a tag in another spelling, and the second names of weights with quick-GELU."""
    assert "/".join(map(str, parse_spec(spec))) == spec


def test_an_architecture_that_a_program_has_added_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    monkeypatch.setattr(open_clip, "list_models", lambda: ["mine"])
    assert "mine" in known.architectures() and "ViT-B-32" in known.architectures()


@pytest.mark.parametrize(
    "source", ["", "_PRETRAINED = load()", "_PRETRAINED = {'a': 1}", "_PRETRAINED = {name: dict() for name in x}"]
)
def test_a_table_in_another_form_is_not_read(source: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        known._read_table(ast.parse(source))


def test_where_the_table_cannot_be_read_open_clip_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "released", lambda: None)
    known.require_known("new/tag", "new", "tag")


@pytest.mark.parametrize(
    "command",
    [
        ["teach", "MANIFEST", "--labels", "a.zarr", "--teacher", "ViT-L14/openai"],
        ["teach", "MANIFEST", "--labels", "a.zarr", "--student", "ViT-L14/openai"],
        ["evaluate", "--manifest", "MANIFEST", "--student", "ViT-L14/openai"],
    ],
)
def test_a_wrong_name_ends_a_command_before_torch_is_loaded(command: list[str], world: World, tmp_path: Path) -> None:
    code = (
        "import sys\nfor name in ('torch', 'distributed'): sys.modules[name] = None\n"
        "from teachonce.cli.app import run\nsys.exit(run(sys.argv[1:]))"
    )
    words = [world.manifest() if word == "MANIFEST" else word for word in command]
    line = [sys.executable, "-c", code, *words, "--root", str(world.root)]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "did you mean 'ViT-L-14/openai'?" in done.stderr
