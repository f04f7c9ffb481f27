"""What a step minimises: the losses of a block of rows over the step's candidates, put together as the config says.

This module runs no tower and draws no candidates. All maths is float32, outside autocast.

Shapes: B rows of a block, K candidates, V classes, E the student's embedding, D the teacher's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from teachonce.errors import DataError, UsageError
from teachonce.heads.verbs import Head
from teachonce.losses.candidates import Candidates
from teachonce.losses.regularisers import absolute_anchor, anchor
from teachonce.losses.row_losses import dense_rows, ghost_rows, hard_rows, renormalise_rows
from teachonce.losses.targets import SoftTargets, embedding_columns, top_k_columns
from teachonce.recipe.config import TrainConfig
from teachonce.rows.resident import Columns
from teachonce.towers.packing import to_device


@dataclass(frozen=True, eq=False)
class Teacher:
    """The teacher's side of a store with embeddings, on the device."""

    classes: Tensor  # [V, D] unit text features
    scale: float  # its logit scale


@dataclass(frozen=True, eq=False)
class StepClasses:
    """The candidates of a step, on the device."""

    classes: Tensor  # [K] int64
    log_weight: Tensor  # [K], or [rows of the step, K] where rows differ
    stands_for: Tensor  # [K] ln of how many classes each stands for
    columns: Tensor  # [V] int64, where a class is among the candidates, or -1
    groups: Tensor  # [K] int64, equal for candidates with the same name
    most_tied: int  # of the groups, the size of the largest

    @classmethod
    def of(cls, candidates: Candidates, groups: Tensor, device: torch.device) -> StepClasses:
        """Candidates on a device.

        Args:
            groups: [V] int64, equal for classes with the same name, on the CPU.
        """
        of_candidates = groups[candidates.classes]
        return cls(
            to_device(candidates.classes, device),
            to_device(candidates.log_weight, device),
            to_device(candidates.stands_for, device),
            to_device(candidates.columns(), device),
            to_device(of_candidates, device),
            int(of_candidates.bincount().max()),
        )

    def of_rows(self, rows: slice) -> Tensor:
        """Log weights of a block of rows, [K] or [B, K]."""
        return self.log_weight if self.log_weight.ndim == 1 else self.log_weight[rows]


@dataclass(frozen=True, eq=False)
class Block:
    """Rows that are in memory at once, on the device."""

    rows: slice  # of the step
    label: Tensor  # [B] int64 class, -1 for none
    targets: SoftTargets | None
    embedding: Tensor | None  # [B, D] the teacher's
    frozen_images: Tensor | None  # [B, E] the bare student's


@dataclass(frozen=True, eq=False)
class Counts:
    """What the means of a whole step are over."""

    rows: int
    labelled: int


class StepReport:
    """What a step came to. On a GPU the numbers are on their way until they are asked for.

    Args:
        numbers: float64 scalars, on the device.
        judge: makes the report of them, or raises what is wrong with them.
    """

    def __init__(self, numbers: list[Tensor], judge: Callable[[list[float]], dict[str, float]]) -> None:
        self._numbers, self._judge = torch.stack(numbers), judge
        self._done: dict[str, float] | None = None
        self._arrival: torch.cuda.Event | None = None
        if self._numbers.device.type == "cuda":
            self._numbers = self._numbers.to("cpu", non_blocking=True)
            self._arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrival.record()

    def read(self) -> dict[str, float]:
        """The report; waits until the device has done the step, and no longer."""
        if self._done is None:
            if self._arrival is not None:
                self._arrival.synchronize()
            self._done = self._judge(self._numbers.tolist())
        return self._done


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """Makes a step's report of the norm of its gradient and its losses, or says what is wrong with them."""

    step: int
    weights: dict[str, float]  # of losses
    losses: tuple[str, ...]  # the names of the numbers behind the norm
    gradients: dict[str, Tensor]  # of each parameter, on the device
    rows: list[int]  # some of the store's rows in the step, for messages
    told: dict[str, float]  # what the report says besides
    wanted: str | None  # why a gradient of zero is an error: what there is to learn; None where it is none
    updated: bool  # whether the update is made before the numbers are known

    def __call__(self, numbers: list[float]) -> dict[str, float]:
        """The report.

        Raises:
            UsageError: the loss or a gradient is NaN or infinite, or every gradient is zero and must not be.
        """
        norm, losses = numbers[0], dict(zip(self.losses, numbers[1:], strict=True))
        loss = sum(self.weights[name] * value for name, value in losses.items())
        if norm == 0 and self.wanted is not None:
            raise UsageError(
                f"step {self.step}: the gradient of every parameter is exactly zero: there is nothing to learn with "
                f"{self.wanted}; {self._kept}",
                hint="another supervision, tail or start, or a store or selection with more classes",
            )
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._not_finite(loss)
        return {"loss": loss, **losses, "gradient_norm": norm, **self.told}

    def _not_finite(self, loss: float) -> UsageError:
        bad = [name for name, gradient in self.gradients.items() if not bool(gradient.isfinite().all())]
        what = f"the loss became {loss}"
        if math.isfinite(loss):
            what = f"the gradient of {', '.join(bad)} is not finite" if bad else "the gradient is too large for float32"
        hint = "use a smaller learning_rate or a longer warm-up in a new run"
        if self.step == 0:  # its numbers are those of the start
            hint = (
                "not the learning rate, which had changed nothing yet: look at temperature, teacher_temperature, "
                "the weights of the losses, precision, and `teachonce verify` for the store"
            )
        return UsageError(f"step {self.step}: {what}; {self._kept} (rows {self.rows})", hint=hint)

    @property
    def _kept(self) -> str:
        if not self.updated:
            return "nothing was updated and the last checkpoint is kept"
        return "the GPU had already made this update, which goes no further: the last checkpoint is kept and is sound"


