"""A shipped recipe of another method takes the step that its paper states: loss and gradient, at a state of its own.

The losses are written from the papers' equations in `published_losses`, of features that a plain float64 tower makes of
the same prompts. What a recipe does else (optimiser, schedule, length) is data: docs/baselines.md compares it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import published_losses as published
import pytest
import torch
import worlds
from image_reference import plain_features as plain_image_features
from step_reference import exact
from torch import Tensor, nn
from tower_reference import full_tokens, plain_features

from teachonce.core.progress import Silent
from teachonce.core.streams import CANDIDATES
from teachonce.heads.adapters import TipHead
from teachonce.labels.store import LabelStore
from teachonce.models.clip import LoadedClip
from teachonce.recipe.config_file import load_train_config
from teachonce.rows.images import ViewImages
from teachonce.rows.working_set import WorkingSet, open_working_set
from teachonce.training.trainer import Trainer

STEP = 3
SCALE, TEACHER_SCALE = 5.0, 8.0  # logit scales of the student and the teacher
DISTINCT = tuple(name if name != "Crane" else "grey heron" for name in worlds.NAMES)


@dataclass(frozen=True, eq=False)
class Ground:
    """What every recipe works on: a store whose classes have distinct names, as the papers assume."""

    clip: LoadedClip
    rows: WorkingSet
    store: LabelStore
    root: Path


@pytest.fixture(scope="module")
def ground(teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worlds, "NAMES", DISTINCT)
        world = worlds.make_world(folder / "world", worlds.make_photos())
        worlds.teach_inline(
            world, folder / "rich.zarr", teacher, students=(student,), top_k=len(DISTINCT), embeddings="float16"
        )
    clip, store = worlds.loaded_once(student), LabelStore.open(folder / "rich.zarr")
    rows = open_working_set(store, clip.digest, Silent(), embeddings=True)
    clip = replace(clip, model=copy.deepcopy(clip.model))
    with torch.no_grad():
        clip.model.logit_scale.fill_(math.log(SCALE))
    yield Ground(clip, rows, store, world.root)
    rows.close()


@dataclass(frozen=True, eq=False)
class Step:
    """A step of a recipe, and what its published loss is a function of."""

    trainer: Trainer
    loss: float  # that the library reports
    prompts: nn.Module  # of the text tower, float64, as they were before the step
    texts: Tensor  # [C, E] in the graph of the prompts
    images: Tensor  # [B, E]
    labels: list[int]
    teacher: Tensor  # [B, C] cosines

    @property
    def logits(self) -> Tensor:
        """[B, C]."""
        return SCALE * self.images @ self.texts.T

    def gradient_of(self, loss: Tensor) -> Tensor:
        """Of a published loss with respect to all prompts, as one vector."""
        parts = torch.autograd.grad(loss, list(self.prompts.parameters()), retain_graph=True)
        return torch.cat([part.flatten() for part in parts])

    def require(self, loss: Tensor, gradient: Tensor | None = None) -> None:
        """The library's loss and gradient are these."""
        assert self.loss == pytest.approx(float(loss.detach()), rel=1e-5)
        wanted = self.gradient_of(loss) if gradient is None else gradient
        ours = torch.cat([p.grad.flatten() for p in self.trainer.learners.parameters() if p.grad is not None])
        assert wanted.norm() > 0 and (ours - wanted).norm() <= 1e-4 * wanted.norm()


def bare(ground: Ground, template: str) -> Tensor:
    """Unit features of the names in a template by the model itself, [C, E]."""
    model = exact(ground.clip.model)
    with torch.no_grad():
        return model.encode_text(full_tokens(model, DISTINCT, template), normalize=True)  # type: ignore[no-any-return]


