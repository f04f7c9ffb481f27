"""Configs and manifests are read strictly: no unknown key, wrong type or wrong value passes, and messages help."""

from __future__ import annotations

import dataclasses
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from teachonce.cli.settings import EvaluateSettings, settings
from teachonce.core.strict import decode, toml_value
from teachonce.data.manifests import Manifest, Split, load_manifest
from teachonce.errors import DataError, UsageError, did_you_mean
from teachonce.recipe.config import TABLES, TrainConfig, key_types
from teachonce.recipe.config_file import load_train_config, train_config

SPLIT = {
    "format": "webdataset",
    "path": "a/*.tar",
    "label": "cls",
    "classes": "b.tsv",
    "samples": 3,
    "unlabelled": False,
    "archives": 2,
    "known_bad": ["a"],
    "images": "",
    "part": "",
}
MANIFEST: dict[str, Any] = {
    "schema": 1,
    "name": "n",
    "title": "t",
    "classes": "c.tsv",
    "splits": {"train": SPLIT},
    "licence": "l",
    "get": "g",
    "about": "a",
    "digests": {"a.tar": "md5:0"},
    "names": "",
    "template": "{}",
}
COMPLETE: dict[type, dict[str, Any]] = {
    Manifest: MANIFEST,
    Split: SPLIT,
    **{kind: dataclasses.asdict(kind()) for kind in TABLES.values()},
}
FIELDS = [(kind, field.name) for kind in COMPLETE for field in dataclasses.fields(kind)]


def misspelt(word: str) -> str:
    """The word with two neighbouring letters swapped; of a short one, where that may give another, the last doubled."""
    if len(word) <= 4:
        return word + word[-1]
    i = next(i for i in range(1, len(word) - 1) if word[i] != word[i + 1])
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


YES_OR_NO = ("unlabelled", "coupled", "layer_scale", "prograd", "tf32", "compile")


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_a_misspelt_key_is_refused_with_the_right_one(kind: type, name: str) -> None:
    """One typo in any key: an error that says where, what, and what was probably meant."""
    data = dict(COMPLETE[kind])
    data[misspelt(name)] = data.pop(name)
    with pytest.raises(UsageError) as caught:
        decode(kind, data, "file.toml")
    assert str(caught.value) == f"file.toml: unknown key '{misspelt(name)}': did you mean '{name}'?"


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_a_wrong_type_is_refused_and_says_what_was_expected(kind: type, name: str) -> None:
    """No field takes a date-like object; the message holds where, the field, what was found, what was expected."""
    with pytest.raises(UsageError) as caught:
        decode(kind, COMPLETE[kind] | {name: {1, 2}}, "file.toml")
    message = str(caught.value)
    assert message.startswith(f"file.toml: {name}: ") and "{1, 2}" in message
    assert "expected" in message or "is not allowed: known:" in message


@pytest.mark.parametrize(("kind", "name"), [field for field in FIELDS if field[1] not in YES_OR_NO])
def test_true_is_no_number_and_no_choice(kind: type, name: str) -> None:
    """`true` counts as 1 in Python; only where a key is a yes or no it is meant."""
    with pytest.raises(UsageError, match=name):
        decode(kind, COMPLETE[kind] | {name: True}, "file.toml")


BESIDE: dict[tuple[str, str], dict[str, Any]] = {  # what a value cannot do without
    ("tower", "none"): {"head": "linear"},
    ("head", "tip-adapter"): {"tower": "none"},
    ("head", "tip-adapter-f"): {"tower": "none"},
    ("head", "teacher-space"): {"tower": "none"},
}


