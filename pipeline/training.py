"""One training step of prompts from stored rows: batch, candidates, losses, exact gradient, update.

It reads no store and writes no file; everything it does is a pure function of (config, rows, step) and its state.

Shapes: B rows of a step, K candidates, n distinct names among them, V classes, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from teachonce.averaging import PromptAverage
from teachonce.candidates import Candidates, all_candidates, sampled_candidates
from teachonce.clip_models import LoadedClip
from teachonce.config import TrainConfig
from teachonce.errors import DataError, UsageError
from teachonce.objective import Counts, Objective, StepClasses, Teacher, block_of
from teachonce.regularisers import project
from teachonce.sampler import TrainingOrder
from teachonce.schedule import learning_rate, soft_weight
from teachonce.student import PromptedStudent
from teachonce.two_pass import FixedPass, PoissonSample, TextPass, pulled_back
from teachonce.view_images import ViewImages
from teachonce.working_set import Batch, WorkingSet


@dataclass(eq=False)
class _Gradients:
    """What the blocks of a step add up to; one entry a direction (see `Objective.directions`)."""

    losses: dict[str, Tensor]
    features: list[Tensor]  # [n, E], of the distinct names
    images: list[list[Tensor]]  # of the image tower's parameters


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
        self.student = PromptedStudent(config, clip, rows.vocabulary.names)
        numbers = rows.records["row"].astype(np.int64)
        self.order = TrainingOrder(numbers, rows.plan.store.layout.views, config.batch_size, config.views_per_step,
                                   config.seed, config.held_out)  # fmt: skip
        epochs = math.ceil(config.epochs * self.order.steps_per_epoch)
        self.steps = epochs or config.steps
        self.learners = self.student.learners
        self.optimizer = _optimizer(config, self.student)
        self.average = PromptAverage(config.averaging, self.steps, config.average_decay, config.average_mean,
                                     config.average_deviation, dict(self.learners.named_parameters()))  # fmt: skip
        if config.held_out and not (rows.label_column[self.order.held_out] >= 0).any():
            raise DataError("no held-out sample has a class of the vocabulary: there is nothing to measure",
                            hint="set held_out to a larger share, or to 0")  # fmt: skip
        self.objective = Objective(config, clip.logit_scale, self._teacher(), self._frozen())

    def step(self, step: int) -> dict[str, float]:
        """Do one step.

        Args:
            step: from 0; decides the batch, the candidates and the learning rate.

        Returns:
            The losses in nats, the norm of the gradient, the learning rate and the number of candidates.

        Raises:
            UsageError: the loss or a gradient is NaN or infinite; nothing was updated.
        """
        batch = self.rows.batch(self.order.at(step)[1])
        self._look_ahead(step + 1)
        candidates = self._candidates(batch, step)
        text = self._text_pass(candidates)
        weight = soft_weight(self.config, self.steps, step)
        found = self._gradients(batch, text, self._step_classes(candidates), weight)
        named = dict(self.learners.named_parameters())
        gradient = self._combined(text, found, step)
        loss = sum((self._weights(weight)[name] * float(value) for name, value in found.losses.items()), 0.0)
        self._require_finite(loss, dict(zip(named, gradient, strict=True)), step, batch)
        for parameter, part in zip(named.values(), gradient, strict=True):
            parameter.grad = part
        limit = self.config.clip_gradient or math.inf
        norm = float(nn.utils.clip_grad_norm_(list(named.values()), limit))
        rate = learning_rate(self.config, self.steps, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.average.update(step, named)
        parts = {name: float(value) for name, value in found.losses.items()}
        return {"loss": loss, **parts, "gradient_norm": norm, "learning_rate": rate,
                "candidates": len(candidates.classes)}  # fmt: skip

    @contextmanager
    def result(self) -> Iterator[PromptedStudent]:
        """The student with the prompts that are the result: averaged ones where the config says so."""
        named = dict(self.learners.named_parameters())
        kept = {name: parameter.detach().clone() for name, parameter in named.items()}
        try:
            with torch.no_grad():
                for name, parameter in named.items():
                    parameter.copy_(self.average.value(name, parameter))
            yield self.student
        finally:
            with torch.no_grad():
                for name, parameter in named.items():
                    parameter.copy_(kept[name])

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return self.student.clip.device

    def image_features(self, batch: Batch) -> Tensor:
        """Unit image features of rows, [B, E] float32; differentiable where the image tower carries prompts."""
        if self.images is not None:
            return self.student.image_features(self.images.pixels(batch.row))
        if batch.features is None:
            raise DataError("this working set was opened without a student: there are no image features to train on")
        return torch.from_numpy(batch.features).to(self.device).float()

    def _gradients(self, batch: Batch, text: TextPass | FixedPass, classes: StepClasses, weight: float) -> _Gradients:
        """Losses and their gradients on the class features and on the image prompts, block by block."""
        total = len(batch.label)
        counts = Counts(total, int((batch.label >= 0).sum()))
        size = self.config.micro_batch or total
        found = _Gradients({}, [], [])
        for start in range(0, total, size):
            rows = slice(start, min(start + size, total))
            part = _part(batch, rows)
            images = self.image_features(part)
            leaf = images.detach().requires_grad_(images.requires_grad)
            block = block_of(batch, rows, self.device, self._temperature, self.config.uses_frozen)
            features = text.features[text.place]
            losses = self.objective.rows(features, leaf, block, classes, counts)
            if start == 0 and self.config.anchor_weight:
                losses["anchor"] = self.objective.anchor(features, classes)
            directions = self.objective.directions(losses, weight)
            for number, direction in enumerate(directions):
                last = number + 1 == len(directions)
                on_text, on_images = _gradients_of(direction, text.features, leaf, keep=not last)
                _add(found.features, number, [on_text])
                if on_images is not None:
                    parameters = self.student.parameters("image")
                    _add_lists(found.images, number, pulled_back(images, parameters, on_images, keep=not last))
            for name, value in losses.items():
                found.losses[name] = found.losses.get(name, torch.zeros(())) + value.detach().cpu()
        return found

    def _combined(self, text: TextPass | FixedPass, found: _Gradients, step: int) -> list[Tensor]:
        """The gradient of every parameter, in the order of `learners.named_parameters()`."""
        on_text = self.student.parameters("text")
        sample = None
        if self.config.candidates == "all-sampled":
            sample = PoissonSample(self.config.sampled_backward, self.config.seed, step)
        parts = text.pull_back(on_text, found.features, sample) if on_text else [[] for _ in found.features]
        whole = [[*t, *i] for t, i in zip(parts, found.images or [[] for _ in parts], strict=True)]
        if not self.config.prograd:
            return whole[0]
        hard, rest, general = whole
        return [a + b for a, b in zip(project(hard, general), rest, strict=True)]

    def _weights(self, weight: float) -> dict[str, float]:
        config = self.config
        return {"hard": 1.0, "soft": weight, "consistency": config.consistency_weight, "anchor": config.anchor_weight}

    def _candidates(self, batch: Batch, step: int) -> Candidates:
        config, vocabulary = self.config, len(self.rows.vocabulary)
        if config.candidates != "sampled":
            return all_candidates(vocabulary)
        best = batch.class_ids[:, : config.sampled_top]
        return sampled_candidates(
            batch.label,
            best,
            config.sampled_fill,
            vocabulary,
            config.seed,
            step,
            config.correction,
            self.student.names.inverse.numpy(),
        )

    def _step_classes(self, candidates: Candidates) -> StepClasses:
        move = self.device
        groups = self.student.names.inverse[candidates.classes]
        return StepClasses(candidates.classes.to(move), candidates.log_weight.to(move), candidates.stands_for.to(move),
                           candidates.columns().to(move), groups.to(move))  # fmt: skip

    def _text_pass(self, candidates: Candidates) -> TextPass | FixedPass:
        student, learner = self.student, self.student.learner("text")
        if learner is None:
            return FixedPass(student.frozen_classes, candidates.classes.to(self.device))
        return TextPass(student.text, learner, student.names, candidates.classes, self.config.class_chunk,
                        student.autocast)  # fmt: skip

    def _look_ahead(self, step: int) -> None:
        """Start reading the images of the next step."""
        if self.images is not None and step < self.steps:
            self.images.prefetch(self.rows.records["row"][self.order.at(step)[1]].astype(np.int64))

    @property
    def _temperature(self) -> int | None:
        """The column of `log_residual` that the soft loss reads."""
        return self.rows.temperatures.index(self.config.tau_teacher) if self.config.soft_tail else None

    def _teacher(self) -> Teacher | None:
        if self.config.supervision == "hard" or self.config.targets != "embedding":
            return None
        return Teacher(torch.from_numpy(self.rows.class_embeddings).to(self.device), self.rows.teacher_scale)

    def _frozen(self) -> Tensor | None:
        return self.student.frozen_classes if self.config.uses_frozen or self.config.anchor_weight else None

    def _require_finite(self, loss: float, gradients: dict[str, Tensor], step: int, batch: Batch) -> None:
        bad = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
        if math.isfinite(loss) and not bad:
            return
        what = f"the gradient of {', '.join(bad)} is not finite" if math.isfinite(loss) else f"the loss became {loss}"
        raise UsageError(
            f"step {step}: {what}; nothing was updated and the last checkpoint is kept (rows {batch.row[:8].tolist()})",
            hint="use a smaller learning_rate or a longer warm-up in a new run",
        )


def _part(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch."""
    columns: dict[str, npt.NDArray[np.generic] | None] = vars(batch)
    return Batch(**{name: None if column is None else column[rows] for name, column in columns.items()})  # type: ignore[arg-type]


