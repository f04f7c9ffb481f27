"""Candidates are a pure draw around the forced classes; its bias and spread against the whole vocabulary are shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from teachonce.errors import TeachOnceError, UsageError
from teachonce.losses.candidates import Candidates, all_candidates, sampled_candidates, teacher_candidates
from teachonce.losses.row_losses import dense_rows, hard_rows

LABELS = np.array([3, 3, 40, -1])
TOP = np.array([[3, 7], [8, 3], [40, 41], [-1, 60]])
FORCED = [3, 7, 8, 40, 41, 60]


def test_all_classes_stand_for_themselves() -> None:
    candidates = all_candidates(5)
    assert candidates.classes.tolist() == candidates.columns().tolist() == list(range(5))
    assert not candidates.log_weight.any() and not candidates.stands_for.any() and candidates.forced == 5


def test_forced_classes_weigh_one_and_the_fill_stands_for_the_rest() -> None:
    candidates = sampled_candidates(LABELS, TOP, fill=20, vocabulary=100, seed=1, step=2)
    assert candidates.forced == len(FORCED) and len(candidates.classes) == len(FORCED) + 20
    assert torch.equal(candidates.classes, candidates.classes.unique()), "sorted, each once"
    weights = dict(zip(candidates.classes.tolist(), candidates.log_weight.tolist(), strict=True))
    assert all(weights.pop(one) == 0 for one in FORCED)
    assert list(weights.values()) == pytest.approx([math.log(94 / 20)] * 20, rel=1e-6)
    assert candidates.log_weight.dtype == torch.float32 and candidates.classes.dtype == torch.int64


def test_columns_lead_from_a_class_to_its_candidate() -> None:
    candidates = sampled_candidates(LABELS, TOP, fill=20, vocabulary=100, seed=1, step=2)
    columns = candidates.columns()
    assert columns.shape == (100,) and (columns >= 0).sum() == len(candidates.classes)
    assert torch.equal(candidates.classes[columns[columns >= 0]], torch.arange(100)[columns >= 0])


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
        candidates = sampled_candidates(LABELS, TOP, 20, 100, 0, step)
        estimates.append(float((candidates.log_weight.exp() * value[candidates.classes]).sum()))
    error = np.std(estimates) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates) - float(value.sum())) < 4 * error < 0.5


@pytest.mark.parametrize("fill", [94, 95, 10_000])
def test_when_few_others_remain_all_are_taken_and_weigh_one(fill: int) -> None:
    candidates = sampled_candidates(LABELS, TOP, fill, 100, 0, 0)
    assert (
        torch.equal(candidates.classes, torch.arange(100))
        and not candidates.log_weight.any()
        and candidates.forced == 6
    )


def test_without_fill_or_correction_nothing_is_weighted() -> None:
    alone = sampled_candidates(LABELS, TOP, 0, 100, 0, 0)
    assert alone.classes.tolist() == FORCED and not alone.log_weight.any()
    plain = sampled_candidates(LABELS, TOP, 20, 100, 1, 2, correction="none")
    same = sampled_candidates(LABELS, TOP, 20, 100, 1, 2)
    assert torch.equal(plain.classes, same.classes) and not plain.log_weight.any()
    assert torch.equal(plain.stands_for, same.log_weight), "what a class stands for is not what it weighs"


def test_nothing_forced_leaves_a_uniform_draw() -> None:
    candidates = sampled_candidates([-1, -1], np.empty((2, 0)), 10, 100, 0, 0)
    assert candidates.forced == 0 and len(candidates.classes) == 10
    assert candidates.log_weight.tolist() == pytest.approx([math.log(10)] * 10)


def test_a_class_beyond_the_vocabulary_is_a_bug() -> None:
    for correction in ("ln", "log10", "none"):
        with pytest.raises(TeachOnceError, match="class 100 .*100 classes"):
            sampled_candidates([3], [[100]], 5, 100, 0, 0, correction)  # type: ignore[arg-type]


def test_homonyms_of_forced_classes_are_forced() -> None:
    """Classes 3, 23, 43, ... share a name; they cost no text feature, so the label's group is whole."""
    names = np.arange(100) % 20
    candidates = sampled_candidates([3], [[7]], 10, 100, 0, 0, names=names)
    forced = [c for c in range(100) if c % 20 in (3, 7)]
    assert candidates.forced == len(forced) and set(forced) <= set(candidates.classes.tolist())
    weight = dict(zip(candidates.classes.tolist(), candidates.log_weight.tolist(), strict=True))
    assert all(weight[c] == 0 for c in forced) and len(weight) == len(forced) + 10
    assert max(weight.values()) == pytest.approx(math.log(90 / 10))