def moved_away(trainer: Trainer, seed: int) -> None:
    """Take the parameters some way off their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainer.learners.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def step_of(ground: Ground, recipe: str, *overrides: str, moved: int = 11) -> Step:
    """One step of a shipped recipe from prompts that a draw of the seed `moved` has taken some way off their start."""
    config = load_train_config(Path(recipe), ["batch_size=24", "precision=fp32", "class_chunk=3", *overrides])
    trainer = Trainer(config, ground.clip, ground.rows)
    moved_away(trainer, moved)
    prompts = copy.deepcopy(trainer.student.learner("text")).double()
    batch = ground.rows.batch(trainer.order.at(STEP)[1])
    texts = plain_features(exact(ground.clip.model), prompts(), DISTINCT)
    loss = trainer.step(STEP)["loss"]
    assert batch.features is not None and batch.embedding is not None
    cosines = batch.embedding.astype(np.float64) @ ground.rows.class_embeddings.T
    images = torch.from_numpy(batch.features).double()
    return Step(trainer, loss, prompts, texts, images, batch.label.tolist(), torch.from_numpy(cosines))


@pytest.mark.parametrize("recipe", ["coop", "maple"])
def test_coop_and_maple_minimise_cross_entropy(recipe: str, ground: Ground) -> None:
    """CoOp's context of 16 at the input; MaPLe's state in each of the first blocks."""
    step = step_of(ground, recipe, *(["depth=1"] if recipe == "maple" else []))
    slots = sum(p.numel() for p in step.prompts.parameters()) // 32
    assert slots == {"coop": 16, "maple": 4}[recipe]
    step.require(published.cross_entropy(step.logits, step.labels))


def test_the_whole_of_maple_maps_text_prompts_to_image_prompts(ground: Ground) -> None:
    """Both towers, coupled, and no gate: cross-entropy of the features of both, in all parameters."""
    overrides = ["batch_size=12", "precision=fp32", "depth=1", "tower=both", "coupled=true", "init=words"]
    config = load_train_config(Path("maple"), overrides)
    with ViewImages(ground.store, ground.root, ground.clip, threads=1) as images:
        trainer = Trainer(config, ground.clip, ground.rows, images)
        moved_away(trainer, 11)
        learners = copy.deepcopy(trainer.learners).double()
        model, batch = exact(ground.clip.model), ground.rows.batch(trainer.order.at(STEP)[1])
        texts = plain_features(model, learners["text"](), DISTINCT)
        seen = plain_image_features(model, learners["image"](), images.pixels(batch.row).double())
        loss = trainer.step(STEP)["loss"]
    wanted = published.cross_entropy(SCALE * seen @ texts.T, batch.label.tolist())
    Step(trainer, loss, learners, texts, seen, [], texts).require(wanted)


def test_kgcoop_adds_its_distance_from_the_template(ground: Ground) -> None:
    step = step_of(ground, "kgcoop")
    step.require(published.kgcoop(step.logits, step.labels, step.texts, bare(ground, worlds.TEMPLATE)))


@pytest.mark.parametrize(("moved", "opposes"), [(0, False), (4, True)])
def test_prograd_drops_what_opposes_the_zero_shot_student(moved: int, opposes: bool, ground: Ground) -> None:
    """The template's own softmax decides; where it does not oppose, the gradient is that of cross-entropy."""
    step = step_of(ground, "prograd", moved=moved)
    task = published.cross_entropy(step.logits, step.labels)
    p = torch.softmax(SCALE * step.images @ bare(ground, worlds.TEMPLATE).T, 1)
    general = published.divergence(p, torch.softmax(step.logits, 1)) / len(p)
    g, h = step.gradient_of(task), step.gradient_of(general)
    assert (float(g @ h) < 0) == opposes
    step.require(task, published.prograd(g, h))


def test_promptsrc_regularises_itself_with_the_mean_of_its_templates(ground: Ground) -> None:
    step = step_of(ground, "promptsrc", "depth=1")
    templates = [part.strip() for part in step.trainer.config.loss.bare_templates.split("|")]
    assert len(templates) == 8
    features = torch.stack([bare(ground, template) for template in templates])
    step.require(published.promptsrc(step.logits, step.labels, step.texts, features, step.images, SCALE))


@pytest.mark.parametrize("most", [None, 5])
def test_kdpl_halves_the_two_divergences_over_all_names_or_the_teachers_own(most: int | None, ground: Ground) -> None:
    """KDPL's teacher speaks at the student's logit scale, which is a temperature of the teacher here."""
    without_names = [] if most is None else ["candidates=teacher", f"teacher_names={most}"]
    step = step_of(ground, "kdpl", f"teacher_temperature={TEACHER_SCALE / SCALE}", *without_names)
    if most is None:
        step.require(published.kdpl(step.logits, SCALE * step.teacher))
        return
    of_store = torch.softmax(TEACHER_SCALE * step.teacher, 1).mean(0).argsort(descending=True)[:most]
    step.require(published.kdpl(step.logits[:, of_store], SCALE * step.teacher[:, of_store]))


