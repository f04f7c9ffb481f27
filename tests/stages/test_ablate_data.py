"""ablate: what cells need of the store is selected or derived from it, once, or refused before anything starts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from grids import BASE, evaluation, prompts_of, run, write
from worlds import Notes, World

from teachonce.errors import DataError, IncompleteError, TeachOnceError, UsageError
from teachonce.labels.selection import load_selection
from teachonce.labels.store import LabelStore
from teachonce.models import clip as clip_models
from teachonce.rows.working_set import WorkingSet
from teachonce.stages.merge import MergeRequest, merge
from teachonce.stages.relabel import RelabelRequest, relabel

PLAIN = BASE.replace("held_out = 0.2\n", "")
SOFT = PLAIN + 'supervision = "soft"\n'


@pytest.fixture(scope="module")
def rich(world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with embeddings."""
    path = tmp_path_factory.mktemp("rich") / "rich.zarr"
    worlds.teach_inline(world, path, teacher, students=(student,), top_k=5, embeddings="int8")
    return path


def cells_of(out: Path) -> dict[str, dict[str, Any]]:
    """Name -> cell, of grid.json."""
    return {cell["name"]: cell for cell in json.loads((out / "grid.json").read_text())["cells"]}


def test_selections_are_made_once_and_read_by_the_cells_that_ask_for_them(
    finished: Path, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[int, int, int]] = []
    real = WorkingSet.__init__

    def noted(self: WorkingSet, *args: Any) -> None:
        real(self, *args)
        opened.append((len(self), len(self.vocabulary), self.plan.top_k))

    monkeypatch.setattr(WorkingSet, "__init__", noted)
    (tmp_path / "some.tsv").write_text("n02\nn05\n")
    text = (
        PLAIN + '[axes]\nsteps = [4, 3]\n"data.shots" = [0, 2]\n"data.classes" = ["", "some.tsv"]\n'
        "[[exclude]]\nsteps = 3\n'data.classes' = 'some.tsv'\n[[cells]]\nname = 'all names'\n"
        "data.classes = 'some.tsv'\ndata.all_names = true\n[[cells]]\nname = 'k'\ndata.top_k = 2\n"
        "[[cells]]\nname = 'same k'\ndata.top_k = 5\n"
    )
    notes = Notes()
    result = run(write(tmp_path / "grid.toml", text), finished, student, tmp_path / "out", notes)
    assert result.cells == {"finished": 8, "failed": 0, "skipped": 0, "missing": 0, "damaged": 0}, result.failures
    assert any("'same k seed=0' is the same run as 'base seed=0'" in line for line in notes.lines)
    files = list((tmp_path / "out/selections").glob("*.json"))
    assert len(files) == 5 and not (tmp_path / "out/stores").exists()
    store = LabelStore.open(finished)
    assert sorted(len(load_selection(file, store).samples) for file in files) == [4, 14, 20, 20, 70]
    assert set(opened) == {(70, 8, 5), (14, 8, 5), (20, 2, 5), (4, 2, 5), (20, 8, 5), (70, 8, 2)}


@pytest.mark.slow  # whole runs of several trainings or stores
def test_a_grid_varies_wrong_labels_and_whether_an_audit_leaves_them_out(
    rich: Path, student: str, tmp_path: Path
) -> None:
    """Two shares of wrong labels, each as it is and without what an audit of that store leaves out."""
    text = (
        PLAIN
        + '[data]\nnoise_seed = "seed"\n[axes]\nseed = [0]\n'
        + '"data.label_noise" = [0.0, 0.5]\n"data.clean" = [false, true]\n'
    )
    out = tmp_path / "out"
    result = run(write(tmp_path / "grid.toml", text), rich, student, out, Notes())
    assert result.cells["finished"] == 4, result.failures
    (noisy,) = (out / "stores").glob("*.zarr")
    store = LabelStore.open(noisy)
    assert store.groups["labels"].fingerprint["label_noise"] == {"share": 0.5, "seed": 0}
    files = list((out / "selections").glob("*.json"))
    assert len(files) == 2
    rules = [json.loads(file.read_text())["rule"] for file in files]
    assert all(len(rule["clean"]) == 64 for rule in rules)
    cells = cells_of(out)
    assert len({cell["digest"] for cell in cells.values()}) == 4


def test_shots_follow_the_seed_where_the_grid_says_so(finished: Path, student: str, tmp_path: Path) -> None:
    text = PLAIN + '[data]\nshots = 2\nshots_seed = "seed"\n[axes]\nseed = [0, 1]\n'
    run(write(tmp_path / "grid.toml", text), finished, student, tmp_path / "out")
    store = LabelStore.open(finished)
    drawn = [load_selection(file, store) for file in (tmp_path / "out/selections").glob("*.json")]
    assert {selection.seed for selection in drawn} == {0, 1} and len(drawn) == 2
    assert not np.array_equal(drawn[0].samples, drawn[1].samples)
    assert {cell["group"] for cell in cells_of(tmp_path / "out").values()} == {"base"}