def pomp_rows(logits: Tensor, labels: list[int], drawn: list[int], classes: int) -> list[float]:
    """POMP's local contrast and local correction of each row, from the logits of all classes [B, C].

    Column 0 is the row's own class, then the shared draw; a draw that is the row's own class is masked; the margin is
    added to every negative.
    """
    losses = []
    for row, label in zip(logits.double(), labels, strict=True):
        rejected = sum(c == label for c in drawn)
        margin = math.log10((classes - 1) / (len(drawn) - rejected)) if len(drawn) > rejected else 0.0
        negatives = [-1e6 if c == label else float(row[c]) + margin for c in drawn]
        columns = torch.tensor([float(row[label]), *negatives], dtype=torch.float64)
        losses.append(F.cross_entropy(columns[None], torch.tensor([0])).item())
    return losses


@pytest.mark.parametrize("fill", [0, 1, 29, 119, 120, 500])
def test_log10_is_pomps_rule_row_by_row(fill: int) -> None:
    labels, classes = [4, 4, 60, 119], 120
    logits = 6 * torch.randn(4, classes, generator=torch.Generator().manual_seed(fill))
    rejections = 0
    for step in range(20):
        candidates = sampled_candidates(labels, np.empty((4, 0)), fill, classes, 3, step, "log10")
        others = candidates.classes != torch.tensor(labels)[:, None]  # each class is another than some row's own
        drawn = candidates.classes[(others & (candidates.log_weight > -math.inf)).any(0)].tolist()
        assert len(drawn) == min(fill, classes)
        rejections += sum(label in drawn for label in labels)
        place = candidates.columns()[torch.tensor(labels)]
        rows = hard_rows(logits[:, candidates.classes], candidates.log_weight, place)
        assert rows.tolist() == pytest.approx(pomp_rows(logits, labels, drawn, classes), rel=1e-5, abs=1e-5)
    assert rejections > 0 or fill <= 1, "the masked case did occur"


def test_log10_keeps_other_rows_classes_out_unless_they_were_drawn() -> None:
    candidates = sampled_candidates(LABELS, TOP, 20, 100, 1, 2, "log10")
    assert candidates.log_weight.shape == (4, len(candidates.classes)) and candidates.forced == len(FORCED)
    row_classes = [{3, 7}, {3, 8}, {40, 41}, {60}]
    shared = set(candidates.classes.tolist())
    for row, mine in zip(candidates.log_weight, row_classes, strict=True):
        weight = dict(zip(candidates.classes.tolist(), row.tolist(), strict=True))
        assert all(weight[c] == 0 for c in mine)
        others = {c: w for c, w in weight.items() if c not in mine and w > -math.inf}
        assert len(set(others.values())) == 1
        drawn_own = 20 - len(others)
        assert next(iter(others.values())) == pytest.approx(math.log10((100 - len(mine)) / (20 - drawn_own)))
        assert {c for c in weight if weight[c] == -math.inf} <= set(FORCED) - mine
    assert shared >= set(FORCED)


def test_log10_draws_from_all_classes() -> None:
    """Each class is drawn at the rate n / V, forced or not: that is what sets it apart from a draw around D."""
    counts = np.zeros(50)
    for step in range(1500):
        candidates = sampled_candidates([0, 1], np.empty((2, 0)), 10, 50, 0, step, "log10")
        others = candidates.classes != torch.tensor([[0], [1]])
        counts[candidates.classes[(others & (candidates.log_weight > -math.inf)).any(0)]] += 1
    assert abs(counts / 1500 - 0.2).max() < 5 * math.sqrt(0.2 * 0.8 / 1500)


