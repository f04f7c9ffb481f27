"""Checkpoints of a training run: the trained tensors, their average, the optimiser's state, the step; safetensors.

Frozen weights are never in them, and nothing in them can run code. A file appears under its name only when whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from teachonce.core.digests import canonical_json
from teachonce.core.documents import json_in
from teachonce.core.files import atomic_write_bytes
from teachonce.core.outside import tensor_header
from teachonce.errors import FingerprintError, IntegrityError, TeachOnceError, UsageError
from teachonce.models.spec import PARTS
from teachonce.phrases import phrase
from teachonce.runs.folder import CheckpointFolder

KEEP = 2  # the newest and the one before it, in case the newest is damaged
ALL_ROWS = "all rows"  # stands for the selection in runs without one, also in runs of early versions
OWN_START = "of the config"  # stands for the start in runs that did not start from given prompts
_PARAMETER, _OPTIMIZER, _AVERAGE = "parameter.", "optimizer.", "average."
_NO_AVERAGE: Mapping[str, Tensor] = MappingProxyType({})
_BROKEN = (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError)


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
    start: str = OWN_START
    """Digest of the prompts that the run started from."""
    tokenizer: str = ""
    """Digest of the student's tokenizer; this and the next two are compared where the checkpoint has them."""
    preprocess: str = ""
    structure: str = ""


