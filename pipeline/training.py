"""One training step of prompts from cached rows: batch, candidates, loss, exact gradient, update.

It reads no store and writes no file; everything it does is a pure function of (config, rows, step) and its state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teachonce import __version__
from teachonce.candidates import Candidates, all_candidates, sampled_candidates, two_pass_backward
from teachonce.config import TrainConfig
from teachonce.errors import DataError, UsageError
from teachonce.losses import SoftTargets, combine, hard_loss, soft_loss
from teachonce.prompts import PromptLearner, PromptMeta
from teachonce.sampler import batch_at, epoch_order
from teachonce.text_tower import TextTower
from teachonce.working_set import Batch, WorkingSet

SUFFIX = "."  # what follows a name, as in "a photo of a {}."


class Trainer:
    """The state of a run: prompts and optimiser. B rows of a batch, K candidates, V classes, E embedding.

    Args:
        config: what to do.
        tower: the student's text tower.
        names: the names of the V classes that the rows refer to.
        rows: the working set, with the student's features.
        logit_scale: the student's own factor on the cosine.

    Raises:
        UsageError: a name that is too long for the context, a depth that the tower does not have.
    """

    def __init__(
        self, config: TrainConfig, tower: TextTower, names: Sequence[str], rows: WorkingSet, logit_scale: float
    ) -> None:
        self.config, self.tower, self.rows, self.logit_scale = config, tower, rows, logit_scale
        self.learner = PromptLearner(tower, config.structure, config.context, config.depth)
        slots = self.learner.words.shape[0]
        self.names = tower.tokenise(names, SUFFIX, slots)
        self.optimizer = _optimizer(config, self.learner)
        self._order = (-1, np.zeros(0, np.int64))

    def step(self, step: int) -> dict[str, float]:
        """Do one step.

        Args:
            step: from 0; decides the batch, the candidates and the learning rate.

        Returns:
            The losses in nats, the learning rate and the number of candidates.

        Raises:
            UsageError: the loss or a gradient is NaN or infinite; nothing was updated.
        """
        batch = self.rows.batch(self._batch(step))
        candidates = self._candidates(batch, step)
        self.optimizer.zero_grad(set_to_none=True)
        parts: dict[str, float] = {}
        loss = two_pass_backward(
            self.tower,
            self.learner,
            self.names,
            candidates.classes,
            lambda features: self._loss(features, batch, candidates, parts),
            self.config.class_chunk,
        )
        self._require_finite(loss, step, batch)
        rate = learning_rate(self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return {"loss": float(loss), **parts, "learning_rate": rate, "candidates": len(candidates.classes)}

    def meta(self, student: str, student_digest: str) -> PromptMeta:
        """What the trained prompts are and what they belong to."""
        return PromptMeta(
            structure=self.config.structure,
            context=self.config.context,
            slots=self.learner.words.shape[0],
            depth=0 if self.config.structure == "shared" else self.config.depth or self.tower.layers,
            width=self.tower.width,
            layers=self.tower.layers,
            student=student,
            student_digest=student_digest,
            suffix=SUFFIX,
            version=__version__,
        )

    def _batch(self, step: int) -> npt.NDArray[np.int64]:
        """Which rows of the working set make a step, [B]."""
        epoch, start = batch_at(len(self.rows), self.config.batch_size, step)
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(len(self.rows), self.config.seed, epoch))
        return self._order[1][start : start + self.config.batch_size]

    def _candidates(self, batch: Batch, step: int) -> Candidates:
        vocabulary = len(self.names.inverse)
        if self.config.candidates == "all":
            return all_candidates(vocabulary)
        best = batch.class_ids[:, : self.config.sampled_top]
        return sampled_candidates(
            batch.label,
            best,
            self.config.sampled_fill,
            vocabulary,
            self.config.seed,
            step,
            self.config.correction,
        )

    def _loss(self, features_KE: Tensor, batch: Batch, candidates: Candidates, parts: dict[str, float]) -> Tensor:
        if batch.features is None:
            raise DataError("this working set was opened without a student: there are no image features to train on")
        device, config = features_KE.device, self.config
        images_BE = torch.from_numpy(batch.features).to(device).float()
        logits_BK = self.logit_scale * images_BE @ features_KE.T
        log_weight = candidates.log_weight.to(device)
        columns = candidates.columns().to(device)
        hard = soft = None
        if config.supervision != "soft":
            label = torch.from_numpy(batch.label).to(device)
            place = torch.where(label >= 0, columns[label], -1)
            groups = self.names.inverse[candidates.classes].to(device)
            hard = hard_loss(logits_BK, log_weight, place, groups)
            parts["hard"] = float(hard.detach())
        if config.supervision != "hard":
            soft = soft_loss(
                logits_BK, log_weight, self._targets(batch, device), columns, config.temperature, config.tail
            )
            parts["soft"] = float(soft.detach())
        return combine(config.supervision, hard, soft, config.soft_weight)

    def _targets(self, batch: Batch, device: torch.device) -> SoftTargets:
        temperature = self.rows.temperatures.index(self.config.temperature)
        return SoftTargets(
            torch.from_numpy(batch.class_ids).to(device).long(),
            torch.from_numpy(batch.log_probs).to(device),
            torch.from_numpy(batch.log_residual[:, temperature]).to(device),
        )

    def _require_finite(self, loss: Tensor, step: int, batch: Batch) -> None:
        bad = [
            name for name, p in self.learner.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
        ]
        if bool(loss.isfinite()) and not bad:
            return
        what = (
            f"the loss became {float(loss)}"
            if not loss.isfinite()
            else f"the gradient of {', '.join(bad)} is not finite"
        )
        raise UsageError(
            f"step {step}: {what}; nothing was updated and the last checkpoint is kept (rows {batch.row[:8].tolist()})",
            hint="use a smaller learning_rate or a longer warm-up in a new run",
        )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up over `warmup_steps`, then constant or a half cosine to zero at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def _optimizer(config: TrainConfig, learner: PromptLearner) -> torch.optim.Optimizer:
    parameters = list(learner.parameters())
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
