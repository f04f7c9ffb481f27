"""Read the context that CoOp or POMP has trained out of a Dassl checkpoint, and prove which student it belongs to.

This module runs nothing of the file: tensors are read, optimisers and schedulers beside them are passed over, and
anything else is refused. It writes nothing and guesses nothing.

A Dassl checkpoint is `torch.save({"state_dict", "epoch", "optimizer", "scheduler", "val_result"})`. Its state dict
holds `ctx`, and the embeddings around the context in each prompt: `token_prefix` (the start token) and `token_suffix`
(name, full stop, end token and padding). CoOp: arXiv 2109.01134; POMP: arXiv 2304.04704.

Shapes: M slots, D width, C classes of the checkpoint, S positions behind the slots.
"""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from teachonce.errors import DataError, FingerprintError, IntegrityError, UsageError
from teachonce.models.tensor_files import require_whole
from teachonce.phrases import phrase
from teachonce.towers.text_tower import TextTower

EXAMPLE = ".../prompt_learner/model.pth.tar-50"
_USED = ("ctx", "token_prefix", "token_suffix")
# What Dassl keeps beside the state dict: of the training, not of the prompts.
_OF_TRAINING = ("state_dict", "epoch", "optimizer", "scheduler", "val_result")
_SHOWN = 8  # most names in a message
_ROUNDING = 2.0**-10  # relative; a start token that was kept in float16 is off by half of it


@dataclass(frozen=True, eq=False)
class ForeignPrompts:
    """What a checkpoint holds of a generic context."""

    context: Tensor  # [M, D] float32
    start: Tensor | None  # [D] float32, the start token's embedding in the context's student; None if the file lacks it
    positions: int | None  # context length of the context's own student; None if the file lacks it
    epoch: int | None
    digest: str
    """SHA-256 (hex) of the file."""


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


def read_foreign(file: Path) -> ForeignPrompts:
    """Read a checkpoint of CoOp or POMP.

    Raises:
        UsageError: the file does not exist.
        IntegrityError: the file is damaged, is no checkpoint, or holds objects that would have to be run; none is run.
        DataError: the file holds no context, a context for each class, one that is not finite, or tensors besides.
    """
    if not file.is_file():
        raise UsageError(f"{file} is no file", hint=f"give the checkpoint itself: {EXAMPLE}")
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    loaded = _load(file)
    state = loaded.get("state_dict") if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping):
        raise DataError(
            f"{file} is no checkpoint of Dassl: expected a 'state_dict', found {_names(loaded)}",
            hint=f"give the checkpoint itself: {EXAMPLE}",
        )
    if "ctx" not in state:
        raise DataError(
            f"{file} holds no context: expected 'ctx' in its state_dict, found {_names(state)}",
            hint="give the prompt learner of a CoOp or POMP run",
        )
    _require_all_used(file, loaded, state)
    context = _context(file, state["ctx"])
    start, positions = _around(file, state, context)
    epoch = loaded.get("epoch")
    return ForeignPrompts(context, start, positions, epoch if type(epoch) is int else None, digest)


def prove_student(prompts: ForeignPrompts, tower: TextTower, file: Path) -> bool:
    """Refuse a student that the prompts were not trained on.

    Args:
        file: where the prompts are from, for messages.

    Returns:
        Whether the start token in the file is the student's own. False: the file has no start token, and only the width
        fits.

    Raises:
        FingerprintError: the width, the context length or the start token belongs to another student.
        DataError: the context has more slots than leave room for a name.
    """
    slots, width = prompts.context.shape
    sizes_in_file = {"width": width, "context length": prompts.positions}
    sizes_of_student = {"width": tower.width, "context length": tower.context_length}
    for what, number in sizes_in_file.items():
        if number not in (None, sizes_of_student[what]):
            raise _other_student(file, f"{what} {number} there, {sizes_of_student[what]} here")
    if slots > tower.most_slots:
        raise DataError(
            f"{file}: {slots} slots leave no room for a name; this student has room for {tower.most_slots}",
            hint="give a run with fewer slots (TRAINER.COOP.N_CTX)",
        )
    if prompts.start is None:
        return False
    if tower.start_embedding is None:
        raise _other_student(file, "its texts begin with a start token, this student's do not")
    start = tower.start_embedding.detach().float().cpu()
    off = float((prompts.start - start).abs().max() / start.abs().max())
    if not off <= _ROUNDING:
        raise _other_student(file, f"the start token's embedding differs by {off:.0%} of its largest entry")
    return True


