"""The digests that files of earlier versions hold: every value was computed before one function made them all."""

import datetime
from typing import Any

import pytest

from teachonce.core.digests import MIDDLE, SHORT, canonical_digest, canonical_json
from teachonce.data.manifests import load_manifest
from teachonce.evaluation.cache import digest_key
from teachonce.recipe.config import TrainConfig, config_digest

DOCUMENT: dict[str, Any] = {"b": [1, 2.5, None, True], "a": {"z": "ü", "y": 1e-07}}
COMPACT = "2a22c93631e61ddd043e1b37db3a3fd55d2fe517e13fb0d77fb16f2b829fce6d"


def test_fingerprints_and_prompts_keep_their_digest() -> None:
    assert canonical_digest(DOCUMENT) == COMPACT


def test_cells_configs_and_working_sets_are_named_by_the_first_digits() -> None:
    assert canonical_digest(DOCUMENT, SHORT) == config_digest(DOCUMENT) == COMPACT[:16]
    assert canonical_digest(DOCUMENT, MIDDLE) == COMPACT[:32]


def test_manifests_and_worlds_keep_the_digest_of_their_spaced_text() -> None:
    expected = "78fb1a9f974dd4af528ae8c9c0db821b2fdfffa2bd82739cb7a003fb3923bbc5"
    assert canonical_digest(DOCUMENT, spaced=True) == expected
    demo = "5e9fd2eac5b3b3545b17b670199b5228d4d1dd3e92a09f955946ba5f0a6b7b71"
    assert load_manifest("demo").digest("train") == demo


def test_kept_evaluations_keep_their_names() -> None:
    parts = ("a", [["x.tar", 3, 4]], ("m", "n"), DOCUMENT)
    assert digest_key(*parts) == "fad6e4a753c20d8f3a794491d6485ffe"


def test_a_config_with_a_value_that_json_does_not_know_keeps_its_digest() -> None:
    assert config_digest({"lr": 0.002, "when": datetime.date(2026, 1, 2)}) == "b939232d9d70ba21"


def test_a_document_with_a_value_that_json_does_not_know_is_refused() -> None:
    """Its text could be that of another value, and two stores would count as one."""
    with pytest.raises(TypeError):
        canonical_digest({"when": datetime.date(2026, 1, 2)})


def test_the_order_of_keys_is_no_content() -> None:
    turned = dict(reversed(DOCUMENT.items()))
    assert canonical_digest(turned) == canonical_digest(DOCUMENT) != canonical_digest(DOCUMENT | {"a": 1})
    assert canonical_json(turned, in_order=True) != canonical_json(DOCUMENT, in_order=True)


def test_a_config_is_digested_as_a_file_holds_it() -> None:
    config = TrainConfig.of(seed=3)
    assert config.digest() == config_digest(config.to_dict())
