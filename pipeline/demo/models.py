"""The two small CLIP models of `teachonce demo`: their structure, and how they travel inside the package.

This module does not train the models (`training` does) and does not run them: open_clip loads the folders that it
writes.

A CLIP's token embedding has 49,408 rows; the demo world and its captions use 66 of them. A packed model is one
safetensors file that holds those rows and their ids, and every other tensor whole; matrices are float16. Unpacking
fills the unused rows with small values that depend on the width only, so pack(unpack(file)) gives the file back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from teachonce.core.documents import json_in
from teachonce.core.files import whole_file, whole_folder, write_failed
from teachonce.errors import DataError

VOCABULARY_ROWS = 49408
"""Number of rows of the token embedding that open_clip's own tokenizer addresses."""
CONTEXT_LENGTH = 32
"""Text positions: the start, up to 16 slots, the longest name and the end fit into them."""

_EMBEDDING = "token_embedding.weight"
_IDS = "token_embedding.ids"
_CONFIG_FILE, _WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"
_PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}


@dataclass(frozen=True)
class DemoModels:
    """The names of the two models as open_clip takes them: `local-dir:PATH`."""

    teacher: str
    student: str


def model_config(name: str) -> dict[str, Any]:
    """Return the open_clip config of `teacher` or `student`, as open_clip_config.json holds it.

    Raises:
        KeyError: the name is another one.
    """
    embed_dim, image_size, tower, width, layers = {
        "teacher": (96, 40, "test_resnet", 96, 3),
        "student": (64, 32, "test_byobnet", 64, 4),
    }[name]
    return {
        "model_cfg": {
            "embed_dim": embed_dim,
            "vision_cfg": {
                "timm_model_name": tower,
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "timm_proj_bias": True,
                "image_size": image_size,
            },
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": VOCABULARY_ROWS,
                "width": width,
                "heads": width // 32,
                "layers": layers,
            },
        },
        "preprocess_cfg": dict(_PREPROCESS),
    }


def pack_state(config: dict[str, Any], state: dict[str, torch.Tensor], token_ids: Sequence[int], file: Path) -> None:
    """Write the packed form of a model.

    Args:
        config: the content of open_clip_config.json.
        state: the model's state dict.
        token_ids: rows of the token embedding to keep.
        file: the .safetensors file to write or replace.
    """
    ids = torch.tensor(sorted(set(token_ids)), dtype=torch.int32)
    tensors = {name: tensor.detach() for name, tensor in state.items()}
    tensors[_EMBEDDING] = tensors[_EMBEDDING][ids.long()]
    # Vectors and scalars stay float32: they are small in number, and a batch norm's variance may be tiny.
    packed = {
        name: (t.half() if t.is_floating_point() and t.ndim >= 2 else t).contiguous() for name, t in tensors.items()
    }
    packed[_IDS] = ids
    with whole_file(file) as partial:
        save_file(packed, partial, metadata={"config": json.dumps(config, sort_keys=True)})
        partial.chmod(0o644)  # safetensors writes files with mode 0600


def pack_model(folder: Path, token_ids: Sequence[int], file: Path) -> None:
    """Pack a model folder that `unpack_model` or open_clip wrote; the inverse of `unpack_model`.

    Raises:
        DataError: the folder lacks its config or weights.
    """
    config, state = _read_folder(folder)
    pack_state(config, state, token_ids, file)


def unpack_model(file: Path, folder: Path) -> None:
    """Write the open_clip folder of a packed model. A folder that holds this very model already is left as it is.

    Raises:
        DataError: the file is not a packed model, or `folder` holds something else.
        IncompleteError, EnvironmentFault: the disk is full or may not be written to.
    """
    config, state = _read_packed(file)
    if folder.exists():
        if not _holds(folder, config, state):
            raise DataError(f"{folder} exists but is not the model of {file.name}", f"remove {folder}")
        return
    try:
        with whole_folder(folder) as partial:
            text = json.dumps(config, indent=1, sort_keys=True)
            (partial / _CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
            save_file(state, partial / _WEIGHTS_FILE)
    except OSError as problem:
        raise write_failed(folder, problem) from problem


def unpack_models(folder: Path) -> DemoModels:
    """Write the two shipped models to `folder`/teacher and `folder`/student.

    Returns:
        The names of the models as open_clip takes them.

    Raises:
        DataError: the folders hold something else already.
    """
    names = []
    for name in ("teacher", "student"):
        with as_file(files("teachonce.demo") / "assets" / f"demo-{name}.safetensors") as packed:
            unpack_model(packed, folder / name)
        names.append(f"local-dir:{folder / name}")
    return DemoModels(teacher=names[0], student=names[1])


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        config: dict[str, Any] = json_in((folder / _CONFIG_FILE).read_bytes())
        return config, load_file(folder / _WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as problem:
        raise DataError(f"{folder} is not a readable open_clip model folder: {problem}") from problem


def _holds(folder: Path, config: dict[str, Any], state: dict[str, torch.Tensor]) -> bool:
    try:
        config_here, tensors = _read_folder(folder)
    except DataError:
        return False
    same_names = config_here == config and tensors.keys() == state.keys()
    return same_names and all(torch.equal(tensors[name], state[name]) for name in state)


def _read_packed(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the config, and the state dict in float32 with the whole token embedding."""
    try:
        with safe_open(file, framework="pt") as packed:
            config: dict[str, Any] = json_in(packed.metadata()["config"])
            state = {name: packed.get_tensor(name) for name in packed.keys()}  # noqa: SIM118  (no mapping)
        ids, rows = state.pop(_IDS).long(), state[_EMBEDDING].float()
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as problem:
        raise DataError(f"{file} is not a packed demo model: {problem}") from problem
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    whole = _unused_rows(rows.shape[1])
    whole[ids] = rows
    state[_EMBEDDING] = whole
    return config, state


def _unused_rows(width: int) -> torch.Tensor:
    """Make the rows of words that the models never read: small values as of a fresh embedding, the same each time."""
    values = np.random.default_rng(width).standard_normal((VOCABULARY_ROWS, width), np.float32)
    return torch.from_numpy(values * np.float32(0.02))
