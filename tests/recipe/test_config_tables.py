"""Keys in tables and keys without are the same keys, and what identified a run before there were tables still does."""

from __future__ import annotations

import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from teachonce.core.strict import Range, Source
from teachonce.errors import UsageError
from teachonce.recipe.config import TABLES, TrainConfig, config_digest, key_types, marks, table_of
from teachonce.recipe.config_file import config_text, flat, load_train_config, train_config
from teachonce.runs.cells import expand
from teachonce.runs.grid import load_grid

# Of the version that had no tables: checkpoints, logs and the names of a grid's cells hold such digests.
DIGESTS = {
    "": "0f2c5010c1aa166b",
    "rpp": "0f2c5010c1aa166b",
    "rpp-vitb16": "7b2fab781d83a685",
    "pomp-vitb16": "ab34e3df03ca1b10",
}
MANY = (
    "tower=both",
    "structure=shared",
    "candidates=sampled",
    "learning_rate=1",
    "context=a picture of the",
    "held_out=0.25",
    "epochs=2",
    "seed=9223372036854775807",
)
CELLS = {  # grid -> how many cells, and name and config of the last
    "study-small": (21, "data.top_k=80 seed=2", "dcd169326209d757"),
    "study-wide": (15, "hard_over=seen seed=2", "8b5a774ab82de85e"),
    "base-to-novel": (12, "anchor_weight=8.0 seed=3", "563e79db1bc17071"),
    "few-shot-transfer": (18, "init=normal seed=3", "5e5774fda8a6a42d"),
}


@pytest.mark.parametrize("recipe", DIGESTS)
def test_a_config_has_the_digest_that_it_had_before_there_were_tables(recipe: str) -> None:
    """A checkpoint of an older version belongs to the same config still."""
    assert load_train_config(Path(recipe) if recipe else None).digest() == DIGESTS[recipe]


def test_overrides_give_the_digest_that_they_gave_before_there_were_tables() -> None:
    """Whole numbers for floats, strings and the largest seed."""
    assert load_train_config(None, MANY).digest() == "0ea74a221f312a84"


@pytest.mark.parametrize("grid", CELLS)
def test_cells_of_shipped_grids_keep_their_names_and_configs(grid: str) -> None:
    """A grid that was begun by an older version finds its finished cells."""
    count, name, digest = CELLS[grid]
    cells = expand(load_grid(Path(grid)))
    assert (len(cells), cells[-1].name, cells[-1].config.digest()) == (count, name, digest)


def test_a_flat_file_of_an_older_version_is_read(tmp_path: Path) -> None:
    """As run folders of that version have it, and as its recipes were written."""
    wanted = load_train_config(None, MANY)
    file = tmp_path / "config.toml"
    file.write_text(tomli_w.dumps(wanted.to_dict()), encoding="utf-8")
    assert load_train_config(file) == wanted


def test_a_written_config_has_every_key_in_its_table_and_reads_back_as_itself() -> None:
    """`--print-config` and a run's config.toml; the digest of what stands in the file is the config's."""
    wanted = load_train_config(None, [*MANY, "context=quotes \" and ' and \\ and é"])
    written = tomllib.loads(config_text(wanted))
    assert {name: list(keys) for name, keys in written.items()} == {
        name: [key for key, table in table_of().items() if table == name] for name in TABLES
    }
    assert train_config(written, "x") == wanted
    assert config_digest(flat(written, "x")) == wanted.digest()


def test_every_key_says_where_its_default_comes_from_and_every_number_its_range() -> None:
    """A key that is added without them would be printed without a word, or take any number."""
    for key, hint in key_types().items():
        assert [mark for mark in marks()[key] if isinstance(mark, Source)], key
        ranged = any(isinstance(mark, Range) for mark in marks()[key])
        assert ranged == bool({int, float} & {hint, *typing.get_args(hint)}), key


@pytest.mark.parametrize(
    ("key", "plain"),
    [("loss.tail=to-label", "tail=to-label"), ("candidates.candidates=sampled", "candidates=sampled")],
)
def test_an_override_names_a_key_with_its_table_or_without(key: str, plain: str) -> None:
    """Also where the table has a key of its own name."""
    assert load_train_config(None, [key]) == load_train_config(None, [plain]) != TrainConfig()


