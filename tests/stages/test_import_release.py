"""A lone file of weights becomes a model with the preprocessing and activation of its release, and with every tensor.

The architectures behind the names of releases are small ones here; preprocessing and activation are the releases' own.
"""

from __future__ import annotations

import json
import os
import re
import resource
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import foreign_models
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from teachonce.core.progress import Silent
from teachonce.errors import DataError, EnvironmentFault, IncompleteError, IntegrityError, UsageError
from teachonce.models.clip import load_clip
from teachonce.stages.import_model import ImportModelRequest, ImportModelResult, import_model
from teachonce.stages.import_model import work as stage_work

CUSTOM = {**foreign_models.TINY, "custom_text": True}
SMALL = {
    "ViT-B-32": foreign_models.TINY,
    "MobileCLIP2-B": CUSTOM,
    "ViT-B-16-SigLIP2": {
        **CUSTOM,
        "text_cfg": {**foreign_models.TINY["text_cfg"], "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2"},
    },
    "roberta-ViT-B-32": {**CUSTOM, "text_cfg": {"hf_model_name": "roberta-base", "hf_tokenizer_name": "roberta-base"}},
}
OPENAI = "ViT-B-32/openai"


@pytest.fixture(autouse=True)
def small_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, config in SMALL.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, deepcopy(config))


def imported(file: Path, release: str | None, out: Path, tokenizer: Path | None = None) -> ImportModelResult:
    return import_model(ImportModelRequest(source=file, release=release, out=out, tokenizer=tokenizer), Silent())


def saved(file: Path, tensors: dict[str, Tensor], form: str = "safetensors") -> Path:
    """The weights as a file, in one of the ways in which they lie about."""
    if form == "safetensors":
        save_file(tensors, file)
    elif form == "pickle":
        torch.save(tensors, file)
    else:
        wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": wrapped, "optimizer": {"state": {0: torch.ones(2)}}}, file)
    return file


@pytest.mark.parametrize(
    ("form", "release", "quick"),
    [
        ("safetensors", OPENAI, True),
        ("training", OPENAI, True),
        ("pickle", "ViT-B-32/laion2b_s34b_b79k", False),
    ],
)
def test_features_have_the_activation_of_the_release(form: str, release: str, quick: bool, tmp_path: Path) -> None:
    model = foreign_models.open_clip_model({**SMALL["ViT-B-32"], "quick_gelu": quick})
    file = saved(tmp_path / f"w.{'safetensors' if form == 'safetensors' else 'pt'}", model.state_dict(), form)
    result = imported(file, release, tmp_path / "out")
    clip = load_clip(result.model)
    pixels, tokens = torch.randn(3, 3, 30, 30), clip.tokenizer(["a red fox", "crane"])
    with torch.no_grad():
        for here, there in ((clip.model.encode_image, model.encode_image), (clip.model.encode_text, model.encode_text)):
            given = pixels if there == model.encode_image else tokens
            torch.testing.assert_close(here(given), there(given), atol=1e-6, rtol=0)
    assert result.activation == ("quick-GELU" if quick else "GELU")
    assert result.release == release and result.digest == clip.digest


def test_images_are_prepared_as_the_release_has_it(tmp_path: Path) -> None:
    """MobileCLIP2 takes colours as they are; open_clip gives a lone file the mean of OpenAI's."""
    for release, config in (("MobileCLIP2-B/dfndr2b", CUSTOM), (OPENAI, SMALL["ViT-B-32"])):
        file = saved(tmp_path / "w.safetensors", foreign_models.open_clip_model(config).state_dict())
        result = imported(file, release, tmp_path / release.partition("/")[0])
        expected = open_clip.get_pretrained_cfg(*release.split("/"))
        for key in ("mean", "std", "interpolation", "resize_mode"):
            assert getattr(result, key) == expected[key]
        preparing: Any = load_clip(result.model).model.visual
        assert preparing.preprocess_cfg["mean"] == list(expected["mean"])


def test_weights_in_the_names_of_a_plain_clip_fit_an_architecture_with_a_text_tower_of_its_own(tmp_path: Path) -> None:
    model = foreign_models.open_clip_model(foreign_models.TINY)
    result = imported(saved(tmp_path / "w.safetensors", model.state_dict()), "MobileCLIP2-B/dfndr2b", tmp_path / "out")
    clip = load_clip(result.model)
    tokens = clip.tokenizer(["a red fox"])
    with torch.no_grad():
        torch.testing.assert_close(clip.model.encode_text(tokens), model.encode_text(tokens))


def test_openai_state_dicts_repeat_three_sizes(tmp_path: Path) -> None:
    tensors = foreign_models.tensors_of(foreign_models.open_clip_model(foreign_models.TINY))
    sizes = {"input_resolution": 30, "context_length": 19, "vocab_size": 49408}
    file = saved(tmp_path / "w.pt", {**tensors, **{name: torch.tensor(size) for name, size in sizes.items()}}, "pickle")
    assert imported(file, OPENAI, tmp_path / "out").activation == "quick-GELU"


def _without(tensors: dict[str, Tensor]) -> None:
    del tensors["ln_final.bias"]


