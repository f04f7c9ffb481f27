"""What a model is: tokenizer, preprocessing and pooling count, not weights alone; what does not fit is said by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from teachonce.errors import EnvironmentFault, FingerprintError, UsageError
from teachonce.labels.ledger import require_behaviour, require_fingerprint
from teachonce.models.clip import LoadedClip, load_clip
from teachonce.models.known import HF_LINE
from teachonce.models.prompt_files import LoadedPrompts
from teachonce.models.prompts import PromptMeta
from teachonce.models.spec import PARTS, parse_spec, unlike

Config = dict[str, Any]


def changed(
    spec: str, folder: Path, change: Callable[[Config], Any], weights: Callable[[Any], Any] | None = None
) -> str:
    """A copy of a model folder with another config, and perhaps other weights."""
    shutil.copytree(spec.removeprefix("local-dir:"), folder)
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
    if weights is not None:
        state = load_file(folder / "open_clip_model.safetensors")
        weights(state)
        save_file(state, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


OTHERS: dict[str, tuple[str, Callable[[Config], Any]]] = {
    "case counts": ("tokenizer", lambda c: c["model_cfg"]["text_cfg"].update(tokenizer_kwargs={"clean": "whitespace"})),
    "no more tokens": (
        "tokenizer",
        lambda c: c["model_cfg"]["text_cfg"].update(tokenizer_kwargs={"additional_special_tokens": []}),
    ),
    "mean": ("preprocessing", lambda c: c["preprocess_cfg"].update(mean=[0.48, 0.45, 0.4])),
    "resize": ("preprocessing", lambda c: c["preprocess_cfg"].update(resize_mode="squash")),
    "pooling": ("pooling, heads or masks", lambda c: c["model_cfg"]["vision_cfg"].update(pool_type="avg")),
    "heads": ("pooling, heads or masks", lambda c: c["model_cfg"]["text_cfg"].update(heads=4)),
    "mask": ("pooling, heads or masks", lambda c: c["model_cfg"]["text_cfg"].update(no_causal_mask=True)),
}
SAME = {"no more tokens"}


@pytest.fixture(scope="module")
def clip(student: str) -> LoadedClip:
    """The student as it is."""
    return load_clip(student)


@pytest.mark.parametrize("case", OTHERS)
def test_models_of_equal_weights_differ_by_what_else_decides_their_features(
    case: str, clip: LoadedClip, student: str, tmp_path: Path
) -> None:
    """Their digests of weights are equal; the part that differs is named, and only that."""
    part, change = OTHERS[case]
    other = load_clip(changed(student, tmp_path / "m", change))
    assert other.digest == clip.digest and other.behaviour.keys() == PARTS.keys()
    assert unlike(clip.behaviour, other.behaviour) == ("" if case in SAME else part)


def test_a_model_is_itself_from_another_folder(clip: LoadedClip, student: str, tmp_path: Path) -> None:
    """Nothing of its place, of the process or of spelled-out defaults is in the digests."""
    again = load_clip(changed(student, tmp_path / "m", lambda c: c["model_cfg"]["vision_cfg"].update(pool_type="tok")))
    assert (again.digest, again.behaviour) == (clip.digest, clip.behaviour)


def prompts_of(clip: LoadedClip, **meta: Any) -> LoadedPrompts:
    """Prompts that were trained on a student."""
    known = {"structure": "shared", "context": "a", "slots": 1, "depth": 0, "width": 32, "layers": 2, "suffix": "."}
    known |= {"student": clip.spec, "student_digest": clip.digest, "version": "0"}
    return LoadedPrompts(None, None, PromptMeta(**known | meta), clip.spec, "")


def test_another_tokenizer_is_refused_by_prompts_stores_and_features(clip: LoadedClip) -> None:
    """Where both sides know it; what was written before they did is read as it was."""
    other = dict(clip.behaviour) | {"tokenizer": "another", "preprocess": "another"}
    with pytest.raises(FingerprintError, match="another tokenizer and preprocessing than"):
        prompts_of(clip, student_behaviour=other).bound_to(clip)
    for early in ({}, {"student_behaviour": dict(clip.behaviour)}):
        assert prompts_of(clip, **early).bound_to(clip).student is clip
    with pytest.raises(FingerprintError, match="the teacher has the same weights and another tokenizer"):
        require_fingerprint(Path("s"), "labels", {"teacher_behaviour": other}, {"teacher_behaviour": clip.behaviour})
    require_fingerprint(Path("s"), "labels", {"top_k": 1}, {"top_k": 1, "teacher_behaviour": clip.behaviour})
    with pytest.raises(FingerprintError, match="another preprocessing"):
        require_behaviour(Path("s"), "students/x", {"student_behaviour": other}, clip.image_behaviour)
    require_behaviour(Path("s"), "students/x", {}, clip.image_behaviour)


UNFIT: dict[str, tuple[str, Callable[[Config], Any], Callable[[Any], Any] | None]] = {
    "a key of a newer open_clip": ("the key 'rope'", lambda c: c["model_cfg"]["vision_cfg"].update(rope=True), None),
    "a bias that nobody announces": (
        "logit_bias",
        lambda c: None,
        lambda state: state.update(logit_bias=torch.tensor(-10.0)),
    ),
    "a token table that is too small": (
        "the token table has 1000 rows",
        lambda c: c["model_cfg"]["text_cfg"].update(vocab_size=1000),
        lambda state: state.update({"token_embedding.weight": state["token_embedding.weight"][:1000].clone()}),
    ),
    "means of two colours": ("could not run", lambda c: c["preprocess_cfg"].update(mean=[0.5, 0.5], std=[1, 1]), None),
    "no text": ("could not load", lambda c: c["model_cfg"].pop("text_cfg"), None),
    "a list": ("could not load", lambda c: c.update(model_cfg=[1]), None),
    "weights of another width": ("could not load", lambda c: c["model_cfg"].update(embed_dim=7), None),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_model_that_does_not_fit_is_a_fault_that_names_its_folder(case: str, student: str, tmp_path: Path) -> None:
    """Never a bug of ours, whatever open_clip raises."""
    said, change, weights = UNFIT[case]
    with pytest.raises(EnvironmentFault) as caught:
        load_clip(changed(student, tmp_path / "m", change, weights))
    assert said in caught.value.message and str(tmp_path / "m") in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("problem", "package", "line"),
    [
        (ModuleNotFoundError("No module named 'transformers'", name="transformers"), "transformers", HF_LINE),
        (ImportError("T5Tokenizer requires it: `pip install sentencepiece`"), "sentencepiece", HF_LINE),
        (RuntimeError("Please `pip install transformers` to use pre-trained models"), "transformers", HF_LINE),
        (ImportError("SpmConverter requires the protobuf library but it was not found"), "protobuf", HF_LINE),
        (ModuleNotFoundError("No module named 'google.protobuf'", name="google.protobuf"), "protobuf", HF_LINE),
        (ValueError("(3) You need to have sentencepiece or tiktoken installed"), "sentencepiece", HF_LINE),
        (ModuleNotFoundError("No module named 'nltk'", name="nltk"), "nltk", "pip install nltk"),
    ],
)
def test_a_missing_package_comes_with_its_own_pip_line(
    problem: Exception, package: str, line: str, student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str, **options: object) -> None:
        raise problem

    monkeypatch.setattr("teachonce.models.clip.open_clip.get_tokenizer", missing)
    monkeypatch.setattr("teachonce.models.hf.installed", lambda package: False)
    with pytest.raises(EnvironmentFault, match=package) as caught:
        load_clip(student)
    assert caught.value.hint == line


@pytest.mark.parametrize("spec", ["ViT-B-32//models/ViT-B-32.pt", "ViT-B-32/models/mine", "ViT-B-32/mine.safetensors"])
def test_a_file_of_weights_is_no_model(spec: str) -> None:
    """It does not say how images are prepared; the hint says how to make a folder of it."""
    with pytest.raises(UsageError, match="a file of weights") as caught:
        parse_spec(spec)
    assert "teachonce import-model" in caught.value.hint and "local-dir:" in caught.value.hint


def test_a_file_without_an_ending_is_no_model_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is called like a tag: then the tag is meant."""
    monkeypatch.chdir(tmp_path)
    Path("mine").write_bytes(b"")
    with pytest.raises(UsageError, match="a file of weights"):
        load_clip("ViT-B-32/mine")


def test_every_tag_of_open_clip_is_a_model() -> None:
    import open_clip

    for name, tag in open_clip.list_pretrained():
        assert parse_spec(f"{name}/{tag}") == (name, tag)


def test_evaluations_of_another_tokenizer_are_not_taken_from_the_cache(clip: LoadedClip) -> None:
    """Its class features differ although weights and names are the same."""
    from teachonce.evaluation.contender import Contender
    from teachonce.evaluation.features import image_identity

    other = cased(clip)
    assert Contender(clip, None, 1.0).identity(["{}"]) != Contender(other, None, 1.0).identity(["{}"])
    assert image_identity(clip, None) == image_identity(other, None)


def cased(clip: LoadedClip) -> LoadedClip:
    """The same model with a tokenizer that keeps case."""
    import open_clip

    tokenizer = open_clip.SimpleTokenizer(context_length=32, clean="whitespace")
    return LoadedClip(clip.spec, clip.model, tokenizer, clip.preprocess, clip.digest, clip.device)
