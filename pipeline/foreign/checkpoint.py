"""Read a Dassl checkpoint, and run nothing of it.

Tensors are read, optimisers and schedulers beside them are passed over, and anything else is refused.
A Dassl checkpoint is `torch.save({"state_dict", "epoch", "optimizer", "scheduler", "val_result"})`.
"""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from teachonce.errors import DataError, IntegrityError, UsageError
from teachonce.models.tensor_files import require_whole

EXAMPLE = ".../prompt_learner/model.pth.tar-50"
_SHOWN = 8  # most names in a message
# What Dassl keeps beside the state dict: of the training, not of the prompts.
_OF_TRAINING = ("state_dict", "epoch", "optimizer", "scheduler", "val_result")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A file as it was read, its state dict not looked at yet."""

    file: Path
    state: Mapping[Any, Any]
    beside: tuple[str, ...]
    """Names beside the state dict that hold tensors and are not of the training."""
    epoch: int | None
    digest: str
    """SHA-256 (hex) of the file."""

    def require_used(self, used: Iterable[str], what: str) -> None:
        """Refuse a checkpoint with more than is used: without the rest (CoCoOp's meta_net) it is another model.

        Args:
            used: the names in the state dict that are read or known to do nothing.
            what: which prompts are read, for the message.
        """
        known = set(used)
        unused = [repr(name) for name in self.state if name not in known] + [repr(name) for name in self.beside]
        if unused:
            more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
            raise DataError(
                f"{self.file} holds more than {what}, and without it they are another model: "
                f"{', '.join(unused[:_SHOWN])}{more}",
                hint="CoCoOp and other methods that change prompts for each image, or the towers, cannot be imported",
            )

    def prompt(self, name: str) -> Tensor:
        """The numbers of one entry of the state dict, of any shape, in float32 and finite.

        Raises:
            DataError: it is no dense tensor of floating-point numbers, or some are not finite.
        """
        value = self.state[name]
        if not is_plain(value):
            kind = type(value).__name__
            if isinstance(value, Tensor):
                kind += f" of {value.dtype}"
                kind += f", {value.layout}, on {value.device}" if value.is_floating_point() else ""
            raise DataError(
                f"{self.file}: '{name}' is no tensor of floating-point numbers: found {kind}",
                hint=f"give the checkpoint that training wrote: {EXAMPLE}",
            )
        if not value.isfinite().all():
            raise DataError(
                f"{self.file}: {int((~value.isfinite()).sum())} of {value.numel()} numbers of '{name}' are not finite",
                hint="its training has diverged: give an earlier checkpoint",
            )
        numbers: Tensor = value.detach().float().clone()
        return numbers

    def slots(self, name: str, slots: int | None = None, width: int | None = None) -> Tensor:
        """The prompts of one entry, [M, D].

        Args:
            slots: M, where other entries have said it.
            width: D, likewise.

        Raises:
            DataError: as `prompt`, or another shape.
        """
        value = self.state[name]
        numbers = self.prompt(name)
        expected = ["slots" if slots is None else slots, "width" if width is None else width]
        fits = numbers.ndim == 2 and numbers.numel() > 0
        if not fits or slots not in (None, len(numbers)) or width not in (None, numbers.shape[1]):
            listed = ", ".join(map(str, expected))
            raise DataError(f"{self.file}: expected '{name}' of shape [{listed}], found {shape_of(value)}")
        return numbers

    def around(self, context: Tensor, prefix: str = "") -> tuple[Tensor | None, int | None]:
        """The start token [D] and the context length that the embeddings around a context imply; None where missing.

        Args:
            context: [M, D].
            prefix: of the entries' names.

        Raises:
            DataError: these embeddings exist and do not fit the context.
        """
        slots, width = context.shape
        names = (prefix + "token_prefix", prefix + "token_suffix")
        before, behind = (self.state.get(name) for name in names)
        for name, part in zip(names, (before, behind), strict=True):
            if part is None:
                continue
            fits = is_plain(part) and part.ndim == 3 and part.shape[2] == width and part.numel()
            if not fits:
                raise DataError(
                    f"{self.file}: expected '{name}' of shape [classes, positions, {width}], found {shape_of(part)}"
                )
        if before is not None and before.shape[1] != 1:
            raise DataError(
                f"{self.file}: expected one start token before the context, found {before.shape[1]} positions"
            )
        start = None if before is None else before[0, 0].float().clone()
        return start, None if behind is None else 1 + slots + behind.shape[1]


class _PassedOver:
    """Stands in for an object that is not needed: it takes what the file gives it, keeps nothing and does nothing."""

    def __new__(cls, *arguments: object) -> _PassedOver:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Ignore the object's attributes, which the reader passes here."""


def _empty(*arguments: object) -> dict[Any, Any]:
    return {}


# Dassl's own checkpoints hold these besides tensors and plain values. None of the named things themselves is called.
_BESIDES: list[Any] = [
    (_PassedOver, "torch.optim.sgd.SGD"),
    (_PassedOver, "torch.optim.lr_scheduler.CosineAnnealingLR"),
    (_PassedOver, "numpy.dtype"),
    (_PassedOver, "numpy.core.multiarray.scalar"),
    (_PassedOver, "numpy._core.multiarray.scalar"),
    (_empty, "collections.defaultdict"),
    (_empty, "builtins.dict"),
]


def read_checkpoint(file: Path) -> Checkpoint:
    """Read a file of Dassl's `save_checkpoint`.

    Raises:
        UsageError: the file does not exist.
        IntegrityError: the file is damaged, is no checkpoint, or holds objects that would have to be run; none is run.
        DataError: it holds no state dict.
    """
    if not file.is_file():
        raise UsageError(f"{file} is no file", hint=f"give the checkpoint itself: {EXAMPLE}")
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    loaded = _load(file)
    state = loaded.get("state_dict") if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping):
        raise DataError(
            f"{file} is no checkpoint of Dassl: expected a 'state_dict', found {names_of(loaded)}",
            hint=f"give the checkpoint itself: {EXAMPLE}",
        )
    beside = tuple(name for name, value in loaded.items() if name not in _OF_TRAINING and _holds_tensors(value))
    epoch = loaded.get("epoch")
    return Checkpoint(file, state, beside, epoch if type(epoch) is int else None, digest)


