"""Losses of rows against plain Python in float64, their gradients, and their edge cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from loss_reference import (
    INF,
    ROWS,
    Case,
    make_case,
    plain_dense,
    plain_hard,
    plain_teacher,
    plain_top_k,
)
from torch import Tensor
from torch.nn import functional as F

from teachonce.losses.candidates import sampled_candidates
from teachonce.losses.divergences import SoftLoss
from teachonce.losses.row_losses import dense_rows, ghost_rows, hard_rows, renormalise_rows
from teachonce.losses.targets import SoftTargets, top_k_columns

RULES = ("ghost", "renormalise", "residual-uniform", "to-label")
KINDS: tuple[SoftLoss, ...] = get_args(SoftLoss)


def soft_rows(case: Case, logits: Tensor, rule: str, kind: SoftLoss = "kl") -> Tensor:
    """The soft loss of every row by any tail rule, through the functions under test."""
    weight = case.log_weight.to(torch.promote_types(logits.dtype, torch.float32))
    if rule in ("ghost", "renormalise"):
        function = ghost_rows if rule == "ghost" else renormalise_rows
        return function(logits, weight, case.targets, case.columns, case.tau, case.teacher_tau, kind)
    log_p = top_k_columns(
        case.targets,
        case.columns,
        case.label_classes,
        len(case.classes),
        case.teacher_tau,
        rule,  # type: ignore[arg-type]
    )
    return dense_rows(log_p, logits, weight, case.tau, kind)


def plain_soft(case: Case, rule: str, kind: str = "kl") -> list[float]:
    if rule in ("ghost", "renormalise"):
        return [plain_top_k(case, row, rule, kind) for row in range(ROWS)]
    return [plain_dense(case, row, plain_teacher(case, row, rule), kind) for row in range(ROWS)]


def check_soft(case: Case, rule: str, kind: SoftLoss = "kl") -> list[float]:
    """In float32, as it is used; the gradient is finite."""
    single = replace(
        case, targets=SoftTargets(case.targets.class_ids, case.targets.log_probs.float(), case.targets.log_tail.float())
    )
    logits = case.logits.float().requires_grad_()
    rows = soft_rows(single, logits, rule, kind)
    expected = plain_soft(case, rule, kind)
    assert rows.dtype == torch.float32
    assert rows.tolist() == pytest.approx(expected, rel=1e-5, abs=3e-5)
    rows.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    return expected


def all_losses(case: Case) -> list[Callable[[Tensor], Tensor]]:
    """Every loss as a function of the logits alone."""
    weight = case.log_weight
    hard = [
        lambda x, g=groups, eps=eps: hard_rows(
            x, weight.to(torch.promote_types(x.dtype, torch.float32)), case.labels, g, eps
        )
        for groups in (None, case.groups)
        for eps in (0.0, 0.1)
    ]
    gce = [
        lambda x, q=q: hard_rows(
            x, weight.to(torch.promote_types(x.dtype, torch.float32)), case.labels, case.groups, power=q
        )
        for q in (0.01, 0.7, 1.0)
    ]
    soft = [lambda x, rule=rule, kind=kind: soft_rows(case, x, rule, kind) for rule in RULES for kind in KINDS]
    return [*hard, *gce, *soft]


@pytest.mark.parametrize("row_weights", [False, True], ids=["one weight for all rows", "weights of each row"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_cross_entropy_equals_brute_force(row_weights: bool, smoothing: float) -> None:
    for seed in range(40):
        case = make_case(seed, row_weights=row_weights)
        for groups in (None, case.groups):
            rows = hard_rows(case.logits.float(), case.log_weight.float(), case.labels, groups, smoothing)
            names = None if groups is None else groups.tolist()
            expected = [plain_hard(case, row, names, smoothing) for row in range(ROWS)]
            assert rows.dtype == torch.float32
            assert rows.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("over", ["all classes", "some classes", "weights of each row"])
@pytest.mark.parametrize("kind", KINDS)
def test_soft_losses_equal_brute_force(rule: str, over: str, kind: SoftLoss) -> None:
    for seed in range(60 if kind == "kl" else 12):
        case = make_case(seed, everything=over == "all classes", row_weights=over == "weights of each row")
        check_soft(case, rule, kind)


@pytest.mark.parametrize("q", [0.01, 0.7, 1.0])
def test_generalised_cross_entropy_equals_brute_force(q: float) -> None:
    for seed in range(20):
        case = make_case(seed, row_weights=seed % 2 == 1)
        rows = hard_rows(case.logits.float(), case.log_weight.float(), case.labels, case.groups, power=q)
        expected = [plain_hard(case, row, case.groups.tolist(), power=q) for row in range(ROWS)]
        assert rows.tolist() == pytest.approx(expected, rel=2e-5, abs=1e-6)


def test_generalised_cross_entropy_pulls_less_at_a_label_that_is_not_believed() -> None:
    """Its gradient is p^q times that of cross-entropy; near q = 0 it is cross-entropy."""
    logits = torch.tensor([[3.0, 0.0, -2.0], [0.0, 4.0, 1.0]], dtype=torch.float64, requires_grad=True)
    labels, nothing = torch.tensor([2, 1]), torch.zeros(3, dtype=torch.float64)
    (plain,) = torch.autograd.grad(hard_rows(logits, nothing, labels).sum(), logits)
    (general,) = torch.autograd.grad(hard_rows(logits, nothing, labels, power=0.7).sum(), logits)
    believed = logits.detach().softmax(1).gather(1, labels[:, None])
    assert torch.allclose(general, believed**0.7 * plain)
    almost = hard_rows(logits, nothing, labels, power=1e-6)
    assert torch.allclose(almost, hard_rows(logits, nothing, labels), rtol=1e-4)


@pytest.mark.parametrize("row_weights", [False, True])
def test_gradients_equal_finite_differences(row_weights: bool) -> None:
    case = make_case(7, vocabulary=14, k=4, row_weights=row_weights)
    for loss in all_losses(case):
        assert torch.autograd.gradcheck(loss, case.logits.clone().requires_grad_())


def test_the_dense_gradient_is_the_stated_one() -> None:
    """tau (w p_S sum(b) - b)."""
    case = make_case(5)
    log_p = torch.randn(ROWS, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_p = log_p.log_softmax(1)[:, case.classes]
    logits = case.logits.clone().requires_grad_()
    dense_rows(log_p, logits, case.log_weight, case.tau).sum().backward()
    mass = (log_p + case.log_weight).exp()
    student = (case.logits / case.tau + case.log_weight).softmax(1)
    assert logits.grad is not None
    assert torch.allclose(logits.grad, case.tau * (student * mass.sum(1, keepdim=True) - mass), atol=1e-12)


def test_hard_plus_soft_at_tau_1_is_cross_entropy_with_mixed_targets() -> None:
    """The gradient of CE + lambda KL equals that of (1 + lambda) CE against (y + lambda p_T) / (1 + lambda)."""
    vocabulary, weight = 12, 0.7
    case = make_case(0, vocabulary, k=vocabulary, everything=True)
    assert case.tau == case.teacher_tau == 1.0
    case = replace(case, labels=torch.tensor([0, 3, 11, 5, 5]))
    teacher = torch.zeros(5, vocabulary, dtype=torch.float64)
    teacher = teacher.scatter(1, case.targets.class_ids, case.targets.log_probs.exp())
    mixed = (F.one_hot(case.labels, vocabulary) + weight * teacher) / (1 + weight)
    logits = case.logits.clone().requires_grad_()
    reference = (1 + weight) * -(mixed * logits.log_softmax(1)).sum(1).mean()
    (expected,) = torch.autograd.grad(reference, logits)
    entropy = -(teacher * teacher.log()).sum(1).mean()
    for rule in RULES:
        loss = hard_rows(logits, case.log_weight, case.labels).mean() + weight * soft_rows(case, logits, rule).mean()
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.allclose(gradient, expected, atol=1e-7), rule
        assert loss.item() == pytest.approx(reference.item() - weight * entropy.item(), rel=1e-6)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_a_student_equal_to_the_teacher_has_no_loss_over_all_classes(tau: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(4, 50, generator=generator)).requires_grad_()
    log_p = logits.detach().log_softmax(1)
    top = log_p.topk(5, 1)
    outside = torch.ones(4, 50, dtype=torch.bool).scatter(1, top.indices, False)
    targets = SoftTargets(top.indices, top.values, (log_p / tau).masked_fill(~outside, -INF).logsumexp(1))
    exact = dense_rows((log_p / tau).log_softmax(1), logits, torch.zeros(50), tau)
    ghost = ghost_rows(logits, torch.zeros(50), targets, torch.arange(50), tau, tau)
    renormalised = renormalise_rows(logits, torch.zeros(50), targets, torch.arange(50), tau, tau)
    others = [
        dense_rows((log_p / tau).log_softmax(1), logits, torch.zeros(50), tau, kind)
        for kind in ("reverse-kl", "js", "symmetric")
    ]
    for rows in (exact, ghost, renormalised, *others):
        (gradient,) = torch.autograd.grad(rows.sum(), logits)
        assert rows.abs().max() < 1e-5 and gradient.abs().max() < 1e-5


def test_the_ghost_is_a_lower_bound_of_the_whole_divergence() -> None:
    for seed in range(0, 40, 4):
        case = make_case(seed, everything=True)
        generator = torch.Generator().manual_seed(seed)
        log_p = (4 * torch.randn(ROWS, 30, generator=generator, dtype=torch.float64)).log_softmax(1)
        top = log_p.topk(6, 1)
        outside = torch.ones_like(log_p, dtype=torch.bool).scatter(1, top.indices, False)
        targets = SoftTargets(top.indices, top.values, log_p.masked_fill(~outside, -INF).logsumexp(1))
        whole = dense_rows(log_p, case.logits, case.log_weight, 1.0)
        ghost = ghost_rows(case.logits, case.log_weight, targets, case.columns, 1.0, 1.0)
        assert (ghost <= whole + 1e-9).all() and (ghost >= -1e-9).all()


def test_sampling_leaves_a_perfect_student_in_peace() -> None:
    """Under sampled candidates the mean gradient at student = teacher stays far below that of the uncorrected loss."""
    generator = torch.Generator().manual_seed(0)
    log_p = (3 * torch.randn(8, 400, generator=generator)).log_softmax(1)
    top = log_p.topk(40, 1)
    outside = torch.ones(8, 400, dtype=torch.bool).scatter(1, top.indices, False)
    targets = SoftTargets(top.indices, top.values, log_p.masked_fill(~outside, -INF).logsumexp(1))
    means = {}
    for correction in ("ln", "none"):
        total = torch.zeros(8, 400)
        for step in range(100):
            logits = log_p.clone().requires_grad_()
            drawn = sampled_candidates(top.indices[:, 0], top.indices[:, :3], 40, 400, 0, step, correction)  # type: ignore[arg-type]
            rows = ghost_rows(logits[:, drawn.classes], drawn.log_weight, targets, drawn.columns(), 1.0, 1.0)
            rows.mean().backward()
            assert logits.grad is not None
            total += logits.grad / 100
        means[correction] = total.norm().item()
    assert means["ln"] < 0.2 * means["none"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outside_the_stored_classes(rule: str, kind: SoftLoss) -> None:
    for seed in range(8):
        check_soft(make_case(seed).with_targets(log_tail=torch.full((ROWS,), -INF)), rule, kind)


def test_reverse_kl_asks_for_no_mass_where_the_teacher_has_little_and_kl_for_mass_where_it_has_some() -> None:
    """Two teacher classes, a student that can take one of them or spread: each loss prefers its own."""
    log_p = torch.tensor([[0.5, 0.5, 1e-4]], dtype=torch.float64).log()
    one, spread = (torch.tensor([p], dtype=torch.float64).log() for p in ([0.98, 0.01, 0.01], [0.34, 0.33, 0.33]))
    cost = {
        (kind, name): float(dense_rows(log_p, logits, torch.zeros(3, dtype=torch.float64), 1.0, kind))
        for kind in KINDS
        for name, logits in (("one", one), ("spread", spread))
    }
    assert cost["kl", "spread"] < cost["kl", "one"]
    assert cost["reverse-kl", "one"] < cost["reverse-kl", "spread"]
    assert cost["symmetric", "one"] == pytest.approx((cost["kl", "one"] + cost["reverse-kl", "one"]) / 2)
    assert 0 < cost["js", "one"] < math.log(2)


def test_the_ranking_is_the_published_list_wise_loss_and_lessens_with_each_pair_put_right() -> None:
    """-sum_k a_k ln(exp(s_k) / sum_{l >= k} exp(s_l)) in the teacher's order, a its probabilities."""
    log_p = torch.tensor([[0.1, 0.6, 0.3]], dtype=torch.float64).log()
    s = torch.tensor([[0.5, -0.2, 1.0]], dtype=torch.float64)
    order, expected = [1, 2, 0], 0.0
    for place, entry in enumerate(order):
        chosen = s[0, order[place:]].log_softmax(0)[0]
        expected -= float(log_p[0, entry].exp() * chosen)
    nothing = torch.zeros(3, dtype=torch.float64)
    assert float(dense_rows(log_p, s, nothing, 1.0, "ranking")) == pytest.approx(expected)
    right = torch.tensor([[-0.2, 1.0, 0.5]], dtype=torch.float64)
    assert float(dense_rows(log_p, right, nothing, 1.0, "ranking")) < expected


