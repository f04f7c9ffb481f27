"""Zero-shot classification: class features from a template, top-1/top-5 with ties shared, intervals.

It does not read images and does not train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from teachonce.data.vocabulary import require_template
from teachonce.errors import DataError, UnsupportedModelError, UsageError
from teachonce.models.clip import LoadedClip
from teachonce.models.slots import SlotPrompts
from teachonce.models.text_tower import TextTower
from teachonce.models.tokens import NameTokens

CHUNK = 512  # names encoded at once


@torch.inference_mode()
def template_features(clip: LoadedClip, names: Sequence[str], template: str) -> Tensor:
    """Unit text features of every name in a hand-written template.

    Causal CLIP towers run the fast exact way, others through open_clip's own `encode_text`. Names that give the same
    tokens are encoded once and have exactly equal features.

    Args:
        clip: any open_clip model.
        names: C class names.
        template: text with one `{}` for the name.

    Returns:
        [C, E] float32 on the model's device.

    Raises:
        UsageError: the template has not exactly one `{}`, or a name is too long for the context.
    """
    before, after = require_template(template)
    if before.strip() and before.endswith(" "):
        try:
            return _tower_features(TextTower.from_clip(clip.model, clip.tokenizer), names, before, after)
        except UnsupportedModelError:
            pass  # not a causal CLIP tower: its own slow way is right for every model
    distinct = list(dict.fromkeys(names))
    place = {name: i for i, name in enumerate(distinct)}
    features = _plain_features(clip, distinct, template)
    return features[torch.tensor([place[name] for name in names], device=features.device)]


def ensemble_features(clip: LoadedClip, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Unit mean of the unit text features over templates, [C, E] float32 (prompt ensembling, CLIP, arXiv 2103.00020).

    One template gives exactly its own features. Raises what `template_features` raises.
    """
    if len(templates) == 1:
        return template_features(clip, names, templates[0])
    parts = [template_features(clip, names, template) for template in templates]
    return nn.functional.normalize(torch.stack(parts).mean(dim=0), dim=-1)


def equal_rows(features_CE: Tensor) -> Tensor:
    """A number for each row, the same for rows with equal bits: classes that no image can tell apart, [C] int64."""
    inverse: Tensor = torch.unique(features_CE.cpu(), dim=0, return_inverse=True)[1]
    return inverse


def _tower_features(tower: TextTower, names: Sequence[str], before: str, after: str) -> Tensor:
    prompts = SlotPrompts(context=tower.embed_words(before.strip()))
    return prompted_features(tower, prompts, tower.tokenise(names, suffix=after))


@torch.no_grad()  # not inference_mode: a classifier may become part of somebody's trained model
def prompted_features(tower: TextTower, prompts: SlotPrompts, names: NameTokens) -> Tensor:
    """Unit text features of all names with the given prompts, [N, E], computed in pieces where the tower is."""
    here = prompts.apply(lambda x: x.to(tower.device))
    parts = [tower.features(here, names, chunk) for chunk in torch.split(torch.arange(names.count), CHUNK)]
    return names.expand(torch.cat(parts))


def _require_room(tokenizer: Any, texts: Sequence[str]) -> None:
    """open_clip cuts a text that is too long in silence; tokenizers that cannot say are left to do so."""
    room = getattr(tokenizer, "context_length", None)
    if room is None or not hasattr(tokenizer, "encode"):
        return
    for text in texts:
        if len(tokenizer.encode(text)) + 2 > room:
            raise UsageError(
                f"{text!r} takes {len(tokenizer.encode(text)) + 2} tokens, the text tower has room for {room}"
            )


def _plain_features(clip: LoadedClip, names: Sequence[str], template: str) -> Tensor:
    parts = []
    for start in range(0, len(names), CHUNK):
        texts = [template.replace("{}", name) for name in names[start : start + CHUNK]]
        _require_room(clip.tokenizer, texts)
        tokens = clip.tokenizer(texts)
        parts.append(clip.model.encode_text(tokens.to(clip.device)).float())  # type: ignore[operator]
    return nn.functional.normalize(torch.cat(parts), dim=-1)


@dataclass(frozen=True)
class Scores:
    """Per-image outcome; ties share the credit, so an entry is a probability."""

    top1: npt.NDArray[np.float64]  # [N]
    top5: npt.NDArray[np.float64]  # [N]
    predicted: npt.NDArray[np.int64]  # [N], the lowest class index among the best


@torch.inference_mode()
def score(images_NE: Tensor, classes_CE: Tensor, labels_N: Tensor, inverse_C: Tensor) -> Scores:
    """Compare every image with every class.

    m classes that tie (their features are equal) share the credit in top-1: 1/m each. In top-5 a tie that crosses the
    fifth place gives the share of it that fits.

    Args:
        images_NE: unit image features.
        classes_CE: unit text features.
        labels_N: class index of each image.
        inverse_C: from `equal_rows`; logits are computed once for each number.

    Raises:
        DataError: features that are NaN or infinite: no comparison with NaN holds, so they would count as right.
    """
    for what, features in (("image", images_NE), ("class", classes_CE)):
        bad = int((~features.isfinite().all(1)).sum())
        if bad:
            raise DataError(
                f"{bad} of {len(features)} {what} features are not numbers: nothing can be scored by them",
                hint="check the student's weights and the prompts: one of them gives NaN",
            )
    count = int(inverse_C.max()) + 1
    first = torch.full((count,), len(inverse_C)).scatter_reduce(0, inverse_C, torch.arange(len(inverse_C)), "amin")
    size = torch.bincount(inverse_C, minlength=count).double()
    top1, top5, predicted = [], [], []
    for images, labels in zip(torch.split(images_NE, 1024), torch.split(labels_N, 1024), strict=True):
        logits = images.float() @ classes_CE[first].T  # [B, names]
        own = inverse_C[labels]
        mine = logits.gather(1, own[:, None])
        before = ((logits > mine).double() * size).sum(1)  # classes strictly better than the label's name
        ties = size[own]
        top1.append(torch.where(before == 0, 1 / ties, 0.0))
        top5.append(((5 - before) / ties).clamp(0.0, 1.0))
        predicted.append(first[logits.argmax(1)])
    return Scores(torch.cat(top1).numpy(), torch.cat(top5).numpy(), torch.cat(predicted).numpy())
