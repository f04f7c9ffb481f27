"""The model card: front matter that the hub's own reader takes, and what it says where nothing was recorded."""

from __future__ import annotations

import dataclasses
from typing import Any

import huggingface_hub
import pytest

from teachonce.sharing.facts import DataFacts, ExportFacts, public
from teachonce.sharing.model_card import base_model, licence_id, markdown, model_card

STRUCTURE = {
    "tower": "text",
    "structure": "unshared",
    "init": "template",
    "context": "a photo of a",
    "slots": 4,
    "depth": 0,
    "position": "before",
    "suffix": ".",
}
DATA = DataFacts(
    store_id="f00d",
    manifest="set",
    split="train",
    title="A release",
    licence="research only",
    rows=18000,
    views=3,
    top_k=10,
    classes=120,
    vocabulary="timm:imagenet22k",
    vocabulary_digest="abcd",
    teacher="ViT-L-14/openai",
    teacher_digest="beef",
    templates=("a photo of a {}.",),
)
SCORES: dict[str, Any] = {
    "name": "val",
    "top1": 0.5,
    "top1_interval": [0.45, 0.55],
    "macro": 0.4875,
    "ece": 0.0625,
    "n": 600,
    "classes": 120,
    "manifest": "set",
    "split": "val",
    "wise": 1.0,
    "protocol": "in-vocabulary",
    "baseline": {"top1": 0.375, "template": "a drawing of a {}."},
}
FACTS = ExportFacts(
    teachonce="0.1.0",
    licence="CC-BY-4.0",
    prompts_digest="cafe",
    student="ViT-B-16/openai",
    student_digest="d1ce",
    structure=STRUCTURE,
    origin="train",
    training={"steps": 600, "final_loss": 1.25, "held_out_top1": 0.625},
    data=DATA,
    evaluations=(SCORES,),
    class_weights={"classes": 120, "width": 512, "tied_names": 2, "digest": "ab"},
)


def tables(card: str) -> list[list[str]]:
    """The cells of every line that is part of a table; an escaped bar is none."""
    return [line.replace("\\|", "").strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]


def test_the_hub_reads_the_front_matter() -> None:
    """Licence, base model, library and tags, by the hub's own class."""
    data = huggingface_hub.ModelCard(model_card(FACTS, "user/repo")).data
    assert (data.license, data.base_model, data.library_name) == (
        "cc-by-4.0",
        "timm/vit_base_patch16_clip_224.openai",
        "teachonce",
    )
    assert data.pipeline_tag == "zero-shot-image-classification" and {"teachonce", "clip"} <= set(data.tags)


def test_everything_recorded_is_said() -> None:
    """Release, licences, teacher, student, digests, structure, steps, accuracy, protocol, how to load, limits."""
    card = model_card(FACTS, "user/repo")
    for words in (
        "A release (manifest set, split train)",
        "research only",
        "ViT-L-14/openai",
        "beef",
        "d1ce",
        "ViT-B-16/openai",
        "cafe",
        "unshared",
        "600",
        "18,000 (3 views of each image)",
        "the best 10 classes",
        "CC-BY-4.0",
        'teachonce.load_prompts("user/repo")',
        "2 classes share their name",
        "120 x 512",
        "62.50 % top-1",
        "sha256sum -c SHA256SUMS",
        "Not tested",
        "these 120 names only",
    ):
        assert words in card, words
    assert ["loss, mean of the last 5 logged steps", "1.25"] in tables(card), "`status` shows the last one alone"
    wanted = [
        "in-vocabulary",
        "set, val",
        "120",
        "600",
        "50.00 %",
        "45.00 % to 55.00 %",
        "48.75 %",
        "0.062",
        "37.50 % (a drawing of a {}.)",
    ]
    assert wanted in tables(card)
    lines = card.split("## Use")[1].split("```")[1].splitlines()[1:]
    assert len(lines) == 3, "three lines of Python"