@pytest.mark.parametrize("name", list(key_types()))
def test_every_value_of_a_choice_is_accepted_and_others_are_not(name: str) -> None:
    """Choices are closed lists; a near miss is answered with the nearest choice."""
    hint = key_types()[name]
    if typing.get_origin(hint) is not Literal:
        default = TrainConfig().to_dict()[name]
        assert train_config({name: default}, "x") == TrainConfig()
        return
    for value in typing.get_args(hint):
        beside = BESIDE.get((name, value), {})
        assert train_config({name: value, **beside}, "x").to_dict()[name] == value
        with pytest.raises(UsageError, match=re.escape(f"did you mean '{value}'")):
            train_config({name: value + "x"}, "x")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("learning_rate", -1.0),
        ("steps", 0),
        ("batch_size", 0),
        ("checkpoint_every", 0),
        ("log_every", 0),
        ("class_chunk", 0),
        ("depth", -1),
        ("soft_weight", -0.5),
        ("soft_weight", float("nan")),
        ("sampled_fill", -1),
        ("sampled_top", -1),
        ("teacher_names", 0),
        ("weight_decay", -1.0),
        ("warmup_epochs", -1.0),
        ("bare_templates", "a photo"),
        ("bare_templates", "the {}. | a {} and a {}"),
        ("warmup_steps", -1),
        ("seed", -1),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("context", "  "),
        ("length", -1),
        ("image_length", 0),
        ("image_depth", -1),
        ("teacher_temperature", -1.0),
        ("label_smoothing", 1.0),
        ("gce_q", 0.0),
        ("gce_q", 1.1),
        ("anchor_weight", -1.0),
        ("consistency_weight", float("inf")),
        ("sampled_backward", 0),
        ("clip_gradient", -1.0),
        ("warmup_rate", -1.0),
        ("average_decay", 0.0),
        ("average_decay", 1.0),
        ("average_deviation", 0.0),
        ("average_mean", -1.0),
        ("epochs", -1.0),
        ("views_per_step", 0),
        ("micro_batch", -1),
        ("held_out", 1.0),
        ("evaluate_every", 0),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_name(name: str, value: object) -> None:
    """Ranges are checked where the config is read, not hours later."""
    with pytest.raises(UsageError, match=f"cfg: .*{name} must"):
        train_config({name: value}, "cfg")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prograd": True, "supervision": "soft"}, "prograd changes the gradient of the hard loss"),
        ({"hard_over": "seen", "label_smoothing": 0.1}, "label_smoothing"),
        ({"compile": True}, "compile is for the image tower"),
        ({"tower": "image", "candidates": "all-sampled"}, "all-sampled"),
        ({"learning_rate": 1e31}, "learning_rate"),
        ({"label_smoothing": 0.1, "supervision": "soft"}, "label_smoothing"),
        ({"label_smoothing": 0.1, "hard_loss": "gce"}, "label_smoothing"),
        ({"soft_loss": "reverse-kl", "tail": "to-label"}, "to-label"),
        ({"soft_loss": "symmetric", "tail": "to-label", "supervision": "soft"}, "to-label"),
        ({"label_smoothing": 0.1, "candidates": "sampled", "correction": "none"}, "label_smoothing"),
        ({"weight_decay": 0.1, "structure": "unshared-replace"}, "weight_decay"),
        ({"prograd": True, "candidates": "all-sampled"}, "exact gradients"),
        ({"candidates": "sampled", "correction": "log10", "consistency_weight": 1.0}, "log10"),
        ({"candidates": "teacher", "supervision": "hard"}, "reads no teacher"),
        ({"candidates": "teacher", "label_smoothing": 0.1}, "label_smoothing"),
        ({"candidates": "teacher", "consistency_weight": 1.0}, "no estimate of a sum over all classes"),
    ],
)
def test_values_that_make_no_sense_together_are_refused(given: dict[str, object], words: str) -> None:
    """What would do nothing, or something else than its name says, is no silent choice."""
    with pytest.raises(UsageError, match=words):
        train_config(given, "cfg")


def test_whole_numbers_pass_for_floats_and_floats_not_for_whole_numbers() -> None:
    """`soft_weight = 2` is fine; `steps = 2.0` is not."""
    assert train_config({"soft_weight": 2}, "x").loss.soft_weight == 2.0
    with pytest.raises(UsageError, match=r"steps: expected int, found float 2\.0"):
        train_config({"steps": 2.0}, "x")


def test_a_missing_key_is_named() -> None:
    """Keys without a default must be there."""
    for name in ("schema", "name", "title", "classes", "splits"):
        data = {key: value for key, value in MANIFEST.items() if key != name}
        with pytest.raises(DataError, match=f"m.toml: the key '{name}' is missing"):
            decode(Manifest, data, "m.toml", DataError)


def test_messages_say_where_in_a_nested_table() -> None:
    """A mistake inside a split is reported with the split's name."""
    data = MANIFEST | {"splits": {"train": SPLIT | {"samples": "many"}}}
    with pytest.raises(DataError, match=r"m\.toml: splits\.train: samples: expected int, found str 'many'"):
        decode(Manifest, data, "m.toml", DataError)


@dataclass(frozen=True)
class _Listed:
    places: tuple[int, ...]
    maybe: int | None = None


def test_lists_are_checked_item_by_item() -> None:
    """The index of the wrong item is in the message; None passes only where it is declared."""
    assert decode(_Listed, {"places": [1, 2], "maybe": None}, "x") == _Listed((1, 2))
    with pytest.raises(UsageError, match=r"x: places\[1\]: expected int, found str 'b'"):
        decode(_Listed, {"places": [1, "b"]}, "x")
    with pytest.raises(UsageError, match="places: expected a list"):
        decode(_Listed, {"places": 3}, "x")
    with pytest.raises(UsageError, match="expected int, found NoneType"):
        decode(_Listed, {"places": [None]}, "x")


def test_set_overrides_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    """Three layers, the nearest wins; a bare word counts as a string."""
    file = tmp_path / "a.toml"
    file.write_text('steps = 7\nseed = 3\ncontext = "x"\n')
    config = load_train_config(file, ["seed=4", "structure=shared", "learning_rate = 0.5", "context=a photo of"])
    assert (config.loop.steps, config.loop.seed) == (7, 4)
    assert (config.prompts.structure, config.optimiser.learning_rate) == ("shared", 0.5)
    assert config.prompts.context == "a photo of" and config.loop.batch_size == TrainConfig().loop.batch_size
    assert load_train_config(None) == TrainConfig()


