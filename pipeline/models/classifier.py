"""Class features of a template or of prompts, and scoring: top-1/top-5 with ties shared, probabilities.

It does not read images and does not train.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from teachonce.data.spelling import is_visible
from teachonce.data.vocabulary import require_template
from teachonce.errors import (
    DataError,
    EnvironmentFault,
    FingerprintError,
    TeachOnceError,
    UnsupportedModelError,
    UsageError,
)
from teachonce.heads.kinds import OF_STORE
from teachonce.models import clip as clip_models
from teachonce.models.clip import LoadedClip, exact_products
from teachonce.models.prompt_files import LoadedPrompts
from teachonce.towers.image_tower import ImageTower
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.text_tower import TextTower
from teachonce.towers.tokens import NameTokens

CHUNK = 512  # names encoded at once


@torch.inference_mode()
def template_features(clip: LoadedClip, names: Sequence[str], template: str) -> Tensor:
    """Unit text features of every name in a hand-written template.

    Text towers that can carry prompts run as they do with prompts, which is exact, others through open_clip's own
    `encode_text`. Names that give the same tokens are encoded once and have exactly equal features.

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
    tower = _exact_tower(clip, before)
    if tower is not None:
        return _tower_features(tower, names, before, after)
    distinct = list(dict.fromkeys(names))
    place = {name: i for i, name in enumerate(distinct)}
    features = _plain_features(clip, distinct, template)
    return features[torch.tensor([place[name] for name in names], device=features.device)]


def name_groups(clip: LoadedClip, names: Sequence[str], template: str) -> Tensor:
    """Number the class names so that those which a hand-written template makes the same text of share a number.

    No features are computed. The numbers rise in the order of first appearance.

    Args:
        clip: any open_clip model.
        names: C class names.
        template: text with one `{}` for the name.

    Returns:
        [C] int64 on the CPU.

    Raises:
        UsageError: as `template_features`.
    """
    before, after = require_template(template)
    tower = _exact_tower(clip, before)
    if tower is not None:
        return tower.tokenise(names, after, len(tower.embed_words(before.strip()))).inverse
    first: dict[bytes, int] = {}
    numbers = []
    for start in range(0, len(names), CHUNK):
        texts, tokens = _plain_tokens(clip, names[start : start + CHUNK], template)
        require_uncut(clip.tokenizer, texts, tokens)
        numbers += [first.setdefault(row.numpy().tobytes(), len(first)) for row in tokens]
    return torch.tensor(numbers)


def _exact_tower(clip: LoadedClip, before: str) -> TextTower | None:
    """The text tower for words before a name; None where open_clip's own way, right for every model, has to do."""
    if not (before.strip() and before.endswith(" ")):
        return None
    try:
        tower = TextTower.from_clip(clip.model, clip.tokenizer)
    except UnsupportedModelError:
        return None
    return tower if tower.finds_words(before) else None


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


def distinct_rows(inverse_C: Tensor) -> tuple[Tensor, Tensor]:
    """The first row of each number that `equal_rows` gave, and how many rows have the number, both [U] int64."""
    count = int(inverse_C.max()) + 1
    first = torch.full((count,), len(inverse_C), device=inverse_C.device)
    rows = torch.arange(len(inverse_C), device=inverse_C.device)
    return first.scatter_reduce(0, inverse_C, rows, "amin"), torch.bincount(inverse_C, minlength=count)


def _tower_features(tower: TextTower, names: Sequence[str], before: str, after: str) -> Tensor:
    prompts = SlotPrompts(context=tower.embed_words(before.strip()))
    return prompted_features(tower, prompts, tower.tokenise(names, suffix=after))


@torch.no_grad()  # not inference_mode: a classifier may become part of somebody's trained model
def prompted_features(tower: TextTower, prompts: SlotPrompts, names: NameTokens) -> Tensor:
    """Unit text features of all names with the given prompts, [N, E], computed in pieces where the tower is."""
    here = prompts.apply(lambda x: x.to(tower.device))
    parts = [tower.features(here, names, chunk) for chunk in torch.split(torch.arange(names.count), CHUNK)]
    return names.expand(torch.cat(parts))


