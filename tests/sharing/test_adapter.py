"""prompted_model: classifiers that other programs make with it are the prompted one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from share_runs import make_run
from torch import Tensor
from torch.nn import functional as F
from worlds import NAMES

import teachonce
from teachonce.errors import FingerprintError, UsageError

ODD = (
    "U.S. dollar",
    "don't",
    "café au lait",
    "red  fox 🦊",
    "rock'n'roll",
    "21k",
    "C++",
    "Mt. St. Helens, Wash",
    "日本",
)


@pytest.fixture(scope="module")
def run(student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_run(tmp_path_factory.mktemp("adapter") / "run", student)


def as_benchmarks_do(model: Any, tokenizer: Any, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """The classifier [C, E] as CLIP_benchmark makes it: one class at a time, the mean over templates."""
    rows = []
    with torch.no_grad():
        for name in names:
            tokens = tokenizer([template.format(c=name) for template in templates]).to("cpu")
            mean = F.normalize(model.encode_text(tokens), dim=-1).mean(dim=0)
            rows.append(mean / mean.norm())
    return torch.stack(rows)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"position": "around", "structure": "shared"},
        {"position": "after"},
        {"tower": "image"},
        {"tower": "both", "structure": "unshared-replace"},
    ],
    ids=str,
)
def test_encode_text_is_the_classifier(config: dict[str, Any], student: str, tmp_path: Path) -> None:
    """To the bit for the same names, with its tokenizer and with open_clip's own; odd names too."""
    run = make_run(tmp_path / "run", student, **config)
    names = NAMES + ODD
    wanted = teachonce.load_prompts(run).classifier(names)
    model, tokenizer, _ = teachonce.prompted_model(run)
    assert torch.equal(model.encode_text(tokenizer(names)), wanted)
    assert torch.equal(model.encode_text(open_clip.get_tokenizer(student)(list(names)), normalize=True), wanted)


def test_classifiers_of_other_programs_are_the_prompted_one(run: Path) -> None:
    """CLIP_benchmark's loop, and open_clip's own function, up to rounding; the bare student's is far away."""
    wanted = teachonce.load_prompts(run).classifier(NAMES)
    model, tokenizer, _ = teachonce.prompted_model(run)
    assert torch.allclose(as_benchmarks_do(model, tokenizer, NAMES, ["{c}"]), wanted, atol=1e-6)
    plain = open_clip.build_zero_shot_classifier(model, tokenizer, NAMES, ["{}"], num_classes_per_batch=3)
    assert torch.allclose(plain.T, wanted, atol=1e-6)
    bare = as_benchmarks_do(model.clip, model.tokenizer, NAMES, ["{c}"])
    assert (bare - wanted).abs().max() > 0.05


def test_given_templates_are_taken_off(run: Path) -> None:
    """Many, in their order, as benchmarks give them for each name; also where one begins as another does."""
    templates = ["a photo of a {c}.", "a photo of a small {c}.", "{c}", "itap of {c}!"]
    wanted = teachonce.load_prompts(run).classifier(NAMES)
    model, tokenizer, _ = teachonce.prompted_model(run, templates=templates)
    assert torch.allclose(as_benchmarks_do(model, tokenizer, NAMES, templates), wanted, atol=1e-6)
    written = [lambda name, t=template: t.format(c=name) for template in templates]
    batch = open_clip.build_zero_shot_classifier(model, tokenizer, NAMES, written)
    assert torch.allclose(batch.T, wanted, atol=1e-6)
    with pytest.raises(UsageError, match="is not of the template"):
        tokenizer(["a drawing of a fox."])


