"""What open_clip's plain pre-norm block consists of, apart from attention itself.

Shapes: X any leading sizes, R rows, D width, H heads, d = D / H.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.nn import functional as F

from teachonce.towers.structures import Letter

_STEEPNESS = 1.702  # of QuickGELU(x) = x sigmoid(1.702 x), Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2
_ROWS: dict[Letter, int] = {"query": 0, "key": 1, "value": 2}  # thirds of a block's projection


def project(block: Any, letter: Letter, x_XRD: Tensor) -> Tensor:
    """Query, key or value of normed rows, split into heads, [X, H, R, d]."""
    attn, width = block.attn, x_XRD.shape[-1]
    rows = slice(_ROWS[letter] * width, (_ROWS[letter] + 1) * width)
    projected = F.linear(x_XRD, attn.in_proj_weight[rows], attn.in_proj_bias[rows])
    return projected.view(*x_XRD.shape[:-1], attn.num_heads, width // attn.num_heads).transpose(-3, -2)


def finish_block(block: Any, x_XRD: Tensor, mixed_XHRd: Tensor) -> Tensor:
    """What follows attention, [X, R, D]: `x_XRD` is the residual stream."""
    x_XRD = x_XRD + block.ls_1(block.attn.out_proj(mixed_XHRd.transpose(-3, -2).flatten(-2)))
    out: Tensor = x_XRD + block.ls_2(block.mlp(block.ln_2(x_XRD)))
    return out


@torch.no_grad()
def fuse_activation(block: Any) -> None:
    """Make QuickGELU one kernel in place of three, where the block has it; the block gets matrices of its own.

    x sigmoid(a x) = silu(a x) / a, so the matrix before it is multiplied by a = 1.702 and the one behind it divided.
    Results are equal up to rounding: 1e-6 of a feature in float32.
    """
    mlp = block.mlp
    if not isinstance(mlp.gelu, QuickGELU):
        return
    scaled = {"c_fc": _STEEPNESS, "c_proj": 1 / _STEEPNESS}
    for name, factor in scaled.items():
        given = getattr(mlp, name)
        matrix = nn.Linear(given.in_features, given.out_features, device="meta")
        bias = given.bias * factor if name == "c_fc" else given.bias
        matrix.weight = nn.Parameter(given.weight * factor, requires_grad=False)
        matrix.bias = nn.Parameter(bias.clone(), requires_grad=False)
        setattr(mlp, name, matrix)
    mlp.gelu = nn.SiLU()
