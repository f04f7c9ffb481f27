"""Read the tensors of a file of weights, running nothing in it.

This module knows no model: it says what a file holds, not what it is for.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from teachonce.errors import DataError, IntegrityError

SAFETENSORS = ".safetensors"
_SHOWN = 8  # most names in a message
_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# What open_clip's training, and torch's habits, keep beside the state dict: of the training, not of the model.
_OF_TRAINING = ("state_dict", "epoch", "step", "name", "optimizer", "scaler")
_PREFIXES = ("module.", "_orig_mod.")  # of a model under DistributedDataParallel or torch.compile


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a state dict: a safetensors file, or what torch.save made of one, alone or in a training's checkpoint.

    Returns:
        Dense floating-point tensors by name (and integers, as they are), on the CPU, without a wrapper's prefix.

    Raises:
        IntegrityError: the file is damaged, or holds objects that would have to be run; none is run.
        DataError: it holds no state dict, or more than that.
    """
    loaded = _safetensors(file) if file.suffix == SAFETENSORS else _pickled(file)
    state = loaded.get("state_dict", loaded)
    if not isinstance(state, Mapping) or not state:
        raise DataError(f"{file} holds no state dict", hint="save it alone: torch.save(model.state_dict(), FILE)")
    if state is not loaded:
        _require_known(file, loaded, _OF_TRAINING)
    foreign = [repr(name) for name, value in state.items() if not (isinstance(name, str) and _is_dense(value))]
    if foreign:
        raise DataError(f"{file}: what is no dense tensor stands among the weights: {listed(foreign)}")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return {name: tensor.detach() for name, tensor in state.items()}


def require_sound(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that are no finite floating-point numbers.

    Raises:
        DataError: with the names of the first such tensors.
    """
    odd = [f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if tensor.dtype not in _TYPES]
    if odd:
        raise DataError(f"{where}: not floating-point numbers: {listed(odd)}", hint="give the weights as trained")
    lost = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if lost:
        raise DataError(
            f"{where}: not finite: {listed(lost)}", hint="the training has diverged, or the file is damaged"
        )


def listed(names: list[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def require_whole(file: Path) -> None:
    """Compare the parts of a zip archive of torch.save with their checksums; a mapped read does not do so.

    Raises:
        IntegrityError: a part has another checksum, or the archive was not written by torch.save.
    """
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        packed = [part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED]
        if packed or sum(part.file_size for part in parts) > file.stat().st_size:
            raise IntegrityError(f"{file} was not written by torch.save: its parts are compressed or overlap")
        damaged = archive.testzip()
    if damaged is not None:
        raise IntegrityError(f"{file} is damaged: {damaged} has another checksum", hint="copy or download it again")


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(file)
        return tensors
    except (SafetensorError, ValueError, KeyError) as problem:
        raise IntegrityError(
            f"{file} cannot be read as safetensors: {problem}", hint="copy or download it again"
        ) from problem


def _pickled(file: Path) -> Mapping[Any, Any]:
    """What torch.load makes of the file where only tensors and plain values are allowed."""
    try:
        zipped = zipfile.is_zipfile(file)
        if zipped:
            _require_no_program(file)
            require_whole(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of the file's age
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except IntegrityError:
        raise
    except Exception as problem:  # noqa: BLE001 - a forged file may make its readers raise anything
        blocked = re.search(r"GLOBAL (\w[\w.]*)", str(problem))
        # torch's message is not passed on: it advises to read the file without any protection.
        what = f"it holds {blocked[1]}, which is no tensor" if blocked else f"it is damaged ({type(problem).__name__})"
        raise IntegrityError(
            f"{file} cannot be read as a file of weights: {what}; nothing of it was run",
            hint="give a .safetensors file, or what torch.save(model.state_dict(), FILE) writes",
        ) from problem
    if not isinstance(loaded, Mapping):
        raise DataError(f"{file} holds no state dict: found {type(loaded).__name__}")
    return loaded


def _is_dense(value: object) -> bool:
    """Whether a value is a tensor whose numbers are all in memory."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _require_no_program(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist()):
            raise IntegrityError(
                f"{file} is a program of TorchScript, and reading its weights would run it; nothing of it was run",
                hint="if you trust it, take its weights out yourself: "
                "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')",
            )


def _require_known(file: Path, loaded: Mapping[Any, Any], known: tuple[str, ...]) -> None:
    foreign = [repr(name) for name in loaded if name not in known]
    if foreign:
        raise DataError(
            f"{file} holds more than a state dict and its training: {listed(foreign)}",
            hint="save the state dict alone: torch.save(model.state_dict(), FILE)",
        )
