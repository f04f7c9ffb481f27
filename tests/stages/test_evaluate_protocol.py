"""evaluate --protocol: sets that are there make one table; what is missing or broken is listed and changes the code."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import coop_layouts
import numpy as np
import pytest
import torch
import worlds
from moved_prompts import save_moved_prompts
from requests_of import evaluate_request, protocol_request, teach_request
from worlds import Notes, World

from teachonce.core.progress import Silent
from teachonce.errors import DataError, UsageError
from teachonce.evaluation.protocols import harmonic
from teachonce.recipe.config import TrainConfig
from teachonce.stages.evaluate import ProtocolResult, evaluate, evaluate_protocol
from teachonce.stages.subset import SubsetRequest, subset
from teachonce.stages.teach import teach
from teachonce.stages.train import TrainRequest, train


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or fills the user's cache; the model is loaded once."""
    torch.set_num_threads(1)
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("teachonce.evaluation.contender.load_clip", worlds.loaded_once)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def prompts(student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text prompts that differ from their start."""
    return save_moved_prompts(tmp_path_factory.mktemp("prompts"), student)


def run(student: str, protocol: str, root: Path, reporter: Any = None, **options: Any) -> ProtocolResult:
    """One thread."""
    given: dict[str, Any] = {"run": None, "threads": 1}
    return evaluate_protocol(
        protocol_request(student=student, protocol=protocol, root=root, **(given | options)), reporter or Silent()
    )


def protocol_of(root: Path, names: tuple[str, ...]) -> str:
    """A protocol over made-up sets that lie below the root, with their manifests beside it."""
    sets = "".join(f'[[sets]]\nname = "{name}"\nmanifest = "{name}.toml"\n' for name in names)
    file = root / "p.toml"
    file.write_text(f'schema = 1\nname = "mine"\ntitle = "Mine"\n{sets}')
    return str(file)


def test_the_table_is_that_of_single_evaluations(student: str, prompts: Path, tmp_path: Path) -> None:
    """Each line equals `evaluate` on that set; the means count sets alike; the files are there."""
    names = ("oxford-pets", "fgvc-aircraft", "dtd")
    for name in names:
        coop_layouts.lay_out(name, tmp_path)
    out = tmp_path / "out"
    result = run(student, protocol_of(tmp_path, names), tmp_path, run=prompts, per_class=out, credits=out)
    assert (result.exit_code, result.missing, result.damaged, result.left_out) == (0, (), (), ())
    assert [line.set for line in result.sets] == list(names)
    for line in result.sets:
        alone = evaluate(
            evaluate_request(
                run=prompts,
                student=student,
                manifest=str(tmp_path / f"{line.set}.toml"),
                root=tmp_path,
                split="test",
                threads=1,
                protocol="mine",
                per_class=out / f"{line.set}.csv",
                credits=out / f"{line.set}.top1.npy",
            ),
            Silent(),
        )
        assert result.details[line.set] == asdict(alone) and alone.baseline is not None and alone.paired is not None
        assert (line.top1, line.template_top1, line.p) == (alone.top1, alone.baseline["top1"], alone.paired["p"])
        assert line.gain == alone.top1 - alone.baseline["top1"] and alone.protocol == "mine"
        assert np.load(out / f"{line.set}.template.top1.npy").mean() == pytest.approx(line.template_top1)
        assert (out / f"{line.set}.csv").read_text().count("\n") == 6
    (mean,) = result.means
    assert mean["part"] == "all" and mean["sets"] == 3
    assert mean["top1"] == pytest.approx(np.mean([line.top1 for line in result.sets]))
    json.dumps(asdict(result), allow_nan=False)


def test_missing_sets_are_listed_and_the_rest_evaluated(student: str, tmp_path: Path) -> None:
    """Exit 5: the same command goes on once the data are there, and the finished sets come from the cache."""
    coop_layouts.lay_out("dtd", tmp_path)
    for name in ("oxford-pets", "eurosat"):
        coop_layouts.without_counts(name, tmp_path)
    protocol = protocol_of(tmp_path, ("oxford-pets", "dtd", "eurosat"))
    result = run(student, protocol, tmp_path)
    assert result.exit_code == 5 and [line.set for line in result.sets] == ["dtd"]
    assert [line["set"] for line in result.missing] == ["oxford-pets", "eurosat"]
    assert "split_zhou_OxfordPets.json" in result.missing[0]["problem"] and "DATASETS.md" in result.missing[0]["get"]
    assert run(student, protocol, tmp_path, skip_missing=True) == replace(result, exit_code=0)
    coop_layouts.lay_out("eurosat", tmp_path)
    notes = Notes()
    later = run(student, protocol, tmp_path, notes)
    assert [line.set for line in later.sets] == ["dtd", "eurosat"] and later.sets[0] == result.sets[0]
    assert notes.lines.count("results on 20 images come from the cache") == 1


def test_no_set_at_all_is_an_error(student: str, tmp_path: Path) -> None:
    """Exit 3, whatever is skipped; with a shipped protocol too."""
    with pytest.raises(DataError, match="none of the 10 sets is there; the first, 'caltech101'") as caught:
        run(student, "cross-dataset", tmp_path, skip_missing=True)
    assert "DATASETS.md" in caught.value.hint


def test_a_damaged_set_does_not_cost_the_others(student: str, tmp_path: Path) -> None:
    """Exit 3 in the end, with what is wrong; if nothing else is there, the error itself."""
    for name in ("dtd", "eurosat"):
        coop_layouts.lay_out(name, tmp_path)
    (tmp_path / "dtd/images/piano/piano_0002.jpg").unlink()
    result = run(student, protocol_of(tmp_path, ("dtd", "eurosat")), tmp_path)
    assert result.exit_code == 3 and [line.set for line in result.sets] == ["eurosat"]
    assert "piano_0002.jpg" in result.damaged[0]["problem"]
    with pytest.raises(DataError, match=r"piano_0002.jpg"):
        run(student, protocol_of(tmp_path, ("dtd",)), tmp_path)
    (tmp_path / "dtd.toml").write_text("x = " + "[" * 100_000)
    result = run(student, protocol_of(tmp_path, ("dtd", "eurosat")), tmp_path)
    assert result.exit_code == 3 and [line.set for line in result.sets] == ["eurosat"]
    assert "dtd.toml" in result.damaged[0]["problem"]


def test_domains_are_scored_by_the_shipped_protocol(student: str, tmp_path: Path) -> None:
    """Under one root, -A among its 200 names; the shipped protocol asks for the release's number of images."""
    for name in ("imagenet-v2", "imagenet-a"):
        coop_layouts.lay_out(name, tmp_path)
    result = run(student, protocol_of(tmp_path, ("imagenet-v2", "imagenet-a")), tmp_path)
    assert {line.set: line.classes for line in result.sets} == {"imagenet-v2": 1000, "imagenet-a": 200}
    assert result.sets[0].template_top1 is None and result.harmonic == ()
    with pytest.raises(DataError, match="its manifest says 10000"):
        run(student, "domain-generalisation", tmp_path)


def test_base_to_novel(world: World, student: str, prompts: Path) -> None:
    """Both halves among own and among all names, H of each, and the joint accuracy, which their parts make up."""
    result = run(student, "base-to-novel", world.root, run=prompts, manifest=world.manifest("tars"))
    top1 = {line.set: line.top1 for line in result.sets}
    n = {line.set: (line.n, line.classes) for line in result.sets}
    assert n == {
        "all": (70, 8),
        "base": (40, 4),
        "novel": (30, 4),
        "base-among-all": (40, 8),
        "novel-among-all": (30, 8),
    }
    among_half, among_all = result.harmonic
    assert among_half["top1_h"] == pytest.approx(harmonic(top1["base"], top1["novel"]))
    assert among_all["top1_h"] == pytest.approx(harmonic(top1["base-among-all"], top1["novel-among-all"]))
    assert (40 * top1["base-among-all"] + 30 * top1["novel-among-all"]) / 70 == pytest.approx(top1["all"])
    assert 0 <= among_half["template_top1_h"] <= 1


def test_names_are_encoded_once_for_sets_that_share_them(
    world: World, student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All five sets of base-to-novel need one pass, of the first; figures are those of sets alone."""
    from teachonce.evaluation import contender

    passes = []
    real = contender.ensemble_features

    def counted(clip: Any, names: Any, templates: Any) -> Any:
        passes.append(len(names))
        return real(clip, names, templates)

    monkeypatch.setattr(contender, "ensemble_features", counted)
    result = run(student, "base-to-novel", world.root, manifest=world.manifest("tars"), cache=False)
    assert passes == [8]
    alone = evaluate(
        evaluate_request(
            run=None,
            student=student,
            manifest=world.manifest("tars"),
            root=world.root,
            classes="novel",
            threads=1,
            cache=False,
        ),
        Silent(),
    )
    assert passes == [8, 4] and result.sets[2].top1 == alone.top1
    assert result.sets[2].nll == pytest.approx(alone.nll, abs=1e-6)


def test_in_vocabulary_with_and_without_held_out_names(world: World, student: str, tmp_path: Path) -> None:
    """Without a list of them the second line is left out, and that is said."""
    options = {"manifest": world.manifest("tars"), "vocabulary": "classes.tsv"}
    result = run(student, "in-vocabulary", world.root, **options)
    assert [line.set for line in result.sets] == ["all-names"] and result.left_out == ("without-held-out-names",)
    (tmp_path / "held.tsv").write_text("n04\n")
    result = run(student, "in-vocabulary", world.root, without=tmp_path / "held.tsv", **options)
    assert [(line.set, line.n, line.classes) for line in result.sets] == [
        ("all-names", 70, 8),
        ("without-held-out-names", 50, 6),
    ]
    assert [mean["part"] for mean in result.means] == ["all", "all without some"]


@pytest.mark.parametrize(
    ("protocol", "options", "message"),
    [
        ("cross-dataset", {"root": None}, "needs the folder"),
        ("base-to-novel", {}, "needs a data set"),
        ("cross-dataset", {"manifest": "m"}, "`manifest` would do nothing"),
        ("cross-dataset", {"wise": 0.5}, "no RUN was given"),
        ("gone.toml", {}, "neither a protocol file"),
        ("cross-dataset", {"template": "none"}, "exactly one"),
    ],
)
def test_wrong_options_are_refused(
    protocol: str, options: dict[str, Any], message: str, student: str, tmp_path: Path
) -> None:
    """Exit 2, before any model is loaded."""
    with pytest.raises(UsageError, match=message):
        run(student, protocol, **{"root": tmp_path, **options})


def test_base_to_novel_from_a_split_of_coop_to_the_table(student: str, teacher: str, tmp_path: Path) -> None:
    """As docs/evaluation.md has it: teach from the JSON split, train on the base half only, evaluate both halves."""
    made = coop_layouts.lay_out("oxford-pets", tmp_path)
    labels, selection, out = tmp_path / "pets.zarr", tmp_path / "base.json", tmp_path / "run"
    with worlds.inline_tasks():
        taught = teach(
            teach_request(
                manifest=made.manifest,
                root=tmp_path,
                split="train",
                labels=labels,
                teacher=teacher,
                students=(student,),
                threads=1,
            ),
            Silent(),
        )
    assert taught.rows_ok == 19
    chosen = subset(SubsetRequest(labels=labels, out=selection, classes=Path("base")), Silent())
    assert (chosen.samples, chosen.classes) == (11, 3), "fox, jay and tea; the first fox is not in train"
    config = TrainConfig.of(steps=4, batch_size=8, warmup_steps=1)
    train(
        TrainRequest(labels=labels, student=student, out=out, config=config, selection=selection, threads=1), Silent()
    )
    result = run(student, "base-to-novel", tmp_path, run=out, manifest=made.manifest, split="test")
    assert [(line.set, line.n, line.classes) for line in result.sets] == [
        ("all", 20, 5),
        ("base", 12, 3),
        ("novel", 8, 2),
        ("base-among-all", 12, 5),
        ("novel-among-all", 8, 5),
    ]
    assert result.details["all"]["template"] is None and result.details["all"]["baseline"]["template"].endswith(
        "of pet."
    )