def test_what_is_not_recorded_is_said() -> None:
    """No run, no store, no evaluation, no licence, no weights, a student that lies in a local folder."""
    facts = dataclasses.replace(
        FACTS,
        licence=None,
        origin="import",
        training={"checkpoint_digest": "abc", "epoch": 50},
        data=DataFacts(),
        evaluations=(),
        class_weights=None,
        student="local-dir:mine",
    )
    card = model_card(facts, "shared")
    data = huggingface_hub.ModelCard(card).data
    assert (data.license, data.base_model) == ("unknown", None)
    for words in (
        "CoOp or POMP",
        "Not recorded",
        "No evaluation was recorded",
        "accuracy was not measured",
        "not stated",
        "No class weights",
        'load_prompts("shared", model="local-dir:PATH_OF_THE_STUDENT")',
    ):
        assert words in card, words
    assert "None" not in card and "nan" not in card
    known = dataclasses.replace(facts, data=DataFacts(store_id="f00d"))
    assert "beyond the label store's id, `f00d`" in model_card(known, "shared")
    assert "change images too" in model_card(dataclasses.replace(facts, structure=STRUCTURE | {"tower": "both"}), "x")


def test_words_from_outside_stay_words() -> None:
    """A title, a protocol or a licence can neither end a table nor add a heading, front matter, a link or HTML."""
    evil = "a | b\n---\nlicense: mit\n# Head <script>x</script> [link](http://x) `code`"
    facts = dataclasses.replace(
        FACTS, licence=evil, data=dataclasses.replace(DATA, title=evil), evaluations=({**SCORES, "protocol": evil},)
    )
    card, plain = model_card(facts, "x"), model_card(FACTS, "x")
    assert [len(row) for row in tables(card)] == [len(row) for row in tables(plain)]
    assert card.count("\n---\n") == plain.count("\n---\n") and card.count("\n#") == plain.count("\n#")
    assert "<script>" not in card and "[link]" not in card
    assert huggingface_hub.ModelCard(card).data.license == "other"


def test_mixed_prompts_are_called_mixed() -> None:
    card = model_card(dataclasses.replace(FACTS, evaluations=({**SCORES, "wise": 0.5},)), "x")
    assert "0.5 of the prompts mixed with the template" in card
    bare = {"name": "own", "top1": 1.0}
    last = tables(model_card(dataclasses.replace(FACTS, evaluations=(bare,)), "x"))[-1]
    assert last[:5] == ["own", "not recorded, split not recorded", "", "", "100.00 %"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, "unknown"),
        ("MIT", "mit"),
        ("apache-2.0", "apache-2.0"),
        ("CC-BY-NC-SA-4.0", "cc-by-nc-sa-4.0"),
        ("cc0-1.0", "cc0-1.0"),
        ("for friends only", "other"),
        ("apache", "other"),
        ("", "other"),
    ],
)
def test_licences_that_the_hub_knows(text: str | None, wanted: str) -> None:
    assert licence_id(text) == wanted


@pytest.mark.parametrize(
    ("student", "wanted"),
    [
        ("hf-hub:org/model", "org/model"),
        ("local-dir:x", None),
        ("ViT-B-16/openai", "timm/vit_base_patch16_clip_224.openai"),
        ("no-such/weights", None),
    ],
)
def test_the_base_model_is_a_hub_id_or_nothing(student: str, wanted: str | None) -> None:
    assert base_model(student) == wanted


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("local-dir:/home/me/models/vit", "local-dir:vit"),
        ("/data/me/names.tsv", "names.tsv"),
        ("mine/set.toml", "set.toml"),
        ("ViT-B-16/openai", "ViT-B-16/openai"),
        ("timm:imagenet22k", "timm:imagenet22k"),
        ("hf-hub:a/b", "hf-hub:a/b"),
    ],
)
def test_no_folder_of_this_machine_is_told(spec: str, wanted: str) -> None:
    assert public(spec) == wanted
    assert markdown("a_b *c* |\n`d`") == r"a\_b \*c\* \| \`d\`"
