"""What a converted model consists of, whichever source it came from."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from teachonce.errors import DataError
from teachonce.models.tensor_files import listed, require_sound

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


@dataclass(frozen=True, eq=False)
class Converted:
    """A model in open_clip's words: all that its folder will hold."""

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    tensors: Mapping[str, Tensor]
    """By open_clip's names; exactly those of the model that `model_cfg` describes."""
    weight_files: tuple[Path, ...]
    """Where they were read from."""
    tokenizer_files: tuple[Path, ...] = field(default=())


def empty_model(model_cfg: Mapping[str, Any]) -> nn.Module:
    """The model that a configuration describes, on the meta device.

    Raises:
        DataError: open_clip cannot build it.
    """
    config = deepcopy(dict(model_cfg))
    custom = config.pop("custom_text", False)
    kind = open_clip.CLIP if not custom else open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    try:
        with torch.device("meta"):
            model: nn.Module = kind(**config)
    except (AssertionError, TypeError, ValueError, RuntimeError) as problem:
        raise DataError(f"open_clip cannot build this model: {type(problem).__name__}: {problem}") from problem
    return model


def require_fit(tensors: Mapping[str, Tensor], model: nn.Module, where: str) -> None:
    """Refuse tensors that are not exactly those of a model.

    Raises:
        DataError: with the names of those that are missing, unused, of another shape, or no finite numbers.
    """
    expected = model.state_dict()
    faults = {
        "missing": [name for name in expected if name not in tensors],
        "not used": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} {list(tensors[name].shape)}, expected {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
    }
    said = "; ".join(f"{what}: {listed(names)}" for what, names in faults.items() if names)
    if said:
        raise DataError(
            f"the tensors of {where} are not those of this model: {said}", hint="give the model's own files"
        )
    require_sound(tensors, where)