def test_a_file_may_mix_tables_and_plain_keys(tmp_path: Path) -> None:
    """An older file to which a table is added; overrides win over both."""
    file = tmp_path / "c.toml"
    file.write_text('tail = "to-label"\nloop.steps = 7\n[optimiser]\nmomentum = 0.5\n[candidates]\nsampled_top = 3\n')
    config = load_train_config(file, ["steps=8"])
    assert config == TrainConfig.of(tail="to-label", steps=8, momentum=0.5, sampled_top=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('tail = "ghost"\n[loss]\ntail = "ghost"\n', "the key 'tail' is given twice"),
        ("[loss]\nstesp = 3\n", "unknown key 'loss.stesp': did you mean 'steps'"),
        ("[loss]\nsteps = 3\n", "unknown key 'loss.steps': did you mean 'loop.steps'"),
        ("[lost]\ntail = 3\n", "unknown key 'lost'"),
        ("[loss]\nlogit_bias = -10\n", "unknown key 'loss.logit_bias': every loss is a softmax .* cancels"),
        ("loss = 3\n", r"unknown key 'loss': it is a table: expected \[loss\]"),
        ("[loop]\nsteps = 0\n", "c.toml: steps must be above 0"),
        ("[loop]\nsteps = 'many'\n", "c.toml: steps: expected int, found str 'many'"),
        ("[[loss]]\ntail = 'ghost'\n", "unknown key 'loss'"),
    ],
)
def test_what_is_wrong_in_a_table_is_said_with_the_key(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=words):
        load_train_config(file)


GRID = 'schema = 1\ntitle = "t"\n'
PLAIN = """
[base]
steps = 10
candidates = "sampled"
sampled_top = 2
[axes]
seed = [0, 1]
tail = ["ghost", "to-label"]
candidates = ["sampled", "all"]
"data.top_k" = [2, 3]
[data]
shots = 2
[[exclude]]
tail = "to-label"
candidates = "all"
[[cells]]
name = "long"
steps = 20
"""
TABLED = """
[base.loop]
steps = 10
[base.candidates]
candidates = "sampled"
sampled_top = 2
[axes]
loop.seed = [0, 1]
"loss.tail" = ["ghost", "to-label"]
candidates.candidates = ["sampled", "all"]
data.top_k = [2, 3]
[data]
shots = 2
[[exclude]]
loss.tail = "to-label"
candidates = "all"
[[cells]]
name = "long"
[cells.loop]
steps = 20
"""


def test_a_grid_means_the_same_with_tables_and_without(tmp_path: Path) -> None:
    """Axes, base, excluded and further cells: equal names, settings and configs, so equal folders."""
    cells: list[Any] = []
    for name, text in (("plain", PLAIN), ("tabled", TABLED)):
        file = tmp_path / f"{name}.toml"
        file.write_text(GRID + text)
        cells.append(expand(load_grid(file)))
    assert cells[0] == cells[1] and len(cells[0]) == 14
    assert "tail=to-label" in {cell.name.split()[0] for cell in cells[0]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[axes]\nloss.stesp = [1]\n", r"\[axes\]: unknown key 'loss.stesp'"),
        ("[axes]\nloss.steps = [1]\n", r"\[axes\]: unknown key 'loss.steps': did you mean 'loop.steps'"),
        ('[axes]\n"loss.tail" = ["ghost"]\ntail = ["ghost"]\n', r"\[axes\]: the key 'tail' is given twice"),
        ("[base]\nloop.steps = 'x'\n", r"\[base\]: steps: expected int"),
    ],
)
def test_a_mistake_in_a_table_of_a_grid_is_named_with_its_place(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "g.toml"
    file.write_text(GRID + text)
    with pytest.raises(UsageError, match=words):
        load_grid(file)


def test_the_chunk_is_a_number_or_follows_the_memory() -> None:
    """The word and the number that it means on a CPU are one config, so runs of versions without the word go on."""
    auto, number = (load_train_config(None, [f"class_chunk={value}"]) for value in ("auto", "1024"))
    assert (auto.loop.class_chunk, number.loop.class_chunk) == ("auto", 1024)
    assert auto.digest() == number.digest() != load_train_config(None, ["class_chunk=7"]).digest()
    with pytest.raises(UsageError, match="'fast' is not allowed"):
        load_train_config(None, ["class_chunk=fast"])
