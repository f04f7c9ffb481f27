"""evaluate: figures beside top-1, restricted classes and names, credits, kept results; against plain formulas."""

from __future__ import annotations

import csv
import io
import shutil
from dataclasses import asdict, replace
from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import worlds
from moved_prompts import save_moved_prompts
from PIL import Image
from requests_of import evaluate_request
from worlds import IDS, NAMES, PHOTOS, Notes, World

from teachonce.core.progress import Silent
from teachonce.errors import DataError, UsageError
from teachonce.evaluation.features import set_features
from teachonce.models.prompt_files import load_prompts
from teachonce.stages.evaluate import EvaluateResult, evaluate


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or fills the user's cache."""
    torch.set_num_threads(1)
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("teachonce.evaluation.contender.load_clip", worlds.loaded_once)
    return tmp_path / "cache"


def run(world: World, student: str, reporter: Any = None, **options: Any) -> EvaluateResult:
    """Evaluate on the tiny world, one thread."""
    given: dict[str, Any] = {"run": None, "manifest": world.manifest("tars"), "root": world.root, "threads": 1}
    return evaluate(evaluate_request(student=student, **(given | options)), reporter or Silent())


@pytest.fixture(scope="module")
def prompts(student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text prompts that differ from their start."""
    return save_moved_prompts(tmp_path_factory.mktemp("prompts"), student)


class Brute:
    """Logits of every photo in float64, in the order of the split, and plain formulas over them."""

    def __init__(self, world: World, student: str, text: torch.Tensor) -> None:
        model, preprocess = open_clip.create_model_from_pretrained(student)
        names = sorted(world.photos)  # one tar a class, photos in their order there
        pixels = torch.stack([preprocess(Image.open(io.BytesIO(world.photos[name]))) for name in names])
        with torch.inference_mode():
            images = model.eval().encode_image(pixels, normalize=True).double()
        scale = float(model.logit_scale.detach().exp())
        self.labels = np.array([IDS.index(name[:3]) for name in names])
        self.logits = (images @ text.double().T * scale).numpy()

    def among(self, classes: list[int]) -> dict[str, Any]:
        """Figures over the images of some classes among their names; ties by equal names."""
        mine = np.isin(self.labels, classes)
        labels = np.searchsorted(classes, self.labels[mine])
        logits = self.logits[np.ix_(mine, classes)]
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        sound = [NAMES[c].lower() for c in classes]
        top1 = []
        for row, label in zip(p, labels, strict=True):
            same = [c for c, name in enumerate(sound) if name == sound[label]]
            top1.append(1 / len(same) if int(row.argmax()) in same else 0.0)
        credit, confidence = np.array(top1), p.max(1)
        order = np.argsort(confidence, kind="stable")
        size, extra = divmod(len(order), 15)
        ece, start = 0.0, 0
        for number in range(15):
            part = order[start : start + size + (number < extra)]
            start += len(part)
            ece += len(part) / len(order) * abs(confidence[part].mean() - credit[part].mean()) if len(part) else 0
        return {
            "top1": credit.mean(),
            "ece": ece,
            "nll": -np.log(p[np.arange(len(labels)), labels]).mean(),
            "macro": np.mean([credit[labels == c].mean() for c in np.unique(labels)]),
            "credit": credit,
        }


@pytest.fixture(scope="module")
def template(world: World, student: str) -> Brute:
    """The hand-written template by open_clip's own text tower."""
    model, _ = open_clip.create_model_from_pretrained(student)
    tokens = open_clip.get_tokenizer(student)([f"a photo of a {name.lower()}." for name in NAMES])
    with torch.inference_mode():
        return Brute(world, student, model.eval().encode_text(tokens, normalize=True))


def agree(figures: dict[str, Any], wanted: dict[str, Any]) -> None:
    """The four figures."""
    for key in ("top1", "macro", "ece", "nll"):
        assert figures[key] == pytest.approx(wanted[key], abs=3e-6), key


def test_figures_of_template_and_prompts_are_those_of_plain_formulas(
    world: World, student: str, prompts: Path, template: Brute
) -> None:
    """Macro accuracy, ECE, NLL of both; McNemar's p as an exact fraction, over images that share no credit."""
    result = run(world, student, run=prompts)
    ours = Brute(world, student, load_prompts(prompts).classifier(NAMES)).among(list(range(8)))
    plain = template.among(list(range(8)))
    agree(asdict(result), ours)
    assert result.baseline is not None and result.baseline["template"] == "a photo of a {}."
    agree(result.baseline, plain)
    whole = np.isin(ours["credit"], (0, 1)) & np.isin(plain["credit"], (0, 1))
    b = int(((ours["credit"] == 1) & (plain["credit"] == 0))[whole].sum())
    c = int(((plain["credit"] == 1) & (ours["credit"] == 0))[whole].sum())
    p = min(Fraction(1), 2 * sum(Fraction(comb(b + c, i), 2 ** (b + c)) for i in range(min(b, c) + 1)))
    assert b + c > 0 and result.paired == {"only_prompts": b, "only_template": c, "n": whole.sum(), "p": float(p)}
    assert (result.manifest, result.split, result.schema, result.classes_seen) == ("tiny-tars", "val", 1, 7)
    assert result.names_digest == result.digests["vocabulary"] and len(result.digests["prompts"]) == 64


def test_confused_pairs_are_the_most_frequent_wrong_answers(world: World, student: str, template: Brute) -> None:
    """Ten at most, the largest share of a class's images first, by name and by id."""
    result = run(world, student)
    counts: dict[tuple[int, int], int] = {}
    first = {3: 3, 5: 3}  # classes of one name answer with the lower index
    for label, row in zip(template.labels, template.logits, strict=True):
        answer = first.get(int(row.argmax()), int(row.argmax()))
        if answer != first.get(int(label), label):
            counts[int(label), answer] = counts.get((int(label), answer), 0) + 1
    best = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:10]
    assert [(pair["class_id"], pair["as_id"], pair["images"]) for pair in result.confused] == [
        (IDS[true], IDS[other], count) for (true, other), count in best
    ]
    assert all(pair["share"] == pair["images"] / 10 for pair in result.confused)
    assert {pair["class"] for pair in result.confused} <= set(NAMES)


