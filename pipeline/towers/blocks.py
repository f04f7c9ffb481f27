"""What open_clip's plain pre-norm block consists of, apart from attention itself.

Shapes: X any leading sizes, R rows, D width, H heads, d = D / H.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from teachonce.towers.structures import Letter

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
