"""Prompts as an open_clip model: programs that know `encode_text` and `encode_image` only get the prompted classifier.

The model keeps its weights. A prompted text is slots and a class name, without a sentence. So `encode_text` takes
the tokens of bare names, refuses names in templates, or takes off the templates that the caller names.

Shapes: N texts, T positions, B images, E embedding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from teachonce.errors import TeachOnceError, UsageError
from teachonce.models.clip import load_clip
from teachonce.models.prompt_files import LoadedPrompts, load_prompts
from teachonce.towers.text_coder import TextCoder

_HOLE = re.compile(r"\{c?\}")  # open_clip writes {}, CLIP_benchmark {c}


def prompted_model(
    folder: str | Path, model: str | None = None, device: str = "cpu", templates: Sequence[str] | None = None
) -> tuple[PromptedClip, NameTokenizer, Any]:
    """A model, its tokenizer and its preprocessing, for programs that take open_clip's.

    A zero-shot classifier is made as usual: for each class tokenise the texts, `encode_text`, normalise, take the mean,
    normalise (CLIP_benchmark, `open_clip.build_zero_shot_classifier`). With the template `{c}` it is
    `load_prompts(folder).classifier(names)`, up to rounding.

    Args:
        folder: as in `load_prompts`.
        model: as in `load_prompts`.
        device: where the model runs.
        templates: what the other program puts around names, in its order, such as `a photo of a {c}.`: the tokenizer
            takes it off. None: texts are bare names, and what looks like a sentence is refused. `["{c}"]`: texts are
            bare names, whatever they look like.

    Raises:
        UsageError: a template without exactly one place for the name; a head that is neither class vectors nor image
            features; or as `load_prompts` raises it.
        FingerprintError: the student's weights are not the ones the prompts were trained on.
    """
    frames = None if templates is None else [_frame(template) for template in templates]
    prompts = load_prompts(folder, model)
    head = prompts.meta.head
    if head is not None and not (head.is_class_vectors or head.is_image_features):
        raise UsageError(
            f"the head '{head.kind}' of these prompts adds to logits: no features of texts and images stand for it",
            hint="load_prompts(...).logits(image_features, names) gives its logits",
        )
    prompts = prompts.bound_to(load_clip(prompts.model, device))
    adapted = PromptedClip(prompts, bare=frames is None)
    return adapted, NameTokenizer(adapted.tokenizer, frames or [("", "")]), adapted.preprocess


class PromptedClip(nn.Module):
    """A frozen CLIP whose `encode_text` puts the prompts before a name; all else is the model's own.

    Args:
        prompts: bound to their student.
        bare: refuse texts that look like a sentence around a name.
    """

    def __init__(self, prompts: LoadedPrompts, bare: bool = True) -> None:
        super().__init__()
        if prompts.student is None:
            raise TeachOnceError("these prompts have no student")
        self.clip = prompts.student.model
        self.prompts = prompts
        self.tokenizer = prompts.student.tokenizer
        self.preprocess = prompts.student.preprocess
        self._bare = bare
        self.eval()

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Unit text features of class names with the prompts, [N, E] float32: exactly `classifier`'s of these names.

        Args:
            text: [N, T] tokens of bare names, from this model's tokenizer or open_clip's own.
            normalize: for open_clip's sake: the features are of unit length in any case.

        Raises:
            UsageError: no name; one that is too long, or looks like a template's sentence.
        """
        names = [self._name(row) for row in text.tolist()]
        if self._bare:
            for name in names:
                self._require_bare(name)
        return self.prompts.scoring_classes(names)

    @torch.no_grad()
    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Image features, [B, E]: the model's own; of unit length with prompts or a head that change them."""
        head = self.prompts.meta.head
        if head is not None and head.is_image_features:
            return self.prompts.scoring_images(self.prompts.image_features(image))
        if self.prompts.image is not None:
            return self.prompts.image_features(image)
        features: Tensor = self.clip.encode_image(image, normalize=normalize)  # type: ignore[operator]
        return features

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """Unit image features, unit text features and the logit scale, as open_clip's models give them."""
        seen = None if image is None else self.encode_image(image, normalize=True)
        return seen, None if text is None else self.encode_text(text), self.logit_scale.exp()

    def __getattr__(self, name: str) -> Any:
        """What is not here is the model's: `visual`, `logit_scale`, ..."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("clip"), name)

    @cached_property
    def _coder(self) -> TextCoder:
        return TextCoder.of(self.tokenizer)

    def _name(self, row: list[int]) -> str:
        """The name in a row of tokens: what lies between start and end. Encoding the name must give these tokens."""
        coder = self._coder
        first, end = len(coder.start), coder.end[0]
        if tuple(row[:first]) != coder.start or end not in row[first:]:
            raise UsageError("a text must be tokens from the start token to the end token, as the tokenizer gives them")
        ids = row[first : row.index(end, first)]
        name = coder.decode(ids)
        if coder.encode([name]) != [ids]:
            raise UsageError(f"tokens that read {name!r} are not the tokenizer's own for it: they were cut or altered")
        return name

    def _require_bare(self, name: str) -> None:
        words = [*self.prompts.meta.context.lower().split(), ""]
        if name.endswith(".") or (len(words) > 1 and name.startswith(" ".join(words))):
            raise UsageError(
                f"{name!r} looks like a template with a name in it; the prompts stand where a template would, so that "
                "texts must be bare names",
                hint="set the template to {c}; or name the templates that come: prompted_model(..., templates=[...]); "
                'templates=["{c}"] takes every text for a name',
            )


class NameTokenizer:
    """A tokenizer for class names in templates: takes the templates off, and refuses what would be cut.

    Args:
        tokenizer: the model's own.
        frames: what stands before and behind the name in each template. Texts come as they do in CLIP_benchmark and
            open_clip: for each name all templates, in their order.
    """

    def __init__(self, tokenizer: Any, frames: Sequence[tuple[str, str]]) -> None:
        self.tokenizer = tokenizer
        self.frames = tuple(frames)

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Tokens of the bare names, [N, T] int64.

        Raises:
            UsageError: a text that is not of its template, or is too long.
        """
        lines = [texts] if isinstance(texts, str) else list(texts)
        names = [self._bare(line, *self.frames[i % len(self.frames)]) for i, line in enumerate(lines)]
        tokens: Tensor = self.tokenizer(names, context_length)
        around = len(self._coder.start) + len(self._coder.end)
        for name, ids, row in zip(names, self._coder.encode(names), tokens.tolist(), strict=True):
            if len(ids) + around > len(row):
                raise UsageError(f"{name!r} has more tokens than the text tower's {len(row)} positions hold")
        return tokens

    @cached_property
    def _coder(self) -> TextCoder:
        return TextCoder.of(self.tokenizer)

    def __getattr__(self, name: str) -> Any:
        """What is not here is the tokenizer's: `encode`, `decode`, `context_length`, ..."""
        return getattr(self.__dict__["tokenizer"], name)

    @staticmethod
    def _bare(text: str, before: str, after: str) -> str:
        inside = len(text) - len(before) - len(after)
        if inside < 1 or not text.startswith(before) or not text.endswith(after):
            raise UsageError(
                f"{text!r} is not of the template {before + '{c}' + after!r}",
                hint="give prompted_model all templates, in the order in which texts come",
            )
        return text[len(before) : len(before) + inside]


def _frame(template: str) -> tuple[str, str]:
    """What stands before and behind the name in a template."""
    holes = list(_HOLE.finditer(template))
    if len(holes) != 1:
        raise UsageError(f"the template {template!r} must hold exactly one {{}} or {{c}} for the class name")
    return template[: holes[0].start()], template[holes[0].end() :]