def _other_student(file: Path, difference: str) -> FingerprintError:
    return FingerprintError(
        f"{file} was trained on another student: {difference}",
        hint=phrase("give the model it was trained on, such as {student} ViT-B-16/openai"),
    )


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
            hint=f"give {EXAMPLE} of a CoOp or POMP run; if it is one, copy or download it again",
        ) from problem


def _require_all_used(file: Path, loaded: Mapping[Any, Any], state: Mapping[Any, Any]) -> None:
    """Refuse a checkpoint with more than a context: without the rest (CoCoOp's meta_net) it is another model."""
    unused = [repr(name) for name in state if name not in _USED]
    unused += [repr(name) for name, value in loaded.items() if name not in _OF_TRAINING and _holds_tensors(value)]
    if unused:
        more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
        raise DataError(
            f"{file} holds more than the context of CoOp or POMP, and without it the context is another model: "
            f"{', '.join(unused[:_SHOWN])}{more}",
            hint="CoCoOp, MaPLe and other methods that change the context or the towers cannot be imported",
        )


def _holds_tensors(value: Any, levels: int = 20) -> bool:
    """Whether there is a tensor in a value, or it is nested so deeply that this cannot be seen."""
    if isinstance(value, (Mapping, list, tuple)):
        parts = value.values() if isinstance(value, Mapping) else value
        return levels == 0 or any(_holds_tensors(part, levels - 1) for part in parts)
    return isinstance(value, Tensor)


def _context(file: Path, ctx: Any) -> Tensor:
    if not _is_plain(ctx):
        kind = type(ctx).__name__
        if isinstance(ctx, Tensor):
            kind += f" of {ctx.dtype}" + (f", {ctx.layout}, on {ctx.device}" if ctx.is_floating_point() else "")
        raise DataError(
            f"{file}: 'ctx' is no tensor of floating-point numbers: found {kind}",
            hint=f"give the checkpoint that training wrote: {EXAMPLE}",
        )
    if ctx.ndim == 3:
        raise DataError(
            f"{file} holds a context of its own for each of its {ctx.shape[0]} classes, {list(ctx.shape)}; other names "
            "have none",
            hint="give a run with one context for all classes (TRAINER.COOP.CSC False)",
        )
    if ctx.ndim != 2 or not ctx.numel():
        raise DataError(f"{file}: expected 'ctx' of shape [slots, width], found {list(ctx.shape)}")
    if not ctx.isfinite().all():
        raise DataError(
            f"{file}: {int((~ctx.isfinite()).sum())} of {ctx.numel()} numbers of 'ctx' are not finite",
            hint="its training has diverged: give an earlier checkpoint",
        )
    context: Tensor = ctx.detach().float().clone()
    return context


def _around(file: Path, state: Mapping[str, Any], context: Tensor) -> tuple[Tensor | None, int | None]:
    """Return the start token and the context length that the embeddings around the context imply.

    Raises:
        DataError: these embeddings exist and do not fit the context.
    """
    slots, width = context.shape
    prefix, suffix = state.get("token_prefix"), state.get("token_suffix")
    for name, part in (("token_prefix", prefix), ("token_suffix", suffix)):
        if part is not None and not (_is_plain(part) and part.ndim == 3 and part.shape[2] == width and part.numel()):
            raise DataError(f"{file}: expected '{name}' of shape [classes, positions, {width}], found {_shape(part)}")
    if prefix is not None and prefix.shape[1] != 1:
        raise DataError(f"{file}: expected one start token before the context, found {prefix.shape[1]} positions")
    start = None if prefix is None else prefix[0, 0].float().clone()
    return start, None if suffix is None else 1 + slots + suffix.shape[1]


def _is_plain(value: Any) -> bool:
    """Whether the value is a dense tensor of floating-point numbers that are in memory."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.is_floating_point()
    )


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _names(value: Any) -> str:
    if not isinstance(value, Mapping):
        return type(value).__name__
    return ", ".join(map(repr, list(value)[:_SHOWN])) + (", ..." if len(value) > _SHOWN else "") or "nothing"