def require_uncut(tokenizer: Any, texts: Sequence[str], tokens: Tensor) -> None:
    """Refuse texts that a tokenizer has cut in silence: names that differ at the end would be one.

    Whatever the tokenizer is, with twice the room an uncut text has as much more padding, and nothing else.

    Args:
        tokenizer: one of open_clip's, or another that takes `context_length`.
        texts: N texts.
        tokens: [N, L] what the tokenizer made of them.

    Raises:
        UsageError: a text was cut.
    """
    room = tokens.shape[1]
    padding = Counter(tokenizer([""])[0].tolist()).most_common(1)[0][0]
    for text, row, wide in zip(texts, tokens, tokenizer(list(texts), context_length=2 * room), strict=True):
        further = Counter(wide.tolist()) - Counter(row.tolist())
        lost = sum(further.values()) - further[padding]
        if lost:
            raise UsageError(
                f"{text!r} takes at least {room + lost} tokens, the text tower has room for {room}: it would be cut",
                hint="shorten the name or the template",
            )


def _plain_features(clip: LoadedClip, names: Sequence[str], template: str) -> Tensor:
    parts = []
    for start in range(0, len(names), CHUNK):
        texts, tokens = _plain_tokens(clip, names[start : start + CHUNK], template)
        require_uncut(clip.tokenizer, texts, tokens)
        parts.append(clip.model.encode_text(tokens.to(clip.device)).float())  # type: ignore[operator]
    return nn.functional.normalize(torch.cat(parts), dim=-1)


def _plain_tokens(clip: LoadedClip, names: Sequence[str], template: str) -> tuple[list[str], Tensor]:
    """The texts of names in a template, and what the model's own tokenizer makes of them."""
    texts = [template.replace("{}", name) for name in names]
    tokens: Tensor = clip.tokenizer(texts)
    return texts, tokens


class PromptsAtWork:
    """Saved prompts in their student, which is loaded when features are first asked for.

    Args:
        prompts: as they were read.
    """

    def __init__(self, prompts: LoadedPrompts) -> None:
        self._prompts = prompts

    def class_features(self, names: Sequence[str]) -> Tensor:
        """Vectors of class names, [C, E] float32 or more; see `LoadedPrompts.classifier` and `scoring_classes`."""
        listed = _require_names(names)
        features, head = self._text_features(listed), self._prompts.head
        if head is None:
            return features
        known, groups = self._known(listed)
        first = distinct_rows(groups)[0]  # names that are equal stay equal to the last bit
        with torch.no_grad(), exact_products():
            there = known[first].to(features.device)
            vectors = head.to(features.device).scoring_classes(features[first], there, self._student.logit_scale)
        return vectors[groups.to(features.device)]

    def unit_features(self, names: Sequence[str]) -> Tensor:
        """Unit vectors of class names, [C, E] float32; see `LoadedPrompts.classifier`."""
        features, meta = self.class_features(names), self._prompts.meta.head
        if meta is None or not meta.handicap:
            return features
        unit, offsets = features[:, : meta.width], features[:, meta.width]
        if bool((offsets != offsets[0]).any()):
            warnings.warn(
                f"names that were trained on compete with others: take {meta.handicap:g} nats from the logits of the "
                "first, or use logits() or scoring_classes(), which do",
                stacklevel=3,
            )
        return unit

    def logits(self, image_features: Tensor, names: Sequence[str]) -> Tensor:
        """Logits of unit image features among class names, [B, C]; see `LoadedPrompts.logits`."""
        classes = self.class_features(names)
        with torch.no_grad(), exact_products():
            images = self._prompts.scoring_images(image_features.float().to(classes.device))
            return self._student.logit_scale * images @ classes.T

    def _known(self, names: list[str]) -> tuple[Tensor, Tensor]:
        """Each name's row among those that the head knows, or -1, and numbers that equal names share, both [C]."""
        meta = self._prompts.meta
        theirs = meta.head.names if meta.head is not None else ()
        numbers = name_groups(self._student, [*theirs, *names], meta.template)
        rows = torch.full((int(numbers.max()) + 1,), -1)
        rows[numbers[: len(theirs)]] = torch.arange(len(theirs))
        asked = numbers[len(theirs) :]
        if meta.head is not None and meta.head.kind in OF_STORE:
            _require_in_store([name for name, row in zip(names, rows[asked].tolist(), strict=True) if row < 0])
        return rows[asked], torch.unique(asked, return_inverse=True)[1]

    def _text_features(self, listed: list[str]) -> Tensor:
        prompts, meta = self._prompts.text, self._prompts.meta
        if prompts is None:
            # A copy: a tensor made under inference_mode cannot become part of somebody's trained model.
            return template_features(self._student, listed, meta.template).clone()
        tower = self._text_tower
        return prompted_features(tower, prompts, tower.tokenise(listed, meta.suffix, prompts.slots, meta.position))

    @torch.no_grad()
    def image_features(self, pixels: Tensor) -> Tensor:
        """Unit image features of prepared images, [B, E] float32; see `LoadedPrompts.image_features`."""
        if self._prompts.image is None:
            return self._student.encode_images(pixels)
        tower = ImageTower.from_clip(self._student.model)
        return tower.features(self._prompts.image.apply(lambda x: x.to(tower.device)), pixels.to(tower.device))

    @cached_property
    def _student(self) -> LoadedClip:
        if self._prompts.student is not None:
            return self._prompts.student
        try:
            loaded = self._prompts.bound_to(clip_models.load_clip(self._prompts.model)).student
        except (UsageError, EnvironmentFault) as problem:
            problem.hint = f"say where the student is: load_prompts(..., model='local-dir:PATH'); {problem.hint}"
            raise
        if loaded is None:
            raise TeachOnceError("no student was loaded")
        return loaded

    @cached_property
    def _text_tower(self) -> TextTower:
        return TextTower.from_clip(self._student.model, self._student.tokenizer)


