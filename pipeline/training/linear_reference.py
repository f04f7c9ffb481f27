"""The linear reference of a run: what a linear head on the run's own rows comes to, in seconds.

The head is the one that `head = "linear"` trains: a residual for each name that has photos, on the hand-written
template's class vectors, which all other names keep. Its setting is fixed and stated here, so that the figure beside
prompts means the same everywhere. It was chosen on samples that were kept apart from training, by rate (0.001, 0.003,
0.01), ridge penalty (0, 0.1 to 3) and with the sum normalised or not.

Shapes: n rows, E embedding, V classes, K names with photos, U distinct names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from teachonce.core.streams import LINEAR_REFERENCE
from teachonce.heads.kinds import HeadMeta
from teachonce.heads.vectors import Head, head_of
from teachonce.models.clip import exact_products

STEPS, ROWS, RATE = 300, 256, 0.001
"""Steps of so many rows each, at a rate that falls to 0 along half a cosine: AdamW without weight decay."""
AT_ONCE = 1024  # rows whose logits are in memory together
FORM = 1
"""Raised when the fit, or its setting, changes."""


@dataclass(frozen=True, eq=False)
class Names:
    """The classes of a run by their names: classes of one name are one here, as no vector can tell them apart."""

    of_class: Tensor
    """[V] int64, the number of each class's name."""
    vectors: Tensor
    """[U, E] float32 unit, of each name in the hand-written template."""
    names: tuple[str, ...]
    """[U]."""
    ids: tuple[str, ...]
    """[U], of the first class of each name."""


def drawn_places(rows: int) -> npt.NDArray[np.int64]:
    """Which of some rows make each step, [STEPS, rows of a step]: epoch after epoch, each in an order of its own."""
    taken = min(ROWS, rows)
    epochs = -(-STEPS * taken // rows)
    order = np.concatenate([LINEAR_REFERENCE.at(0, epoch).permutation(rows) for epoch in range(epochs)])
    return order[: STEPS * taken].reshape(STEPS, taken)


def fit_linear(features_nE: Tensor, names_n: Tensor, names: Names, scale: float, steps: npt.NDArray[np.int64]) -> Head:
    """Fit a residual for each name that occurs, by cross-entropy among all names.

    Vectors of names without photos do not move, so what they add to a row's softmax is computed once.

    Args:
        features_nE: unit image features, of any floating-point type, on the device of the fit.
        names_n: int64, the number of each row's name, on the CPU.
        names: all names.
        scale: the model's logit scale.
        steps: of `drawn_places(n)`.

    Returns:
        The head, on the CPU; w' = norm(w + r).
    """
    device = features_nE.device
    known = names_n.unique()
    place = torch.full((len(names.vectors),), -1)
    place[known] = torch.arange(len(known))
    vectors, labels = names.vectors.to(device), place[names_n].to(device)
    meta = HeadMeta(
        kind="linear",
        width=vectors.shape[1],
        names=tuple(names.names[i] for i in known.tolist()),
        ids=tuple(names.ids[i] for i in known.tolist()),
    )
    head = head_of(meta).to(device)
    all_known, start = torch.arange(len(known), device=device), vectors[known.to(device)]
    optimiser = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=0.0)
    with exact_products():
        others = _others(features_nE, vectors[(place < 0).to(device)], scale)
        for step, chosen in enumerate(torch.from_numpy(steps).to(device)):
            logits = scale * features_nE[chosen].float() @ head.classes(start, all_known).T
            loss = F.cross_entropy(torch.cat([logits, others[chosen]], dim=1), labels[chosen])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for group in optimiser.param_groups:
                group["lr"] = RATE * (1 + math.cos(math.pi * step / len(steps))) / 2
            optimiser.step()
    return head.cpu().requires_grad_(False)


def _others(features_nE: Tensor, vectors: Tensor, scale: float) -> Tensor:
    """ln of what all names that do not move add to the softmax of each row, [n, 1]; [n, 0] where there are none."""
    if not len(vectors):
        return features_nE.new_zeros((len(features_nE), 0), dtype=torch.float32)
    parts = [
        (scale * part.float() @ vectors.T).logsumexp(1, keepdim=True) for part in torch.split(features_nE, AT_ONCE)
    ]
    return torch.cat(parts)
