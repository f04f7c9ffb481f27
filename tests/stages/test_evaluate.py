"""evaluate: zero-shot accuracy equals a brute-force count with open_clip's own functions."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import worlds
from PIL import Image
from requests_of import evaluate_request
from worlds import IDS, NAMES, PHOTOS, Notes, World

from teachonce.core.progress import Silent
from teachonce.errors import DataError, FingerprintError, UsageError
from teachonce.evaluation import contender
from teachonce.models.classifier import template_features
from teachonce.models.clip import load_clip
from teachonce.models.prompt_files import LoadedPrompts, load_prompts, save_prompts
from teachonce.recipe.config import TrainConfig
from teachonce.stages.evaluate import EvaluateResult, evaluate
from teachonce.training.student import PromptedStudent


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or fills the user's cache."""
    torch.set_num_threads(1)
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(world: World, student: str, reporter: Any = None, **options: Any) -> EvaluateResult:
    """Evaluate on the tiny world, one thread."""
    given: dict[str, Any] = {"run": None, "manifest": world.manifest("tars"), "root": world.root, "threads": 1}
    return evaluate(evaluate_request(student=student, **(given | options)), reporter or Silent())


@pytest.fixture(scope="module")
def brute(world: World, student: str) -> dict[str, np.ndarray]:
    """Credit in top-1 and top-5 of every photo, and its class, by open_clip alone and a loop over classes."""
    model, preprocess = open_clip.create_model_from_pretrained(student)
    model.eval()
    tokens = open_clip.get_tokenizer(student)([f"a photo of a {name.lower()}." for name in NAMES])
    top1, top5, labels = [], [], []
    with torch.inference_mode():
        text = model.encode_text(tokens, normalize=True)
        twin = {3: 5, 5: 3}
        for name, photo in world.photos.items():
            image = preprocess(Image.open(io.BytesIO(photo)))[None]
            logits = (model.encode_image(image, normalize=True) @ text.T)[0].tolist()
            label = IDS.index(name[:3])
            better = sum(value > logits[label] + 1e-7 for c, value in enumerate(logits) if c != twin.get(label))
            ties = 2 if label in twin else 1
            top1.append(1 / ties if better == 0 else 0.0)
            top5.append(min(1.0, max(0.0, (5 - better) / ties)))
            labels.append(label)
    return {"top1": np.array(top1), "top5": np.array(top5), "label": np.array(labels)}


@pytest.mark.parametrize("layout", ["wds", "tars", "folders"])
def test_accuracy_equals_brute_force(layout: str, world: World, student: str, brute: dict[str, np.ndarray]) -> None:
    """The same figures from every layout; two classes of one name share the credit; the share of ties is told."""
    result = run(world, student, manifest=world.manifest(layout))
    assert result.top1 == pytest.approx(brute["top1"].mean(), abs=1e-9)
    assert result.top5 == pytest.approx(brute["top5"].mean(), abs=1e-9)
    assert (result.n, result.classes, result.failed, result.tied_names) == (PHOTOS, len(IDS), 0, 2)
    assert result.top1_interval[0] < result.top1 < result.top1_interval[1]
    assert 0 < result.top1 < result.top5 <= 1
    assert set(result.digests) == {"student", "vocabulary", "samples"}
    assert result.baseline is None and result.paired is None and result.run is None
    assert result.template == "a photo of a {}."
    assert json.loads(json.dumps(asdict(result)))["n"] == PHOTOS


@pytest.mark.parametrize("there", [b"SECRET", b"", b"id,name\n", None])
def test_a_table_of_classes_overwrites_nothing_but_one(
    there: bytes | None, world: World, student: str, tmp_path: Path
) -> None:
    """Prompts, a class list, an empty file, a folder: refused before any work; an older table is replaced."""
    file = tmp_path / "x.csv"
    file.mkdir() if there is None else file.write_bytes(there)
    with pytest.raises(UsageError, match=r"x\.csv: this is there already"):
        run(world, student, per_class=file)
    assert there is None or file.read_bytes() == there
    run(world, student, per_class=tmp_path / "own.csv")
    run(world, student, per_class=tmp_path / "own.csv", classes="base")
    assert len((tmp_path / "own.csv").read_text().splitlines()) < len(IDS)