def test_stores_are_derived_from_embeddings_once_and_no_image_is_looked_at(
    rich: Path, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **options: object) -> None:
        raise AssertionError("the image tower ran")

    monkeypatch.setattr(clip_models.LoadedClip, "encode_images", never)
    (tmp_path / "names.tsv").write_text("n01\tdog\nn02\tbird\nn03\tsnake\nn05\tbus\n")
    text = (
        SOFT + "[axes]\ntemperature = [1.0, 3.0]\n[[cells]]\nname = 'names'\n"
        "data.vocabulary = 'names.tsv'\n[[cells]]\nname = 'words'\ndata.template = ['{}', 'a {}.']\n"
        "[[cells]]\nname = 'k'\ndata.top_k = 8\n"
    )
    notes = Notes()
    result = run(write(tmp_path / "grid.toml", text), rich, student, tmp_path / "out", notes)
    assert result.cells["finished"] == 5, result.failures
    stores = [LabelStore.open(path) for path in (tmp_path / "out/stores").glob("*.zarr")]
    assert len(stores) == 4 and len([line for line in notes.lines if line.startswith("making the store")]) == 4
    made = {(store.layout.top_k, store.layout.classes, store.layout.temperatures) for store in stores}
    assert made == {
        (5, 8, (1.0, 2.0, 4.0, 3.0)),
        (4, 4, (1.0, 2.0, 4.0)),
        (5, 8, (1.0, 2.0, 4.0)),
        (8, 8, (1.0, 2.0, 4.0)),
    }
    before = prompts_of(tmp_path / "out")
    assert run(tmp_path / "grid.toml", rich, student, tmp_path / "out").cells["skipped"] == 5
    assert len(set(before.values())) == 5


def test_data_count_by_content_and_not_by_path(finished: Path, student: str, tmp_path: Path) -> None:
    """A class list under another name, and a copy of the prompts, give the same cells."""
    for folder, name in (("a", "some.tsv"), ("b", "other.tsv")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("n02\nn05\n" if folder == "a" else "n05\tyellow bus\nn02\tblue jay\n")
        write(tmp_path / folder / "grid.toml", BASE + f'[data]\nclasses = "{name}"\n')
    run(tmp_path / "a/grid.toml", finished, student, tmp_path / "out")
    assert run(tmp_path / "b/grid.toml", finished, student, tmp_path / "out").cells["skipped"] == 1


def test_a_start_from_prompts_is_part_of_the_cell(finished: Path, student: str, tmp_path: Path) -> None:
    run(write(tmp_path / "grid.toml", BASE), finished, student, tmp_path / "first")
    (start,) = (tmp_path / "first/cells").iterdir()
    start.rename(tmp_path / "start")
    text = BASE + '[axes]\ninit = ["template", "start", "normal"]\n'
    result = run(write(tmp_path / "grid.toml", text), finished, student, tmp_path / "out")
    assert result.cells["finished"] == 3 and len(set(prompts_of(tmp_path / "out").values())) == 3
    (tmp_path / "start/prompts.safetensors").write_bytes(b"changed")
    with pytest.raises(TeachOnceError, match=r"cell 'init=start seed=0'.*is not what was written"):
        run(tmp_path / "grid.toml", finished, student, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        (
            "[axes]\ntemperature = [1.0, 3.0]\n",
            r"1 of 2 cells.*cell 'temperature=3\.0 seed=0'.*embeddings",
            "teachonce teach tiny-wds `split` train .*`top_k` 5 `embeddings` int8",
        ),
        ("[data]\ntop_k = 7\n", "keeps no embeddings of its teacher.*top_k 7", "`embeddings` int8"),
        ("[data]\ntop_k = 9\n", "there are 8 classes", "use at most 8"),
        ("[data]\ntemplate = '{}!'\n", "keeps no embeddings", r"`embeddings` int8 \([^)]*\)$"),
        ("[axes]\n'data.template' = ['', '{}!']\n", "1 of 2 cells.*keeps no embeddings", r"\[\[exclude\]\]$"),
        ("[axes]\ntargets = ['top-k', 'embedding']\n", "holds no image embeddings", "`embeddings` int8"),
        ("[axes]\nviews_per_step = [2]\n", "views_per_step = 2", "more `views`"),
        ("[axes]\nlength = [0, 40]\n", "40 slots: the text tower has room", "exclude"),
        ("[axes]\ndepth = [5]\n", "depth", "set depth to a number from 0 to 2$"),
        ("[axes]\ntower = ['image']\n", "`root` is missing", "`root` DATA"),
        (
            "candidates = 'sampled'\nsampled_top = 3\n[data]\ntop_k = 2\n",
            "sampled_top = 3: soft labels have 2",
            "sampled_top = 2",
        ),
        ("[choose]\nby = 'held_out'\n", "held_out is 0", "held_out = 0.1"),
        ("warmup = 'constant'\nwarmup_steps = 9\n", "cell 'base seed=0' cannot run.*warmup_steps = 9", "epoch"),
        (
            "[data]\nclasses = 'novel'\nall_names = false\n[[cells]]\nname = 'x'\ndata.classes = 'timm:nothing'\n",
            "cell 'x seed=0'.*ships no class list 'nothing'",
            "exclude",
        ),
        ("[data]\nclasses = 'timm:imagenet'\n", "1000 classes of 'timm:imagenet'", "^data.classes takes a file"),
    ],
)
def test_a_cell_that_cannot_run_is_refused_before_anything_starts(
    finished: Path, student: str, tmp_path: Path, text: str, said: str, hint: str
) -> None:
    base = SOFT if "held_out" not in text else PLAIN
    with pytest.raises(TeachOnceError, match=f"(?s){said}") as caught:
        run(write(tmp_path / "grid.toml", base + text), finished, student, tmp_path / "out")
    assert caught.value.exit_code in (2, 3)
    assert re.search(hint, caught.value.hint), caught.value.hint
    assert not list((tmp_path / "out").glob("cells/*"))