def _require_in_store(missing: list[str]) -> None:
    """Refuse names of which a head in the teacher's space has no class vector.

    Raises:
        FingerprintError: there are such names.
    """
    if missing:
        more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
        raise FingerprintError(
            f"the head of these prompts holds the teacher's class vectors of its store's names, and not those of "
            f"{', '.join(map(repr, missing[:3]))}{more}: new names need the teacher",
            hint="relabel the store to a vocabulary that has them, and train the head again",
        )


def _require_names(names: object) -> list[str]:
    """Class names as a list.

    Raises:
        UsageError: one text, which would count as its letters; nothing to go through; no name; a name that is no text
            or blank.
    """
    hint = 'classifier(["tench", "great white shark"])'
    if isinstance(names, (str, bytes)):
        raise UsageError(
            f"classifier takes a list of class names, found one {type(names).__name__} {names!r}",
            hint=f"classifier([{names!r}])" if isinstance(names, str) else hint,
        )
    if not isinstance(names, Iterable):
        raise UsageError(f"classifier takes a list of class names, found {type(names).__name__}", hint=hint)
    listed = list(names)
    if not listed:
        raise UsageError("classifier takes at least one class name, found none", hint=hint)
    for index, name in enumerate(listed):
        if not isinstance(name, str):
            raise UsageError(f"class name {index} is no text: found {type(name).__name__} {name!r}", hint=hint)
        if not is_visible(name.strip()):
            raise UsageError(f"class name {index} is blank or invisible: {name!r}", hint=hint)
    return listed


def probabilities(images_NE: Tensor, classes_CE: Tensor, logit_scale: float) -> Tensor:
    """What a CLIP makes of unit image features among unit class features: softmax(scale * cosine), [N, C] float64."""
    logits = logit_scale * images_NE.double() @ classes_CE.double().cpu().T
    return logits.softmax(dim=1)


@dataclass(frozen=True)
class Scores:
    """Per-image outcome; ties share the credit, so an entry is a probability."""

    top1: npt.NDArray[np.float64]  # [N]
    top5: npt.NDArray[np.float64]  # [N]
    predicted: npt.NDArray[np.int64]  # [N], the lowest class index among the best


@torch.inference_mode()
def score(images_NE: Tensor, classes_CE: Tensor, labels_N: Tensor, inverse_C: Tensor) -> Scores:
    """Compare every image with every class, on the device of the image features.

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
    device = images_NE.device
    first, size = (part.to(device) for part in distinct_rows(inverse_C))
    names, inverse, of_images = classes_CE.to(device)[first], inverse_C.to(device), labels_N.to(device)
    higher, ties, predicted = [], [], []
    for images, labels in zip(torch.split(images_NE, 1024), torch.split(of_images, 1024), strict=True):
        with exact_products():
            logits = images.float() @ names.T  # [B, names]
        label_names = inverse[labels]
        above = logits > logits.gather(1, label_names[:, None])
        higher.append(torch.where(above, size, 0).sum(1))  # classes that score higher than the label's name
        ties.append(size[label_names])
        predicted.append(first[logits.argmax(1)])
    before, shared = torch.cat(higher).cpu(), torch.cat(ties).cpu().double()
    top1 = torch.where(before == 0, 1 / shared, 0.0)
    top5 = ((5 - before) / shared).clamp(0.0, 1.0)
    return Scores(top1.numpy(), top5.numpy(), torch.cat(predicted).cpu().numpy())
