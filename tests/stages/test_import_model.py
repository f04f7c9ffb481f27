"""A converted CLIP of transformers gives its logits; one with anything that cannot be kept is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_models
import pytest
import torch
import worlds
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from teachonce.core.progress import Silent
from teachonce.errors import DataError, IntegrityError, UsageError
from teachonce.models.clip import LoadedClip, load_clip
from teachonce.stages.import_model import ImportModelRequest, ImportModelResult, import_model

pytest.importorskip("transformers", reason="the models to convert are made by transformers: pip install '.[dev]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, on its import

TEXTS = ["a photo of a red fox", "crane", "two cups of tea, please"]


def converted(source: Path, out: Path) -> ImportModelResult:
    return import_model(ImportModelRequest(source=source, out=out), Silent())


def logits(clip: LoadedClip, pixels: Tensor, tokens: Tensor) -> Tensor:
    """open_clip's own, [images, texts]."""
    model: Any = clip.model
    with torch.no_grad():
        image, text, scale = model(pixels, tokens)
        return scale * image @ text.T


def theirs(model: Any, pixels: Tensor, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, pixel_values=pixels, attention_mask=None).logits_per_image


def inputs(clip: LoadedClip) -> tuple[Tensor, Tensor]:
    size = clip.model.visual.image_size[0]
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1)), clip.tokenizer(TEXTS)


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "quick_gelu": ({"hidden_act": "quick_gelu"}, {"hidden_act": "quick_gelu"}),
    "gelu": ({"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    "another eps in each tower": ({"layer_norm_eps": 1e-2}, {"layer_norm_eps": 3e-2}),
    "the end token of early versions": ({"eos_token_id": 2}, {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    model = foreign_models.transformers_clip(tmp_path / "hf", *VARIANTS[variant])
    result = converted(tmp_path / "hf", tmp_path / "out")
    clip = load_clip(result.model)
    pixels, tokens = inputs(clip)
    torch.testing.assert_close(logits(clip, pixels, tokens), theirs(model, pixels, tokens), atol=1e-5, rtol=0)
    clip.model.double()
    exact = theirs(model.double(), pixels.double(), tokens)
    torch.testing.assert_close(logits(clip, pixels.double(), tokens), exact, atol=1e-10, rtol=0)
    assert exact.std() > 0.1, "the logits tell images and texts apart"
    assert result.activation == ("GELU" if variant == "gelu" else "quick-GELU")
    assert (result.text_prompts, result.image_prompts) == ("yes", "yes")


def test_another_activation_would_show_in_the_logits(tmp_path: Path) -> None:
    """The tests above can fail."""
    model = foreign_models.transformers_clip(tmp_path / "hf")
    converted(tmp_path / "hf", tmp_path / "out")
    file = tmp_path / "out" / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["quick_gelu"] = False
    file.write_text(json.dumps(config))
    clip = load_clip(f"local-dir:{tmp_path / 'out'}")
    pixels, tokens = inputs(clip)
    assert (logits(clip, pixels, tokens) - theirs(model, pixels, tokens)).abs().max() > 1e-3


@pytest.mark.parametrize("saving", ["half", "parts", "pickle", "position ids"])
def test_every_way_to_keep_the_weights_is_read(saving: str, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    options: dict[str, Any] = {"max_shard_size": "1MB"} if saving == "parts" else {}
    model = foreign_models.transformers_clip(folder, **options)
    file = folder / "model.safetensors"
    if saving == "half":
        model.half().save_pretrained(folder)
        model.float()
    elif saving == "parts":
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    elif saving == "pickle":
        torch.save(load_file(file), folder / "pytorch_model.bin")
        file.unlink()
    else:
        positions = {f"{tower}_model.embeddings.position_ids": torch.arange(5)[None] for tower in ("text", "vision")}
        save_file({**load_file(file), **positions}, file)
    clip = load_clip(converted(folder, tmp_path / "out").model)
    pixels, tokens = inputs(clip)
    torch.testing.assert_close(logits(clip, pixels, tokens), theirs(model, pixels, tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resample": 2},
        {"do_center_crop": False, "size": {"height": 30, "width": 30}},
        {"size": 30, "crop_size": 30, "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]},
    ],
)
def test_images_are_prepared_as_by_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    processor_class = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    foreign_models.transformers_clip(tmp_path / "hf")
    foreign_models.preprocessor(tmp_path / "hf", **changes)
    clip = load_clip(converted(tmp_path / "hf", tmp_path / "out").model)
    photo: Image.Image = worlds.make_photo(3, 1)
    expected = processor_class.from_pretrained(tmp_path / "hf")(photo, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(clip.prepare(photo), expected, atol=1e-5, rtol=0)


def _edit(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        change(document)
        (folder / name).write_text(json.dumps(document))

    return edit


def _weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


BIAS = "text_model.final_layer_norm.bias"
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "another kind": (_edit("config.json", lambda c: c.update(model_type="siglip")), "type 'siglip'"),
    "another activation": (
        _edit("config.json", lambda c: c["text_config"].update(hidden_act="gelu_new")),
        "activations gelu_new and quick_gelu",
    ),
    "two activations": (
        _edit("config.json", lambda c: c["vision_config"].update(hidden_act="gelu")),
        "the same in both",
    ),
    "another end": (_edit("config.json", lambda c: c["text_config"].update(eos_token_id=7)), "end with token 7"),
    "a number of the wrong kind": (_edit("config.json", lambda c: c["text_config"].update(hidden_size="30")), "'30'"),
    "another depth": (_edit("config.json", lambda c: c["text_config"].update(num_hidden_layers=2)), "not used: text_m"),
    "one block more": (_edit("config.json", lambda c: c["text_config"].update(num_hidden_layers=4)), "missing: text_m"),
    "another width": (_edit("config.json", lambda c: c.update(projection_dim=17)), "of another shape: "),
    "an adapter": (_weights(lambda t: t.update(lora_A=torch.ones(2, 2))), "not used: lora_A"),
    "a part missing": (_weights(lambda t: t.pop(BIAS)), f"missing: {BIAS}"),
    "not a number": (_weights(lambda t: t[BIAS].fill_(float("nan"))), "not finite: ln_final.bias"),
    "whole numbers": (_weights(lambda t: t.update({BIAS: torch.ones(30, dtype=torch.int64)})), "int64"),
    "moved positions": (
        _weights(lambda t: t.update({"text_model.embeddings.position_ids": torch.arange(1, 20)})),
        "the numbers from 0 on",
    ),
    "a larger crop": (
        lambda folder: foreign_models.preprocessor(folder, size={"shortest_edge": 34}),
        "crops the centre",
    ),
    "no normalising": (lambda folder: foreign_models.preprocessor(folder, do_normalize=False), "always resizes"),
    "no numbers": (lambda folder: foreign_models.preprocessor(folder, rescale_factor="x"), "divides by 255"),
    "a spread of nothing": (lambda folder: foreign_models.preprocessor(folder, image_std=[1, 0, 1]), "all above 0"),
    "another filter": (lambda folder: foreign_models.preprocessor(folder, resample=1), "resample = 1"),
    "no preprocessing": (lambda folder: (folder / "preprocessor_config.json").unlink(), "how images are prepared"),
    "other words": (lambda folder: (folder / "vocab.json").write_text('{"fox": 0}') and None, "not CLIP's own"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("transformers") / "hf"
    foreign_models.transformers_clip(made)
    return made


@pytest.mark.parametrize("reason", REFUSED)
def test_what_would_not_be_the_same_model_is_refused_and_leaves_nothing(
    reason: str, folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "hf"
    source.mkdir()
    for file in folder.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    damage, message = REFUSED[reason]
    damage(source)
    with pytest.raises(DataError) as caught:
        converted(source, tmp_path / "out")
    assert message in caught.value.message
    assert list(tmp_path.iterdir()) == [source]


def test_a_damaged_file_is_an_integrity_error(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "hf"
    source.mkdir()
    for file in folder.iterdir():
        (source / file.name).write_bytes(file.read_bytes()[: 5000 if file.suffix == ".safetensors" else None])
    with pytest.raises(IntegrityError, match="cannot be read as safetensors"):
        converted(source, tmp_path / "out")


def test_an_early_second_table_rules_as_in_transformers(folder: Path, tmp_path: Path) -> None:
    """Early writers left the true values in text_config_dict; transformers takes them, with its defaults."""
    source = tmp_path / "hf"
    source.mkdir()
    for file in folder.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text())
    config["text_config_dict"] = config["text_config"]
    config["text_config"] = {"hidden_size": 512}
    (source / "config.json").write_text(json.dumps(config))
    result = converted(source, tmp_path / "out")
    assert load_clip(result.model).model.ln_final.normalized_shape == (30,)


def test_a_folder_is_new_and_a_folder_says_itself_what_it_is(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UsageError, match="not empty"):
        converted(folder, tmp_path / "out")
    with pytest.raises(UsageError, match="says itself"):
        import_model(ImportModelRequest(source=folder, out=tmp_path / "new", release="ViT-B-32/openai"), Silent())
    with pytest.raises(UsageError, match=r"no config\.json"):
        converted(tmp_path / "out", tmp_path / "new")
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        converted(tmp_path / "openai" / "clip-vit-base-patch16", tmp_path / "new")


@pytest.mark.slow
def test_logits_at_full_size_are_those_of_transformers(tmp_path: Path) -> None:
    """The sizes of ViT-B/16, random weights."""
    model = foreign_models.transformers_clip(
        tmp_path / "hf",
        {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
        | {"max_position_embeddings": 77},
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        | {"image_size": 224, "patch_size": 16},
    )
    foreign_models.preprocessor(tmp_path / "hf", size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    clip = load_clip(converted(tmp_path / "hf", tmp_path / "out").model)
    pixels, tokens = inputs(clip)
    torch.testing.assert_close(logits(clip, pixels, tokens), theirs(model, pixels, tokens), atol=1e-5, rtol=0)