@pytest.mark.parametrize("recipe", ["pomp", "pomp-vitb16"])
def test_pomp_corrects_its_drawn_negatives(recipe: str, ground: Ground) -> None:
    """Three of eight classes are drawn for the batch; some rows find their own label among them, some do not."""
    step = step_of(ground, recipe, "sampled_fill=3", "warmup_steps=0", "warmup_epochs=0", "warmup=linear")
    drawn = CANDIDATES.at(0, STEP).choice(len(DISTINCT), 3, replace=False, shuffle=False).tolist()
    assert 0 < sum(label in drawn for label in step.labels) < len(step.labels)
    step.require(published.pomp(step.logits, step.labels, drawn))


def test_tip_adapter_f_trains_a_cache_of_all_training_photos(ground: Ground) -> None:
    """The cache begins as the features and labels of every photo; what is compared is a step from keys that moved."""
    config = load_train_config(Path("tip-adapter-f"), ["batch_size=24", "precision=fp32"])
    trainer = Trainer(config, ground.clip, ground.rows)
    head = trainer.student.head
    assert isinstance(head, TipHead)
    every = ground.rows.batch(np.arange(len(ground.rows)))
    features, labels = torch.from_numpy(every.features).double(), torch.from_numpy(every.label)  # type: ignore[arg-type]
    cached = torch.cat([head.keys.detach().double(), head.get_buffer("labels")[:, None].double()], 1)
    of_store = torch.cat([features, labels[:, None].double()], 1)
    assert len(cached) == len(of_store)
    assert torch.equal(cached[lexical(cached)].float(), of_store[lexical(of_store)].float())
    moved_away(trainer, 3)
    keys = head.keys.detach().double().requires_grad_()
    values = torch.eye(len(DISTINCT)).double()[head.get_buffer("labels")]
    batch = ground.rows.batch(trainer.order.at(STEP)[1])
    images = torch.from_numpy(batch.features).double()  # type: ignore[arg-type]
    texts = bare(ground, worlds.TEMPLATE)
    loss = trainer.step(STEP)["loss"]
    logits = published.tip_adapter_logits(images, texts, keys, values, SCALE, 1.17, 1.0)
    wanted = published.cross_entropy(logits, batch.label.tolist())
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-5)
    (gradient,) = torch.autograd.grad(wanted, keys)
    ours = head.move.grad if head.move is not None else None
    assert ours is not None and (ours - gradient).norm() <= 1e-4 * gradient.norm()


def lexical(rows: Tensor) -> Tensor:
    """The order that sorts rows by their numbers."""
    return torch.from_numpy(np.lexsort(rows.float().numpy().T))


def test_promptkd_classifies_projected_images_with_the_teachers_class_vectors(ground: Ground) -> None:
    """Its student has a logit scale of its own, which CLIP's models share: here it is the teacher's."""
    config = load_train_config(Path("promptkd"), ["batch_size=24", "precision=fp32"])
    trainer = Trainer(config, ground.clip, ground.rows)
    moved_away(trainer, 3)
    head, batch = trainer.student.head, ground.rows.batch(trainer.order.at(STEP)[1])
    assert head is not None and batch.features is not None and batch.embedding is not None
    matrix = head.tensors()["matrix"].double().requires_grad_()
    classes = torch.from_numpy(ground.rows.class_embeddings).double()
    teacher = TEACHER_SCALE * torch.from_numpy(batch.embedding).double() @ classes.T
    images = torch.from_numpy(batch.features).double()
    wanted = published.promptkd(images, matrix, classes, teacher, TEACHER_SCALE, 1000.0)
    loss = trainer.step(STEP)["loss"]
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-5)
    (gradient,) = torch.autograd.grad(wanted, matrix)
    (ours,) = (p.grad for p in trainer.learners.parameters())
    assert ours is not None and (ours - gradient).norm() <= 1e-4 * gradient.norm()