def test_the_table_of_classes_adds_up(world: World, student: str, brute: dict[str, np.ndarray], tmp_path: Path) -> None:
    """One line a class with images: its figures are those of its photos, and their mean is the whole."""
    file = tmp_path / "deep/er/table.csv"
    result = run(world, student, per_class=file)
    lines = list(csv.DictReader(file.read_text().splitlines()))
    assert [line["id"] for line in lines] == list(IDS[:-1]) and result.per_class == str(file)
    for line in lines:
        mine = brute["label"] == IDS.index(line["id"])
        assert int(line["n"]) == mine.sum() and line["name"] == NAMES[IDS.index(line["id"])]
        assert float(line["top1"]) == pytest.approx(brute["top1"][mine].mean(), abs=6e-5)
        assert float(line["top5"]) == pytest.approx(brute["top5"][mine].mean(), abs=6e-5)
        assert (line["most_confused_with"] == "") == (float(line["confused_share"]) == 0)
        assert 0 <= float(line["confused_share"]) <= 1 - (brute["top1"][mine] > 0).mean() + 6e-5
    total = sum(int(line["n"]) * float(line["top1"]) for line in lines) / PHOTOS
    assert total == pytest.approx(result.top1, abs=1e-4)


def test_features_are_computed_once(
    world: World, student: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second evaluation, with another template, decodes no image; a damaged entry is computed again."""
    first = run(world, student)
    entry = next((own_cache / "features").glob("*.npy"))
    with monkeypatch.context() as patch:
        patch.setattr("teachonce.evaluation.features.encode_all", None)  # would fail if images were encoded
        notes = Notes()
        again = run(world, student, notes)
        assert any("cache" in line for line in notes.lines)
        other = run(world, student, template="a drawing of a {}.")
    assert again == first and (other.top1, other.top5) != (first.top1, first.top5)
    shutil.rmtree(own_cache / "results")  # which would answer for the features
    data = bytearray(entry.read_bytes())
    data[-3] ^= 0x40
    entry.write_bytes(data)
    assert run(world, student) == first
    assert entry.read_bytes() != bytes(data)


def test_another_model_has_its_own_features(world: World, student: str, teacher: str, own_cache: Path) -> None:
    """An entry belongs to weights and samples."""
    one, two = run(world, student), run(world, teacher)
    assert one.digests["student"] != two.digests["student"] and one.digests["samples"] == two.digests["samples"]
    assert len(list((own_cache / "features").glob("*.npy"))) == 2


def test_a_class_that_the_vocabulary_lacks_is_refused(world: World, student: str) -> None:
    """Its images could never be right: exit 3, how many, which first, what to do."""
    (world.root / "lacking.tsv").write_text("n01\tfox\nn02\tjay\n")
    with pytest.raises(
        DataError, match="5 classes of the split are not in the vocabulary, the first is 'n03'"
    ) as caught:
        run(world, student, vocabulary="lacking.tsv")
    assert "`vocabulary`" in caught.value.hint


def test_a_larger_vocabulary_in_another_order(world: World, student: str) -> None:
    """Labels are mapped by class id: more classes and another order change the figures only through the names."""
    rows = list(zip(IDS, NAMES, strict=True))[::-1]
    (world.root / "reversed.tsv").write_text("".join(f"{i}\t{n}\n" for i, n in rows))
    plain, mapped = run(world, student), run(world, student, vocabulary="reversed.tsv")
    assert (mapped.top1, mapped.top5) == pytest.approx((plain.top1, plain.top5))
    (world.root / "larger.tsv").write_text("x1\tzebra\n" + "".join(f"{i}\t{n}\n" for i, n in rows) + "x2\tfence\n")
    larger = run(world, student, vocabulary="larger.tsv")
    assert larger.classes == 10 and larger.top1 <= plain.top1


def test_images_that_cannot_be_decoded_are_left_out_and_counted(world: World, student: str, tmp_path: Path) -> None:
    """They are neither right nor wrong; each is told with its reason; none left at all is an error."""
    names = list(world.photos)
    broken = worlds.make_world(tmp_path / "w", world.photos | dict.fromkeys(names[:4], b"broken"))
    notes = Notes()
    result = run(broken, student, notes)
    assert (result.n, result.failed) == (PHOTOS - 4, 4)
    assert sum("not an image that Pillow reads: the bytes are text" in line for line in notes.lines) == 4
    nothing = worlds.make_world(tmp_path / "n", dict.fromkeys(names, b"broken"))
    with pytest.raises(DataError, match="none of the 70 images of 'val' could be decoded"):
        run(nothing, student)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "tset"}, "has no split"),
        ({"template": "none"}, "exactly one"),
        ({"run": Path("gone")}, "gone is not a run"),
        ({"root": None}, "needs the folder"),
        ({"manifest": "gone.toml"}, "gone.toml"),
        ({"vocabulary": "timm:x"}, "timm"),
    ],
)
def test_a_wrong_option_is_refused(change: dict[str, Any], message: str, world: World, student: str) -> None:
    """Exit 2, before any image is decoded."""
    with pytest.raises(UsageError, match=message):
        run(world, student, **change)


def moved_prompts(student: str, folder: Path, tower: Any) -> LoadedPrompts:
    """Saved prompts that differ from their start in every tensor."""
    clip = load_clip(student)
    config = TrainConfig.of(tower=tower, image_length=2)
    ours = PromptedStudent(config, clip, NAMES)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in ours.learners.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        text, image = (None if x is None else x() for x in (ours.learner("text"), ours.learner("image")))
    folder.mkdir()
    save_prompts(folder, text, image, ours.meta())
    return load_prompts(folder)


@pytest.mark.parametrize("tower", ["text", "image", "both"])
def test_prompts_of_either_tower_are_scored_as_one_would_by_hand(
    tower: str, world: World, student: str, own_cache: Path, tmp_path: Path
) -> None:
    """Image by image and class by class through the loaded prompts; a second evaluation reads the cache."""
    prompts = moved_prompts(student, tmp_path / "run", tower)
    result = run(world, student, run=tmp_path / "run")
    _, preprocess = open_clip.create_model_from_pretrained(student)
    classes = prompts.classifier(NAMES)
    right = []
    for name, photo in world.photos.items():
        image = preprocess(Image.open(io.BytesIO(photo)))[None]
        best = int((prompts.image_features(image) @ classes.T).argmax())
        label = IDS.index(name[:3])
        same = [c for c in range(len(NAMES)) if NAMES[c].lower() == NAMES[label].lower()]
        right.append((best in same) / len(same))
    assert result.top1 == pytest.approx(np.mean(right), abs=1e-9)
    assert result.baseline is not None and result.baseline["top1"] == run(world, student).top1
    assert len(list((own_cache / "features").glob("*.npy"))) == (1 if tower == "text" else 2)
    assert run(world, student, run=tmp_path / "run") == result


def test_several_templates_are_averaged_and_all_are_in_the_document(
    world: World, student: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The unit mean of the features of each, by hand; and with prompts the baseline is that mean."""
    templates = ("a photo of a {}.", "{} and the dark", "not the {}")
    asked: list[np.ndarray] = []
    real = contender.outcomes

    def seen(features: Any, classes: np.ndarray, *given: Any) -> Any:
        asked.append(classes)
        return real(features, classes, *given)

    monkeypatch.setattr(contender, "outcomes", seen)
    result = run(world, student, templates=templates, cache=False)
    clip = load_clip(student)
    parts = torch.stack([template_features(clip, NAMES, template) for template in templates])
    mean = parts.mean(0)
    assert np.allclose(asked[0], (mean / mean.norm(dim=1, keepdim=True)).numpy(), atol=1e-6)
    assert not np.allclose(asked[0], parts[-1].numpy(), atol=1e-3)
    assert result.templates == templates and result.template == " + ".join(templates)
    moved_prompts(student, tmp_path / "run", "text")
    prompted = run(world, student, run=tmp_path / "run", templates=templates, cache=False)
    assert prompted.baseline is not None and prompted.baseline["top1"] == result.top1
    assert prompted.templates == templates


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_wise_mixes_class_features_with_the_templates(share: float, world: World, student: str, tmp_path: Path) -> None:
    """0 is the template, 1 the prompts, between them the normalised mixture."""
    prompts = moved_prompts(student, tmp_path / "run", "text")
    result = run(world, student, run=tmp_path / "run", wise=share)
    clip = load_clip(student)
    mixed = share * prompts.classifier(NAMES) + (1 - share) * template_features(clip, NAMES, "a photo of a {}.")
    classes = mixed / mixed.norm(dim=1, keepdim=True)
    right = []
    for name, photo in world.photos.items():
        image = clip.encode_images(clip.prepare(Image.open(io.BytesIO(photo)))[None])
        label = IDS.index(name[:3])
        logits = (image @ classes.T)[0]
        same = [c for c in range(len(NAMES)) if NAMES[c].lower() == NAMES[label].lower()]
        right.append((float(logits.max()) - float(logits[same].max()) < 1e-6) / len(same))
    assert result.wise == share and result.top1 == pytest.approx(np.mean(right), abs=1e-9)


def test_wise_is_refused_where_it_would_mean_something_else(world: World, student: str, tmp_path: Path) -> None:
    """Without prompts there is nothing to mix; with image prompts 0 would not be the bare student."""
    moved_prompts(student, tmp_path / "run", "both")
    with pytest.raises(UsageError, match="no RUN was given"):
        run(world, student, wise=0.5)
    with pytest.raises(UsageError, match="images too"):
        run(world, student, run=tmp_path / "run", wise=0.5)


def test_prompts_of_another_student_are_refused(world: World, student: str, teacher: str, tmp_path: Path) -> None:
    """Both weights are named."""
    moved_prompts(student, tmp_path / "run", "text")
    with pytest.raises(FingerprintError, match="belong to a student with weights"):
        run(world, teacher, run=tmp_path / "run")
