"""One training step of prompts from stored rows: batch, candidates, losses, exact gradient, update.

The trainer reads no store and writes no file; a step is a pure function of (config, rows, step) and of its state.

Shapes: B rows of a step, K candidates, n distinct names among them, V classes, E embedding.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from teachonce.errors import DataError, UsageError
from teachonce.heads.verbs import Head
from teachonce.losses.candidates import Candidates, all_candidates, sampled_candidates, teacher_candidates
from teachonce.losses.regularisers import project
from teachonce.models.clip import LoadedClip, exact_products
from teachonce.recipe.config import TrainConfig
from teachonce.recipe.requirements import requirements
from teachonce.rows.images import ViewImages
from teachonce.rows.order import TrainingOrder
from teachonce.rows.resident import RowSource, StepRows, Wanted, source_of
from teachonce.rows.working_set import WorkingSet
from teachonce.training.learned import Learned
from teachonce.training.noise import StepNoise
from teachonce.training.objective import Counts, Judge, Objective, StepClasses, StepReport, Teacher, block_of
from teachonce.training.photos import Photos
from teachonce.training.schedule import soft_weight, warmup_steps
from teachonce.training.student import PromptedStudent
from teachonce.training.two_pass import (
    FixedPass,
    NamePlan,
    PoissonSample,
    TextPass,
    add_gradients,
    gradients_of,
    pulled_back,
)


@dataclass(eq=False)
class _Gradients:
    """What the blocks of a step add up to; one entry a direction (see `Objective.directions`)."""

    losses: dict[str, Tensor]
    features: list[list[Tensor]]  # one [n, E], of the distinct names
    images: list[list[Tensor]]  # of the image tower's parameters
    head: list[list[Tensor]]  # of the head's


@dataclass(frozen=True, eq=False)
class _StepNames:
    """The candidates of a step and what is made of them."""

    candidates: Candidates
    classes: StepClasses
    plan: NamePlan | None  # None where no text prompts need features


class Trainer:
    """The state of a run: prompts, optimiser, average.

    Args:
        config: what to do.
        clip: the student.
        rows: the working set, with the student's features unless they are computed anew.
        images: the rows' images, for prompts in the image tower.

    Raises:
        UsageError: a name that is too long for the context, a depth that a tower does not have, no sample to train on.
        UnsupportedModelError: a tower that cannot carry prompts.
    """

    def __init__(
        self, config: TrainConfig, clip: LoadedClip, rows: WorkingSet, images: ViewImages | None = None
    ) -> None:
        self.config, self.rows, self.images = config, rows, images
        self.needs = requirements(config)
        numbers = rows.records["row"].astype(np.int64)
        self.order = TrainingOrder(
            numbers,
            rows.store.layout.views,
            config.loop.batch_size,
            config.loop.views_per_step,
            config.loop.seed,
            config.loop.held_out,
        )
        self.photos = Photos.of(rows, self.order, config.head.head) if config.head.head != "none" else None
        self.student = PromptedStudent(config, clip, rows.vocabulary.names, self.photos)
        steps = math.ceil(config.loop.epochs * self.order.steps_per_epoch) or config.loop.steps
        if steps == 1 and config.loss.soft_schedule != "constant":
            raise UsageError(
                f"soft_schedule = '{config.loss.soft_schedule}' needs more than the one step of this run",
                hint="raise steps or epochs, or set soft_schedule = 'constant'",
            )
        self.warmup = warmup_steps(config, self.order.steps_per_epoch)
        if config.optimiser.warmup == "constant" and self.warmup >= steps:
            raise UsageError(
                f"warmup_steps = {self.warmup}: all {steps} steps of the run would be at the warm-up's rate",
                hint=f"an epoch has {self.order.steps_per_epoch} steps",
            )
        self.learners = self.student.learners
        self.learned = Learned(config, self.student, steps)
        self.steps, self.optimizer = self.learned.steps, self.learned.optimizer
        self._every: _StepNames | None = None
        self._settled: Tensor | None = None
        if config.loop.held_out and not (rows.label_column[self.order.held_out] >= 0).any():
            raise DataError(
                "no held-out sample has a class of the vocabulary: there is nothing to measure",
                hint="set held_out to a larger share, or to 0",
            )
        self.objective = Objective(config, clip.logit_scale, self._teacher(), self._frozen(), self._seen())
        if not config.head_after:
            self._enter_head()

    @cached_property
    def source(self) -> RowSource:
        """Where steps get their rows."""
        taken = self.steps * self.config.loop.batch_size * self.config.loop.views_per_step
        wanted = Wanted(
            features=self.needs.features,
            soft=self.needs.soft_classes > 0,
            temperature=self._temperature,
            embedding=self.needs.embeddings,
            best=self.config.candidates.sampled_top if self.config.candidates.candidates == "sampled" else 0,
            best_probs=self.config.candidates.candidates == "teacher",
        )
        return source_of(self.rows, wanted, self.device, taken)

    @cached_property
    def class_chunk(self) -> int:
        """Names whose text features are computed with gradient at once."""
        _ = self.source  # rows that stay on the GPU take their memory first
        return self.student.class_chunk(self.config.loop.micro_batch or self.config.loop.batch_size)

    def step(self, step: int) -> dict[str, float]:
        """Do one step and wait for it.

        Args:
            step: from 0; decides the batch, the candidates and the learning rate.

        Returns:
            The losses in nats, the norm of the gradient before it is clipped, the learning rate, the number of
            candidates and how many of them are there for certain.

        Raises:
            UsageError: the loss or a gradient is NaN or infinite. On the CPU nothing was updated; on a GPU the update
                has been made, and the run must end.
        """
        return self.begin(step).read()

    def begin(self, step: int) -> StepReport:
        """Do one step; on a GPU it is only queued, and its report tells what `step` returns and raises."""
        alone = self.learned.alone(step)
        if alone:
            self._enter_head()
        rows = self._rows_of(step)
        drawn = self._step(rows, step)
        number, steps = self.learned.within(step)
        weights = self.objective.weights(soft_weight(self.config, steps, number))
        with nullcontext() if alone else self.student.masked(step):
            text = self._text_pass(drawn, step)
            gradients = self._gradients(step, rows, text, drawn.classes, weights)
            gradient = self._combined(text, gradients, step)
        named = self.learned.moving(step)
        norm = torch.stack([part.double().square().sum() for part in gradient]).sum().sqrt()
        rates = self.learned.rates(step, self.warmup)
        chosen, late = drawn.candidates, self.device.type == "cuda"
        judge = Judge(
            step=step,
            weights=weights,
            losses=tuple(gradients.losses),
            gradients=dict(zip(named, gradient, strict=True)),
            rows=rows.row[:8].tolist(),
            told={
                "learning_rate": rates[-1 if alone else 0],
                "candidates": len(chosen.classes),
                "forced": chosen.forced,
            },
            wanted=self._wanted(step, weights, rows),
            updated=late,
        )
        report = StepReport([norm, *(loss.double() for loss in gradients.losses.values())], judge)
        if not late:
            report.read()  # costs nothing here, and what is wrong is refused before anything is updated
        most = self.config.optimiser.clip_gradient
        if most > 0:
            factor = torch.where(norm > most, most / norm, 1.0)
            gradient = [part * factor for part in gradient]
        self.learned.update(step, gradient, rates)
        return report

    def _rows_of(self, step: int) -> StepRows:
        rows = self.source.take(self.order.at(step)[1])
        if step + 1 < self.steps:
            self.source.prefetch(lambda: self.order.at(step + 1)[1])
        return rows

    @property
    def first_complete_step(self) -> int:
        """The first step in which every loss counts: a soft weight that rises is 0 in step 0."""
        return int(self.needs.teacher and self.config.loss.soft_schedule == "rise")

    def _wanted(self, step: int, weights: dict[str, float], rows: StepRows) -> str | None:
        """Why a gradient of zero is an error in a step; None where it is none.

        It is looked for in the first step in which every loss counts. With hard labels alone, a batch may by chance
        have no label.
        """
        soft = self.needs.teacher and weights["soft"] > 0
        first = self.first_complete_step
        if step != first or not (soft or bool((rows.label >= 0).any())):
            return None
        values = self.config.to_dict()
        said = ", ".join(f"{key} = {values[key]!r}" for key in ("supervision", "targets", "tail", "candidates"))
        return f"{said} and {len(self.rows.vocabulary)} classes"

    def stand_after(self, steps: int) -> None:
        """Be what the run is after so many steps, for what is measured and kept then."""
        if self.learned.head_acts_after(steps):
            self._enter_head()

    def _enter_head(self) -> None:
        """Let the head take part; where it moves alone, it finds the prompts as they will stay."""
        head = self.student.head
        if head is None or self.objective.head is not None:
            return
        if self.config.head_after:
            self.learned.settle()
        if self.photos is not None:
            self._fill(head, self.photos)
        self.objective.head, self.objective.known, self.student.head_acts = head, self.student.known, True

    def _fill(self, head: Head, photos: Photos) -> None:
        student = self.student
        photos.fill(head, self.rows, student.known, student.standing_for, self.source.take, self.image_features)

    def result(self) -> AbstractContextManager[PromptedStudent]:
        """The student with the parameters that are the result: averaged ones where the config says so."""
        return self.learned.result()

    def require_sound(self, steps: int) -> None:
        """Refuse parameters from which a tower makes no numbers; as `Learned.require_sound`."""
        self.learned.require_sound(steps)

    def warnings(self) -> list[str]:
        """What a user should know although it is no error: one sentence each."""
        config = self.config
        if not config.learns:
            return [f"head = '{config.head.head}' alone trains nothing: the run takes no step"]
        if config.optimiser.warmup == "linear" and self.warmup > self.steps:
            return [
                f"the learning rate rises for {self.warmup} steps and this run has {self.steps}: "
                f"it never reaches {config.optimiser.learning_rate:g}"
            ]
        return []

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return self.student.clip.device

    def image_features(self, rows: StepRows, part: slice = slice(None)) -> Tensor:
        """Unit image features of some rows, [B, E] float32; differentiable where the image tower carries prompts."""
        if self.images is not None:
            return self.student.image_features(self.images.pixels(rows.row[part]))
        if rows.columns.features is None:
            raise DataError("this working set was opened without a student: there are no image features to train on")
        return rows.columns.features[part].float()

    def _gradients(
        self, step: int, rows: StepRows, text: TextPass | FixedPass, classes: StepClasses, weights: dict[str, float]
    ) -> _Gradients:
        """Losses and their gradients on the class features and on the image prompts, block by block."""
        total, on_images = len(rows.label), self.student.behind_images()
        on_head = self.student.parameters("head") if self.objective.head is not None else []
        counts = Counts(total, int((rows.label >= 0).sum()))
        noise = StepNoise.drawn(self.config.loss, self.config.loop.seed, step, total, text.features)
        gradients = _Gradients({}, [], [], [])
        for start in range(0, total, self._block_size(total)):
            part = slice(start, min(start + self._block_size(total), total))
            with torch.set_grad_enabled(not self.learned.alone(step)):
                images = self._block_images(step, rows, part)
            leaf = images.detach().requires_grad_(images.requires_grad)
            block = block_of(rows.columns, part, self.config)
            with exact_products():
                features, seen = text.features[text.place], noise.on_images(leaf, part)
                losses = self.objective.rows(noise.on_names(features, classes.groups), seen, block, classes, counts)
                if start == 0:
                    losses |= self.objective.once(features, classes)
                inputs = [text.features, leaf, *on_head]
                parts = [gradients_of(loss, inputs) for loss in self.objective.directions(losses, weights)]
            add_gradients(gradients.features, [[part[0]] for part in parts])
            add_gradients(gradients.head, [part[2:] for part in parts])
            if images.requires_grad:
                last = len(parts) - 1
                pulled = [pulled_back(images, on_images, part[1], keep=i < last) for i, part in enumerate(parts)]
                add_gradients(gradients.images, pulled)
            for name, value in losses.items():
                gradients.losses[name] = value.detach() + gradients.losses.get(name, torch.zeros_like(value))
        return gradients

    def _block_size(self, rows: int) -> int:
        """How many rows are in memory at once."""
        return self.config.loop.micro_batch or rows

    def _block_images(self, step: int, rows: StepRows, part: slice) -> Tensor:
        """Image features of some rows of a step, [B, E]; the images of the rows after them are read meanwhile."""
        if self.images is None:
            return self.image_features(rows, part)
        pixels = self.images.pixels(rows.row[part])
        ahead = rows.row[part.stop : part.stop + self._block_size(len(rows.row))]
        if not len(ahead) and step + 1 < self.steps:
            places = self.order.at(step + 1)[1]
            ahead = self.rows.records["row"][places[: self._block_size(len(places))]]
        if len(ahead):
            self.images.prefetch(ahead.astype(np.int64))
        return self.student.image_features(pixels)

    def _combined(self, text: TextPass | FixedPass, gradients: _Gradients, step: int) -> list[Tensor]:
        """The gradient of every parameter, in the order of `learners.named_parameters()`."""
        on_text, joined = self.student.parameters("text"), self.student.joined
        sample = None
        if self.config.candidates.candidates == "all-sampled":
            sample = PoissonSample(self.config.candidates.sampled_backward, self.config.loop.seed, step)
        none: list[list[Tensor]] = [[] for _ in gradients.features]
        parts = none
        if isinstance(text, TextPass):
            parts = text.pull_back(on_text, [features for (features,) in gradients.features], sample)
        whole = [[*joined(t, i), *h] for t, i, h in zip(parts, gradients.images or none, gradients.head, strict=True)]
        if not self.config.loss.prograd:
            return whole[0]
        hard, general, *rest = whole
        kept = project(hard, general)
        return [a + b for a, b in zip(kept, rest[0], strict=True)] if rest else kept

    def _candidates(self, rows: StepRows, step: int) -> Candidates:
        drawn, vocabulary, seed = self.config.candidates, len(self.rows.vocabulary), self.config.loop.seed
        names, fill = self.student.groups.numpy(), drawn.sampled_fill
        if drawn.candidates == "teacher" and rows.best_probs is not None:
            labels = rows.label if self.needs.hard_labels else np.full_like(rows.label, -1)
            return teacher_candidates(labels, rows.best, rows.best_probs, drawn.teacher_names, vocabulary, names)
        if drawn.candidates != "sampled":
            return all_candidates(vocabulary)
        return sampled_candidates(rows.label, rows.best, fill, vocabulary, seed, step, drawn.correction, names)

    def _step(self, rows: StepRows, step: int) -> _StepNames:
        """The candidates of a step, on the device. All classes are the same in every step, and stay there."""
        if self._every is not None:
            return self._every
        candidates, names = self._candidates(rows, step), self.student.names
        classes = StepClasses.of(candidates, self.student.groups, self.device)
        plan = None
        if names is not None:
            plan = NamePlan.of(names, candidates.classes, self.class_chunk, self.device)
        drawn = _StepNames(candidates, classes, plan)
        if not self.config.candidates.vary:
            self._every = drawn
        return drawn

    def _text_pass(self, drawn: _StepNames, step: int) -> TextPass | FixedPass:
        student, learner, classes = self.student, self.student.learner("text"), drawn.candidates.classes
        if learner is None or student.text is None or student.names is None:
            return FixedPass(student.frozen_classes, classes)
        if self.learned.alone(step):
            if self._settled is None:
                self._settled = student.text_features()
            return FixedPass(self._settled, classes)
        return TextPass(student.text, learner, student.names, classes, self.class_chunk, student.autocast, drawn.plan)

    @property
    def _temperature(self) -> int | None:
        """The column of `log_residual` that the soft loss reads."""
        tau = self.needs.temperature
        return None if tau is None else self.rows.temperatures.index(tau)

    def _teacher(self) -> Teacher | None:
        if not self.needs.embeddings:
            return None
        return Teacher(torch.from_numpy(self.rows.class_embeddings).to(self.device), self.rows.teacher_scale)

    def _frozen(self) -> Tensor | None:
        return self.student.bare_classes if self.config.loss.uses_frozen or self.config.anchors else None

    def _seen(self) -> Tensor | None:
        if self.config.loss.hard_over == "all":
            return None
        labels = torch.from_numpy(self.rows.label_column.astype(np.int64))
        return torch.bincount(labels[labels >= 0], minlength=len(self.rows.vocabulary)).to(self.device) > 0
