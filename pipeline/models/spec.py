"""How models are named and in which number format they run; apart, so that mistakes are found without loading torch.

This module loads nothing: `clip` loads models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from teachonce.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]
EmbeddingKind = Literal["int8", "float16"]
LOCAL_DIR = "local-dir:"


def parse_spec(spec: str) -> tuple[str, str | None]:
    """Architecture (or schema and place) and weights tag.

    Raises:
        UsageError: neither a folder that exists, nor hf-hub:, nor NAME/TAG.
    """
    if spec.startswith(LOCAL_DIR):
        folder = Path(spec[len(LOCAL_DIR) :])
        if not (folder / "open_clip_config.json").is_file():
            raise UsageError(
                f"'{spec}': {folder} holds no open_clip_config.json", hint="give an open_clip model folder"
            )
        return spec, None
    if spec.startswith("hf-hub:"):
        return spec, None
    name, slash, tag = spec.partition("/")
    if not slash or not name or not tag:
        raise UsageError(
            f"'{spec}' is not a model: expected NAME/WEIGHTS, hf-hub:ORG/NAME or local-dir:PATH",
            hint="for example ViT-L-14/openai; open_clip.list_pretrained() lists all",
        )
    return name, tag


def absolute_spec(spec: str) -> str:
    """The same model by a name that holds in any working folder, such as that of a worker."""
    if spec.startswith(LOCAL_DIR):
        return LOCAL_DIR + str(Path(spec[len(LOCAL_DIR) :]).resolve())
    return spec
