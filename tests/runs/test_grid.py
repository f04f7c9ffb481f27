"""grid, grid_cells: what a grid file may say, and which cells it asks for."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from teachonce.errors import DataError, TeachOnceError, UsageError
from teachonce.recipe.config import TrainConfig
from teachonce.recipe.config_file import load_train_config
from teachonce.runs.cells import Cell, expand
from teachonce.runs.grid import Grid, load_grid

HEAD = 'schema = 1\ntitle = "t"\n'


def grid(folder: Path, text: str, head: str = HEAD) -> Grid:
    """A grid of this text."""
    file = folder / "grid.toml"
    file.write_text(head + text)
    return load_grid(file)


def cells(folder: Path, text: str) -> list[Cell]:
    """The cells of a grid of this text."""
    return list(expand(grid(folder, text)))


def test_a_product_holds_every_combination_and_the_seeds_of_a_setting_stand_together(tmp_path: Path) -> None:
    listed = cells(tmp_path, '[axes]\nseed = [3, 4]\nstructure = ["unshared", "shared"]\nsteps = [600, 10]\n')
    assert [cell.name for cell in listed] == [
        f"{group} seed={seed}"
        for group in ("base", "steps=10", "structure=shared", "structure=shared steps=10")
        for seed in (3, 4)
    ]
    assert [(c.config.prompts.structure, c.config.loop.steps, c.config.loop.seed) for c in listed[-2:]] == [
        ("shared", 10, 3),
        ("shared", 10, 4),
    ]
    assert [cell.is_base for cell in listed] == [True, True] + 6 * [False]
    assert (
        listed[-1].changes == {"structure": "shared", "steps": 10} and listed[-1].group == "structure=shared steps=10"
    )


def test_one_factor_changes_one_value_of_the_base_at_a_time(tmp_path: Path) -> None:
    text = (
        'design = "one-factor"\n[base]\nsteps = 10\nsoft_weight = 2\n[axes]\nseed = [0, 1, 2]\nsteps = [10, 20]\n'
        'structure = ["shared", "kv"]\n"data.top_k" = [0, 10]\n'
    )
    listed = cells(tmp_path, text)
    groups = list(dict.fromkeys(cell.group for cell in listed))
    assert groups == ["base", "steps=20", "structure=shared", "structure=kv", "data.top_k=10"]
    assert len(listed) == 3 * len(groups) and all(cell.config.loss.soft_weight == 2 for cell in listed)
    assert {cell.config.loop.steps for cell in listed if cell.group != "steps=20"} == {10}
    assert listed[-1].data.top_k == 10


def test_excludes_leave_out_what_matches_all_their_keys(tmp_path: Path) -> None:
    axes = '[axes]\nseed = [0, 1]\nstructure = ["unshared", "shared", "kv"]\ndepth = [0, 1]\n'
    listed = cells(tmp_path, axes + '[[exclude]]\nstructure = ["shared", "kv"]\ndepth = 1\n')
    assert {(cell.config.prompts.structure, cell.config.prompts.depth) for cell in listed} == {
        ("unshared", 0),
        ("unshared", 1),
        ("shared", 0),
        ("kv", 0),
    }
    with pytest.raises(UsageError, match=r"\[\[exclude\]\] 1: matches no cell"):
        cells(tmp_path, axes + "[[exclude]]\ndepth = 2\n")
    with pytest.raises(UsageError, match="no cell is left"):
        cells(tmp_path, axes + "[[exclude]]\ndepth = [0, 1]\n")


def test_named_cells_change_several_keys_and_take_every_seed_but_one_they_name(tmp_path: Path) -> None:
    named = '[[cells]]\nname = "anchored"\nanchor_weight = 8\nsoft_weight = 0.5\n'
    once = '[[cells]]\nname = "once"\nsteps = 5\nseed = 9\n'
    listed = cells(tmp_path, "[axes]\nseed = [0, 1]\n" + named + once)
    assert [cell.name for cell in listed] == [
        "base seed=0",
        "base seed=1",
        "anchored seed=0",
        "anchored seed=1",
        "once seed=9",
    ]
    assert listed[2].changes == {"anchor_weight": 8.0, "soft_weight": 0.5} and not listed[2].is_base


def test_a_named_cell_may_have_a_recipe_of_its_own_under_what_the_base_states(tmp_path: Path) -> None:
    """Nothing of the grid's recipe is left in it; the seeds are the grid's, and paths are relative to the grid."""
    (tmp_path / "own.toml").write_text("batch_size = 3\nsteps = 8\nseed = 5\n")
    second = '[[cells]]\nname = "own"\nconfig = "own.toml"\nbatch_size = 4\n'
    text = 'config = "pomp-vitb16"\n[base]\nsteps = 7\nepochs = 0\n[axes]\nseed = [0, 1]\n'
    listed = cells(tmp_path, text + '[[cells]]\nname = "coop"\nconfig = "coop"\n' + second)
    assert [cell.name for cell in listed[2:]] == ["coop seed=0", "coop seed=1", "own seed=0", "own seed=1"]
    assert listed[3].config == load_train_config(Path("coop"), ["epochs=0", "steps=7", "seed=1"])
    assert listed[5].config == TrainConfig.of(steps=7, batch_size=4, seed=1)
    assert not listed[2].is_base and listed[2].changes["batch_size"] == 32
    with pytest.raises(UsageError, match=r"\[\[cells\]\] 1: config: expected the name"):
        grid(tmp_path, "[[cells]]\nname = 'x'\nconfig = 3\nsteps = 1\n")
    with pytest.raises(UsageError, match="did you mean 'coop.toml'"):
        grid(tmp_path, "[[cells]]\nname = 'x'\nconfig = 'cop'\n")


def test_the_shipped_grid_of_baselines_has_every_recipe_of_others() -> None:
    listed = {cell.group: cell for cell in expand(load_grid(Path("baselines")))}
    shipped = {item.name.removesuffix(".toml") for item in resources.files("teachonce.configs").iterdir()}
    ours = {name for name in shipped if name.startswith(("rpp", "study-", "__"))}
    assert set(listed) - {"base"} == shipped - ours - {
        "baselines",
        "label-noise",
        "base-to-novel",
        "few-shot-transfer",
        "pomp-vitb16",
    }
    assert {cell.config.loop.steps for cell in listed.values()} == {300}


def test_a_recipe_is_the_base_of_the_base(tmp_path: Path) -> None:
    shipped = cells(tmp_path, 'config = "rpp"\n[base]\nsteps = 7\n')
    assert shipped[0].config == TrainConfig.of(steps=7) and shipped[0].is_base
    (tmp_path / "own.toml").write_text("batch_size = 3\nsteps = 8\n")
    assert cells(tmp_path, 'config = "own.toml"\n[base]\nsteps = 7\n')[0].config == TrainConfig.of(
        steps=7, batch_size=3
    )
    with pytest.raises(UsageError, match="did you mean 'rpp.toml'"):
        grid(tmp_path, 'config = "rp"\n')
    (tmp_path / "own.toml").write_text("batchsize = 3\n")
    with pytest.raises(UsageError, match=r"own\.toml: unknown key 'batchsize': did you mean 'batch_size'"):
        grid(tmp_path, 'config = "own.toml"\n')


def test_init_is_a_word_of_the_config_or_a_folder_of_prompts(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    listed = cells(tmp_path, '[axes]\ninit = ["template", "normal", "first", ""]\n')
    assert [(c.config.prompts.init, c.prompts and c.prompts.name) for c in listed] == [
        ("template", None),
        ("normal", None),
        ("template", "first"),
        ("template", None),
    ]
    with pytest.raises(UsageError, match="is not a folder with prompts: did you mean 'normal'"):
        cells(tmp_path, '[axes]\ninit = ["normale"]\n')


def test_shots_are_drawn_with_a_number_or_with_the_seed_of_the_cell(tmp_path: Path) -> None:
    listed = cells(tmp_path, '[data]\nshots_seed = "seed"\n[axes]\nseed = [5, 6]\n"data.shots" = [4, 0]\n')
    assert [(cell.data.shots, cell.data.shots_seed) for cell in listed] == [(4, 5), (4, 6), (0, 5), (0, 6)]
    assert [cell.group for cell in listed] == ["data.shots=4"] * 2 + ["base"] * 2
    assert cells(tmp_path, "[axes]\ndata.shots = [4]\n")[0].data.shots == 4  # a table in a table, to TOML
    with pytest.raises(UsageError, match='expected a whole number or "seed"'):
        grid(tmp_path, '[data]\nshots_seed = "own"\n')


def test_files_are_found_beside_the_grid_and_words_stay_words(tmp_path: Path) -> None:
    (tmp_path / "some.tsv").write_text("n01\n")
    listed = cells(
        tmp_path, '[axes]\n"data.classes" = ["some.tsv", "base", ""]\n"data.template" = ["{}", ["{}", "a {}"]]\n'
    )
    assert [cell.data.classes for cell in listed[::2]] == [str((tmp_path / "some.tsv").resolve()), "base", ""]
    assert [cell.data.template for cell in listed[:2]] == [("{}",), ("{}", "a {}")]
    with pytest.raises(DataError, match=r"data\.classes: there is no .*did you mean 'some\.tsv'"):
        cells(tmp_path, '[data]\nclasses = "sume.tsv"\n')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("axis = 1\n", r"grid\.toml: unknown key 'axis': did you mean 'axes'"),
        ("[axes]\nstrukture = ['shared']\n", r"\[axes\]: unknown key 'strukture': did you mean 'structure'"),
        ("[axes]\nstructure = ['shard']\n", r"\[axes\]: structure: 'shard' is not allowed: did you mean 'shared'"),
        ("[axes]\n'data.topk' = [1]\n", r"\[axes\]: unknown key 'data\.topk': did you mean 'data\.top_k'"),
        ("[data]\nshot = 4\n", r"\[data\]: unknown key 'data\.shot': did you mean 'data\.shots'"),
        ("[axes]\nsteps = 5\n", r"\[axes\]: steps: expected a list with at least one value, found 5"),
        ("[axes]\nsteps = []\n", "expected a list with at least one value"),
        ("[axes]\nsteps = [5, 5]\n", "steps: the value 5 comes twice"),
        ("[axes]\nsteps = ['x']\n", r"\[axes\]: steps: expected int, found str 'x'"),
        ("[axes]\nprograd = [1]\n", "prograd: expected bool, found int 1"),
        ("[base]\nsteps = 0\n", r"cell 'base seed=0': steps must be above 0"),
        ("[axes]\nlabel_smoothing = [0.1]\nsupervision = ['soft']\n", "supervision = 'soft' has none"),
        ("[data]\ntop_k = -1\n", r"\[data\]: top_k must be at least 0"),
        ("[data]\nall_names = true\n", "there is no `classes`"),
        ("[data]\ntemplate = 'no place'\n", "must hold exactly one {}"),
        ("[[exclude]]\n", "would leave out every cell"),
        ("[[exclude]]\nstep = 1\n", r"\[\[exclude\]\] 1: unknown key 'step': did you mean 'steps'"),
        ("[[cells]]\nsteps = 1\n", r"\[\[cells\]\] 1: the key 'name' is missing"),
        ("[[cells]]\nname = 'x'\n", "'x' changes nothing"),
        ("[[cells]]\nname = 'x'\nsteps = 1\n[[cells]]\nname = 'x'\nsteps = 2\n", "the name 'x' comes twice"),
        ("cells = 3\n", r"cells: expected \[\[cells\]\] tables"),
        ("base = 3\n", "base: expected a table, found 3"),
        ("design = 'all'\n", "design: 'all' is not allowed"),
        ("[[evaluate]]\nname = 'a/b'\nmanifest = 'm'\n", "name must be letters"),
        ("[[evaluate]]\nname = 'a.template'\nmanifest = 'm'\n", "name must be letters, digits, '-' or '_'"),
        ("[[evaluate]]\nname = 'held_out'\nmanifest = 'm'\n", "means the held-out samples"),
        ("[[evaluate]]\nname = 'a'\nmanifest = 'm'\nwise = 2\n", "wise must be at most 1"),
        ("[[evaluate]]\nname = 'a'\n", r"evaluate\[0\]: the key 'manifest' is missing"),
        ("[[evaluate]]\nname = 'a'\nmanifest = 'm'\nonly = 'chosen'\n", r"there is no \[choose\]"),
        ("[choose]\nby = 'held'\n", "unknown measure 'held': did you mean 'held_out'"),
        ("[choose]\nby = 'held_out'\nmetric = 'macro'\n", "of the held-out samples there is top1 only"),
        ("[choose]\nmetric = 'top1'\n", "give either by"),
        ("[choose]\nweights = {held_out = 0}\n", "weights must be above 0"),
        ("[choose]\nweights = {held_out = 1e308, a = 1e308}\n", "weights add up to infinity"),
        ("[choose]\nby = 'a'\n[[evaluate]]\nname = 'a'\nmanifest = 'm'\nonly = 'chosen'\n", "it cannot choose"),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_what_is_near(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TeachOnceError, match=said) as caught:
        cells(tmp_path, text)
    assert caught.value.exit_code in (2, 3)


def test_a_file_that_is_no_grid(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the grid"):
        load_grid(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="not valid TOML"):
        grid(tmp_path, "= 3")
    with pytest.raises(UsageError, match="'schema' is missing"):
        grid(tmp_path, "", head="")
    with pytest.raises(UsageError, match="schema: 2 is not allowed"):
        grid(tmp_path, "", head='schema = 2\ntitle = "t"\n')


def test_weights_are_shares_of_the_choice(tmp_path: Path) -> None:
    weighted = grid(
        tmp_path, "[choose]\nweights = {held_out = 1, dev = 3}\n[[evaluate]]\nname = 'dev'\nmanifest = 'm'\n"
    )
    assert weighted.choose is not None and weighted.choose.measures == {"held_out": 0.25, "dev": 0.75}


@pytest.mark.parametrize("name", ["base", "structure=shared"])
def test_seeds_of_one_name_differ_in_nothing_else(name: str, tmp_path: Path) -> None:
    """They are averaged: a further setting cannot hide among the seeds of another."""
    text = f'[axes]\nstructure = ["unshared", "shared"]\n[[cells]]\nname = "{name}"\nseed = 9\nsteps = 7\n'
    with pytest.raises(UsageError, match=f"two settings are called '{name}'"):
        cells(tmp_path, text)


def test_a_weight_that_is_no_number_cannot_choose(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="above 0 and finite"):
        grid(tmp_path, "[axes]\nseed = [0]\n[choose]\nweights = { held_out = inf }\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[data]\nclasses = 'nope.tsv'\n", "nope.tsv"),
        ("[axes]\ninit = ['nope']\n", "nope"),
        ("config = 'nope.toml'\n", "nope.toml"),
    ],
)
def test_what_is_not_there_is_named_with_the_folder_that_was_looked_in(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the grid was given by a bare name."""
    (tmp_path / "grid.toml").write_text(HEAD + text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TeachOnceError, match=str(tmp_path / said)):
        expand(load_grid(Path("grid.toml")))
