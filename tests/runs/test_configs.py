"""The shipped recipes and grids are valid, and the default one says what the defaults are."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

import pytest

from teachonce.errors import UsageError
from teachonce.recipe.config import TrainConfig
from teachonce.recipe.config_file import config_text, flat, load_train_config, train_config
from teachonce.runs.cells import expand
from teachonce.runs.grid import load_grid


def test_the_default_recipe_lists_every_key_with_its_default() -> None:
    """A reader of configs/rpp.toml knows what `teachonce train` does without any option."""
    text = (resources.files("teachonce.configs") / "rpp.toml").read_text(encoding="utf-8")
    stated = tomllib.loads(text)
    assert train_config(stated, "rpp.toml") == TrainConfig()
    assert list(flat(stated, "rpp.toml")) == list(TrainConfig().to_dict())
    assert text.endswith(config_text(TrainConfig()))  # with its tables, sources and all


def test_the_recipe_of_the_reported_structure_is_the_defaults_with_prompts_that_replace() -> None:
    """It says that all but RPP's reported structure is our defaults."""
    assert load_train_config(Path("rpp-reported")) == TrainConfig.of(structure="unshared-replace")


def test_every_shipped_recipe_is_valid() -> None:
    """No recipe has a key or value that training would refuse, and no grid a cell that could not be configured."""
    files = [file for file in resources.files("teachonce.configs").iterdir() if file.name.endswith(".toml")]
    grids = [file for file in files if "schema" in tomllib.loads(file.read_text(encoding="utf-8"))]
    assert grids and len(grids) < len(files)
    for file in files:
        if file in grids:
            assert len(expand(load_grid(Path(file.name.removesuffix(".toml"))))) > 1
        else:
            train_config(tomllib.loads(file.read_text(encoding="utf-8")), file.name)


def test_a_shipped_recipe_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With or without .toml; a file of that name here wins; a path is never looked up elsewhere."""
    monkeypatch.chdir(tmp_path)
    assert load_train_config(Path("pomp-vitb16")) == load_train_config(Path("pomp-vitb16.toml"))
    assert load_train_config(Path("pomp-vitb16")).optimiser.optimizer == "sgd"
    (tmp_path / "rpp.toml").write_text("seed = 9\n")
    assert load_train_config(Path("rpp.toml")).loop.seed == 9
    with pytest.raises(UsageError, match="cannot read the config"):
        load_train_config(Path("here/rpp"))
    (tmp_path / "pomp-vitb16").mkdir()  # a run that was called after its recipe
    assert load_train_config(Path("pomp-vitb16")).optimiser.optimizer == "sgd"
    (tmp_path / "study-small").mkdir()  # what the documented command leaves, and finds when it is run again
    assert load_grid(Path("study-small")).title
