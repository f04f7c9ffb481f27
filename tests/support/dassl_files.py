"""Checkpoints as CoOp and POMP leave them through Dassl's `save_checkpoint`. It tests nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def dassl_checkpoint(model: Any, tokens: Tensor, slots: int = 4, seed: int = 0) -> dict[str, Any]:
    """What a run on a student leaves: a context, the buffers around it, and the state of a run of some steps.

    Args:
        model: an open_clip model.
        tokens: [C, positions] of "X X X X name." for the run's own classes.
        slots: M.
        seed: of the context.
    """
    context = nn.Parameter(torch.empty(slots, model.token_embedding.weight.shape[1]))
    nn.init.normal_(context, std=0.5, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.SGD([context], lr=0.002, momentum=0.9, weight_decay=5e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50.0)
    for _ in range(3):
        context.grad = torch.full_like(context, 0.1)
        optimizer.step()
        cosine.step()
    with torch.no_grad():
        embedded = model.token_embedding(tokens)
    # Dassl's warm-up is a scheduler around another, which its state holds as an object.
    warmup = {
        "successor": cosine,
        "warmup_epoch": 1,
        "cons_lr": 1e-5,
        "base_lrs": [0.002],
        "last_epoch": 50,
        "verbose": False,
        "_step_count": 51,
        "_last_lr": [1.9e-06],
    }
    prefix, suffix = embedded[:, :1], embedded[:, 1 + slots :]
    return {
        "state_dict": {"ctx": context.detach(), "token_prefix": prefix, "token_suffix": suffix},
        "epoch": 50,
        "optimizer": optimizer.state_dict(),
        "scheduler": warmup,
        "val_result": np.float64(71.9),
    }


def saved(folder: Path, checkpoint: Any, **options: Any) -> Path:
    """The file, named as Dassl names it."""
    file = folder / "model.pth.tar-50"
    torch.save(checkpoint, file, **options)
    return file
