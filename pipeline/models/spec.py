"""How models are named and in which number format they run; apart, so that mistakes are found without loading torch.

This module loads nothing: `clip` loads models.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from teachonce.core.documents import json_in
from teachonce.core.outside import read_plain
from teachonce.errors import UsageError
from teachonce.models.known import EXAMPLE, built_in_config, cleaned, released, require_hf, require_known
from teachonce.phrases import Phrase, command_line

Precision = Literal["fp32", "bf16", "fp16"]
AskedPrecision = Literal["auto", "fp32", "bf16", "fp16"]
"""A `Precision`, or the one that the device decides: bf16 where it has that in hardware, else fp32."""
EmbeddingKind = Literal["int8", "float16"]
Resize = Literal["pillow", "tensor"]
"""Who resizes images: Pillow, as open_clip's own transforms do, or torchvision, with tensors of bytes."""
UNSAID = {"resize": "pillow"}
"""What the fingerprint of a store means by lacking a field."""
LOCAL_DIR = "local-dir:"
CONFIG = "open_clip_config.json"
MOST_CONFIG = 1 << 20  # bytes of a configuration
WEIGHT_FILES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors", ".npz", ".npy")  # no tag of open_clip ends so
Behaviour = Mapping[str, str]
"""What decides a model's features besides its modules and weights: a digest for each of the keys of `PARTS`."""
PARTS = {"tokenizer": "tokenizer", "preprocess": "preprocessing", "structure": "pooling, heads or masks"}
IMAGE_PARTS = ("preprocess", "structure")
"""Those that image features depend on."""


def parse_spec(spec: str) -> tuple[str, str | None]:
    """Architecture (or schema and place) and weights tag.

    Raises:
        UsageError: neither a folder that exists, nor hf-hub:, nor NAME/TAG; an architecture or weights that open_clip
            does not have; or a file of weights in place of the tag.
    """
    if spec.startswith(LOCAL_DIR):
        folder = Path(spec[len(LOCAL_DIR) :])
        if not (folder / CONFIG).is_file():
            raise UsageError(f"'{spec}': {folder} holds no {CONFIG}", hint="give an open_clip model folder")
        return spec, None
    if spec.startswith("hf-hub:"):
        return spec, None
    name, slash, tag = spec.partition("/")
    if not slash or not name or not tag:
        raise UsageError(
            f"'{spec}' is not a model: expected NAME/WEIGHTS, hf-hub:ORG/NAME or local-dir:PATH",
            hint=EXAMPLE,
        )
    if "/" in tag or tag.endswith(WEIGHT_FILES):
        raise file_for_weights(spec, name, tag)
    if os.path.exists(tag) and cleaned(tag) not in (released() or {}).get(name, ()):
        raise file_for_weights(spec, name, tag)
    require_known(spec, name, tag)
    return name, tag


def require_model(spec: str) -> None:
    """Refuse, before torch is loaded, a model that cannot be loaded here.

    Raises:
        UsageError: as `parse_spec`.
        EnvironmentFault: its tokenizer or its text tower needs a package that is not installed.
    """
    require_hf(config_of(parse_spec(spec)[0]), spec)


def config_of(name: str) -> object:
    """A model's configuration, which is of any form; None if it is on a hub or cannot be read.

    Args:
        name: the architecture, or schema and place, as `parse_spec` gives it.
    """
    if not name.startswith(LOCAL_DIR):
        return built_in_config(name)
    try:
        document = json_in(read_plain(Path(name[len(LOCAL_DIR) :], CONFIG), MOST_CONFIG))
    except (OSError, ValueError):
        return None
    return document.get("model_cfg") if isinstance(document, Mapping) else None


def file_for_weights(spec: str, name: str, file: str) -> UsageError:
    """The error for a file in the place of a tag: it does not say which preprocessing and activation belong to it."""
    return UsageError(
        f"'{spec}': {file} is a file of weights, and says neither how images are prepared for them nor which "
        "activation they were trained with",
        hint=Phrase(
            "make a folder of it: ",
            command_line("import-model", file, **{"as": f"{name}/TAG", "out": "DIR"}),
            ", where TAG is the release that it was trained from; then give local-dir:DIR",
        ),
    )


def unlike(there: Behaviour, here: Behaviour) -> str:
    """The parts of two models' behaviour that differ, in words; empty if none does.

    What one side does not know is no difference: stores and prompts of early versions do not know any part.
    """
    parts = [words for part, words in PARTS.items() if part in there and part in here and there[part] != here[part]]
    return " and ".join(parts)


def absolute_spec(spec: str) -> str:
    """The same model by a name that holds in any working folder, such as that of a worker."""
    if spec.startswith(LOCAL_DIR):
        return LOCAL_DIR + str(Path(spec[len(LOCAL_DIR) :]).resolve())
    return spec
