"""The verbs `models` and `import-model`: what they hand to their stages, and what they print. The stages are stubs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stage_stubs

from teachonce.errors import DataError
from teachonce.stages.import_model import ImportModelRequest
from teachonce.stages.models import ModelsRequest

Command = Callable[..., Any]


def test_the_word_reaches_the_stage_and_the_table_has_models_above_counts(
    teachonce_here: Command, stubs: stage_stubs.Stubs
) -> None:
    ended = teachonce_here("models", "siglip")
    assert ended.code == 0 and stubs.requests[-1] == ModelsRequest(word="siglip")
    assert ended.out.index("ViT-B-16-SigLIP/webli") < ended.out.index("by family") < ended.out.index("all")
    assert "no causal mask" in ended.out
    assert teachonce_here("models").code == 0 and stubs.requests[-1] == ModelsRequest(word=None)


def test_a_program_gets_reasons_by_use(teachonce_here: Command) -> None:
    document = teachonce_here("models", "--json").document
    assert document["command"] == "models"
    assert document["models"][0]["refused"] == {"text_prompts": "no causal mask"}
    assert document["total"]["teachers"] == 1


def test_source_release_and_folder_reach_the_stage(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    line = ("import-model", "w.pt", "--as", "ViT-B-32/openai", "--out", "clip", "--tokenizer", "words", "--json")
    ended = teachonce_here(*line)
    assert ended.code == 0 and ended.document["model"] == "local-dir:clip"
    assert stubs.requests[-1] == ImportModelRequest(
        source=Path("w.pt"), out=Path("clip"), release="ViT-B-32/openai", tokenizer=Path("words")
    )


@pytest.mark.parametrize("arguments", [("import-model", "--out", "clip"), ("import-model", "folder")])
def test_source_and_folder_are_required(arguments: tuple[str, ...], teachonce_here: Command) -> None:
    ended = teachonce_here(*arguments)
    assert ended.code == 2 and "teachonce import-model --help" in ended.err


def test_tensors_that_are_left_over_end_with_exit_code_three(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    stubs.problem = DataError("not used: lora_A", "merge adapters into it")
    ended = teachonce_here("import-model", "folder", "--out", "clip")
    assert ended.code == 3 and "lora_A" in ended.err
