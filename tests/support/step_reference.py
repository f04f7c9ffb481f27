"""A whole training step written the plain way: every loss over the whole vocabulary, in float64, by autograd.

It takes no short cut on purpose: no columns of candidates, no blocks of rows, no two passes. A class that is no
candidate weighs nothing. `test_training_step` compares `Trainer.step` with it. Where classes are drawn the draw itself
is the library's, made anew from the run's seed and the step.

Shapes: B rows, V classes, N distinct names, E embedding.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import head_reference
import image_reference
import numpy as np
import torch
import tower_reference
from coupled_reference import coupled_prompts
from divergence_reference import apart, divergence, log_student
from torch import Tensor, nn
from update_reference import norm_of

from teachonce.core.streams import IMAGE_NOISE, MASKED_DIMENSIONS, NAME_NOISE
from teachonce.heads.teacher_space import RIDGE
from teachonce.losses.candidates import sampled_candidates
from teachonce.models.clip import LoadedClip
from teachonce.recipe.config import TrainConfig
from teachonce.rows.working_set import Batch, WorkingSet
from teachonce.towers.image_tower import ImageTower
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.text_tower import TextTower
from teachonce.training.two_pass import PoissonSample

Gradients = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Drawn:
    """The candidates of a step, over the whole vocabulary."""

    log_weight: Tensor  # [B, V] or [1, V] ln w in the softmax, -inf: no candidate
    stands_for: Tensor  # [V] of how many classes each candidate tells, 0: no candidate


@dataclass(frozen=True, eq=False)
class Told:
    """What a step comes to."""

    parts: dict[str, float]  # each loss by itself, not weighted
    loss: float  # their weighted sum
    gradient: Gradients  # of every parameter, not clipped
    drawn: Drawn
    against: float  # the cosine between the hard loss's gradient and the frozen student's; 1 without ProGrad


class PlainStep:
    """A run whose steps can be asked for.

    Args:
        config: of the run.
        clip: the student.
        rows: the working set.
        learners: text and image `SlotLearner`s whose parameters are all zero: where the prompts start.
        pixels: rows of the store to images [B, 3, H, W], when the image tower has prompts.
    """

    def __init__(
        self,
        config: TrainConfig,
        clip: LoadedClip,
        rows: WorkingSet,
        learners: Mapping[str, Any],
        pixels: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.config, self.rows, self.pixels = config, rows, pixels
        self.model, self.scale = exact(clip.model), clip.logit_scale
        self.names = rows.vocabulary.names
        self.kept: Gradients = {}
        towers = {tower: learner for tower, learner in learners.items() if tower != "head"}
        self.starts = {tower: learner() for tower, learner in towers.items()}
        self.learners = learners
        if config.prompts.coupled:
            self.sizes = tuple(sizes_of(tower, clip, config) for tower in ("text", "image"))
            self.unit = 1 / self.model.positional_embedding.shape[1] if config.prompts.layer_scale else 1.0
        self.units = {tower: units_of(tower, learner, clip, config) for tower, learner in towers.items()}
        spelled = [name.lower() for name in self.names]
        first = list(dict.fromkeys(spelled))
        self.name_of = torch.tensor([first.index(name) for name in spelled])  # [V] of N, by first appearance
        lengths = [len(tower_reference.tokenizer().encode(f"{name}.")) for name in first]
        self.by_length = sorted(range(len(first)), key=lengths.__getitem__)  # the order in which names are drawn
        with torch.no_grad():
            self.frozen = self.encoded(f"{config.prompts.context} {{}}.")
            given = [part.strip() for part in config.loss.bare_templates.split("|") if part.strip()]
            of_each = torch.stack([self.encoded(template) for template in given] or [self.frozen])
            self.bare: Tensor = nn.functional.normalize(of_each.mean(0), dim=-1)

    def encoded(self, template: str) -> Tensor:
        """Unit features of all names in a template, by the model's own tower, [V, E]."""
        features: Tensor = self.model.encode_text(
            tower_reference.full_tokens(self.model, self.names, template), normalize=True
        )
        return features

    def at(self, parameters: Mapping[str, Tensor], batch: Batch, step: int, steps: int) -> Told:
        """The losses and gradients of `step` (from 0) with these parameters."""
        leaves = {name: value.detach().double().requires_grad_() for name, value in parameters.items()}
        self.kept = self.kept_dimensions(leaves, step)
        drawn = self.candidates(batch, step)
        text, images = self.class_features(leaves), self.image_features(leaves, batch)
        share = step / (steps - 1)
        rise = {"constant": 1.0, "rise": share, "fall": 1 - share}[self.config.loss.soft_schedule]
        weights = {
            "hard": 1.0,
            "soft": self.config.loss.soft_weight * rise,
            "anchor": self.config.loss.anchor_weight,
            "consistency": self.config.loss.consistency_weight,
            "penalty": self.config.head.penalty,
        }
        parts = self.losses(text, images, batch, drawn, leaves, step)
        loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        gradient, against = self.gradient(leaves, loss, parts, text, step)
        return Told(
            {name: float(part.detach()) for name, part in parts.items()}, float(loss.detach()), gradient, drawn, against
        )

    def gradient(
        self, leaves: Gradients, loss: Tensor, parts: Mapping[str, Tensor], text: Tensor, step: int
    ) -> tuple[Gradients, float]:
        """Of the loss; with ProGrad less what opposes the frozen student, with all-sampled of the drawn names' text."""
        if self.config.candidates.candidates == "all-sampled":
            drawn = self.of_drawn_names(loss, text, step)
            on_prompts = {"text": _gradient(drawn, leaves), "image": _gradient(loss, leaves)}
            return {name: on_prompts[name.partition(".")[0]][name] for name in leaves}, 1.0
        whole = _gradient(loss, leaves)
        if not self.config.loss.prograd:
            return whole, 1.0
        hard, general = _gradient(parts["hard"], leaves), _gradient(parts["consistency"], leaves)
        inner = float(torch.stack([(hard[name] * general[name]).sum() for name in leaves]).sum())
        dropped = min(inner, 0.0) / norm_of(general) ** 2
        projected = {name: whole[name] - dropped * general[name] for name in leaves}
        return projected, inner / norm_of(hard) / norm_of(general)

    def of_drawn_names(self, loss: Tensor, text: Tensor, step: int) -> Tensor:
        """A loss whose gradient is that of names drawn by the size of theirs, each with the inverse of its chance."""
        (on_classes,) = torch.autograd.grad(loss, text, retain_graph=True)
        on_names = torch.zeros(len(self.by_length), text.shape[1]).double().index_add(0, self.name_of, on_classes)
        norms = on_names.norm(dim=1)[self.by_length].numpy()
        chosen, weight = PoissonSample(self.config.candidates.sampled_backward, self.config.loop.seed, step).draw(norms)
        factor = torch.zeros(len(self.by_length)).double()
        factor[[self.by_length[place] for place in chosen]] = torch.from_numpy(weight)
        return (on_classes * factor[self.name_of][:, None] * text).sum()

    def candidates(self, batch: Batch, step: int) -> Drawn:
        """All classes, or those that are drawn."""
        config, classes = self.config, len(self.names)
        if config.candidates.candidates == "teacher":
            return self.of_the_teacher(batch)
        if config.candidates.candidates != "sampled":
            return Drawn(torch.zeros(1, classes).double(), torch.ones(classes).double())
        drawn = sampled_candidates(
            batch.label,
            batch.class_ids[:, : config.candidates.sampled_top],
            config.candidates.sampled_fill,
            classes,
            config.loop.seed,
            step,
            config.candidates.correction,
            self.name_of.numpy(),
        )
        log_weight = torch.full((max(1, drawn.log_weight.ndim - 1) * len(batch.label), classes), -torch.inf).double()
        log_weight[:, drawn.classes] = drawn.log_weight.double()
        stands_for = torch.zeros(classes).double()
        stands_for[drawn.classes] = drawn.stands_for.double().exp()
        return Drawn(log_weight, stands_for)

    def of_the_teacher(self, batch: Batch) -> Drawn:
        """The classes with most of the teacher's mass over the rows; the labels' names where there is a hard loss."""
        mass = torch.zeros(len(self.names)).double()
        for ids, log_probs in zip(batch.class_ids.tolist(), batch.log_probs.tolist(), strict=True):
            for class_id, log_p in zip(ids, log_probs, strict=True):
                mass[class_id] += math.exp(log_p)
        ranked = sorted(range(len(self.names)), key=lambda c: (-float(mass[c]), c))
        chosen = {c for c in ranked[: self.config.candidates.teacher_names] if mass[c] > 0}
        if self.config.loss.supervision != "soft":
            of_labels = {int(self.name_of[label]) for label in batch.label.tolist() if label >= 0}
            chosen |= {c for c in range(len(self.names)) if int(self.name_of[c]) in of_labels}
        present = torch.tensor([c in chosen for c in range(len(self.names))])
        log_weight = torch.zeros(1, len(self.names)).double().masked_fill(~present, -torch.inf)
        return Drawn(log_weight, present.double())

    def kept_dimensions(self, leaves: Gradients, step: int) -> Gradients:
        """What each block's dimensions of key and value prompts count in a step: 0, or more, so that the mean is 1."""
        share, kept = self.config.optimiser.mask_dimensions, {}
        random = MASKED_DIMENSIONS.at(self.config.loop.seed, step)
        for name, leaf in leaves.items():
            if share and name.partition(".")[2] in ("key", "value", "state"):
                drawn = random.random((len(leaf), 1, leaf.shape[2])) >= share
                kept[name] = torch.from_numpy(drawn / (1 - share))
        return kept

    def learned(self, name: str, leaves: Gradients) -> Tensor:
        """A parameter, without the dimensions that the step leaves at their start."""
        return leaves[name] * self.kept[name] if name in self.kept else leaves[name]

    def prompts(self, tower: str, leaves: Gradients) -> SlotPrompts:
        """start + unit * parameter; image prompts that are coupled are maps of the text prompts."""
        start = self.starts[tower]
        if tower == "image" and self.config.prompts.coupled:
            of_image = {n.partition(".")[2]: x for n, x in leaves.items() if n.startswith("image.")}
            return coupled_prompts(
                self.learners["image"], self.prompts("text", leaves), of_image, self.sizes, self.unit
            )
        if f"{tower}.state" in leaves:
            state = start.tensors()["key"].double() + self.units[tower]["state"] * self.learned(
                f"{tower}.state", leaves
            )
            last = {} if start.query is None else {"query": state[-1:], "residual": state[-1:]}
            gate = None if start.gate is None else leaves[f"{tower}.gate"]
            return SlotPrompts(None, key=state, value=state, gate=gate, **last, replace=True)
        values: dict[str, Any] = {
            name: value.double() + self.units[tower][name] * self.learned(f"{tower}.{name}", leaves)
            for name, value in start.tensors().items()
        }
        return SlotPrompts(**{"context": None, **values}, replace=start.replace)

    def class_features(self, leaves: Gradients) -> Tensor:
        """[V, E]."""
        if "text" not in self.starts:
            return self.frozen
        return tower_reference.plain_features(
            self.model, self.prompts("text", leaves), self.names, self.config.prompts.position
        )

    def image_features(self, leaves: Gradients, batch: Batch) -> Tensor:
        """[B, E]."""
        if self.pixels is not None:
            pixels = self.pixels(batch.row).double()
            return image_reference.plain_features(self.model, self.prompts("image", leaves), pixels)
        assert batch.features is not None
        return torch.from_numpy(batch.features).double()

    def logits(self, text: Tensor, images: Tensor, leaves: Gradients) -> list[Tensor]:
        """[B, V] each: those whose losses are added up."""
        if self.config.head.head == "none":
            return [self.scale * images @ text.T]
        return head_reference.plain_training_logits(
            self.config.head, of_head(leaves), self.known, self.names, text, images, self.scale
        )

    @functools.cached_property
    def known(self) -> head_reference.Known:
        """What the run's head knows."""
        everything = self.rows.batch(np.arange(len(self.rows)))
        assert everything.features is not None
        samples = (everything.row // self.rows.store.layout.views).tolist()
        features = torch.from_numpy(everything.features)
        known = head_reference.known(self.names, everything.label.tolist(), samples, features)
        if self.config.head.head != "teacher-space":
            return known
        vectors, embeddings = torch.from_numpy(self.rows.class_embeddings), torch.from_numpy(everything.embedding)
        teacher = head_reference.teacher_side(self.names, vectors, self.rows.teacher_scale, features, embeddings, RIDGE)
        return replace(known, teacher=teacher)

    def losses(
        self, text: Tensor, images: Tensor, batch: Batch, drawn: Drawn, leaves: Gradients, step: int
    ) -> dict[str, Tensor]:
        """The means over the step of everything that the config asks for."""
        config = self.config
        every = self.logits(self.noisy("names", text, step), self.noisy("images", images, step), leaves)
        of_each = [self.of_logits(logits, batch, drawn) for logits in every]
        parts = {name: torch.stack([losses[name] for losses in of_each]).sum() for name in of_each[0]}
        if config.loss.anchor_weight and "text" in self.starts:
            off = text - self.bare
            apart = {"squared": off.square().sum(1), "l1": off.abs().mean(1)}[config.loss.anchor_form]
            parts["anchor"] = (drawn.stands_for * apart).sum() / len(self.names)
        if config.head.penalty:
            parts["penalty"] = head_reference.plain_penalty(config.head, of_head(leaves))
        return parts

    def of_logits(self, logits: Tensor, batch: Batch, drawn: Drawn) -> dict[str, Tensor]:
        """The means over the step of the losses of rows."""
        config, parts = self.config, {}
        label, log_weight = torch.from_numpy(batch.label), drawn.log_weight.expand(len(batch.label), -1)
        candidates = int((drawn.stands_for > 0).sum())
        per_class = {"rows": 1, "rows-and-classes": candidates}[config.loss.kl_mean]
        if config.loss.supervision != "soft":
            parts["hard"] = self.hard(logits, log_weight, label)
        if config.loss.supervision != "hard":
            parts["soft"] = self.soft(logits, log_weight, label, batch).mean() / per_class
        if config.loss.consistency_weight or config.loss.prograd:
            assert batch.features is not None
            frozen = (self.scale * torch.from_numpy(batch.features).double() @ self.bare.T).softmax(1)
            parts["consistency"] = divergence(frozen, logits, log_weight, 1.0).mean() / per_class
        return parts

    def noisy(self, of: str, features: Tensor, step: int) -> Tensor:
        """Unit features with what the step adds to them; classes of one name get the same."""
        length = {"images": self.config.loss.image_noise, "names": self.config.loss.name_noise}[of]
        stream, count = (IMAGE_NOISE, len(features)) if of == "images" else (NAME_NOISE, 1024)
        drawn = stream.at(self.config.loop.seed, step).standard_normal((count, features.shape[1]), dtype=np.float32)
        noise = torch.from_numpy(drawn).double()
        moved = features + length * (noise if of == "images" else noise[self.name_of]) / features.shape[1] ** 0.5
        return moved / moved.norm(dim=1, keepdim=True) if length else features

    def hard(self, logits: Tensor, log_weight: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy with all classes of the label's name, and with the whole vocabulary for the smoothed share."""
        labelled = label >= 0
        logits, log_weight, label = logits[labelled], log_weight[labelled], label[labelled]
        if self.config.loss.hard_over == "seen":
            unseen = sorted(set(range(len(self.names))) - set(self.rows.label_column.tolist()))
            log_weight = log_weight.clone()
            log_weight[:, unseen] = -torch.inf
            logits = logits.masked_fill(log_weight == -torch.inf, -1e9)
        log_p = log_student(logits, log_weight, 1.0)
        same = self.name_of[label][:, None] == self.name_of[None]
        wanted = -(log_p + log_weight).masked_fill(~same, -torch.inf).logsumexp(1)
        weight = log_weight.exp()
        spread = -(weight * log_p).sum(1) / weight.sum(1)
        smoothing, q = self.config.loss.label_smoothing, self.config.loss.gce_q
        if self.config.loss.hard_loss == "gce":
            return ((1 - (-wanted).exp() ** q) / q).sum() / max(1, len(label))
        return ((1 - smoothing) * wanted + smoothing * spread).sum() / max(1, len(label))

    def soft(self, logits: Tensor, log_weight: Tensor, label: Tensor, batch: Batch) -> Tensor:
        """tau^2 times the divergence from the teacher by the config's source and tail rule, [B]."""
        config, tau, kind = self.config, self.config.loss.temperature, self.config.loss.soft_loss
        softened = config.loss.teacher_temperature or tau
        if config.loss.targets == "embedding":
            cosines = torch.from_numpy(batch.embedding @ self.rows.class_embeddings.T).double()
            scores = self.rows.teacher_scale * cosines / softened
            if config.candidates.candidates == "teacher":  # over these alone
                scores = scores + log_weight
            teacher = scores.softmax(1)
            return divergence(teacher, logits, log_weight, tau, kind)
        ids = torch.from_numpy(batch.class_ids).long()  # every row has as many classes
        mass = torch.zeros_like(logits).scatter(1, ids, (torch.from_numpy(batch.log_probs).double() / softened).exp())
        stored = torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, True)
        if config.loss.tail == "renormalise":
            kept = stored & (log_weight > -torch.inf)
            return tau**2 * apart(mass * kept, logits.div(tau).exp() * kept, kind)
        column = self.rows.temperatures.index(softened)
        tail = torch.from_numpy(batch.log_residual[:, column]).double().exp()[:, None]
        if config.loss.tail == "ghost":
            single = stored & (log_weight == 0)
            student = (logits / tau + log_weight).exp()
            rest = [tail + (mass * ~single).sum(1, keepdim=True), (student * ~single).sum(1, keepdim=True)]
            rest[0] = rest[0] * (rest[1] > 0)
            lists = [torch.cat([head * single, lump], 1) for head, lump in zip((mass, student), rest, strict=True)]
            return tau**2 * apart(lists[0], lists[1], kind)
        if config.loss.tail == "residual-uniform":
            mass = mass + ~stored * tail / (~stored).sum(1, keepdim=True)
        else:
            mass = mass + nn.functional.one_hot(label.clamp(min=0), len(self.names)) * (label >= 0)[:, None] * tail
        return divergence(mass / mass.sum(1, keepdim=True), logits, log_weight, tau, kind)


@functools.cache
def exact(model: nn.Module) -> Any:
    """The same model in float64."""
    return copy.deepcopy(model).double()


def of_head(leaves: Gradients) -> Gradients:
    """The parameters of the head."""
    return {name.partition(".")[2]: x for name, x in leaves.items() if name.startswith("head.")}


def units_of(tower: str, learner: Any, clip: LoadedClip, config: TrainConfig) -> dict[str, Tensor]:
    """What one unit of each parameter is worth in the tower's own numbers."""
    sizes = sizes_of(tower, clip, config)
    units = {"context": sizes[0], "gate": torch.tensor(1.0).double()}
    blocks: Mapping[str, range] = {**learner.allocation.blocks, "added": learner.allocation.added}
    if learner.allocation.tied:
        return units | {"state": sizes[: len(blocks["key"])][:, None, None]}
    return units | {letter: sizes[list(where)][:, None, None] for letter, where in blocks.items()}


def sizes_of(tower: str, clip: LoadedClip, config: TrainConfig) -> Tensor:
    """[L] the size of slot states in each block, or 1."""
    if tower == "text":
        sizes = TextTower.from_clip(clip.model, clip.tokenizer).slot_scales(config.prompts.context).double()
    else:
        sizes = ImageTower.from_clip(clip.model).patch_scales().double()
    return sizes if config.prompts.layer_scale else torch.ones_like(sizes)


def _gradient(loss: Tensor, leaves: Gradients) -> Gradients:
    gradients = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if part is None else part
        for (name, leaf), part in zip(leaves.items(), gradients, strict=True)
    }
