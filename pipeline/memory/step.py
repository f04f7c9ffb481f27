"""The most GPU memory that a training step needs, counted on fake tensors.

The step is the trainer's own, on the rows of the run's first step. Of the names' chunks only the one with the most
tokens runs through the tower, because all others need less.

Shapes: B rows, H and W the student's input, V classes, E embedding.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from teachonce.heads.verbs import Head
from teachonce.memory.tally import LiveBytes, as_on_a_gpu
from teachonce.models.clip import LoadedClip
from teachonce.recipe.config import TrainConfig
from teachonce.rows.images import ViewImages
from teachonce.rows.resident import StepRows
from teachonce.rows.working_set import WorkingSet
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.text_tower import TextTower
from teachonce.towers.tokens import NameTokens
from teachonce.training.photos import Photos
from teachonce.training.trainer import Trainer, _StepNames

FEWEST = 64
"""Names of the smallest chunk that is advised."""
FEWEST_ROWS = 8
HELPS = 0.9
"""A key helps if with it at most this share is needed."""


@dataclass(frozen=True, kw_only=True)
class StepNeed:
    """What a step needs of a GPU."""

    peak: int
    """Bytes that are alive at once, at most."""
    weights: int
    """Those of the model."""
    names: int
    """Distinct names of the step's candidates; 0 where no text prompts need features."""
    chunk: int
    """How many of them have a graph at once."""
    rows: int
    """Rows of the step whose logits are there at once."""
    steps: int
    """Of the run."""
    parameters: int
    """Numbers that are trained."""


def step_need(config: TrainConfig, clip: LoadedClip, rows: WorkingSet, gpu: bool = True) -> StepNeed:
    """Run one step on fake tensors.

    Args:
        config: of the run; `class_chunk = "auto"` means all names at once, which it becomes where they fit.
        clip: the student, on the CPU.
        rows: the working set.
        gpu: whether names are laid out as on a GPU; else as on a CPU.

    Raises:
        UsageError, DataError, UnsupportedModelError: as `Trainer`.
    """
    chunk = config.loop.class_chunk
    changes: dict[str, Any] = {"compile": False, "class_chunk": chunk if chunk != "auto" else len(rows.vocabulary)}
    if config.candidates.candidates == "all-sampled":  # which chooses names by numbers, and needs no more for them
        changes["candidates"] = "all"
    changed = config.changed(**changes)
    tally, shape = LiveBytes(), clip.prepare(Image.new("RGB", (64, 64))).shape if config.prompts.in_images else ()
    images = _NoImages(tally, tuple(shape)) if config.prompts.in_images else None
    with as_on_a_gpu() if gpu else contextlib.nullcontext():
        fake = tally.fake_model(clip)
        weights = tally.live
        with tally:
            trainer = _FakeTrainer(changed, fake, rows, cast("ViewImages | None", images), tally)
            tally.peak = tally.live  # what setting up takes for a moment is less, but for very small models
            if trainer.steps:
                trainer.step(trainer.first_complete_step)
    size = changed.loop.micro_batch or changed.loop.batch_size
    return StepNeed(
        peak=tally.peak,
        weights=weights,
        names=trainer.distinct,
        chunk=trainer.largest,
        rows=min(size, trainer.rows_of),
        steps=trainer.steps,
        parameters=trainer.student.trainable_parameters(),
    )


@dataclass(frozen=True, kw_only=True)
class Smaller:
    """A key of the configuration with which a step needs less, and results stay what they are."""

    key: str
    value: int
    peak: int
    """As `StepNeed.peak`."""


def smaller_needs(config: TrainConfig, clip: LoadedClip, rows: WorkingSet, need: StepNeed) -> list[Smaller]:
    """What helps where memory is short: a quarter of the names, or of the rows, at a time.

    Args:
        config, clip, rows: of `step_need`.
        need: its answer.

    Returns:
        The keys with which at least a tenth less is needed, the largest help first.
    """
    ways = []
    if need.names and need.chunk > FEWEST:
        ways.append(("class_chunk", max(FEWEST, _power_of_two(need.chunk // 4))))
    if need.rows > FEWEST_ROWS:
        ways.append(("micro_batch", max(FEWEST_ROWS, _power_of_two(need.rows // 4))))
    needs = [
        Smaller(key=key, value=value, peak=step_need(config.changed(**{key: value}), clip, rows).peak)
        for key, value in ways
    ]
    return sorted((way for way in needs if way.peak <= HELPS * need.peak), key=lambda way: way.peak)


def _power_of_two(number: int) -> int:
    """The largest that is no larger."""
    return 1 << max(0, number.bit_length() - 1)


class _NoImages:
    """Pixels without numbers, in the place of `ViewImages`."""

    def __init__(self, tally: LiveBytes, shape: tuple[int, ...]) -> None:
        self._tally, self._shape = tally, shape

    def pixels(self, rows: Any) -> Tensor:
        """[B, 3, H, W] float32."""
        return self._tally.empty(len(rows), *self._shape, like_images=True)

    def prefetch(self, rows: Any) -> None:
        """Nothing is read."""


class _LargestChunk:
    """A text tower that runs one chunk of names; features of all others depend on the prompts, and cost nothing."""

    def __init__(self, tower: TextTower, chunk: Tensor, width: int) -> None:
        self._tower, self._chunk, self._width = tower, chunk, width

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self._tower.device

    def features(self, prompts: SlotPrompts, names: NameTokens, chunk: Tensor | None = None) -> Tensor:
        """[C, E]."""
        if chunk is None or chunk is self._chunk:
            return self._tower.features(prompts, names, chunk)
        some = next(iter(prompts.tensors().values()))
        return some.flatten()[:1].float().expand(len(chunk), self._width)


class _FakeTrainer(Trainer):
    """A run on fake tensors whose class features are not computed where they are the same in every step."""

    def __init__(
        self, config: TrainConfig, clip: LoadedClip, rows: WorkingSet, images: ViewImages | None, tally: LiveBytes
    ) -> None:
        self._tally = tally
        self.distinct = self.largest = self.rows_of = 0
        super().__init__(config, clip, rows, images)

    def _frozen(self) -> Tensor | None:
        with torch.no_grad():
            width = self.student.clip.model.encode_text(self.student.clip.tokenizer(["a"])).shape[1]  # type: ignore[operator]
        self._width = int(width)
        if self.student.text is None or self.config.loss.uses_frozen or self.config.anchors:
            empty = self._tally.empty(len(self.rows.vocabulary), self._width)
            self.student.__dict__.update(frozen_classes=empty, bare_classes=empty)
        return super()._frozen()

    def _fill(self, head: Head, photos: Photos) -> None:
        """A cache, and the teacher's class vectors, count as they are: what they hold costs nothing more."""

    def _step(self, rows: StepRows, step: int) -> _StepNames:
        drawn, tower = super()._step(rows, step), self.student.text
        self.rows_of = len(rows.label)
        if drawn.plan is not None and tower is not None and self.student.names is not None:
            lengths = self.student.names.lengths
            chunk = max(drawn.plan.chunks, key=lambda names: int(lengths[names].sum()))
            self.distinct, self.largest = len(drawn.plan.names), len(chunk)
            self.student.text = cast(TextTower, _LargestChunk(tower, chunk, self._width))
        return drawn
