"""Candidates are a pure, unbiased draw around the forced classes; two passes give the gradient of one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from tower_reference import CONTEXT, tiny_clip, tokenizer

from teachonce.candidates import all_candidates, sampled_candidates, two_pass_backward
from teachonce.errors import TeachOnceError
from teachonce.prompts import PromptLearner
from teachonce.text_tower import SlotPrompts, TextTower

LABELS = np.array([3, 3, 40, -1])
TOP = np.array([[3, 7], [8, 3], [40, 41], [-1, 60]])
FORCED = [3, 7, 8, 40, 41, 60]


def test_all_classes_stand_for_themselves() -> None:
    candidates = all_candidates(5)
    assert candidates.classes.tolist() == candidates.columns().tolist() == list(range(5))
    assert not candidates.log_weight.any() and candidates.forced == 5


def test_forced_classes_weigh_one_and_the_fill_stands_for_the_rest() -> None:
    found = sampled_candidates(LABELS, TOP, fill=20, vocabulary=100, seed=1, step=2)
    assert found.forced == len(FORCED) and len(found.classes) == len(FORCED) + 20
    assert torch.equal(found.classes, found.classes.unique()), "sorted, each once"
    weights = dict(zip(found.classes.tolist(), found.log_weight.tolist(), strict=True))
    assert all(weights.pop(one) == 0 for one in FORCED)
    assert list(weights.values()) == pytest.approx([math.log(94 / 20)] * 20, rel=1e-6)
    assert found.log_weight.dtype == torch.float32 and found.classes.dtype == torch.int64


def test_columns_lead_from_a_class_to_its_candidate() -> None:
    found = sampled_candidates(LABELS, TOP, fill=20, vocabulary=100, seed=1, step=2)
    columns = found.columns()
    assert columns.shape == (100,) and (columns >= 0).sum() == len(found.classes)
    assert torch.equal(found.classes[columns[columns >= 0]], torch.arange(100)[columns >= 0])


def test_the_draw_depends_on_seed_and_step_alone() -> None:
    def draw(seed: int, step: int) -> list[int]:
        np.random.seed(seed + step)  # global generators must not matter
        torch.manual_seed(step)
        return sampled_candidates(LABELS, TOP, 20, 100, seed, step).classes.tolist()

    assert draw(1, 2) == draw(1, 2)
    assert len({tuple(draw(seed, step)) for seed in range(4) for step in range(4)}) == 16


def test_the_weighted_fill_is_unbiased() -> None:
    value = torch.linspace(0, 1, 100) ** 3
    estimates = []
    for step in range(2000):
        found = sampled_candidates(LABELS, TOP, 20, 100, 0, step)
        estimates.append(float((found.log_weight.exp() * value[found.classes]).sum()))
    error = np.std(estimates) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates) - float(value.sum())) < 4 * error < 0.5


@pytest.mark.parametrize("fill", [94, 95, 10_000])
def test_when_few_others_remain_all_are_taken_and_weigh_one(fill: int) -> None:
    found = sampled_candidates(LABELS, TOP, fill, 100, 0, 0)
    assert torch.equal(found.classes, torch.arange(100)) and not found.log_weight.any() and found.forced == 6


def test_without_fill_or_correction_nothing_is_weighted() -> None:
    alone = sampled_candidates(LABELS, TOP, 0, 100, 0, 0)
    assert alone.classes.tolist() == FORCED and not alone.log_weight.any()
    plain = sampled_candidates(LABELS, TOP, 20, 100, 1, 2, correction="none")
    same = sampled_candidates(LABELS, TOP, 20, 100, 1, 2)
    assert torch.equal(plain.classes, same.classes) and not plain.log_weight.any()


def test_nothing_forced_leaves_a_uniform_draw() -> None:
    found = sampled_candidates([-1, -1], np.empty((2, 0)), 10, 100, 0, 0)
    assert found.forced == 0 and len(found.classes) == 10
    assert found.log_weight.tolist() == pytest.approx([math.log(10)] * 10)


def test_a_class_beyond_the_vocabulary_is_a_bug() -> None:
    with pytest.raises(TeachOnceError, match="class 100 .*100 classes"):
        sampled_candidates([3], [[100]], 5, 100, 0, 0)


# 18 classes with 15 distinct names: classes 0, 9 and 17 share one, 4 and 5 another.
CLASSES = ["tench", "goldfish", "great white shark", "hen", "crane", "crane", "junco", "robin", "kite", "Tench"]
CLASSES += ["bald eagle", "spotted salamander", "axolotl", "bullfrog", "mud turtle", "box turtle", "iguana", "tench"]


def loss_of(count: int) -> Callable[[Tensor], Tensor]:
    """A loss in which every candidate matters differently."""
    generator = torch.Generator().manual_seed(count)
    images = F.normalize(torch.randn(6, 32, generator=generator), dim=1)
    labels = torch.randint(count, (6,), generator=generator)
    return lambda features: F.cross_entropy(20 * images @ features.T, labels)


def started(exact: bool) -> tuple[TextTower, PromptLearner]:
    """A tower, in float64 if exact, and a learner that is not at its start."""
    tower = TextTower.from_clip(tiny_clip("laion").to(torch.float64 if exact else torch.float32), tokenizer())
    learner = PromptLearner(tower, "unshared", CONTEXT)
    with torch.no_grad():
        for number, parameter in enumerate(learner.parameters()):
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(number))
    return tower, learner


def gradients(classes: Tensor, class_chunk: int, exact: bool) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients by the function under test."""
    tower, learner = started(exact)
    tokens = tower.tokenise(CLASSES)
    loss = two_pass_backward(tower, learner, tokens, classes, loss_of(len(classes)), class_chunk)
    return loss, [parameter.grad for parameter in learner.parameters() if parameter.grad is not None]


