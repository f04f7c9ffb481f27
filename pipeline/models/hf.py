"""What open_clip takes from transformers: tokenizers and text towers. How they load offline, and what lacks if not.

transformers itself is not imported here: open_clip does so for the models that need it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from teachonce.core.documents import json_in
from teachonce.core.outside import read_plain
from teachonce.errors import UsageError
from teachonce.models.known import HF_LINE, HF_PACKAGES, installed, text_config
from teachonce.models.spec import CONFIG, LOCAL_DIR, MOST_CONFIG

# Keys of a text tower's config in transformers that decide features and show neither in modules nor in shapes.
_DECIDING = (
    "model_type",
    "num_attention_heads",
    "encoder_attention_heads",
    "num_heads",
    "pad_token_id",
    "hidden_act",
    "activation_function",
    "feed_forward_proj",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "scale_embedding",
    "position_embedding_type",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
)
_NOT_FETCHED = re.compile(
    r"couldn't connect to|cached files|disk cache|outgoing traffic|offline mode|LocalEntryNotFound|Name or service"
    r"|name resolution|ConnectionError|ConnectError|instantiate the backend tokenizer|is not a local folder and is not",
    re.IGNORECASE,
)


def tower_options(name: str, config: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """What open_clip must be told to load a model from this machine alone, and without running code of the model's.

    A folder's text tower of transformers is described by `FOLDER/HF_MODEL_NAME/config.json`, where that file is:
    open_clip itself would ask the hub or its cache for `HF_MODEL_NAME`.

    Args:
        name: the architecture, or schema and place.
        config: the model's configuration as open_clip has it.

    Returns:
        Options for open_clip's `create_model`, and others for its `get_tokenizer`.

    Raises:
        UsageError: the text tower is described by code.
    """
    text = text_config(config)
    tokenizer = {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
    hf_name = text.get("hf_model_name")
    if not (name.startswith(LOCAL_DIR) and isinstance(hf_name, str) and hf_name):
        return {}, tokenizer
    folder = Path(name[len(LOCAL_DIR) :], hf_name)
    file = folder / "config.json"
    if not file.is_file():
        return {}, tokenizer
    described = json_in(read_plain(file, MOST_CONFIG))
    if isinstance(described, Mapping) and "auto_map" in described:
        raise UsageError(
            f"{file} describes a text tower by code of its own (auto_map), which is never run",
            hint="take a model whose text tower is one that transformers has itself",
        )
    return {"text_cfg": {**text, "hf_model_name": str(folder), "hf_model_pretrained": False}}, tokenizer


def missing_line(problem: Exception) -> tuple[str, str] | None:
    """The package that an error says is missing, and the line that installs it; None for any other error."""
    text = str(problem)
    if isinstance(problem, ImportError):
        match = re.search(r"pip install `?([\w-]+)|[Mm]odule named '([\w.]+)'|requires the (\w+) library|`(\w+)`", text)
        named = problem.name or next((part for part in match.groups() if part), "") if match else problem.name or ""
        package = named.partition(".")[0] or HF_PACKAGES[0]
        package = "protobuf" if package == "google" else package
    else:  # open_clip and transformers say some of it in errors of other classes
        match = re.search(r"`pip install (\w+)`|need to have (sentencepiece)", text)
        package = next((part for part in match.groups() if part), "") if match else ""
        if package not in HF_PACKAGES or installed(package):  # transformers guesses: a file may be what lacks
            return None
    return package, HF_LINE if package in HF_PACKAGES else f"pip install {package}"


def mismatch(problem: Exception) -> tuple[str, str] | None:
    """What of a model's files does not fit the installed open_clip, and what to do; None if that is not known."""
    text = str(problem)
    key = re.search(r"unexpected keyword argument '(\w+)'", text)
    if key:
        said = f"its {CONFIG} has the key '{key[1]}', which this version does not know"
        return said, "a newer version wrote that model: pip install -U open_clip_torch"
    if "'NoneType' object has no attribute 'ndim'" in text:
        said = f"its weights hold a logit_bias, and its {CONFIG} announces none (init_logit_bias)"
        return said, f'add "init_logit_bias": -10 to the model_cfg in its {CONFIG}: the value itself is in the weights'
    return None


def offline_hint(spec: str, problem: Exception) -> str:
    """What to do where files of a model were asked of a hub in vain; empty for any other error."""
    chain: list[BaseException] = [problem]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    if not any(_NOT_FETCHED.search(f"{type(link).__name__}: {link}") for link in chain):
        return ""
    if spec.startswith(LOCAL_DIR):
        return (
            "its folder lacks files that are asked of the hub: the tokenizer's files, or HF_MODEL_NAME/config.json of "
            "a text tower (docs/cluster.md, Without a network)"
        )
    return (
        "check the name; where there is no network, fetch the model first (docs/cluster.md, Without a network), or "
        "give a folder: local-dir:PATH"
    )


def deciding(model: nn.Module) -> dict[str, Any]:
    """What decides the features of a text tower of transformers and shows neither in its modules nor in its weights."""
    config = getattr(getattr(model, "text", None), "config", None)
    if config is None:
        return {}
    return {f"text.config.{key}": value for key in _DECIDING if (value := getattr(config, key, None)) is not None}
