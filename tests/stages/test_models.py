"""The list of models is filtered by a word, and its counts are those of its lines."""

from __future__ import annotations

import importlib.util

import pytest
import worlds

from teachonce.core.progress import Silent
from teachonce.errors import UsageError
from teachonce.stages.models import ModelsRequest, models


def test_counts_are_those_of_the_lines() -> None:
    result = models(ModelsRequest(), Silent())
    assert sum(family.models for family in result.families) == result.total.models == len(result.models)
    assert result.total.teachers == sum(one.teacher for one in result.models)
    assert result.total.text_prompts == sum(family.text_prompts for family in result.families)
    assert result.total.image_prompts == sum(family.image_prompts for family in result.families)
    assert len({one.model for one in result.models}) == len(result.models)


def test_a_reason_stands_at_every_use_that_is_refused_and_at_no_other() -> None:
    result = models(ModelsRequest(), Silent())
    for one in result.models:
        uses = {"teacher": one.teacher, "text_prompts": one.text_prompts, "image_prompts": one.image_prompts}
        assert {use for use, can in uses.items() if not can} == set(one.refused)
        assert all(one.refused.values())
    for family in result.families:
        whole = family.teachers == family.text_prompts == family.image_prompts == family.models
        assert bool(family.refused) != whole, family


@pytest.mark.parametrize("word", ["siglip2", "SigLIP2", "b-16-sigl", "vit-b-32/openai"])
def test_a_word_in_name_or_family_filters(word: str) -> None:
    result = models(ModelsRequest(word=word), Silent())
    assert 0 < result.total.models == len(result.models) < 20
    assert all(word.lower() in f"{one.model} {one.family}".lower() for one in result.models)
    assert {family.family for family in result.families} == {one.family for one in result.models}


def test_a_word_that_no_model_has_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean 'siglip"):
        models(ModelsRequest(word="sigplip"), Silent())


def test_what_is_needed_and_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "teachonce.stages.models.work.importlib.util.find_spec",
        lambda name: None if name == "transformers" else find(name),
    )
    notes = worlds.Notes()
    models(ModelsRequest(word="siglip"), notes)
    assert any("teachonce[hf]" in line for line in notes.lines)
    notes = worlds.Notes()
    models(ModelsRequest(word="ViT-B-32/openai"), notes)
    assert not any("teachonce[hf]" in line for line in notes.lines)
