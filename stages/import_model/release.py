"""Read a file of weights as those of a model that open_clip releases, with that release's preprocessing and activation.

The weights may be others than the released ones, such as further trained ones: the release says what they were trained
with. Another architecture is refused, tensor by tensor.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from torch import Tensor

from teachonce.errors import DataError, UsageError
from teachonce.models.tensor_files import read_tensors
from teachonce.phrases import phrase
from teachonce.stages.import_model.parts import TOKENIZER_FILES, Converted, empty_model, require_fit

_FACTS = ("input_resolution", "context_length", "vocab_size")  # OpenAI's state dicts repeat the configuration in these
_ONE_NUMBER = ("logit_scale", "logit_bias")  # kept as a number or as a row of one


def read_release(file: Path, release: str, tokenizer: Path | None) -> Converted:
    """Read a file of weights as a release of open_clip.

    Args:
        file: safetensors, or what torch.save made of a state dict.
        release: NAME/TAG.
        tokenizer: the folder with the files of a tokenizer that is not CLIP's own.

    Raises:
        UsageError: the installed open_clip does not know the release, or its tokenizer is one that a folder must bring.
        IntegrityError: the file is damaged, or holds objects that would have to be run.
        DataError: its tensors are not exactly those of the release's architecture.
    """
    name, _, tag = release.partition("/")
    model_cfg, weights_cfg = open_clip.get_model_config(name), open_clip.get_pretrained_cfg(name, tag)
    if model_cfg is None or not weights_cfg:
        raise UsageError(f"open_clip {open_clip.__version__}, which is installed, does not know '{release}'")
    model_cfg = deepcopy(model_cfg)
    if weights_cfg.get("quick_gelu", False):
        model_cfg["quick_gelu"] = True
    tokenizer_files = _tokenizer_files(model_cfg["text_cfg"], release, tokenizer)
    preprocessing = merge_preprocess_dict(asdict(PreprocessCfg()), weights_cfg)
    del preprocessing["size"]  # open_clip takes that of the model
    tensors = _tensors(file, model_cfg, release)
    return Converted(model_cfg, preprocessing, tensors, (file,), tokenizer_files)


def _tensors(file: Path, model_cfg: dict[str, Any], release: str) -> dict[str, Tensor]:
    model: Any = empty_model(model_cfg)
    state: dict[str, Tensor] = {name: held for name, held in read_tensors(file).items() if name not in _FACTS}
    try:
        state = convert_state_dict(model, state)  # of the first MobileCLIP files
        if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
    except (KeyError, AttributeError, RuntimeError, ValueError) as problem:
        raise DataError(
            f"{file}: open_clip cannot read it as {release}: {type(problem).__name__} {problem}"
        ) from problem
    for number in _ONE_NUMBER:
        parameter = getattr(model, number, None)
        if parameter is not None and number in state and state[number].numel() == 1:
            state[number] = state[number].reshape(parameter.shape)
    require_fit(state, model, f"{file}, read as {release},")
    return state


def _tokenizer_files(text_cfg: dict[str, Any], release: str, folder: Path | None) -> tuple[Path, ...]:
    """The files of the tokenizer to lay beside the weights: a local folder brings its tokenizer unless it is CLIP's."""
    if text_cfg.get("hf_model_name"):
        raise UsageError(
            f"the text tower of {release} is one of transformers, {text_cfg['hf_model_name']}, whose structure lies "
            "on the hub",
            hint=f"give the model by its name, {release}",
        )
    needed = text_cfg.get("hf_tokenizer_name")
    if not needed:
        if folder is not None:
            raise UsageError(f"{release} has CLIP's own tokenizer", hint=phrase("leave out {tokenizer}"))
        return ()
    if folder is None:
        raise UsageError(
            f"{release} needs the tokenizer {needed}, and its folder must hold the files of it",
            hint=phrase("fetch them, and name their folder: {tokenizer} DIR; hf download ") + str(needed),
        )
    files = tuple(folder / name for name in TOKENIZER_FILES if (folder / name).is_file())
    if not files:
        raise UsageError(f"{folder} holds no tokenizer: expected {TOKENIZER_FILES[0]} or the like")
    return files
