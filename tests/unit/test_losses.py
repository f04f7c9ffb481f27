"""Losses against brute force in float64, row by row in plain Python, and their edge cases."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from teachonce.candidates import sampled_candidates
from teachonce.errors import TeachOnceError
from teachonce.losses import SoftTargets, combine, hard_loss, soft_loss

INF = math.inf


@dataclass(frozen=True)
class Case:
    """A random batch over a random candidate set."""

    logits: Tensor
    log_weight: Tensor
    labels: Tensor
    groups: Tensor
    targets: SoftTargets
    columns: Tensor
    tau: float


def make_case(seed: int, vocabulary: int = 30, k: int = 6, everything: bool = False) -> Case:
    generator = torch.Generator().manual_seed(seed)
    rows, tau = 5, [1.0, 2.0, 0.7, 4.0][seed % 4]
    teacher = (4 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)).log_softmax(1)
    top = teacher.topk(k, 1)
    outside = torch.ones_like(teacher, dtype=torch.bool).scatter(1, top.indices, False)
    tail = (teacher / tau).masked_fill(~outside, -INF).logsumexp(1)
    keep = torch.ones(vocabulary) if everything else (torch.rand(vocabulary, generator=generator) < 0.5).float()
    keep[0] = 1
    classes = keep.nonzero().flatten()
    columns = torch.full((vocabulary,), -1)
    columns[classes] = torch.arange(len(classes))
    weight = torch.where(torch.rand(len(classes), generator=generator) < 0.5, 0.0, 1.3)
    labels = torch.randint(-1, len(classes), (rows,), generator=generator)
    return Case(
        5 * torch.randn(rows, len(classes), generator=generator),
        torch.zeros(len(classes)) if everything else weight,
        labels,
        torch.randint(0, max(1, len(classes) // 2), (len(classes),), generator=generator),
        SoftTargets(top.indices, top.values.float(), tail.float()),
        columns,
        tau,
    )


def log_sum(values: list[float]) -> float:
    top = max(values, default=-INF)
    return top if top == -INF else top + math.log(sum(math.exp(x - top) for x in values))


def brute_hard(case: Case, groups: list[int] | None) -> float:
    losses = []
    for row, label in enumerate(case.labels.tolist()):
        if label < 0:
            continue
        z = [s + w for s, w in zip(case.logits[row].tolist(), case.log_weight.tolist(), strict=True)]
        mine = [label] if groups is None else [i for i, group in enumerate(groups) if group == groups[label]]
        losses.append(log_sum(z) - log_sum([z[i] for i in mine]))
    return sum(losses) / len(losses) if losses else 0.0


def brute_soft_row(case: Case, row: int, tail: str) -> float:
    """KL of one row, as the words of the docstring say it."""
    tau, weight = case.tau, case.log_weight.tolist()
    s = [x / tau for x in case.logits[row].tolist()]
    single: dict[int, float] = {}  # candidate column: ln of the teacher's softened, unnormalised mass
    rest = [case.targets.log_tail[row].item()]
    for class_id, log_p in zip(case.targets.class_ids[row].tolist(), case.targets.log_probs[row].tolist(), strict=True):
        column = case.columns[class_id].item()
        if column >= 0 and (tail == "renormalise" or weight[column] == 0):
            single[int(column)] = log_p / tau
        else:
            rest.append(log_p / tau)
    others = [s[i] + weight[i] for i in range(len(s)) if i not in single]
    pairs = [(mass, s[i]) for i, mass in single.items()]
    if tail == "ghost" and others:
        pairs.append((log_sum(rest), log_sum(others)))
    of_teacher, of_student = log_sum([a for a, _ in pairs]), log_sum([b for _, b in pairs])
    if of_teacher == -INF:
        return 0.0
    return sum(math.exp(a - of_teacher) * (a - of_teacher - b + of_student) for a, b in pairs if a > -INF)


def check_soft(case: Case, tail: str) -> float:
    logits = case.logits.clone().requires_grad_()
    loss = soft_loss(logits, case.log_weight, case.targets, case.columns, case.tau, tail)  # type: ignore[arg-type]
    expected = case.tau**2 * sum(brute_soft_row(case, row, tail) for row in range(len(logits))) / len(logits)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    loss.backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    return loss.item()


def with_targets(case: Case, **changes: Tensor) -> Case:
    values = {**vars(case), "targets": SoftTargets(**{**vars(case.targets), **changes})}
    return Case(**values)


@pytest.mark.parametrize("seed", range(40))
def test_hard_loss_equals_brute_force(seed: int) -> None:
    case = make_case(seed)
    plain = hard_loss(case.logits, case.log_weight, case.labels)
    assert plain.item() == pytest.approx(brute_hard(case, None), rel=1e-5, abs=1e-6)
    grouped = hard_loss(case.logits, case.log_weight, case.labels, case.groups)
    assert grouped.item() == pytest.approx(brute_hard(case, case.groups.tolist()), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("tail", ["ghost", "renormalise"])
@pytest.mark.parametrize("everything", [True, False])
def test_soft_loss_equals_brute_force(tail: str, everything: bool) -> None:
    for seed in range(100):
        check_soft(make_case(seed, everything=everything), tail)


@pytest.mark.parametrize("tail", ["ghost", "renormalise"])
def test_gradients_equal_finite_differences(tail: str) -> None:
    case = make_case(3)
    logits = case.logits.clone().requires_grad_()
    soft_loss(logits, case.log_weight, case.targets, case.columns, case.tau, tail).backward()  # type: ignore[arg-type]
    assert logits.grad is not None
    step = 1e-4
    for column in range(logits.shape[1]):
        ends = []
        for sign in (-1, 1):
            moved = case.logits.double()
            moved[0, column] += sign * step
            ends.append(brute_soft_row(Case(**{**vars(case), "logits": moved}), 0, tail))
        expected = case.tau**2 * (ends[1] - ends[0]) / (2 * step) / len(logits)
        assert logits.grad[0, column].item() == pytest.approx(expected, abs=1e-5)


def test_with_the_whole_softmax_stored_the_loss_is_cross_entropy_with_mixed_targets() -> None:
    """(1 + lambda) CE against (y + lambda p_T) / (1 + lambda), up to the teacher's entropy."""
    vocabulary, weight = 12, 0.7
    case = make_case(8, vocabulary, k=vocabulary, everything=True)
    assert case.tau == 1.0 and (case.targets.log_tail == -INF).all()
    labels = torch.tensor([0, 3, 11, 5, 5])
    teacher = torch.zeros(5, vocabulary).scatter(1, case.targets.class_ids, case.targets.log_probs.exp())
    entropy = -(teacher * teacher.log()).sum(1).mean()
    mixed = (torch.nn.functional.one_hot(labels, vocabulary) + weight * teacher) / (1 + weight)
    expected = -(1 + weight) * (mixed * case.logits.log_softmax(1)).sum(1).mean() - weight * entropy
    for tail in ("ghost", "renormalise"):
        hard = hard_loss(case.logits, case.log_weight, labels)
        soft = soft_loss(case.logits, case.log_weight, case.targets, case.columns, 1.0, tail)  # type: ignore[arg-type]
        assert combine("hard+soft", hard, soft, weight).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_a_student_equal_to_the_teacher_has_no_loss_over_all_classes(tau: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(4, 50, generator=generator)).requires_grad_()
    log_p = logits.detach().log_softmax(1)
    top = log_p.topk(5, 1)
    outside = torch.ones(4, 50, dtype=torch.bool).scatter(1, top.indices, False)
    targets = SoftTargets(top.indices, top.values, (log_p / tau).masked_fill(~outside, -INF).logsumexp(1))
    for tail in ("ghost", "renormalise"):
        loss = soft_loss(logits, torch.zeros(50), targets, torch.arange(50), tau, tail)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(loss, logits)
        assert abs(loss.item()) < 1e-6 and gradient.abs().max() < 1e-6


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
            soft_loss(logits[:, drawn.classes], drawn.log_weight, targets, drawn.columns(), 1.0).backward()
            assert logits.grad is not None
            total += logits.grad / 100
        means[correction] = total.norm().item()
    assert means["ln"] < 0.2 * means["none"]