def _load(file: Path) -> Any:
    """Return what torch.load makes of the file when only tensors and plain values are allowed."""
    zipped = False
    try:
        zipped = zipfile.is_zipfile(file)
        if zipped:
            require_whole(file)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_BESIDES):
            warnings.simplefilter("ignore")  # torch warns of the file's age
            # The file is mapped: of the suffixes of 21,841 classes, three gigabytes, only one number is needed.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except IntegrityError:
        raise
    except Exception as problem:  # noqa: BLE001 - a forged file may make its readers raise anything
        blocked = re.search(r"GLOBAL (\w[\w.]*)", str(problem))
        if blocked:
            raise IntegrityError(
                f"{file} holds more than tensors and what Dassl keeps beside them: {blocked[1]}; nothing of it was run",
                hint="where it was trained, save its state_dict alone: torch.save({'state_dict': ...}, FILE)",
            ) from problem
        # torch's message is not passed on: it advises to read the file without any protection.
        why = (
            "it is a damaged zip archive" if zipped else "it is no zip archive, and no pickle of tensors as before 1.6"
        )
        raise IntegrityError(
            f"{file} cannot be read as a checkpoint of torch.save: {why} ({type(problem).__name__})",
            hint=f"give {EXAMPLE} of a run; if it is one, copy or download it again",
        ) from problem


def _holds_tensors(value: Any, levels: int = 20) -> bool:
    """Whether there is a tensor in a value, or it is nested so deeply that this cannot be seen."""
    if isinstance(value, (Mapping, list, tuple)):
        parts = value.values() if isinstance(value, Mapping) else value
        return levels == 0 or any(_holds_tensors(part, levels - 1) for part in parts)
    return isinstance(value, Tensor)


def is_plain(value: Any) -> bool:
    """Whether the value is a dense tensor of floating-point numbers that are in memory."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.is_floating_point()
    )


def shape_of(value: Any) -> str:
    """A tensor's shape, or the kind of a value that is none, for messages."""
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def names_of(value: Any) -> str:
    """The first names in a mapping, or the kind of a value that is none, for messages."""
    if not isinstance(value, Mapping):
        return type(value).__name__
    return ", ".join(map(repr, list(value)[:_SHOWN])) + (", ..." if len(value) > _SHOWN else "") or "nothing"
