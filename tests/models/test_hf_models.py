"""Models whose tokenizer or text tower comes from transformers: what loads from a folder alone, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_clips import FAMILIES, HF_TOWERS, make_hf_clip

from teachonce.errors import EnvironmentFault, UsageError
from teachonce.models.classifier import template_features
from teachonce.models.clip import load_clip
from teachonce.models.spec import require_model, unlike

NAMES = ("red fox", "blue jay", "green snake", "piano")
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a tiny random model of every family; never change it."""
    folder = tmp_path_factory.mktemp("hf")
    for family in FAMILIES:
        make_hf_clip(folder / family, family)
    return {family: folder / family for family in FAMILIES}


def changed(source: Path, target: Path, file: str, change: Callable[[Any], object]) -> str:
    """The spec of a copy of a model in which one JSON file is another."""
    shutil.copytree(source, target)
    document = json.loads((target / file).read_text())
    change(document)
    (target / file).write_text(json.dumps(document))
    return f"local-dir:{target}"


@every_family
def test_a_folder_holds_all_that_a_model_needs(family: str, models: dict[str, Path], tmp_path: Path) -> None:
    """Wherever the folder lies, and without a hub: features of names are those of open_clip's own way."""
    there = tmp_path / "elsewhere"
    shutil.copytree(models[family], there)
    clip = load_clip(f"local-dir:{there}")
    features = template_features(clip, NAMES, "a photo of a {}.")
    texts = clip.tokenizer([f"a photo of a {name}." for name in NAMES])
    with torch.no_grad():
        wanted = clip.model.encode_text(texts, normalize=True)  # type: ignore[operator]
    torch.testing.assert_close(features, wanted, atol=1e-5, rtol=0)
    assert (features @ features.T).fill_diagonal_(0).max() < 0.9999, "names differ"


@every_family
def test_a_name_that_the_tokenizer_would_cut_is_refused(family: str, models: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="would be cut|the text tower has room for"):
        template_features(load_clip(f"local-dir:{models[family]}"), ["red fox " * 80], "a photo of a {}.")


@pytest.mark.parametrize("family", HF_TOWERS)
def test_other_heads_or_padding_with_the_same_weights_are_another_model(
    family: str, models: dict[str, Path], tmp_path: Path
) -> None:
    """No tensor and no module's text says how many heads a text tower of transformers has."""
    heads = "encoder_attention_heads" if family == "nllb" else "num_attention_heads"
    file = f"someone/{family}/config.json"
    plain = load_clip(f"local-dir:{models[family]}")
    for number, change in enumerate(({heads: 4}, {"pad_token_id": 3})):
        other = load_clip(
            changed(models[family], tmp_path / str(number), file, lambda config, c=change: config.update(c))
        )
        assert unlike(plain.behaviour, other.behaviour)


def test_a_logit_bias_is_known_where_there_is_one(models: dict[str, Path]) -> None:
    assert load_clip(f"local-dir:{models['siglip']}").logit_bias == -9.5
    assert load_clip(f"local-dir:{models['clipa']}").logit_bias is None


@pytest.mark.parametrize("told_to", [False, True])
def test_no_code_in_a_folder_of_a_model_runs(told_to: bool, models: dict[str, Path], tmp_path: Path) -> None:
    """Neither a tokenizer's, even if the folder says that it may, ..."""

    def with_code(config: Any) -> None:
        config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}

    spec = changed(models["clipa"], tmp_path / "m", "tokenizer_config.json", with_code)
    (tmp_path / "m" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    if told_to:
        allow = {"tokenizer_kwargs": {"trust_remote_code": True}}
        spec = changed(
            tmp_path / "m",
            tmp_path / "n",
            "open_clip_config.json",
            lambda c: c["model_cfg"]["text_cfg"].update(allow),
        )
    with pytest.raises(EnvironmentFault):
        load_clip(spec)
    assert not (tmp_path / "ran").exists()


def test_a_text_tower_that_is_described_by_code_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    """... nor a text tower's."""
    spec = changed(
        models["roberta"],
        tmp_path / "m",
        "someone/roberta/config.json",
        lambda config: config.update(auto_map={"AutoConfig": "evil.Evil"}),
    )
    with pytest.raises(UsageError, match="auto_map"):
        load_clip(spec)


@pytest.mark.parametrize(
    ("family", "lacking", "where"),
    [
        ("roberta", "someone", "HF_MODEL_NAME/config.json"),
        ("roberta", "tokenizer_config.json", "tokenizer"),
        ("siglip", "spiece.model", "beside its tokenizer_config.json"),
    ],
)
def test_a_folder_that_lacks_a_file_says_where_it_belongs(
    family: str, lacking: str, where: str, models: dict[str, Path], tmp_path: Path
) -> None:
    """Exit 6 at once: the hub is not waited for. Without a vocabulary transformers makes a tokenizer of no words."""
    shutil.copytree(models[family], tmp_path / "m")
    gone = tmp_path / "m" / lacking
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(EnvironmentFault, match=str(tmp_path / "m")) as caught:
        load_clip(f"local-dir:{tmp_path / 'm'}")
    assert where in caught.value.hint


@pytest.mark.parametrize("spec", ["ViT-B-16-SigLIP/webli", "nllb-clip-base/v1", "local-dir:MODEL"])
def test_the_extra_is_named_where_transformers_is_missing(
    spec: str, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is loaded or fetched."""
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(EnvironmentFault, match="transformers") as caught:
        require_model(spec.replace("MODEL", str(models["siglip"])))
    assert caught.value.hint == "pip install 'teachonce[hf]'"
    require_model("ViT-B-16/openai")