def test_the_csv_has_the_templates_column_and_the_gain(
    world: World, student: str, prompts: Path, tmp_path: Path, template: Brute
) -> None:
    """Without prompts both are empty; the confused class's id stands beside its name."""
    notes = Notes()
    result = run(world, student, notes, run=prompts, per_class=tmp_path / "ours.csv")
    assert result.baseline is not None and result.paired is not None
    figures = (f"top-1 {result.top1:.1%}", f"template {result.baseline['top1']:.1%}", f"p {result.paired['p']:.2g}")
    assert all(figure in notes.lines[-1] for figure in figures), "what one wants to know first"
    lines = list(csv.DictReader((tmp_path / "ours.csv").read_text().splitlines()))
    credit = template.among(list(range(8)))["credit"]
    for line in lines:
        mine = template.labels == IDS.index(line["id"])
        assert float(line["template_top1"]) == pytest.approx(credit[mine].mean(), abs=6e-5)
        assert float(line["gain"]) == pytest.approx(float(line["top1"]) - credit[mine].mean(), abs=2e-4)
        assert line["confused_id"] in ("", *IDS) and float(line["nll"]) > 0
    run(world, student, per_class=tmp_path / "plain.csv")
    plain = list(csv.DictReader((tmp_path / "plain.csv").read_text().splitlines()))
    assert all(line["template_top1"] == line["gain"] == "" for line in plain)


@pytest.mark.parametrize("name", ["NAME", "NAME.npy", "NAME.top1.npy"])
def test_credits_of_each_image_are_written(
    name: str, world: World, student: str, prompts: Path, tmp_path: Path, template: Brute
) -> None:
    """float32 [n] in the order of the split, the template's beside; their means are the figures."""
    result = run(world, student, run=prompts, credits=tmp_path / "deep" / name)
    ours, plain = (np.load(tmp_path / f"deep/NAME{side}.top1.npy") for side in ("", ".template"))
    assert result.credits == str(tmp_path / "deep/NAME.top1.npy")
    assert ours.dtype == plain.dtype == np.float32 and len(ours) == PHOTOS
    assert ours.mean() == pytest.approx(result.top1) and np.allclose(plain, template.among(list(range(8)))["credit"])
    run(world, student, credits=tmp_path / "bare" / name)
    assert [file.name for file in (tmp_path / "bare").iterdir()] == ["NAME.top1.npy"]


def test_halves_and_files_of_classes(world: World, student: str, template: Brute, tmp_path: Path) -> None:
    """`base` and `novel` are the halves of the class list, each among its own names; a file does the same by id."""
    base, novel = run(world, student, classes="base"), run(world, student, classes="novel")
    agree(asdict(base), template.among([0, 1, 2, 3]))
    agree(asdict(novel), template.among([4, 5, 6, 7]))
    assert (base.n, base.left_out, base.classes, base.tied_names) == (40, 30, 4, 0)
    assert (novel.n, novel.classes, novel.classes_seen) == (30, 4, 3)
    file = tmp_path / "some.tsv"
    file.write_text("n04\tCrane\nn06\nn01\tred fox\n")
    some = run(world, student, classes=file)
    agree(asdict(some), template.among([0, 3, 5]))
    assert some.tied_names == 2 and some.chosen == "classes of some.tsv among their own names (3)"
    assert run(world, student, classes=str(file)) == some
    assert replace(run(world, student, classes="all"), chosen="") == replace(run(world, student), chosen="")


