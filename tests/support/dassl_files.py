"""Checkpoints as CoOp, POMP, KgCoOp, MaPLe and PromptSRC leave them through Dassl's `save_checkpoint`.

It tests nothing.
"""

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


def kgcoop_checkpoint(model: Any, tokens: Tensor) -> dict[str, Any]:
    """KgCoOp's: a bias and a layer that its code makes, saves and never reads."""
    checkpoint, width = dassl_checkpoint(model, tokens), model.token_embedding.weight.shape[1]
    layer = nn.Linear(width, width)
    unread = {"bias_vectors": torch.randn(1, width)}
    unread |= {f"meta_net.linear1.{name}": x.detach() for name, x in layer.named_parameters()}
    checkpoint["state_dict"] |= unread
    return checkpoint


def maple_checkpoint(model: Any, tokens: Tensor, depth: int, seed: int = 0) -> dict[str, Any]:
    """MaPLe's: the whole model, text prompts of `depth` blocks, and a linear map of each for the image tower.

    Args:
        model: an open_clip model with a vision transformer.
        tokens: [C, positions] of "X X X X name.".
        depth: MaPLe's PROMPT_DEPTH.
        seed: of prompts and maps.
    """
    checkpoint, generator = dassl_checkpoint(model, tokens, seed=seed), torch.Generator().manual_seed(seed + 1)
    alone = checkpoint["state_dict"]
    wide = model.visual.conv1.weight.shape[0]
    learner = {**alone}
    for index in range(depth - 1):
        learner[f"compound_prompts_text.{index}"] = torch.randn(alone["ctx"].shape, generator=generator)
    for name in ["proj", *(f"compound_prompt_projections.{index}" for index in range(depth - 1))]:
        learner[f"{name}.weight"] = torch.randn(wide, alone["ctx"].shape[1], generator=generator) / 4
        learner[f"{name}.bias"] = torch.randn(wide, generator=generator)
    checkpoint["state_dict"] = whole_state(model, learner)
    return checkpoint


def promptsrc_checkpoint(
    model: Any, tokens: Tensor, depth: int, image_depth: int, image_slots: int = 3
) -> dict[str, Any]:
    """PromptSRC's: the whole model with independent prompts in both towers, and a second image tower for the losses."""
    checkpoint, generator = dassl_checkpoint(model, tokens), torch.Generator().manual_seed(7)
    alone = checkpoint["state_dict"]
    wide = model.visual.conv1.weight.shape[0]
    state = whole_state(model, alone)
    state |= {f"prompt_learner.ZS_image_encoder.{n}": x.detach() for n, x in model.visual.named_parameters()}
    block = "{}.transformer.resblocks.{}.VPT_shallow"
    for index in range(1, depth):
        state[block.format("text_encoder", index)] = torch.randn(alone["ctx"].shape, generator=generator)
    if image_depth:
        state["image_encoder.VPT"] = torch.randn(image_slots, wide, generator=generator)
    for index in range(1, image_depth):
        state[block.format("image_encoder", index)] = torch.randn(image_slots, wide, generator=generator)
    checkpoint["state_dict"] = state
    return checkpoint


def whole_state(model: Any, learner: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a model that both projects make of a CLIP: its learner, its towers, its scale."""
    weights = {name: x.detach().clone() for name, x in model.named_parameters()}
    state = {f"prompt_learner.{name}": x for name, x in learner.items()}
    for name, x in weights.items():
        if name == "logit_scale":
            state[name] = x
        elif name.startswith("visual."):
            state[f"image_encoder.{name.removeprefix('visual.')}"] = x
        elif not name.startswith("token_embedding."):
            state[f"text_encoder.{name}"] = x
    return state


def in_half(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The same in float16, as both projects keep it."""
    return {**checkpoint, "state_dict": {name: x.half() for name, x in checkpoint["state_dict"].items()}}


def summed_over_epochs(checkpoint: dict[str, Any], weights: list[float]) -> dict[str, Any]:
    """PromptSRC's average: every entry times a weight, added up in its own format, frozen weights and all."""
    state = checkpoint["state_dict"]
    total = {name: x * weights[0] for name, x in state.items()}
    for weight in weights[1:]:
        total = {name: total[name] + x * weight for name, x in state.items()}
    return {**checkpoint, "state_dict": total}


def saved(folder: Path, checkpoint: Any, **options: Any) -> Path:
    """The file, named as Dassl names it."""
    file = folder / "model.pth.tar-50"
    torch.save(checkpoint, file, **options)
    return file
