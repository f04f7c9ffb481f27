"""What open_clip's plain pre-norm block does: its letters, attention of names padded to common lengths, and the rest.

Padded attention is for GPUs: few kernels and few bytes. Its numbers are those of `causal_text`, up to rounding. A row
of padding repeats a row of its name. What it gives is dropped, and the mask hides it from the name, so its gradient is
zero and need not be added to that of the row that it repeats: rows go out and come back by one gather each.

Shapes: X any leading sizes, R rows of names, D width, H heads, d = D / H; G names of a group, n the length they are
padded to, T = G n, Q rows that ask (T, or G where only the last row of a name does), P prefix positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.nn import functional as F

from teachonce.towers.packing import Group, Padding
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


class _Grouped(torch.autograd.Function):
    """Rows [R, H, d], gathered for each group, [H, T, d]."""

    @staticmethod
    def forward(context: Any, rows_RHd: Tensor, padding: Padding) -> tuple[Tensor, ...]:
        context.padding = padding
        return _gathered(rows_RHd, padding)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _joined(gradients).transpose(0, 1).index_select(0, context.padding.real), None


class _Ungrouped(torch.autograd.Function):
    """What each group gives, [H, T, d], without its padding, [R, H, d]."""

    @staticmethod
    def forward(context: Any, padding: Padding, *groups: Tensor) -> Tensor:
        context.padding = padding
        return _joined(groups).transpose(0, 1).index_select(0, padding.real)

    @staticmethod
    def backward(context: Any, gradient_RHd: Tensor) -> tuple[Tensor | None, ...]:
        parts = _gathered(gradient_RHd, context.padding)
        return None, *(x.index_fill_(1, hole, 0.0) for x, hole in zip(parts, context.padding.holes, strict=True))


def attend_padded(
    q_HRd: Tensor,
    k_HRd: Tensor,
    v_HRd: Tensor,
    prefix: tuple[Tensor, Tensor],
    groups: Sequence[Group],
    padding: Padding,
    hidden_R1: Tensor | None,
    hidden: int,
) -> Tensor:
    """Attention of every row to the shared prefix and to its own name, [H, R, d].

    Args:
        prefix: keys and values, [H, P, d].
        groups: of the padded names.
        padding: where their rows lie.
        hidden_R1: rows that may not see the last positions of the prefix.
        hidden: how many these are.
    """
    of_groups = (_Grouped.apply(x_HRd.transpose(0, 1), padding) for x_HRd in (q_HRd, k_HRd, v_HRd))
    mixed = []
    for group, source, q_HTd, k_HTd, v_HTd in zip(groups, padding.sources, *of_groups, strict=True):
        to_prefix_HTP = q_HTd @ _scaled(prefix[0], q_HTd)
        if hidden_R1 is not None:
            to_prefix_HTP[..., -hidden:].masked_fill_(hidden_R1[source], -torch.inf)
        q_Xnd, k_Xnd = (x.view(-1, group.length, x.shape[-1]) for x in (q_HTd, k_HTd))
        own_Xnn = torch.baddbmm(group.mask, q_Xnd, k_Xnd.transpose(1, 2), alpha=q_HTd.shape[-1] ** -0.5)
        mixed.append(_mix(to_prefix_HTP, own_Xnn, v_HTd, prefix[1], group))
    out_RHd: Tensor = _Ungrouped.apply(padding, *mixed)
    return out_RHd.transpose(0, 1)


def attend_from_ends(
    q_HCd: Tensor,
    k_HRd: Tensor,
    v_HRd: Tensor,
    prefix: tuple[Tensor, Tensor],
    groups: Sequence[Group],
    padding: Padding,
) -> Tensor:
    """Attention of the last row of every name, which sees the whole prefix, [H, C, d]."""
    of_names = torch.split(q_HCd, [group.count for group in groups], 1)
    of_groups = (_Grouped.apply(x_HRd.transpose(0, 1), padding) for x_HRd in (k_HRd, v_HRd))
    mixed = []
    for group, q_HGd, k_HTd, v_HTd in zip(groups, of_names, *of_groups, strict=True):
        heads, _, d = q_HGd.shape
        k_HGnd = k_HTd.view(heads, group.count, group.length, d)
        own_HG1n = (q_HGd * d**-0.5)[:, :, None] @ k_HGnd.transpose(2, 3) + group.of_ends
        to_prefix_HGP = q_HGd @ _scaled(prefix[0], q_HGd)
        mixed.append(_mix(to_prefix_HGP, own_HG1n.flatten(0, 1), v_HTd, prefix[1], group))
    return _joined(mixed)


def _mix(to_prefix_HQP: Tensor, own_Xrn: Tensor, v_HTd: Tensor, values_HPd: Tensor, group: Group) -> Tensor:
    """Values weighed by the softmax of both scores together, [H, Q, d]; r rows of a name ask."""
    heads, asking, width = to_prefix_HQP.shape
    scores = torch.cat([to_prefix_HQP.view(*own_Xrn.shape[:2], width), own_Xrn], dim=-1)
    of_prefix, of_own = torch.split(scores.softmax(-1), [width, group.length], -1)
    own_HQd: Tensor = (of_own @ v_HTd.view(-1, group.length, v_HTd.shape[-1])).view(heads, asking, -1)
    return torch.baddbmm(own_HQd, of_prefix.reshape(heads, asking, width), values_HPd)


def _scaled(keys_HPd: Tensor, q: Tensor) -> Tensor:
    """The prefix's keys, [H, d, P]: few, so that they are scaled in place of the many queries."""
    scaled: Tensor = keys_HPd * q.shape[-1] ** -0.5
    return scaled.transpose(1, 2)


def _gathered(rows_RHd: Tensor, padding: Padding) -> tuple[Tensor, ...]:
    return tuple(rows_RHd.transpose(0, 1).index_select(1, source) for source in padding.sources)


def _joined(groups: Sequence[Tensor]) -> Tensor:
    return groups[0] if len(groups) == 1 else torch.cat(tuple(groups), 1)