def test_classes_that_the_teacher_holds_equal_are_not_put_in_any_order() -> None:
    """Whatever their order among the candidates, value and gradients are those of the mirrored case."""
    log_p = torch.tensor([[0.2, 0.4, 0.2, 0.2]], dtype=torch.float64).log()
    logits = torch.randn(1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    nothing = torch.zeros(4, dtype=torch.float64)
    rows = dense_rows(log_p, logits, nothing, 1.0, "ranking")
    mirrored = dense_rows(log_p.flip(1), logits.flip(1), nothing, 1.0, "ranking")
    assert rows.item() == pytest.approx(mirrored.item())
    assert torch.allclose(torch.autograd.grad(rows, logits)[0], torch.autograd.grad(mirrored, logits)[0])


def test_candidates_that_are_all_stored_leave_no_lump() -> None:
    """With teacher mass in the tail the teacher is renormalised; without, nothing changes. Never a NaN."""
    case = make_case(0, vocabulary=6, k=6, everything=True)
    full = check_soft(case.with_targets(log_tail=torch.full((ROWS,), -INF)), "ghost")
    assert check_soft(case.with_targets(log_tail=torch.full((ROWS,), -1.0)), "ghost") == full
    assert check_soft(case, "renormalise") == pytest.approx(full, rel=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_candidates_without_any_stored_class(rule: str) -> None:
    for seed in range(8):
        case = make_case(seed, row_weights=seed % 2 == 1)
        outside = (case.columns < 0).nonzero().flatten()[: case.targets.class_ids.shape[1]]
        moved = case.with_targets(class_ids=outside.expand(ROWS, -1))
        rows = check_soft(moved, rule)
        if rule in ("ghost", "renormalise"):  # there is nothing left to compare
            assert rows == pytest.approx([0.0] * ROWS, abs=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_one_stored_class_and_a_label_outside_it(rule: str) -> None:
    for seed in range(12):
        case = make_case(seed, k=1)
        assert (case.targets.class_ids[:, 0] != case.label_classes).any()
        check_soft(case, rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_impossible_and_missing_stored_classes(rule: str, kind: SoftLoss) -> None:
    """Restricted vocabularies: rows end in class -1 with -inf; a row may have no class at all."""
    for seed in range(12):
        case = make_case(seed, row_weights=seed % 2 == 1)
        log_probs, ids = case.targets.log_probs.clone(), case.targets.class_ids.clone()
        log_probs[:, 2] = -INF  # possible to the vocabulary, impossible to the teacher
        ids[:, 4:], log_probs[:, 4:] = -1, -INF
        ids[1], log_probs[1] = -1, -INF
        tail = case.targets.log_tail.clone()
        tail[:2] = -INF
        check_soft(case.with_targets(class_ids=ids, log_probs=log_probs, log_tail=tail), rule, kind)


def test_a_one_hot_teacher_is_cross_entropy_with_its_class() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    targets = SoftTargets(torch.tensor([[2]]), torch.zeros(1, 1), torch.tensor([-INF]))
    expected = hard_rows(logits, torch.zeros(3), torch.tensor([2])).item()
    assert ghost_rows(logits, torch.zeros(3), targets, torch.arange(3), 1.0, 1.0).item() == pytest.approx(expected)
    log_p = torch.tensor([[-INF, -INF, 0.0]])
    assert dense_rows(log_p, logits, torch.zeros(3), 1.0).item() == pytest.approx(expected)


def test_no_row_and_no_extreme_gives_a_nan_in_value_or_gradient() -> None:
    """Also a row without any candidate, an unlabelled one, a label that is no candidate of its row."""
    case = make_case(4, row_weights=True)
    weight = case.log_weight.clone()
    weight[1] = -INF
    weight[2, 3] = -INF
    case = replace(case, log_weight=weight, labels=torch.tensor([-1, -1, 3, 0, 0]))
    for scale in (0.0, 1.0, 1e4):
        for loss in all_losses(case):
            logits = (case.logits * scale).float().requires_grad_()
            rows = loss(logits)
            (gradient,) = torch.autograd.grad(rows.sum(), logits)
            assert rows.isfinite().all() and gradient.isfinite().all()
    rows = hard_rows(case.logits, case.log_weight, case.labels, case.groups)
    assert rows[:3].tolist() == [0, 0, 0] and rows[3] > 0


def test_half_precision_logits_are_raised_to_float32() -> None:
    case = make_case(0)
    for loss in all_losses(case):
        rows = loss(case.logits.float().bfloat16())
        assert rows.dtype == torch.float32
        assert torch.allclose(rows, loss(case.logits.float().bfloat16().float()), atol=1e-5)


def test_rows_without_a_label_have_neither_loss_nor_gradient() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rows = hard_rows(logits, torch.zeros(4), torch.tensor([-1, 2, -1]), smoothing=0.1)
    alone = hard_rows(logits[1:2], torch.zeros(4), torch.tensor([2]), smoothing=0.1)
    assert rows.tolist() == pytest.approx([0.0, alone.item(), 0.0])
    (gradient,) = torch.autograd.grad(rows.sum(), logits)
    assert gradient[[0, 2]].eq(0).all() and gradient[1].ne(0).all()


def test_homonyms_are_right_together() -> None:
    """Two classes with one name have one logit: together they can reach a loss of 0, apart never below ln 2."""
    logits = torch.tensor([[30.0, 30.0, 0.0]])
    groups = torch.tensor([4, 4, 9])
    label = torch.tensor([1])
    assert hard_rows(logits, torch.zeros(3), label, groups).item() == pytest.approx(0, abs=1e-6)
    assert hard_rows(logits, torch.zeros(3), label).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_how_the_teacher_splits_mass_among_homonyms_does_not_move_their_feature(tau: float) -> None:
    score = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    gradients = []
    for share in (0.5, 0.9):
        log_p = torch.tensor([[0.6 * share, 0.6 * (1 - share), 0.1, 0.3]], dtype=torch.float64).log().expand(2, 4)
        rows = dense_rows(log_p, score[:, [0, 0, 1, 2]], torch.zeros(4), tau)
        gradients.append(torch.autograd.grad(rows.sum(), score)[0])
    assert torch.allclose(*gradients)
