"""Read a folder that transformers' CLIPModel was saved to, in open_clip's words.

transformers itself is not needed. Its configuration is read as `CLIPConfig` reads it, with its defaults; what open_clip
has no setting for is refused. Tensors are renamed, the three projections of an attention laid into one, and the
projections to the joint embedding transposed: no number changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import inf, nextafter
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from torch import Tensor

from teachonce.core.documents import mapping, number, read_json
from teachonce.errors import DataError
from teachonce.models.tensor_files import SAFETENSORS, listed, read_tensors
from teachonce.stages.import_model.checks import FOLDER_CONFIG
from teachonce.stages.import_model.parts import Converted, empty_model, require_fit

# What CLIPTextConfig and CLIPVisionConfig assume where a file says nothing: by key, for text and for vision.
_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_PREPROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(open_clip.OPENAI_DATASET_MEAN),
    "image_std": list(open_clip.OPENAI_DATASET_STD),
}
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}
_EPS = 1e-5  # of open_clip's norms
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
_OLD_EOS = 2  # written by early versions, for which the end of a text is its highest id
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_POSITIONS = tuple(f"{tower}_model.embeddings.position_ids" for tower in ("text", "vision"))
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
How = Literal["same", "joined", "transposed"]


@dataclass(frozen=True)
class _Source:
    """Where a tensor of open_clip's comes from."""

    names: tuple[str, ...]
    how: How = "same"


def read_folder(folder: Path) -> Converted:
    """Read model, preprocessing and weights of a folder.

    Raises:
        IntegrityError: a file is damaged, or holds objects that would have to be run.
        DataError: it is no CLIP, something in it has no counterpart in open_clip, or tensors are missing or left over.
    """
    config = _document(folder / FOLDER_CONFIG)
    if config.get("model_type") != "clip":
        raise DataError(
            f"{folder} holds a model of type {config.get('model_type')!r}; expected 'clip'",
            hint="only CLIPModel can be converted; teachonce models lists what open_clip releases itself",
        )
    where = str(folder / FOLDER_CONFIG)
    text, vision = _tower(config, "text", _TEXT, where), _tower(config, "vision", _VISION, where)
    model_cfg = _model_cfg(config, text, vision, where)
    _require_clip_tokenizer(folder, text)
    files = _weight_files(folder)
    state: dict[str, Tensor] = {}
    for file in files:
        part = read_tensors(file)
        if twice := sorted(state.keys() & part.keys()):
            raise DataError(f"{file} holds tensors that another file holds, too: {listed(twice)}")
        state |= part
    tensors = _renamed(state, text["num_hidden_layers"], vision["num_hidden_layers"], str(folder))
    require_fit(tensors, empty_model(model_cfg), str(folder))
    return Converted(model_cfg, _preprocess_cfg(folder, vision["image_size"]), tensors, files)


def _document(file: Path) -> dict[str, Any]:
    document = read_json(file)
    if not isinstance(document, dict):
        raise DataError(f"{file} is no JSON object", hint="copy or download it again")
    return document