def one_shot(classes: Tensor, exact: bool) -> tuple[Tensor, list[Tensor]]:
    """The same written out, with every class's features computed for itself."""
    tower, learner = started(exact)
    features = [tower.features(learner(), tower.tokenise([CLASSES[one]]))[0] for one in classes.tolist()]
    loss = loss_of(len(classes))(torch.stack(features))
    return loss.detach(), list(torch.autograd.grad(loss, list(learner.parameters())))


@pytest.mark.parametrize("class_chunk", [1, 7, 18])
@pytest.mark.parametrize("which", ["all", "some"])
@pytest.mark.parametrize(("exact", "tolerance"), [(True, 1e-6), (False, 1e-5)])
def test_two_passes_give_the_one_shot_gradient(which: str, class_chunk: int, exact: bool, tolerance: float) -> None:
    classes = torch.arange(18) if which == "all" else torch.tensor([0, 2, 4, 5, 8, 9, 11, 13, 16])
    loss, found = gradients(classes, class_chunk, exact)
    expected_loss, expected = one_shot(classes, exact)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
    assert len(found) == 4
    for mine, reference in zip(found, expected, strict=True):
        assert (mine - reference).norm() <= tolerance * reference.norm()


def test_only_one_chunk_has_a_graph_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, bool]] = []
    plain = TextTower.features

    def watched(self: TextTower, prompts: SlotPrompts, names: object, chunk: Tensor) -> Tensor:
        result = plain(self, prompts, names, chunk)  # type: ignore[arg-type]
        sizes.append((len(chunk), result.requires_grad))
        return result

    monkeypatch.setattr(TextTower, "features", watched)
    gradients(torch.arange(18), 7, exact=False)
    assert sizes == [(7, False), (7, False), (1, False), (7, True), (7, True), (1, True)]
    sizes.clear()
    gradients(torch.arange(18), 15, exact=False)
    assert sizes == [(15, True)]


def test_gradients_add_up_and_other_parameters_of_the_loss_learn_too() -> None:
    tower = TextTower.from_clip(tiny_clip("laion"), tokenizer())
    learner, tokens = PromptLearner(tower, "shared", CONTEXT), tower.tokenise(CLASSES)
    scale = torch.tensor(2.0, requires_grad=True)

    def loss(features: Tensor) -> Tensor:
        return loss_of(18)(features * scale)

    for times in (1, 2):
        two_pass_backward(tower, learner, tokens, torch.arange(18), loss, 7)
        assert learner.context.grad is not None and scale.grad is not None
        if times == 1:
            first = learner.context.grad.clone(), scale.grad.clone()
    assert torch.allclose(learner.context.grad, 2 * first[0]) and torch.allclose(scale.grad, 2 * first[1])