def test_missing_data_of_an_evaluation_are_found_before_training(
    world: World, finished: Path, student: str, tmp_path: Path
) -> None:
    grid = write(tmp_path / "grid.toml", BASE + evaluation(world, "far", root=str(tmp_path / "none")))
    with pytest.raises(DataError, match=r"\[\[evaluate\]\] far: .*is not a folder"):
        run(grid, finished, student, tmp_path / "out")
    with pytest.raises(UsageError, match=r"\[\[evaluate\]\] far: .*did you mean 'train'|\[\[evaluate\]\] far"):
        run(
            write(tmp_path / "grid.toml", BASE + evaluation(world, "far", split="tran")),
            finished,
            student,
            tmp_path / "out",
        )
    (tmp_path / "few.tsv").write_text("n01\tdog\nn02\tbird\n")
    grid = write(tmp_path / "grid.toml", BASE + evaluation(world, "far", vocabulary="few.tsv"))
    with pytest.raises(DataError, match=r"far: 5 classes of the split are not in the vocabulary") as caught:
        run(grid, finished, student, tmp_path / "out")
    assert caught.value.hint.startswith("give a `vocabulary =` that holds every class of the split (in that [[eval")
    with pytest.raises(DataError, match="classes: there is no"):
        run(
            write(tmp_path / "grid.toml", BASE + evaluation(world, "far", classes="no.tsv")),
            finished,
            student,
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_a_store_that_is_not_complete_is_refused(finished: Path, student: str, tmp_path: Path) -> None:
    copied = worlds.copy_store(finished, tmp_path)
    LabelStore.open(copied, writable=True).drop("labels", 3)
    with pytest.raises(IncompleteError, match=f"1 of {worlds.CHUNKS} chunks are not committed"):
        run(write(tmp_path / "grid.toml", BASE), copied, student, tmp_path / "out")


def test_cells_that_differ_only_in_what_has_no_effect_are_told(finished: Path, student: str, tmp_path: Path) -> None:
    notes = Notes()
    grid = write(tmp_path / "grid.toml", BASE + "[axes]\nmomentum = [0.9, 0.5]\n")
    plan = run(grid, finished, student, tmp_path / "out", notes, dry_run=True)
    assert len(plan.plan) == 2
    assert any(
        "'momentum=0.5 seed=0' differs from 'base seed=0' only in what has no effect" in line for line in notes.lines
    )


@pytest.mark.slow
@pytest.mark.parametrize("maker", ["relabel", "merge"])
def test_a_derived_store_gets_a_student_from_the_store_that_was_taught(
    maker: str, world: World, teacher: str, student: str, tmp_path: Path
) -> None:
    """What the refusal says helps: features are added where images were, and copied by the command that derives."""

    def teach(*students: str) -> None:
        worlds.teach_inline(world, tmp_path / "a.zarr", teacher, top_k=5, embeddings="int8", students=students)

    def derive() -> None:
        if maker == "relabel":
            relabel(RelabelRequest(parent=tmp_path / "a.zarr", labels=tmp_path / "child.zarr", top_k=3), Notes())
        else:
            parents = (tmp_path / "a.zarr", tmp_path / "b.zarr")
            merge(MergeRequest(parents=parents, labels=tmp_path / "child.zarr"), Notes())

    worlds.teach_inline(world, tmp_path / "b.zarr", student, top_k=5, embeddings="int8")
    teach()
    derive()
    grid = write(tmp_path / "grid.toml", PLAIN)
    with pytest.raises(DataError, match="holds no image features of this student") as caught:
        run(grid, tmp_path / "child.zarr", student, tmp_path / "out")
    hint = caught.value.hint
    assert "`teachonce teach ...` that wrote a.zarr" in hint and f"`student` {student}" in hint
    assert f"the same `teachonce {maker}` again" in hint and "exclude" not in hint
    teach(student)
    derive()
    assert run(grid, tmp_path / "child.zarr", student, tmp_path / "out").cells["finished"] == 1