def _more(tensors: dict[str, Tensor]) -> None:
    tensors["visual.head.weight"] = torch.ones(2, 2)


def _cut(tensors: dict[str, Tensor]) -> None:
    tensors["visual.proj"] = tensors["visual.proj"][:, :17].clone()


def _infinite(tensors: dict[str, Tensor]) -> None:
    tensors["visual.proj"][0, 0] = float("inf")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without, "missing: ln_final.bias"),
        (_more, "not used: visual.head.weight"),
        (_cut, "of another shape: visual.proj [44, 17], expected [44, 18]"),
        (_infinite, "not finite: visual.proj"),
    ],
)
def test_tensors_that_are_not_those_of_the_release_are_refused_by_name(
    damage: Any, message: str, tmp_path: Path
) -> None:
    tensors = foreign_models.tensors_of(foreign_models.open_clip_model(foreign_models.TINY))
    damage(tensors)
    file = saved(tmp_path / "w.safetensors", tensors)
    with pytest.raises(DataError) as caught:
        imported(file, OPENAI, tmp_path / "out")
    assert message in caught.value.message
    assert list(tmp_path.iterdir()) == [file]


class _Trap:
    """Its pickle runs a command where it is loaded without protection."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "name": _Trap(tmp_path / "ran")}, tmp_path / "trap.pt")
    with pytest.raises(IntegrityError, match="nothing of it was run"):
        imported(tmp_path / "trap.pt", OPENAI, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have such programs made in another way
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    with pytest.raises(IntegrityError, match="a program of TorchScript"):
        imported(tmp_path / "program.pt", OPENAI, tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["program.pt", "trap.pt"]


@pytest.mark.parametrize(
    ("name", "release", "message"),
    [
        ("w.pt", None, "says neither how images are prepared"),
        ("w.pt", "ViT-B-32/opnai", "did you mean 'ViT-B-32/openai'"),
        ("w.pt", "ViT-B-32", "no model of open_clip"),
        ("w.npz", OPENAI, "arrays of big_vision"),
        ("w.pt", "roberta-ViT-B-32/laion2b_s12b_b32k", "is one of transformers"),
        ("w.pt", "ViT-B-16-SigLIP2/webli", "needs the tokenizer timm/ViT-B-16-SigLIP2"),
    ],
)
def test_what_a_request_lacks_is_said(name: str, release: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UsageError) as caught:
        imported(tmp_path / name, release, tmp_path / "out")
    assert message in caught.value.message


def test_a_tokenizer_that_is_not_needed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    with pytest.raises(UsageError, match="has CLIP's own tokenizer"):
        imported(tmp_path / "w.pt", OPENAI, tmp_path / "out", tmp_path)


@pytest.mark.filterwarnings("ignore")  # of transformers, on its import
def test_a_tokenizer_of_transformers_comes_along(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the tokenizer to bring is one of transformers: pip install '.[dev]'")
    tokenizers = pytest.importorskip("tokenizers")
    some = "<pad> <unk> </s> a photo of fox red blue jay yellow bus cup tea"
    words = {word: number for number, word in enumerate(some.split())}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    model = foreign_models.open_clip_model(CUSTOM)
    file = saved(tmp_path / "w.safetensors", model.state_dict())
    result = imported(file, "ViT-B-16-SigLIP2/webli", tmp_path / "out", folder)
    assert load_clip(result.model).tokenizer(["a photo of fox"])[0, :4].tolist() == [3, 4, 5, 6]
    assert result.resize_mode == "squash"


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    """A pickle may hold parts of one tensor."""
    tensors = foreign_models.tensors_of(foreign_models.open_clip_model(foreign_models.TINY))
    both = torch.stack([tensors["visual.ln_pre.weight"], tensors["visual.ln_post.weight"]])
    tensors |= {"visual.ln_pre.weight": both[0], "visual.ln_post.weight": both[1]}
    result = imported(saved(tmp_path / "w.pt", tensors, "pickle"), OPENAI, tmp_path / "out")
    assert torch.equal(load_clip(result.model).model.visual.ln_post.weight, both[1])


def test_a_disk_without_room_ends_like_every_other_write(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.safetensors", foreign_models.open_clip_model(foreign_models.TINY).state_dict())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # no file may be larger than this
    try:
        with pytest.raises((IncompleteError, EnvironmentFault), match=re.escape(str(tmp_path / "out"))):
            imported(file, OPENAI, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(spec: str) -> Any:
        assert not (tmp_path / "out").exists()
        raise EnvironmentFault(f"'{spec}' does not fit its tokenizer", f"mend {spec}")

    file = saved(tmp_path / "w.safetensors", foreign_models.open_clip_model(foreign_models.TINY).state_dict())
    monkeypatch.setattr(stage_work, "load_clip", fails)
    with pytest.raises(EnvironmentFault) as caught:
        imported(file, OPENAI, tmp_path / "out")
    assert f"'local-dir:{tmp_path / 'out'}'" in caught.value.message and ".partial" not in caught.value.hint
    assert list(tmp_path.iterdir()) == [file]
