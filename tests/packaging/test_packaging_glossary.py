"""docs/glossary.md explains our words: values of the configuration, columns of a store, and the words listed here.

It also says where to read on, and that place exists.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from teachonce.labels.format import embedding_arrays, label_arrays, new_layout, student_arrays
from teachonce.recipe.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^- \*\*([^*]+)\*\*: ((?:.|\n  )+)", PAGE, re.MULTILINE)
EXPLAINED = {word.strip() for words, _ in ENTRIES for word in words.split(", ")}
PATHS = sorted(set(re.findall(r"`((?:pipeline|stages|cli|docs|tests|configs)/[\w/.-]+)`", PAGE)))
OF_PROMPTS = ("slot", "structure", "letters", "gate", "student", "bare student", "teacher", "context", "template")
OF_STORES = ("row", "sample", "view", "chunk", "ledger", "commit", "staging", "delivery", "tail", "residual", "ghost")
OF_ORIGIN = ("fidelity", "fingerprint", "store id", "recheck", "rehearsal", "manifest", "layout", "vocabulary")
OF_TRAINING = ("selection", "working set", "pairing", "candidates", "fill", "correction", "anchor", "two passes")
OF_RESULTS = ("held out", "dev-unseen", "test-unseen", "homonyms", "credit", "protocol", "contender", "export", "pack")
OF_GRIDS = ("grid", "cell", "setting", "state", "axis", "choice")
METHODS = ("RPP", "SAPL", "POMP", "CoOp", "KgCoOp", "PromptSRC", "PromptKD", "ProGrad", "KDPL", "WiSE", "TinyViT")
WORDS = (*OF_PROMPTS, *OF_STORES, *OF_ORIGIN, *OF_TRAINING, *OF_RESULTS, *OF_GRIDS, *METHODS)


def literals(kind: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every word that a key of a configuration may be, in whatever tables its keys lie."""
    if typing.get_origin(kind) is typing.Annotated:
        yield from literals(typing.get_args(kind)[0], key)
    elif typing.get_origin(kind) is Literal:
        yield from ((key, value) for value in typing.get_args(kind))
    elif dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            yield from literals(hints[field.name], field.name)


def explained_values() -> set[tuple[str, str]]:
    """Key and value of each row of the page's table of values."""
    table = PAGE.partition("## Values of the configuration")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, re.MULTILINE)
    return {(key, value) for key, values in rows for value in re.findall(r"`([^`]+)`", values)}


def test_every_value_of_the_configuration_is_explained_and_no_other() -> None:
    values = set(literals(TrainConfig))
    assert len(values) > 40, "the comparison would hold for nothing"
    assert explained_values() == values


def test_every_column_of_a_store_is_explained() -> None:
    layout = new_layout(rows=512, classes=4, top_k=2, temperatures=(1.0,), views=2)
    specs = [*label_arrays(layout), *embedding_arrays("int8", 8, layout), *student_arrays("students/<digest>", 8)]
    assert [spec.path for spec in specs if f"| `{spec.path}` |" not in PAGE] == []


@pytest.mark.parametrize("word", WORDS)
def test_a_word_of_ours_has_an_entry(word: str) -> None:
    assert word in EXPLAINED


@pytest.mark.parametrize(("words", "text"), ENTRIES, ids=[words for words, _ in ENTRIES])
def test_an_entry_is_a_sentence_and_says_where_to_read_on(words: str, text: str) -> None:
    assert text.strip().endswith(".") and (text[0].isupper() or text[0] == "`")
    assert re.search(r"[Rr]ead (?:\[[\w-]+\.md\]|`[\w/]+\.py`)", text)


@pytest.mark.parametrize("path", PATHS)
def test_where_to_read_on_exists(path: str) -> None:
    assert (ROOT / path).is_file()
