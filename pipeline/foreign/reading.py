"""Read the prompts that another project has trained out of its checkpoint."""

from __future__ import annotations

from pathlib import Path

from teachonce.foreign.checkpoint import read_checkpoint
from teachonce.foreign.contexts import context_alone
from teachonce.foreign.layered import both_towers, is_whole_model
from teachonce.foreign.prompts import ForeignPrompts


def read_foreign(file: Path) -> ForeignPrompts:
    """Read a checkpoint of CoOp, POMP, KgCoOp, ProGrad, MaPLe or PromptSRC.

    Raises:
        UsageError: the file does not exist.
        IntegrityError: the file is damaged, is no checkpoint, or holds objects that would have to be run; none is run.
        DataError: the file holds no prompts of these projects, a context for each class, numbers that are not finite,
            or tensors besides, without which the prompts are another model.
    """
    checkpoint = read_checkpoint(file)
    return both_towers(checkpoint) if is_whole_model(checkpoint) else context_alone(checkpoint)