@pytest.mark.parametrize("override", ["steps", "stesp=3", "steps=many", "steps=2.5", "steps=true"])
def test_a_wrong_override_is_refused_with_its_text(override: str) -> None:
    """The message quotes what was given on the command line."""
    with pytest.raises(UsageError) as caught:
        load_train_config(None, [override])
    assert "`set`" in str(caught.value) and "steps" in str(caught.value)


def test_the_digest_depends_on_every_value() -> None:
    """Two runs have equal digests only if nothing differs; a word is the number or the format that it means here."""
    base = TrainConfig.of(precision="fp32", class_chunk=1024)
    digests = {base.digest()}
    for name, value in base.to_dict().items():
        hint = key_types()[name]
        if typing.get_origin(hint) is Literal:
            other: object = next(v for v in typing.get_args(hint) if v not in (value, "auto"))
        elif isinstance(value, str):
            other = value + (" x {}" if name == "bare_templates" else " x")
        elif isinstance(value, bool):
            other = not value
        else:
            other = 0.5 if isinstance(value, float) else value + 1  # no default is one half
        beside = {"tower": "both"} if name == "compile" else {}  # goes with an image tower only
        digests.add(base.changed(**{name: other}, **beside).digest())
    assert len(digests) == 1 + len(base.to_dict())


@pytest.mark.parametrize("content", [b"steps = ", b"\xff\xfe\x00", None])
def test_an_unreadable_config_is_a_usage_error_that_names_it(tmp_path: Path, content: bytes | None) -> None:
    """Not TOML, not UTF-8, not there: exit 2 and the path, never a traceback."""
    file = tmp_path / "bad.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match="bad.toml"):
        load_train_config(file)


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe\x00"])
def test_an_unreadable_manifest_is_a_data_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    """Not TOML or not UTF-8: exit 3 and the path."""
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(DataError, match="bad.toml"):
        load_manifest(str(file))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps=abc", "expected int, found str 'abc'"),
        ("steps=1.5", r"expected int, found float 1\.5"),
        ("steps=true", "expected int, found bool True"),
        ("temperature=hot", "expected float, found str 'hot'"),
        ("context=5", "expected str, found int 5"),
        ("context=2020-01-01", "expected str, found date"),
        ("tf32=1", "expected bool, found int 1"),
        ("tf32=yes", "expected bool, found str 'yes'"),
        ("steps=[1]", r"expected int, found list \[1\]"),
        ("steps=", "expected int, found str ''"),
        ("supervision=5", "5 is not allowed"),
        ("supervision=harder", "did you mean 'hard'"),
        ("stepz=1", "mean 'steps'"),
        ("=1", "unknown key"),
        ("steps", "expected key=value"),
        ("steps=0", "steps must be above 0"),
        ("learning_rate=nan", "learning_rate must be above 0"),
        (f"temperature=1{'0' * 400}", "expected float, found str '10000"),
        ("steps=5\nseed=7", "expected int, found str"),
        ("soft_weight=0 supervision=soft", "expected float, found str"),
    ],
)
def test_a_wrong_override_says_what_was_expected_and_what_to_do(override: str, words: str) -> None:
    """Type expected and found, or the range; and where the keys are listed."""
    with pytest.raises(UsageError, match=words) as caught:
        load_train_config(None, [override])
    assert str(caught.value).startswith("`set`") and "`KEY=VALUE`" in caught.value.hint


def test_a_mistake_in_a_config_file_has_a_next_step(tmp_path: Path) -> None:
    """Whether it cannot be read or holds a value out of range."""
    file = tmp_path / "c.toml"
    for text in ("steps = 0", "steps = ", "stepz = 1"):
        file.write_text(text)
        with pytest.raises(UsageError, match=re.escape("c.toml")) as caught:
            load_train_config(file)
        assert "teachonce train `print_config`" in caught.value.hint


def test_the_settings_of_other_commands_say_which_keys_there_are() -> None:
    """`evaluate --set batch_size=0` and its like."""
    for override in ("batch_size=0", "batch_size=a", "batchsize=1", "batch_size"):
        with pytest.raises(UsageError) as caught:
            settings(EvaluateSettings, [override])
        assert "batch_size, threads" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        (" 5 ", 5),
        ("a photo", "a photo"),
        ('"5"', "5"),
        ("true", True),
        ("1e3", 1000.0),
        ("", ""),
        ("5\nb = 6", "5\nb = 6"),
        ("[1, 2]", [1, 2]),
    ],
)
def test_a_value_is_toml_or_a_bare_word(text: str, value: object) -> None:
    """Text that brings further lines of TOML along is no value: they would be dropped in silence."""
    assert toml_value(text) == value


def test_suggestions_list_what_is_known_when_nothing_is_near() -> None:
    """A word that resembles nothing gets the list."""
    assert did_you_mean("qqqq", ["steps", "seed"]) == "known: steps, seed"
