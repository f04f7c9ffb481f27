"""Checkpoints of a training run: exactly the trained tensors, the optimiser's state and the step, as safetensors.

Frozen weights are never in them, and nothing in them can run code. A file appears under its name only when whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from teachonce.errors import FingerprintError, IntegrityError, UsageError
from teachonce.files import atomic_write_bytes

KEEP = 2  # the newest and the one before it, should the newest turn out damaged
ALL_ROWS = "all rows"  # the selection of runs that have none, also of those from before there were selections
_PARAMETER, _OPTIMIZER = "parameter.", "optimizer."


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to; any difference is refused on resume."""

    config: str
    """Digest of the training config."""
    store: str
    """Id of the label store."""
    student: str
    """Digest of the student's weights."""
    selection: str = ALL_ROWS
    """Digest of the selection, which may leave out rows and classes."""


def save_checkpoint(
    folder: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, identity: Identity
) -> Path:
    """Write `step-NNNNNNNN.safetensors` and remove all but the newest `KEEP` files.

    Args:
        folder: `RUN/checkpoints`.
        step: steps that are finished.
        module: its trainable parameters are saved.
        optimizer: its state, parameter by parameter.
        identity: what the state belongs to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_PARAMETER + name: p.detach().cpu().contiguous() for name, p in _trainable(module).items()}
    names = list(_trainable(module))
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                tensors[f"{_OPTIMIZER}{names[number]}.{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    about = {"step": str(step), "identity": json.dumps(vars(identity), sort_keys=True)}
    about["digest"] = _digest(tensors, about)
    file = folder / f"step-{step:08d}.safetensors"
    atomic_write_bytes(file, save(tensors, metadata=about))
    for old in _files(folder)[:-KEEP]:
        old.unlink()
    return file


def load_checkpoint(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, identity: Identity) -> int:
    """Put the newest checkpoint into the module and the optimiser.

    Returns:
        The number of finished steps.

    Raises:
        UsageError: there is no checkpoint.
        FingerprintError: it belongs to another config, store, student or selection; names which.
        IntegrityError: it is damaged; names the file.
    """
    files = _files(folder)
    if not files:
        raise UsageError(f"{folder} holds no checkpoint: there is nothing to resume", hint="start without --resume")
    file = files[-1]
    tensors, about = _read(file)
    stored = {"selection": ALL_ROWS} | json.loads(about.get("identity", "{}"))
    different = [name for name, value in vars(identity).items() if stored.get(name) != value]
    if different:
        raise FingerprintError(
            f"{file} belongs to another {' and another '.join(different)}: "
            + "; ".join(
                f"{name} there {str(stored.get(name))[:16]}, here {getattr(identity, name)[:16]}" for name in different
            ),
            hint="resume with the options the run was started with, or use another --out",
        )
    parameters = _trainable(module)
    wanted = {_PARAMETER + name for name in parameters}
    found = {name for name in tensors if name.startswith(_PARAMETER)}
    if wanted != found:
        raise IntegrityError(f"{file}: expected the tensors {sorted(wanted)}, found {sorted(found)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[_PARAMETER + name])
    _load_optimizer(optimizer, tensors, list(parameters))
    return int(about["step"])


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], names: list[str]) -> None:
    state = optimizer.state_dict()
    state["state"] = {}
    for number, name in enumerate(names):
        prefix = f"{_OPTIMIZER}{name}."
        own = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        if own:
            state["state"][number] = own
    optimizer.load_state_dict(state)


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors")) if folder.is_dir() else []


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as opened:
            about = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as problem:
        raise _damaged(file, str(problem)) from problem
    found = _digest(tensors, about)
    if about.get("digest") != found:
        raise _damaged(file, f"expected digest {about.get('digest')}, found {found}")
    return tensors, about


def _damaged(file: Path, why: str) -> IntegrityError:
    return IntegrityError(f"the checkpoint {file} is damaged: {why}",
                          hint=f"remove {file.name} and resume from the one before it")  # fmt: skip


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """Over the tensors, the step and the identity: a flipped bit in any of them is damage."""
    digest = hashlib.blake2b(f"{about.get('step')} {about.get('identity')}".encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