class Objective:
    """The losses of a run.

    Args:
        config: what counts, and how much.
        scale: the student's logit scale.
        teacher: for targets = "embedding".
        frozen: [V, E] the bare student's class features, for the regularisers.
        seen: [V] bool, the classes that compete in the hard loss; None: all.
        head: what is trained behind the towers; None without.
        known: [V] int64, of each class its row among those that the head knows, or -1.
    """

    def __init__(
        self,
        config: TrainConfig,
        scale: float,
        teacher: Teacher | None,
        frozen: Tensor | None,
        seen: Tensor | None = None,
        head: Head | None = None,
        known: Tensor | None = None,
    ) -> None:
        self.config, self.scale, self.teacher, self.frozen, self.seen = config, scale, teacher, frozen, seen
        self.head, self.known = head, known

    def rows(
        self, features_KE: Tensor, images_BE: Tensor, block: Block, classes: StepClasses, counts: Counts
    ) -> dict[str, Tensor]:
        """The block's share of each loss, in nats: summed over blocks they are the step's means.

        Returns:
            hard: cross-entropy, or generalised cross-entropy, mean over the step's labelled rows. soft: tau^2 times the
            divergence from the teacher, mean over its rows. consistency: KL from the bare student, mean over its rows.
            Only what the config asks for; with kl_mean = "rows-and-classes" the two divergences are divided by the
            number of candidates besides. Of a head that learns from several logits they are sums over these.
        """
        every = [self._of_logits(x, block, classes, counts) for x in self._logits(features_KE, images_BE, classes)]
        first, *others = every
        return {name: sum((losses[name] for losses in others), start=loss) for name, loss in first.items()}

    def _of_logits(self, logits_BK: Tensor, block: Block, classes: StepClasses, counts: Counts) -> dict[str, Tensor]:
        log_weight = classes.of_rows(block.rows)
        losses: dict[str, Tensor] = {}
        divisor = counts.rows * (len(classes.classes) if self.config.loss.kl_mean == "rows-and-classes" else 1)
        if self.config.loss.supervision != "soft":
            place = torch.where(block.label >= 0, classes.columns[block.label], -1)
            compete = log_weight
            if self.seen is not None:
                compete = log_weight.masked_fill(~self.seen[classes.classes], -torch.inf)
            hard = hard_rows(
                logits_BK,
                compete,
                place,
                classes.groups,
                self.config.loss.label_smoothing,
                classes.most_tied,
                self.config.loss.power,
            )
            losses["hard"] = hard.sum() / max(1, counts.labelled)
        if self.config.loss.supervision != "hard":
            losses["soft"] = self._soft(logits_BK, log_weight, block, classes).sum() / divisor
        if self.config.loss.uses_frozen:
            losses["consistency"] = self._consistency(logits_BK, log_weight, block, classes).sum() / divisor
        return losses

    def _logits(self, features_KE: Tensor, images_BE: Tensor, classes: StepClasses) -> list[Tensor]:
        if self.head is None or self.known is None:
            return [self.scale * images_BE @ features_KE.T]
        return self.head.training_logits(features_KE, images_BE, self.known[classes.classes], self.scale)

    def once(self, features_KE: Tensor, classes: StepClasses) -> dict[str, Tensor]:
        """What a step has once, however many blocks its rows are: the anchor, and the head's penalty.

        The anchor is on the text tower's features: a head has its penalty.
        """
        losses: dict[str, Tensor] = {}
        if self.config.anchors:
            losses["anchor"] = self.anchor(features_KE, classes)
        if self.head is not None and self.config.head.penalty > 0:
            losses["penalty"] = self.head.penalty()
        return losses

    def anchor(self, features_KE: Tensor, classes: StepClasses) -> Tensor:
        """How far class features are from the bare student's, a mean over the vocabulary."""
        if self.frozen is None:
            raise DataError("the anchor needs the class features of the hand-written template")
        distance = absolute_anchor if self.config.loss.anchor_form == "l1" else anchor
        return distance(features_KE, self.frozen[classes.classes], classes.stands_for, len(classes.columns))

    def weights(self, soft_weight: float) -> dict[str, float]:
        """How much each loss counts, with the weight of the soft loss at this step."""
        config = self.config
        return {
            "hard": 1.0,
            "soft": soft_weight,
            "consistency": config.loss.consistency_weight,
            "anchor": config.loss.anchor_weight,
            "penalty": config.head.penalty,
        }

    def directions(self, losses: dict[str, Tensor], weights: dict[str, float]) -> list[Tensor]:
        """The sums of losses whose gradients are computed separately.

        Returns:
            The weighted sum of all; with ProGrad the hard loss, the general one, and the sum of the rest if any.
        """
        parts = {name: weights[name] * loss for name, loss in losses.items()}
        if not self.config.loss.prograd:
            return [torch.stack(list(parts.values())).sum()]
        rest = [part for name, part in parts.items() if name != "hard" and weights[name]]
        return [parts["hard"], losses["consistency"], *([torch.stack(rest).sum()] if rest else [])]

    def _soft(self, logits_BK: Tensor, log_weight: Tensor, block: Block, classes: StepClasses) -> Tensor:
        loss, tau, kind = self.config.loss, self.config.loss.temperature, self.config.loss.soft_loss
        if loss.targets == "embedding":
            if self.teacher is None or block.embedding is None:
                raise DataError("targets = 'embedding' needs the teacher's embeddings")
            log_p = embedding_columns(
                block.embedding, self.teacher.classes, self.teacher.scale, loss.tau_teacher, classes.classes
            )
            if self.config.candidates.candidates == "teacher":
                log_p = log_p.log_softmax(1)
            return dense_rows(log_p, logits_BK, log_weight, tau, kind)
        if block.targets is None:
            raise DataError("the soft loss needs the teacher's stored top k")
        if loss.tail == "ghost" or loss.tail == "renormalise":
            function = ghost_rows if loss.tail == "ghost" else renormalise_rows
            return function(logits_BK, log_weight, block.targets, classes.columns, tau, loss.tau_teacher, kind)
        log_p = top_k_columns(
            block.targets, classes.columns, block.label, len(classes.classes), loss.tau_teacher, loss.tail
        )
        return dense_rows(log_p, logits_BK, log_weight, tau, kind)

    def _consistency(self, logits_BK: Tensor, log_weight: Tensor, block: Block, classes: StepClasses) -> Tensor:
        if self.frozen is None or block.frozen_images is None:
            raise DataError("self-consistency needs the bare student's features")
        log_p = embedding_columns(block.frozen_images, self.frozen, self.scale, 1.0, classes.classes)
        return dense_rows(log_p, logits_BK, log_weight, 1.0)


def block_of(columns: Columns, rows: slice, config: TrainConfig) -> Block:
    """What a config reads of some rows of a step."""

    def some(column: Tensor | None) -> Tensor | None:
        return None if column is None else column[rows]

    targets, features = None, some(columns.features)
    ids, log_probs, tail = some(columns.class_ids), some(columns.log_probs), some(columns.log_tail)
    if ids is not None and log_probs is not None:
        if tail is None:
            tail = torch.full((len(ids),), -torch.inf, device=ids.device)
        targets = SoftTargets(ids.long(), log_probs, tail)
    frozen = features.float() if config.loss.uses_frozen and features is not None else None
    return Block(rows, columns.label[rows].long(), targets, some(columns.embedding), frozen)