@pytest.mark.parametrize("text", ["a photo of a red fox.", "a photo of a red fox", "a drawing of a fox.", "the fox!."])
def test_a_sentence_is_refused_unless_told(text: str, run: Path) -> None:
    """A benchmark that was left with its own templates must not score them as odd names."""
    model, tokenizer, _ = teachonce.prompted_model(run)
    with pytest.raises(UsageError, match="looks like a template") as caught:
        model.encode_text(tokenizer([text]))
    assert "templates=" in caught.value.hint
    with pytest.raises(UsageError, match="looks like a template"):
        model.encode_text(model.tokenizer([text]))
    templated, tokenizer, _ = teachonce.prompted_model(run, templates=["{c}"])
    assert torch.equal(templated.encode_text(tokenizer([text])), teachonce.load_prompts(run).classifier([text]))


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{c} and {}"])
def test_a_template_has_one_place_for_the_name(template: str, run: Path) -> None:
    with pytest.raises(UsageError, match="exactly one"):
        teachonce.prompted_model(run, templates=[template])


def test_texts_that_would_be_cut_or_were_altered_are_refused(run: Path) -> None:
    """open_clip cuts in silence; tokens that no text gives would be another name's."""
    model, tokenizer, _ = teachonce.prompted_model(run)
    long = "fox " * 40
    with pytest.raises(UsageError, match="more tokens than"):
        tokenizer([long])
    with pytest.raises(UsageError, match="has room for"):
        model.encode_text(model.tokenizer([long]))  # cut by open_clip's own
    for spoilt in (torch.zeros(1, 32, dtype=torch.long), tokenizer("fox")[:, 1:], tokenizer("fox")[:, :2]):
        with pytest.raises(UsageError, match="start token"):
            model.encode_text(spoilt)
    tokens = tokenizer("fox")
    tokens[0, 1] = next(i for word, i in tokenizer.encoder.items() if word.isalpha() and len(word) > 2)  # no word's end
    with pytest.raises(UsageError, match="cut or altered"):
        model.encode_text(tokens)
    with pytest.raises(UsageError, match="blank"):
        model.encode_text(model.tokenizer([""]))


def test_images_and_all_else_are_the_students(run: Path, student: str) -> None:
    """Bare image features, scale, tower; nothing can be trained; the tokenizer's own attributes are there."""
    model, tokenizer, preprocess = teachonce.prompted_model(run)
    bare, _ = open_clip.create_model_from_pretrained(student)
    bare.eval()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model.encode_image(images), bare.encode_image(images), atol=1e-5)
        seen, text, scale = model(images, tokenizer(["fox"]))
        assert torch.allclose(seen, bare.encode_image(images, normalize=True), atol=1e-5)
        assert torch.equal(text, model.encode_text(tokenizer(["fox"]))) and scale == bare.logit_scale.exp()
        assert model(text=tokenizer(["fox"]))[0] is None
    assert model.visual is model.clip.visual and not any(x.requires_grad for x in model.parameters())
    assert tokenizer.context_length == 32 and callable(preprocess)
    with pytest.raises(AttributeError):
        _ = model.no_such_thing


def test_image_prompts_change_images(student: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", student, tower="both")
    model, _, _ = teachonce.prompted_model(run)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = model.encode_image(images)
    assert torch.equal(features, teachonce.load_prompts(run).image_features(images))
    with torch.no_grad():
        assert not torch.allclose(features, model.clip.encode_image(images, normalize=True), atol=1e-2)


def test_another_student_is_refused(run: Path, teacher: str) -> None:
    with pytest.raises(FingerprintError, match="belong to a student"):
        teachonce.prompted_model(run, model=teacher)


def test_importing_teachonce_stays_light() -> None:
    """What it offers is named, and loads torch only when it is asked for."""
    code = "import json, sys, teachonce; print(json.dumps([teachonce.__all__, 'torch' in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == [["__version__", "load_prompts", "prompted_model"], False]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = teachonce.nothing


def test_every_name_that_teachonce_lists_is_there_and_no_other_is_listed() -> None:
    assert dir(teachonce) == sorted(teachonce.__all__) == ["__version__", "load_prompts", "prompted_model"]
    assert all(getattr(teachonce, name) is not None for name in dir(teachonce))
    assert callable(teachonce.load_prompts) and callable(teachonce.prompted_model)