def test_nothing_outside_the_stored_classes() -> None:
    for seed in range(8):
        case = make_case(seed)
        check_soft(with_targets(case, log_tail=torch.full((5,), -INF)), "ghost")


def test_candidates_that_are_all_stored_leave_no_lump() -> None:
    """With teacher mass in the tail the teacher is renormalised; without, nothing changes. Never a NaN."""
    case = make_case(0, vocabulary=6, k=6, everything=True)
    full = check_soft(with_targets(case, log_tail=torch.full((5,), -INF)), "ghost")
    assert check_soft(with_targets(case, log_tail=torch.full((5,), -1.0)), "ghost") == full
    assert check_soft(case, "renormalise") == pytest.approx(full, rel=1e-6)


def test_rows_without_a_stored_candidate_count_nothing() -> None:
    for tail in ("ghost", "renormalise"):
        case = make_case(1)
        columns = case.columns.clone()
        columns[case.targets.class_ids[2]] = -1
        moved = Case(**{**vars(case), "columns": columns})
        assert brute_soft_row(moved, 2, tail) == pytest.approx(0, abs=1e-12)
        check_soft(moved, tail)
        nothing = Case(**{**vars(case), "columns": torch.full_like(columns, -1)})
        assert check_soft(nothing, tail) == pytest.approx(0, abs=1e-6)