def test_some_classes_among_all_names(world: World, student: str, template: Brute) -> None:
    """Images of the half, names of all: joint accuracy is the mean of the halves weighted by their images."""
    whole = run(world, student)
    base, novel = (run(world, student, classes=half, among="all") for half in ("base", "novel"))
    assert (base.n, base.classes, novel.n, novel.classes) == (40, 8, 30, 8)
    assert (40 * base.top1 + 30 * novel.top1) / 70 == pytest.approx(whole.top1)
    assert (40 * base.nll + 30 * novel.nll) / 70 == pytest.approx(whole.nll)
    with pytest.raises(UsageError, match="`among` all adds nothing"):
        run(world, student, among="all")


def test_names_taken_out_go_with_their_homonyms(world: World, student: str, template: Brute, tmp_path: Path) -> None:
    """`crane` takes the other Crane along; images of both are left out, and counted."""
    (tmp_path / "held.tsv").write_text("n04\n")
    result = run(world, student, without=tmp_path / "held.tsv")
    agree(asdict(result), template.among([0, 1, 2, 4, 6, 7]))
    assert (result.n, result.left_out, result.classes, result.tied_names) == (50, 20, 6, 0)
    assert result.chosen.endswith("without those of held.tsv and homonyms")
    seen = run(world, student, classes="base", among="all", without=tmp_path / "held.tsv")
    assert (seen.n, seen.classes) == (30, 6)
    (tmp_path / "all.tsv").write_text("".join(f"{class_id}\n" for class_id in IDS))
    with pytest.raises(DataError, match="leaves no name"):
        run(world, student, without=tmp_path / "all.tsv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no class"),
        ("n01\nn1\n", "1 class ids are not in the vocabulary: 'n1'"),
        ("n01\nn01\n", "2 times"),
        (None, "cannot read"),
        ("n08\n", "none of the 70 images"),
    ],
)
def test_a_bad_list_of_classes_is_refused(
    text: str | None, message: str, world: World, student: str, tmp_path: Path
) -> None:
    """Exit 3 with what --classes takes; n08 is in the class list and has no image."""
    if text is not None:
        (tmp_path / "list.tsv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        run(world, student, classes=tmp_path / "list.tsv")
    assert "`classes`" in caught.value.hint


def test_classes_that_the_vocabulary_lacks_are_refused(world: World, student: str) -> None:
    """Halves and lists of timm are not taken for granted to fit."""
    with pytest.raises(DataError, match="200 classes of 'timm:imagenet_a' are not in the vocabulary"):
        run(world, student, classes="timm:imagenet_a")


def test_odd_names_are_scored_and_ties_counted(world: World, student: str) -> None:
    """Accents, emoji, braces, quotes and commas; names that sound the same share their credit."""
    names = ("Ren\u00e9 \U0001f98a", 'a "jay", blue', "{}", "CRANE", "<b>&amp;", "crane  ", "\u732b", "..")
    lines = [f"{i}\t{n}\n" for i, n in zip(IDS, names, strict=True)]
    (world.root / "odd.tsv").write_text("".join(lines), encoding="utf-8")
    result = run(world, student, vocabulary="odd.tsv", per_class=world.root / "odd.csv")
    assert result.n == PHOTOS and result.tied_names == 2 and 0 <= result.top1 <= 1
    lines = list(csv.DictReader(io.StringIO((world.root / "odd.csv").read_text(encoding="utf-8"))))
    assert [line["name"] for line in lines[:3]] == list(names[:3])


def test_the_manifests_own_template_is_the_standard(world: World, student: str, tmp_path: Path) -> None:
    """It is used unless one is given; a template without a place for the name is refused when the manifest is read."""
    text = Path(world.manifest("tars")).read_text()
    manifest = world.root / "own.toml"
    manifest.write_text('template = "a drawing of a {}."\n' + text)
    result = run(world, student, manifest=str(manifest))
    assert result.template == "a drawing of a {}."
    assert result.top1 == run(world, student, template="a drawing of a {}.").top1
    assert run(world, student, manifest=str(manifest), template="a photo of a {}.").top1 == run(world, student).top1
    manifest.write_text('template = "a drawing"\n' + text)
    with pytest.raises(DataError, match="must hold exactly one {}"):
        run(world, student, manifest=str(manifest))


def test_results_are_kept_by_digests(
    world: World, student: str, prompts: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same question again scores nothing; other names, classes, templates, prompts, shares are other questions."""
    files = own_cache / "results"
    asked: list[dict[str, Any]] = [
        {},
        {"template": "a drawing of a {}."},
        {"classes": "base"},
        {"classes": "base", "among": "all"},
        {"run": prompts},
        {"run": prompts, "wise": 0.5},
        {"run": prompts, "wise": 0.5, "template": "the {}"},
    ]
    first, counts = [], []
    for options in asked:
        first.append(run(world, student, **options))
        counts.append(len(list(files.glob("*.npz"))))
    assert counts == [1, 2, 3, 4, 5, 6, 8], "prompts share the template's entry; with another template both are new"
    monkeypatch.setattr("teachonce.evaluation.contender.outcomes", None)  # would fail if anything were scored
    monkeypatch.setattr("teachonce.evaluation.contender.set_features", None)
    notes = Notes()
    assert [run(world, student, notes, **options) for options in asked] == first
    assert notes.lines.count("results on 70 images come from the cache") == 5
    run(world, student, run=prompts, per_class=tmp_path / "again.csv", credits=tmp_path / "again")
    assert (tmp_path / "again.csv").is_file() and (tmp_path / "again.top1.npy").is_file()


@pytest.mark.parametrize("cache", ["a file", "asked not to"])
def test_without_a_cache_images_are_read_once_and_the_person_is_told(
    cache: str, world: World, student: str, prompts: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts for names leave images as they are: template and prompts share one pass. The result is the same."""
    first, read = run(world, student, run=prompts), []

    def count(*given: Any) -> Any:
        read.append(1)
        return set_features(*given)

    monkeypatch.setattr("teachonce.evaluation.contender.set_features", count)
    broken = own_cache.with_name("file")
    broken.write_text("")
    monkeypatch.setenv("TEACHONCE_CACHE", str(broken))
    notes = Notes()
    assert run(world, student, notes, run=prompts, cache=cache == "a file") == first and read == [1]
    warnings = [line for line in notes.lines if "nothing is kept for next time" in line]
    assert len(warnings) == (cache == "a file") and all(str(broken) in line for line in warnings)


@pytest.mark.parametrize("damage", ["cut", "bit", "foreign", "no digest", "empty"])
def test_a_kept_result_that_is_not_whole_is_never_used(
    damage: str, world: World, student: str, own_cache: Path
) -> None:
    """Half a file, a flipped bit, another result under this name with its own digest: computed again, and mended."""
    first = run(world, student)
    entry = next((own_cache / "results").glob("*.npz"))
    whole = entry.read_bytes()
    if damage == "foreign":
        run(world, student, template="a drawing of a {}.")
        other = next(file for file in (own_cache / "results").glob("*.npz") if file != entry)
        for suffix in (".npz", ".sha256"):
            shutil.copy(other.with_suffix(suffix), entry.with_suffix(suffix))
    elif damage == "no digest":
        entry.with_suffix(".sha256").unlink()
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
        entry.write_bytes({"cut": whole[:-100], "bit": flipped, "empty": b""}[damage])
    notes = Notes()
    assert run(world, student, notes) == first
    assert not any(line.startswith("results on") for line in notes.lines)
    assert entry.read_bytes() == whole and entry.with_suffix(".sha256").is_file()


def test_without_the_cache_nothing_is_kept_or_read(world: World, student: str, own_cache: Path) -> None:
    """--set cache=false."""
    assert run(world, student, cache=False) == run(world, student)
    shutil.rmtree(own_cache)
    run(world, student, cache=False)
    assert not own_cache.exists()


def test_a_part_of_a_split_is_encoded_alone_unless_the_whole_is_kept(
    world: World, student: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 21,841 classes nobody encodes all to look at twenty; after the whole, no part is encoded again."""
    from teachonce.evaluation import features as evaluation_features

    sizes = []
    real = evaluation_features.encode_all

    def counted(clip: Any, encode: Any, index: Any, *rest: Any) -> Any:
        sizes.append(len(index))
        return real(clip, encode, index, *rest)

    monkeypatch.setattr(evaluation_features, "encode_all", counted)
    for options in ({"classes": "base"}, {}, {"classes": "novel"}, {"classes": "novel", "among": "all"}):
        run(world, student, **options)
    assert sizes == [40, 70]


def test_images_without_a_class_are_left_out(world: World, student: str, tmp_path: Path) -> None:
    """Unlabelled samples cannot be right or wrong."""
    mixed = worlds.make_world(tmp_path / "w", dict(world.photos))
    text = (
        Path(mixed.manifest("wds")).read_text().replace('path = "wds/*.tar"', 'path = "wds/*.tar"\nunlabelled = true')
    )
    (mixed.root / "none.toml").write_text(text)
    with pytest.raises(DataError, match="none of the 70 images"):
        run(mixed, student, manifest=str(mixed.root / "none.toml"))