def _tower(config: Mapping[str, Any], tower: str, defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of one tower: its table, under what an old writer's second table says, defaults included."""
    table, older = config.get(f"{tower}_config") or {}, config.get(f"{tower}_config_dict")
    if not isinstance(table, dict) or not isinstance(older, dict | None):
        raise DataError(f"{where}: {tower}_config is no object")
    merged = {**defaults, **table, **({**defaults, **older} if older is not None else {})}
    known = {key: merged[key] for key in defaults}
    for key, default in defaults.items():
        kind = (int, float) if isinstance(default, float) else type(default)
        good = isinstance(known[key], kind) and not isinstance(known[key], bool)
        if not good or (isinstance(known[key], (int, float)) and not 0 < known[key] < inf):
            raise DataError(f"{where}: {tower}_config.{key} = {known[key]!r}; expected something like {default!r}")
    if known["hidden_size"] % known["num_attention_heads"]:
        raise DataError(f"{where}: {tower}_config: the width is no multiple of the number of heads")
    return known


def _model_cfg(
    config: Mapping[str, Any], text: Mapping[str, Any], vision: Mapping[str, Any], where: str
) -> dict[str, Any]:
    acts = {text["hidden_act"], vision["hidden_act"]}
    if len(acts) != 1 or not acts <= _ACTIVATIONS.keys():
        raise DataError(
            f"{where}: activations {' and '.join(sorted(acts))}; open_clip has quick_gelu or gelu, the same in both"
        )
    if vision["num_channels"] != 3:
        raise DataError(f"{where}: images of {vision['num_channels']} channels; expected 3")
    if text["eos_token_id"] not in (_OLD_EOS, text["vocab_size"] - 1):
        raise DataError(
            f"{where}: texts end with token {text['eos_token_id']}; expected the last of the "
            f"{text['vocab_size']}, at which open_clip's tower pools"
        )
    width = config.get("projection_dim", 512)
    if type(width) is not int or width < 1:
        raise DataError(f"{where}: projection_dim = {width!r}; expected a number of dimensions")
    vision_cfg = {
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "width": vision["hidden_size"],
        "layers": vision["num_hidden_layers"],
        "head_width": vision["hidden_size"] // vision["num_attention_heads"],
        "mlp_ratio": _ratio(vision),
        **_norm(vision),
    }
    text_cfg = {
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "width": text["hidden_size"],
        "heads": text["num_attention_heads"],
        "layers": text["num_hidden_layers"],
        "mlp_ratio": _ratio(text),
        **_norm(text),
    }
    quick = _ACTIVATIONS[acts.pop()]
    return {"embed_dim": width, "quick_gelu": quick, "vision_cfg": vision_cfg, "text_cfg": text_cfg}


def _ratio(tower: Mapping[str, Any]) -> float:
    """The ratio that gives the width of the hidden layer back when open_clip multiplies and cuts off."""
    inner, width = tower["intermediate_size"], tower["hidden_size"]
    ratio: float = inner / width
    return ratio if int(width * ratio) == inner else nextafter(ratio, inf)


def _norm(tower: Mapping[str, Any]) -> dict[str, Any]:
    return {} if tower["layer_norm_eps"] == _EPS else {"norm_kwargs": {"eps": tower["layer_norm_eps"]}}


def _preprocess_cfg(folder: Path, image_size: int) -> dict[str, Any]:
    """The preprocessing, where open_clip can do the same.

    Raises:
        DataError: no file says what it is, or open_clip's transform cannot do it.
    """
    file = next((folder / name for name in _PROCESSORS if (folder / name).is_file()), None)
    if file is None:
        raise DataError(
            f"{folder} holds no {_PROCESSORS[0]}: nothing says how images are prepared",
            hint="save it there too: CLIPImageProcessor(...).save_pretrained(FOLDER)",
        )
    document = _document(file)
    said = {**_PREPROCESSOR, **mapping(document.get("image_processor", document))}
    wanted = {key: said[key] for key in ("do_resize", "do_rescale", "do_normalize", "rescale_factor")}
    factor = number(wanted.pop("rescale_factor"))
    if not all(value is True for value in wanted.values()) or factor is None or abs(factor * 255 - 1) > 1e-6:
        raise DataError(f"{file}: open_clip always resizes, divides by 255 and normalises; found {wanted}, {factor}")
    if type(said["resample"]) is not int or said["resample"] not in _INTERPOLATIONS:
        raise DataError(f"{file}: resample = {said['resample']!r}; open_clip has 2 (bilinear) and 3 (bicubic)")
    square, crop = [image_size, image_size], _size(said["crop_size"])
    if said["do_center_crop"] and _size(said["size"]) == [image_size] and crop in (square, [image_size]):
        mode = "shortest"
    elif not said["do_center_crop"] and _size(said["size"]) == square:
        mode = "squash"
    else:
        raise DataError(
            f"{file}: size {said['size']}, crop {said['crop_size'] if said['do_center_crop'] else 'none'}: open_clip "
            f"resizes the shorter side to {image_size} and crops the centre, or resizes both sides to {image_size}"
        )
    for key, least in (("image_mean", -inf), ("image_std", 0)):
        numbers = [number(value) for value in said[key]] if isinstance(said[key], list) else []
        if len(numbers) != 3 or not all(value is not None and value > least for value in numbers):
            raise DataError(
                f"{file}: {key} = {said[key]!r}; expected three numbers" + (", all above 0" if least == 0 else "")
            )
    interpolation = _INTERPOLATIONS[said["resample"]]
    return {
        "mean": said["image_mean"],
        "std": said["image_std"],
        "interpolation": interpolation,
        "resize_mode": mode,
    }


def _size(size: Any) -> list[Any]:
    """One length for the shorter side, or height and width; early files hold a number."""
    if isinstance(size, dict):
        return [size["shortest_edge"]] if "shortest_edge" in size else [size.get("height"), size.get("width")]
    return [size]


@cache
def _own_words() -> dict[str, int]:
    """The vocabulary of CLIP's own tokenizer."""
    words: dict[str, int] = open_clip.SimpleTokenizer().encoder
    return words


def _require_clip_tokenizer(folder: Path, text: Mapping[str, Any]) -> None:
    """Refuse a vocabulary that is not CLIP's own, which open_clip gives to a folder that names no other tokenizer."""
    words = _own_words()
    vocabulary: Any = words
    if (folder / "vocab.json").is_file():
        vocabulary = read_json(folder / "vocab.json")
    elif (folder / "tokenizer.json").is_file():
        vocabulary = mapping(_document(folder / "tokenizer.json").get("model")).get("vocab")
    if vocabulary != words or text["vocab_size"] != len(words):
        raise DataError(
            f"{folder}: its tokenizer is not CLIP's own of {len(words):,} tokens (there are {text['vocab_size']:,})",
            hint="only CLIPs with OpenAI's byte-pair encoding can be converted",
        )


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The files of weights, of which safetensors are preferred as in transformers.

    Raises:
        DataError: there is none, or one of several is missing.
    """
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise DataError(f"{folder} holds no weights: expected {' or '.join(_WEIGHTS[::2])}")
    if file.suffix in (SAFETENSORS, ".bin"):
        return (file,)
    places = _document(file).get("weight_map")
    parts = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    missing = [name for name in parts if Path(name).name != name or not (folder / name).is_file()]
    if missing or not parts:
        raise DataError(f"{file} names files that are not there: {listed(missing)}", hint="download the whole folder")
    return tuple(folder / name for name in parts)


def _renamed(state: dict[str, Tensor], text_layers: int, vision_layers: int, where: str) -> dict[str, Tensor]:
    """open_clip's tensors out of those of transformers.

    Raises:
        DataError: a tensor is missing or left over.
    """
    left = dict(state)
    for name in _POSITIONS:  # a buffer of early versions: 0, 1, 2, ...
        positions = left.pop(name, None)
        if positions is not None and not torch.equal(positions.flatten(), torch.arange(positions.numel())):
            raise DataError(f"{where}: {name} are not the numbers from 0 on; open_clip has no other positions")
    sources = dict(_sources(text_layers, vision_layers))
    missing = [name for source in sources.values() for name in source.names if name not in left]
    unused = left.keys() - {name for source in sources.values() for name in source.names}
    if missing or unused:
        raise DataError(
            f"the tensors of {where} are not those of its {FOLDER_CONFIG}: missing: {listed(missing) or 'none'}; "
            f"not used: {listed(sorted(unused)) or 'none'}",
            hint="only a plain CLIPModel can be converted: merge adapters into it, and give its own config.json",
        )
    return {name: _made([left[part] for part in source.names], source.how) for name, source in sources.items()}


def _made(parts: list[Tensor], how: How) -> Tensor:
    if how == "joined":
        return torch.cat(parts)
    return parts[0].T.contiguous() if how == "transposed" else parts[0].contiguous()


def _sources(text_layers: int, vision_layers: int) -> Iterator[tuple[str, _Source]]:
    """Every tensor of open_clip's CLIP, and where it comes from."""
    text, vision = "text_model", "vision_model"
    yield "logit_scale", _Source(("logit_scale",))
    yield "token_embedding.weight", _Source((f"{text}.embeddings.token_embedding.weight",))
    yield "positional_embedding", _Source((f"{text}.embeddings.position_embedding.weight",))
    yield from _both("ln_final", f"{text}.final_layer_norm")
    yield "text_projection", _Source(("text_projection.weight",), "transposed")
    yield from _blocks("transformer.resblocks", text, text_layers)
    yield "visual.class_embedding", _Source((f"{vision}.embeddings.class_embedding",))
    yield "visual.conv1.weight", _Source((f"{vision}.embeddings.patch_embedding.weight",))
    yield "visual.positional_embedding", _Source((f"{vision}.embeddings.position_embedding.weight",))
    yield from _both("visual.ln_pre", f"{vision}.pre_layrnorm")
    yield from _both("visual.ln_post", f"{vision}.post_layernorm")
    yield "visual.proj", _Source(("visual_projection.weight",), "transposed")
    yield from _blocks("visual.transformer.resblocks", vision, vision_layers)


def _blocks(here: str, tower: str, layers: int) -> Iterator[tuple[str, _Source]]:
    for index in range(layers):
        block, theirs = f"{here}.{index}", f"{tower}.encoder.layers.{index}"
        for part in ("weight", "bias"):
            letters = tuple(f"{theirs}.self_attn.{letter}_proj.{part}" for letter in "qkv")
            yield f"{block}.attn.in_proj_{part}", _Source(letters, "joined")
        yield from _both(f"{block}.attn.out_proj", f"{theirs}.self_attn.out_proj")
        yield from _both(f"{block}.ln_1", f"{theirs}.layer_norm1")
        yield from _both(f"{block}.ln_2", f"{theirs}.layer_norm2")
        yield from _both(f"{block}.mlp.c_fc", f"{theirs}.mlp.fc1")
        yield from _both(f"{block}.mlp.c_proj", f"{theirs}.mlp.fc2")


def _both(here: str, there: str) -> Iterator[tuple[str, _Source]]:
    for part in ("weight", "bias"):
        yield f"{here}.{part}", _Source((f"{there}.{part}",))