@dataclass(frozen=True)
class World:
    """400 classes whose features move with a prompt of 10 numbers, 16 images, a teacher that knows better."""

    base: Tensor  # [V, E]
    paths: Tensor  # [V, E, 10]
    images: Tensor  # [B, E]
    labels: Tensor  # [B]
    log_teacher: Tensor  # [B, V]

    @classmethod
    def make(cls) -> World:
        generator = torch.Generator().manual_seed(0)
        base = torch.randn(400, 16, generator=generator)
        paths = torch.randn(16, 10, generator=generator) + torch.randn(400, 16, 10, generator=generator)
        images = F.normalize(torch.randn(16, 16, generator=generator), dim=1)
        labels = torch.randint(400, (16,), generator=generator)
        teacher = F.normalize(base + 0.5 * torch.randn(400, 16, generator=generator), dim=1)
        return cls(base, paths, images, labels, (12 * images @ teacher.T).log_softmax(1))

    def gradient(self, candidates: Candidates, soft: bool) -> Tensor:
        """Of the batch's mean loss over the candidates with respect to the prompt, [10]."""
        prompt = torch.zeros(10, requires_grad=True)
        features = F.normalize(self.base + self.paths @ prompt, dim=1)[candidates.classes]
        logits = 12 * self.images @ features.T
        if soft:
            rows = dense_rows(self.log_teacher[:, candidates.classes], logits, candidates.log_weight, 1.0)
        else:
            rows = hard_rows(logits, candidates.log_weight, candidates.columns()[self.labels])
        return torch.autograd.grad(rows.mean(), prompt)[0].double()

    def bias_and_spread(self, correction: str, soft: bool, fill: int, draws: int = 300) -> tuple[float, float]:
        """Distance of the mean draw from the exact gradient, and root mean square around the mean, relative."""
        exact = self.gradient(all_candidates(400), soft)
        top = self.log_teacher.topk(5, 1).indices
        losses = torch.stack(
            [
                self.gradient(sampled_candidates(self.labels, top, fill, 400, 0, step, correction), soft)  # type: ignore[arg-type]
                for step in range(draws)
            ]
        )
        mean, size = losses.mean(0), exact.norm()
        return float((mean - exact).norm() / size), float((losses - mean).square().sum(1).mean().sqrt() / size)


@pytest.mark.parametrize("soft", [False, True])
def test_ln_has_little_bias_none_has_much_and_log10_lies_between(soft: bool) -> None:
    world = World.make()
    ln, log10, none = (world.bias_and_spread(c, soft, fill=40) for c in ("ln", "log10", "none"))
    assert ln[0] < (0.25 if soft else 0.08)
    assert none[0] > (0.5 if soft else 0.2)
    assert ln[0] < log10[0] < none[0]
    assert ln[1] > none[1], "what the correction costs is variance"


@pytest.mark.slow
@pytest.mark.parametrize("soft", [False, True])
def test_with_a_larger_fill_ln_comes_to_the_exact_gradient_sooner_than_none(soft: bool) -> None:
    world = World.make()
    few, many, whole = (world.bias_and_spread("ln", soft, fill) for fill in (40, 160, 400))
    assert many[0] < (0.1 if soft else 0.03) and many[1] < few[1] / 2
    assert world.bias_and_spread("none", soft, 160)[0] > 3 * many[0]
    assert max(whole) < 1e-6


@pytest.mark.parametrize("correction", ["ln", "log10"])
def test_a_step_without_any_candidate_is_refused_with_the_keys_that_help(correction: Any) -> None:
    """No row has a label, none has a best class that counts, and nothing is drawn."""
    with pytest.raises(UsageError, match="step 7: there is no candidate.* sampled_top = 1 and sampled_fill = 0"):
        sampled_candidates([-1, -1], [[-1], [-1]], 0, 50, 0, 7, correction)


def test_the_teachers_classes_are_those_with_most_of_its_mass_over_the_rows() -> None:
    """Against a plain sum; unstored classes, ties and labels by the rule; few stored classes give few candidates."""
    random = np.random.default_rng(3)
    classes = np.stack([random.choice(50, 6, replace=False) for _ in range(8)])
    probs = random.random((8, 6))
    classes[2, 4:], probs[2, 4:] = -1, 0.0
    mass = {c: float(probs[classes == c].sum()) for c in range(50) if (classes == c).any()}
    wanted = sorted(sorted(mass, key=lambda c: (-mass[c], c))[:9])
    with np.errstate(divide="ignore"):
        stored = np.log(probs)
    chosen = teacher_candidates(np.full(8, -1), classes, stored, 9, 50)
    assert chosen.classes.tolist() == wanted and chosen.forced == 9 and not chosen.log_weight.any()
    missing = next(c for c in range(50) if c not in wanted)
    labels = np.array([missing, -1, *wanted[:1] * 6])
    assert teacher_candidates(labels, classes, stored, 9, 50).classes.tolist() == sorted([*wanted, missing])
    names = np.arange(50)
    names[49 if missing != 49 else 48] = missing  # another class of the label's name
    assert len(teacher_candidates(labels, classes, stored, 9, 50, names).classes) >= 10
    assert teacher_candidates(labels[:0], classes, stored, 99, 50).classes.tolist() == sorted(mass)
    tied = teacher_candidates(np.array([-1]), np.array([[7, 3, 5]]), np.zeros((1, 3)), 2, 9)
    assert tied.classes.tolist() == [3, 5]
    with pytest.raises(UsageError, match="there is no candidate"):
        teacher_candidates(np.array([-1]), np.array([[-1]]), np.array([[-np.inf]]), 2, 9)