def save_checkpoint(
    folder: Path,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Identity,
    average: Mapping[str, Tensor] = _NO_AVERAGE,
) -> Path:
    """Write the checkpoint of a step and remove all but the newest `KEEP` files.

    Args:
        folder: `RUN/checkpoints`.
        step: steps that are finished.
        module: its trainable parameters are saved.
        optimizer: AdamW or SGD; its state, parameter by parameter.
        identity: what the state belongs to.
        average: `PromptAverage.state()`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {_PARAMETER + name: p for name, p in _trainable(module).items()}
    tensors |= {_AVERAGE + name: value for name, value in average.items()}
    names = list(_trainable(module))
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                tensors[f"{_OPTIMIZER}{names[number]}.{key}"] = torch.as_tensor(value)
    tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    metadata = {"step": str(step), "identity": canonical_json(vars(identity), spaced=True)}
    metadata["digest"] = _digest(tensors, metadata)
    file = CheckpointFolder(folder).file(step)
    atomic_write_bytes(file, save(tensors, metadata=metadata))
    for old in CheckpointFolder(folder).files()[:-KEEP]:
        old.unlink()
    return file


def load_checkpoint(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Identity,
    average: Mapping[str, Tensor] = _NO_AVERAGE,
    moved: Callable[[int], Collection[str]] | None = None,
) -> int:
    """Put the newest checkpoint into the module, the optimiser and the average, or into none of them.

    Args:
        average: `PromptAverage.state()`, which is written over.
        moved: the names of the parameters that have moved after so many steps; None: all, after the first step.

    Returns:
        The number of finished steps.

    Raises:
        UsageError: there is no checkpoint.
        FingerprintError: it belongs to another config, store, student or selection; names which.
        IntegrityError: it is damaged, or holds more, less or other tensors than these; names the file.
    """
    files = CheckpointFolder(folder).files()
    if not files:
        raise UsageError(
            f"{folder} holds no checkpoint: there is nothing to resume", hint=phrase("restore it, or {another out}")
        )
    file = files[-1]
    tensors, metadata = _read(file)
    _require_identity(file, metadata, identity)
    step, parameters = int(metadata["step"]), _trainable(module)
    _require_tensors(file, tensors, _wanted(step, parameters, optimizer, average, moved))
    with torch.no_grad():
        for prefix, targets in ((_PARAMETER, parameters), (_AVERAGE, average)):
            for name, tensor in targets.items():
                tensor.copy_(tensors[prefix + name])
    _load_optimizer(optimizer, tensors, list(parameters))
    return step


def _require_identity(file: Path, metadata: Mapping[str, str], identity: Identity) -> None:
    try:
        stored = dict(json_in(metadata["identity"]))
    except (ValueError, TypeError) as problem:
        raise _damaged(file, f"its identity cannot be read: {problem}") from problem
    early = {part: getattr(identity, part) for part in PARTS if not (stored.get(part) and getattr(identity, part))}
    different = [name for name, value in vars(identity).items() if {**stored, **early}.get(name) != value]
    if different:
        raise FingerprintError(
            f"{file} belongs to another {' and another '.join(different)}: "
            + "; ".join(
                f"{name} there {str(stored.get(name))[:16]}, here {getattr(identity, name)[:16]}" for name in different
            ),
            hint=phrase("resume with the options the run was started with, or use another {out}"),
        )


def _wanted(
    step: int,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    average: Mapping[str, Tensor],
    moved: Callable[[int], Collection[str]] | None,
) -> dict[str, str]:
    """Kind and shape of every tensor that a checkpoint of this run holds after so many steps."""
    wanted = {_PARAMETER + name: _kind(p) for name, p in parameters.items()}
    wanted |= {_AVERAGE + name: _kind(value) for name, value in average.items()}
    remembered = (set(parameters) if step else set()) if moved is None else set(moved(step))
    for name, parameter in parameters.items():
        for key in _kept(optimizer) if name in remembered else ():
            wanted[f"{_OPTIMIZER}{name}.{key}"] = _kind(torch.zeros(()) if key == "step" else parameter)
    return wanted


def _kept(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """What an optimiser remembers of each parameter once it has taken a step."""
    if isinstance(optimizer, torch.optim.AdamW):
        return ("step", "exp_avg", "exp_avg_sq")
    if isinstance(optimizer, torch.optim.SGD):
        return ("momentum_buffer",) if optimizer.defaults["momentum"] else ()
    raise TeachOnceError(f"checkpoints do not know what {type(optimizer).__name__} remembers")


def _require_tensors(file: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, str]) -> None:
    kinds = {name: _kind(x) for name, x in tensors.items()}
    unlike = sorted(name for name in wanted.keys() | kinds.keys() if wanted.get(name) != kinds.get(name))
    if unlike:
        raise IntegrityError(
            f"{file} does not hold the tensors of this run: "
            + "; ".join(f"{n}: expected {wanted.get(n, 'none')}, found {kinds.get(n, 'none')}" for n in unlike[:8])
            + (f" and {len(unlike) - 8} more" if len(unlike) > 8 else ""),
            hint="resume with the version and the options that the run was started with, or start a new run",
        )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], names: list[str]) -> None:
    state = optimizer.state_dict()
    state["state"] = {}
    for number, name in enumerate(names):
        remembered = {
            key: tensors[full] for key in _kept(optimizer) if (full := f"{_OPTIMIZER}{name}.{key}") in tensors
        }
        if remembered:
            state["state"][number] = remembered
    optimizer.load_state_dict(state)


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensor_header(file)
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
        digest = _digest(tensors, metadata)
    except _BROKEN as problem:
        raise _damaged(file, str(problem)) from problem
    if metadata.get("digest") != digest:
        raise _damaged(file, f"expected digest {metadata.get('digest')}, found {digest}")
    step = metadata.get("step", "")
    if not (step.isascii() and step.isdigit()) or CheckpointFolder(file.parent).file(int(step)) != file:
        raise _damaged(file, f"it says that it is of step {step or 'none'}, which is not what it is called")
    if "identity" not in metadata:
        raise _damaged(file, "it does not say what it belongs to")
    return tensors, metadata


def _damaged(file: Path, why: str) -> IntegrityError:
    return IntegrityError(
        f"the checkpoint {file} is damaged: {why}", hint=f"remove {file.name} and resume from the one before it"
    )


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Over the tensors, the step and the identity: a flipped bit in any of them is damage."""
    digest = hashlib.blake2b(f"{metadata.get('step')} {metadata.get('identity')}".encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