def _gradients_of(loss: Tensor, features: Tensor, images: Tensor, keep: bool) -> tuple[Tensor, Tensor | None]:
    """The gradient of a loss on class features (zeros where they are fixed) and on image features (None if fixed)."""
    wanted = [x for x in (features, images) if x.requires_grad]
    found: tuple[Tensor | None, ...] = (None,) * len(wanted)
    if loss.requires_grad:
        found = torch.autograd.grad(loss, wanted, retain_graph=keep, allow_unused=True)
    whole = {id(x): torch.zeros_like(x) if part is None else part for x, part in zip(wanted, found, strict=True)}
    return whole.get(id(features), torch.zeros_like(features)), whole.get(id(images))


def _add(sums: list[Tensor], number: int, parts: Sequence[Tensor]) -> None:
    if number == len(sums):
        sums.append(parts[0])
    else:
        sums[number] = sums[number] + parts[0]


def _add_lists(sums: list[list[Tensor]], number: int, parts: list[Tensor]) -> None:
    if number == len(sums):
        sums.append(parts)
    else:
        sums[number] = [a + b for a, b in zip(sums[number], parts, strict=True)]


def _optimizer(config: TrainConfig, student: PromptedStudent) -> torch.optim.Optimizer:
    parameters = list(student.learners.parameters())
    decay = 0.0 if config.structure == "unshared-replace" else config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=decay)
