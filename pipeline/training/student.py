"""The frozen student with its trainable prompts: class features, image features, and what the bare student says.

This module reads no store and takes no training step.

Shapes: V classes, E embedding, B images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from teachonce.core.streams import MASKED_DIMENSIONS
from teachonce.errors import UsageError
from teachonce.heads.heads import head_of
from teachonce.heads.kinds import CACHES, OF_CLASSES, OF_STORE, HeadMeta
from teachonce.heads.verbs import Head
from teachonce.models.classifier import (
    distinct_rows,
    ensemble_features,
    name_groups,
    prompted_features,
    template_features,
)
from teachonce.models.clip import LoadedClip, autocast, exact_products
from teachonce.models.coupled import coupled_learner
from teachonce.models.learner import STATE, Learner, SlotLearner, image_learner, text_learner
from teachonce.models.prompts import PromptMeta
from teachonce.recipe.config import CHUNK_OF_CPU, TrainConfig
from teachonce.rows.resident import free_bytes
from teachonce.towers.image_tower import ImageTower
from teachonce.towers.packing import to_device
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import written
from teachonce.towers.text_tower import TextTower
from teachonce.towers.tokens import NameTokens
from teachonce.training.photos import Photos
from teachonce.training.two_pass import names_that_fit

_SHARE_OF_MEMORY = 0.6  # of what is free: the backward pass and the allocator need some beside the graph
_COPIES_OF_LOGITS = 12  # of rows x classes, which losses and their gradients hold at once
_LARGEST_CACHE = 1 << 28  # photos times classes: a gigabyte of a float's marks
_MASKED = ("key", "value", STATE)  # parameters of which a step may leave dimensions at their start
SUFFIX = "."  # what follows a name, as in "a photo of a {}."


class PromptedStudent:
    """A CLIP whose towers are frozen, and the prompts that are trained on them.

    Args:
        config: which tower carries what.
        clip: the student.
        names: of the V classes.
        photos: what a head is told of the run's photos; without them it knows no class.

    Raises:
        UsageError: a name that is too long behind the slots, a depth that a tower does not have.
        UnsupportedModelError: a tower that cannot carry prompts.
    """

    def __init__(
        self,
        config: TrainConfig,
        clip: LoadedClip,
        names: Sequence[str],
        photos: Photos | None = None,
    ) -> None:
        self.config, self.clip, self._given = config, clip, tuple(names)
        self.text: TextTower | None = None  # a tower that carries no prompts need not be one that could
        self.image: ImageTower | None = None
        self.names: NameTokens | None = None
        self.learners = nn.ModuleDict()
        prompts = config.prompts
        if prompts.in_text:
            self.text = TextTower.from_clip(clip.model, clip.tokenizer)
            learner = text_learner(self.text, prompts, config.loop.seed)
            self.learners["text"] = learner
            self.names = self.text.tokenise(names, SUFFIX, learner.slots, prompts.position)
        if prompts.in_images:
            self.image = ImageTower.from_clip(clip.model)
            self._image_forward = _compiled(self.image) if config.loop.compile else self.image.features
            self.learners["image"] = self._image_learner(self.image)
        self.groups = self._name_groups()
        self.head: Head | None = None
        self.head_acts = not config.head_after
        if config.head.head != "none":
            self.head, self.known = self._made_head(photos)
            self.learners["head"] = self.head
        if any(parameter.device != clip.device for parameter in self.learners.parameters()):
            self.learners.to(clip.device)  # which refuses tensors without numbers, even where nothing moves

    def _made_head(self, photos: Photos | None) -> tuple[Head, Tensor]:
        """A head that is not trained yet, and of each class its row among those that the head knows, [V] or -1."""
        asked, width = self.config.head, _width(self.clip)
        rows: dict[int, int] = {}  # of a number of equal names: the class that stands for them
        for number in self._known_one_by_one(photos):
            rows.setdefault(int(self.groups[number]), number)
        self.standing_for = list(rows.values())
        place = torch.full((int(self.groups.max()) + 1,), -1)
        place[list(rows)] = torch.arange(len(rows))
        cached = photos.samples if photos is not None and asked.head in CACHES else 0
        _require_small(cached, len(rows))
        meta = HeadMeta(
            kind=asked.head,
            width=width,
            weight=asked.head_weight,
            handicap=asked.head_handicap if asked.head in ("linear", "projection+linear") else 0.0,
            names=tuple(self._given[number] for number in rows.values()),
            ids=tuple(photos.ids[number] for number in rows.values()) if photos is not None else (),
            cached=cached,
            alpha=asked.tip_alpha if asked.head in CACHES else 0.0,
            beta=asked.tip_beta if asked.head in CACHES else 0.0,
            hidden=(asked.adapter_width or width // 4) if asked.head == "clip-adapter" else 0,
            ratio=asked.adapter_ratio if asked.head == "clip-adapter" else 0.0,
            teacher_width=photos.teacher_width if photos is not None else 0,
            teacher_scale=photos.teacher_scale if photos is not None else 0.0,
        )
        head = head_of(meta)
        head.begin(self.config.loop.seed)
        return head, to_device(place[self.groups], self.clip.device)

    def _known_one_by_one(self, photos: Photos | None) -> Sequence[int]:
        """The classes that the head knows: those with photos, or all names of the store."""
        if photos is None:
            return ()
        if self.config.head.head in OF_STORE:
            return range(len(self._given))
        return photos.classes if self.config.head.head in OF_CLASSES else ()

    def _name_groups(self) -> Tensor:
        """Numbers of the classes, the same for those whose names are the same to the tokenizer, [V] int64."""
        if self.names is not None:
            return self.names.inverse
        return name_groups(self.clip, self._given, self._template)

    @property
    def _template(self) -> str:
        return written(self.config.prompts.context, SUFFIX)

    def _image_learner(self, image: ImageTower) -> Learner:
        """Image prompts of their own, or maps of the text prompts."""
        prompts, text, seed = self.config.prompts, self.learner("text"), self.config.loop.seed
        if prompts.coupled and isinstance(text, SlotLearner) and self.text is not None:
            return coupled_learner(image, self.text, prompts, text, seed)
        return image_learner(image, prompts, seed)

    def learner(self, tower: str) -> Learner | None:
        """The prompts of one tower, `text` or `image`; None if it has none."""
        learner = dict(self.learners.items()).get(tower)
        return learner if isinstance(learner, Learner) else None

    def prompts(self, tower: str) -> SlotPrompts | None:
        """The prompts of one tower as they are, in the autograd graph of its parameters; None if it has none."""
        learner = self.learner(tower)
        return None if learner is None else learner()

    def parameters(self, tower: str) -> list[nn.Parameter]:
        """What is trained on one tower, or of the `head`."""
        learner = dict(self.learners.items()).get(tower)
        return [] if learner is None else list(learner.parameters())

    @property
    def coupled(self) -> bool:
        """Whether image features depend on the text tower's prompts."""
        return self.config.prompts.coupled and self.image is not None and self.text is not None

    def behind_images(self) -> list[nn.Parameter]:
        """All that image features depend on: what is trained on the image tower, then what its prompts are made of."""
        return [*self.parameters("image"), *(self.parameters("text") if self.coupled else [])]

    def joined(self, text: list[Tensor], images: list[Tensor]) -> list[Tensor]:
        """The gradient of both towers' parameters, of that through class features and that through image features.

        Args:
            text: of `parameters("text")`.
            images: of `behind_images()`.
        """
        count = len(self.parameters("image"))
        through = images[count:]
        return [*([a + b for a, b in zip(text, through, strict=True)] if through else text), *images[:count]]

    def trainable_parameters(self) -> int:
        """The exact number of numbers that are trained."""
        return sum(p.numel() for p in self.learners.parameters() if p.requires_grad)

    @contextmanager
    def masked(self, step: int) -> Iterator[None]:
        """Leave a random share of the dimensions of key and value prompts at their start, for one step.

        So names MSP (IEEE TIP 34, 5978) its partial learning of key and value prompts; of the paper its abstract was at
        hand. Each block, letter and dimension is drawn by itself, alike for all slots. What stays counts 1 / (1 -
        share) times, as in dropout (arXiv 1207.0580), so that its mean over draws is what is evaluated.
        """
        share = self.config.optimiser.mask_dimensions
        if not share:
            yield
            return
        random = MASKED_DIMENSIONS.at(self.config.loop.seed, step)
        learners = [x for tower in ("text", "image") if isinstance(x := self.learner(tower), SlotLearner)]
        try:
            for learner in learners:
                learner.kept = {
                    name: to_device(_kept_dimensions(random, parameter.shape, share), self.clip.device)
                    for name, parameter in learner.named_parameters()
                    if name in _MASKED
                }
            yield
        finally:
            for learner in learners:
                learner.kept = {}

    def autocast(self) -> AbstractContextManager[None]:
        """The configured precision of the towers."""
        return autocast(self.clip.device, self.config.loop.precision)

    @cached_property
    def frozen_classes(self) -> Tensor:
        """Unit text features of all classes in the hand-written template, [V, E] float32."""
        with torch.no_grad(), self.autocast():
            return template_features(self.clip, self._given, self._template).clone()

    @cached_property
    def bare_classes(self) -> Tensor:
        """What the regularisers hold prompts near: the template's features, or their mean over `bare_templates`."""
        templates = self.config.loss.bare_sentences
        if not templates:
            return self.frozen_classes
        with torch.no_grad(), self.autocast():
            return ensemble_features(self.clip, self._given, templates).clone()

    @property
    def acting_head(self) -> Head | None:
        """The head, where it is part of what the student is by now: one behind the prompts comes when they are done."""
        return self.head if self.head_acts else None

    @torch.no_grad()
    def class_features(self) -> Tensor:
        """Vectors of all classes with prompts and head as they are, [V, S] float32, S >= E.

        Their products with `compared` image features are what a softmax at the model's scale is over.
        """
        features = self.text_features()
        head = self.acting_head
        if head is None:
            return features
        first = distinct_rows(self.groups)[0].to(features.device)  # names that are equal stay equal to the last bit
        with exact_products():
            vectors = head.scoring_classes(features[first], self.known[first], self.clip.logit_scale)
        return vectors[self.groups.to(features.device)]

    @torch.no_grad()
    def compared(self, images_BE: Tensor) -> Tensor:
        """Unit image features as they are compared with `class_features`, [B, S]: behind the head, where one acts."""
        head = self.acting_head
        if head is None:
            return images_BE
        with exact_products():
            return head.scoring_images(images_BE)

    @torch.no_grad()
    def text_features(self) -> Tensor:
        """Unit text features of all classes with the prompts as they are and without a head, [V, E] float32."""
        prompts = self.prompts("text")
        if prompts is None or self.text is None or self.names is None:
            return self.frozen_classes
        with self.autocast():
            return prompted_features(self.text, prompts, self.names)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Unit image features with the image prompts, [B, E] float32, differentiable in them."""
        learner = self.learner("image")
        if learner is None or self.image is None:
            return self.clip.encode_images(pixels, self.config.loop.precision)
        with self.autocast():
            return self._image_forward(learner(), pixels.to(self.clip.device, non_blocking=True))

    def class_chunk(self, rows: int) -> int:
        """Names whose text features are computed with gradient at once: of the config, or as many as fit.

        Args:
            rows: whose logits are in memory at once.
        """
        learner, device = self.learner("text"), self.clip.device
        given = self.config.loop.class_chunk
        if isinstance(given, int):
            return given
        if device.type != "cuda" or self.text is None or self.names is None or learner is None:
            return CHUNK_OF_CPU
        tower, names = self.text, self.names

        def features(chunk: Tensor) -> Tensor:
            with self.autocast():
                return tower.features(learner(), names, chunk)

        logits = _COPIES_OF_LOGITS * 4 * rows * len(self._given)
        return names_that_fit(features, names.lengths, int(_SHARE_OF_MEMORY * free_bytes(device)) - logits)

    @torch.no_grad()
    def is_sound(self) -> bool:
        """Whether the prompts as they are make numbers: the features of one name and of one grey image are finite."""
        text, image, all_features = self.learner("text"), self.learner("image"), []
        with self.autocast():
            if text is not None and self.text is not None and self.names is not None:
                all_features.append(self.text.features(text(), self.names, torch.tensor([0])))
            if image is not None and self.image is not None:
                grey = torch.zeros(1, 3, *self.image.image_size, device=self.clip.device)
                all_features.append(self.image.features(image(), grey))
        return all(bool(features.isfinite().all()) for features in all_features)

    def meta(self) -> PromptMeta:
        """What the prompts are and what they belong to."""
        text, image = self.prompts("text"), self.prompts("image")
        head = None if self.acting_head is None else self.acting_head.meta
        return PromptMeta.of(self.config.prompts, self.clip, SUFFIX, self.text, text, self.image, image, head)


def _width(clip: LoadedClip) -> int:
    """E, of the joint embedding, found by encoding a text: estimates of memory have no numbers to prepare images by."""
    with torch.no_grad():
        encoded: Tensor = clip.model.encode_text(clip.tokenizer(["a"]).to(clip.device))  # type: ignore[operator]
        return int(encoded.shape[1])


def _require_small(cached: int, classes: int) -> None:
    """Refuse a cache that is compared with every image at a cost that its use does not pay."""
    if cached * classes > _LARGEST_CACHE:
        raise UsageError(
            f"a cache of {cached} photos of {classes} classes is too large for a tip-adapter: a step compares each row "
            "with all of them",
            hint="select fewer shots a class, or set head = 'linear'",
        )


def _compiled(tower: ImageTower) -> Callable[[SlotPrompts, Tensor], Tensor]:
    """The image tower's `features` under torch.compile.

    Not the text tower's: its shapes follow the names of each step, and every new one would be compiled.
    """
    forward = torch.compile(tower.features)

    def quiet(prompts: SlotPrompts, pixels: Tensor) -> Tensor:
        # While it traces, torch.compile looks at the gradient of each prompt; a computed prompt has none.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            features: Tensor = forward(prompts, pixels)
            return features

    return quiet


def _kept_dimensions(random: np.random.Generator, shape: torch.Size, share: float) -> Tensor:
    """What dimensions count, alike for all slots of a block: 0 or 1 / (1 - share), [n, 1, D] float32 on the CPU."""
    kept = random.random((shape[0], 1, shape[2])) >= share
    return torch.from_numpy(kept.astype(np.float32) / (1 - share))
