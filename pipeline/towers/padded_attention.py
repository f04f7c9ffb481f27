"""Causal attention of names that are padded to a few common lengths: few kernels and few bytes, for GPUs.

The numbers are those of `causal_text`, up to rounding. A row of padding repeats a row of its name. What it gives is
dropped, and the mask hides it from the name, so its gradient is zero and need not be added to that of the row that it
repeats: rows go out and come back by one gather each.

Shapes: R rows of names, G names of a group, n the length they are padded to, T = G n, Q rows that ask (T, or G where
only the last row of a name does), P prefix positions, H heads, d size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from teachonce.towers.packing import Group, Layout


class _Grouped(torch.autograd.Function):
    """Rows [R, H, d], gathered for each group, [H, T, d]."""

    @staticmethod
    def forward(context: Any, rows_RHd: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        context.layout = layout
        return tuple(rows_RHd.transpose(0, 1).index_select(1, group.source) for group in layout.groups)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _joined(gradients).transpose(0, 1).index_select(0, context.layout.real), None


class _Ungrouped(torch.autograd.Function):
    """What each group gives, [H, T, d], without its padding, [R, H, d]."""

    @staticmethod
    def forward(context: Any, layout: Layout, *groups: Tensor) -> Tensor:
        context.layout = layout
        return _joined(groups).transpose(0, 1).index_select(0, layout.real)

    @staticmethod
    def backward(context: Any, gradient_RHd: Tensor) -> tuple[Tensor | None, ...]:
        parts = _Grouped.forward(context, gradient_RHd, context.layout)
        return None, *(
            part.index_fill_(1, group.padding, 0.0) for part, group in zip(parts, context.layout.groups, strict=True)
        )


def attend(
    q_HRd: Tensor,
    k_HRd: Tensor,
    v_HRd: Tensor,
    prefix: tuple[Tensor, Tensor],
    layout: Layout,
    hidden_R1: Tensor | None,
    hidden: int,
) -> Tensor:
    """Attention of every row to the shared prefix and to its own name, [H, R, d].

    Args:
        prefix: keys and values, [H, P, d].
        layout: with padding.
        hidden_R1: rows that may not see the last positions of the prefix.
        hidden: how many these are.
    """
    of_groups = (_Grouped.apply(x_HRd.transpose(0, 1), layout) for x_HRd in (q_HRd, k_HRd, v_HRd))
    mixed = []
    for group, q_HTd, k_HTd, v_HTd in zip(layout.groups, *of_groups, strict=True):
        to_prefix_HTP = q_HTd @ _scaled(prefix[0], q_HTd)
        if hidden_R1 is not None:
            to_prefix_HTP[..., -hidden:].masked_fill_(hidden_R1[group.source], -torch.inf)
        q_Xnd, k_Xnd = (x.view(-1, group.length, x.shape[-1]) for x in (q_HTd, k_HTd))
        own_Xnn = torch.baddbmm(group.mask, q_Xnd, k_Xnd.transpose(1, 2), alpha=q_HTd.shape[-1] ** -0.5)
        mixed.append(_mix(to_prefix_HTP, own_Xnn, v_HTd, prefix[1], group))
    out_RHd: Tensor = _Ungrouped.apply(layout, *mixed)
    return out_RHd.transpose(0, 1)


def attend_from_ends(
    q_HCd: Tensor, k_HRd: Tensor, v_HRd: Tensor, prefix: tuple[Tensor, Tensor], layout: Layout
) -> Tensor:
    """Attention of the last row of every name, which sees the whole prefix, [H, C, d]."""
    of_names = torch.split(q_HCd, [group.count for group in layout.groups], 1)
    of_groups = (_Grouped.apply(x_HRd.transpose(0, 1), layout) for x_HRd in (k_HRd, v_HRd))
    mixed = []
    for group, q_HGd, k_HTd, v_HTd in zip(layout.groups, of_names, *of_groups, strict=True):
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
    own_HQd = (of_own @ v_HTd.view(-1, group.length, v_HTd.shape[-1])).view(heads, asking, -1)
    return torch.baddbmm(own_HQd, of_prefix.reshape(heads, asking, width), values_HPd)


def _scaled(keys_HPd: Tensor, q: Tensor) -> Tensor:
    """The prefix's keys, [H, d, P]: few, so that they are scaled in place of the many queries."""
    return (keys_HPd * q.shape[-1] ** -0.5).transpose(1, 2)


def _joined(groups: Sequence[Tensor]) -> Tensor:
    return groups[0] if len(groups) == 1 else torch.cat(tuple(groups), 1)