def test_one_stored_class_and_impossible_stored_classes() -> None:
    for seed in range(8):
        case = make_case(seed, k=1)
        for tail in ("ghost", "renormalise"):
            check_soft(case, tail)
        case = make_case(seed)
        log_probs = case.targets.log_probs.clone()
        log_probs[:, 2:] = -INF
        log_probs[1] = -INF
        for tail in ("ghost", "renormalise"):
            check_soft(with_targets(case, log_probs=log_probs), tail)


def test_a_one_hot_teacher_is_cross_entropy_with_its_class() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    targets = SoftTargets(torch.tensor([[2]]), torch.zeros(1, 1), torch.tensor([-INF]))
    loss = soft_loss(logits, torch.zeros(3), targets, torch.arange(3), 1.0)
    assert loss.item() == pytest.approx(hard_loss(logits, torch.zeros(3), torch.tensor([2])).item(), rel=1e-6)


def test_extreme_logits_stay_finite() -> None:
    case = make_case(4)
    for scale in (0.0, 1e4):
        logits = (case.logits * scale).requires_grad_()
        for tail in ("ghost", "renormalise"):
            soft = soft_loss(logits, case.log_weight, case.targets, case.columns, 1.0, tail)  # type: ignore[arg-type]
            (gradient,) = torch.autograd.grad(soft + hard_loss(logits, case.log_weight, case.labels), logits)
            assert soft.isfinite() and gradient.isfinite().all()


def test_half_precision_logits_are_raised_to_float32() -> None:
    case = make_case(0)
    logits = case.logits.bfloat16()
    soft = soft_loss(logits, case.log_weight, case.targets, case.columns, case.tau)
    assert soft.dtype == hard_loss(logits, case.log_weight, case.labels).dtype == torch.float32
    assert soft.item() == soft_loss(logits.float(), case.log_weight, case.targets, case.columns, case.tau).item()


def test_rows_without_a_label_are_left_out() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    some = hard_loss(logits, torch.zeros(4), torch.tensor([-1, 2, -1]))
    assert some.item() == pytest.approx(hard_loss(logits[1:2], torch.zeros(4), torch.tensor([2])).item())
    none = hard_loss(logits, torch.zeros(4), torch.tensor([-1, -1, -1]))
    none.backward()
    assert none.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_homonyms_are_right_together() -> None:
    """Two classes with one name have one logit: together they can reach a loss of 0, apart never below ln 2."""
    logits = torch.tensor([[30.0, 30.0, 0.0]])
    groups = torch.tensor([4, 4, 9])
    label = torch.tensor([1])
    assert hard_loss(logits, torch.zeros(3), label, groups).item() == pytest.approx(0, abs=1e-6)
    assert hard_loss(logits, torch.zeros(3), label).item() == pytest.approx(math.log(2))


def test_combine_takes_what_the_supervision_asks_for() -> None:
    hard, soft = torch.tensor(2.0), torch.tensor(3.0)
    assert combine("hard", hard, None, 5.0).item() == 2
    assert combine("soft", None, soft, 5.0).item() == 3
    assert combine("hard+soft", hard, soft, 0.5).item() == 3.5
    for supervision, parts in (("hard", (None, soft)), ("soft", (hard, None)), ("hard+soft", (hard, None))):
        with pytest.raises(TeachOnceError, match=f"'{supervision}'".replace("+", r"\+")):
            combine(supervision, *parts, 1.0)  # type: ignore[arg-type]
