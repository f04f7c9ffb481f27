"""The teacher on the candidates: tail rules and embeddings against plain Python in float64."""

from __future__ import annotations

import math

import pytest
import torch
from loss_reference import INF, ROWS, Case, make_case, plain_teacher
from torch import Tensor
from torch.nn import functional as F

from teachonce.losses.targets import SoftTargets, embedding_columns, top_k_columns

RULES = ("residual-uniform", "to-label")


def columns_of(case: Case, rule: str) -> Tensor:
    targets = SoftTargets(*(x if x.dtype == torch.int64 else x.float() for x in vars(case.targets).values()))
    probabilities = top_k_columns(
        targets,
        case.columns,
        case.label_classes,
        len(case.classes),
        case.teacher_tau,
        rule,  # type: ignore[arg-type]
    )
    assert probabilities.dtype == torch.float32 and probabilities.shape == (ROWS, len(case.classes))
    assert not probabilities.isnan().any() and not probabilities.isposinf().any()
    return probabilities


def check(case: Case, rule: str) -> None:
    probabilities = columns_of(case, rule).exp()
    for row in range(ROWS):
        teacher = plain_teacher(case, row, rule)
        expected = [teacher[one] for one in case.classes.tolist()]
        assert probabilities[row].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-9)
        assert [p == 0 for p in probabilities[row].tolist()] == [p == 0 for p in expected]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize("k", [1, 6])
def test_tail_rules_equal_brute_force(rule: str, everything: bool, k: int) -> None:
    for seed in range(50):
        check(make_case(seed, k=k, everything=everything), rule)


@pytest.mark.parametrize("rule", RULES)
def test_over_the_whole_vocabulary_the_mass_is_one(rule: str) -> None:
    for seed in range(12):
        case = make_case(seed, everything=True)
        assert torch.allclose(columns_of(case, rule).logsumexp(1), torch.zeros(ROWS), atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_outside_the_stored_classes(rule: str) -> None:
    case = make_case(1).with_targets(log_tail=torch.full((ROWS,), -INF))
    check(case, rule)
    stored = torch.zeros(ROWS, 30, dtype=torch.bool).scatter(1, case.targets.class_ids, True)[:, case.classes]
    assert torch.equal(columns_of(case, rule) > -INF, stored)


def test_a_stored_label_takes_the_tail_on_top_of_its_own() -> None:
    targets = SoftTargets(torch.tensor([[2, 0]]), torch.tensor([[0.5, 0.3]]).log(), torch.tensor([0.2]).log())

    def probabilities(label: int) -> list[float]:
        row = top_k_columns(targets, torch.arange(4), torch.tensor([label]), 4, 1.0, "to-label").exp()[0]
        return [round(x, 5) for x in row.tolist()]

    assert probabilities(0) == [0.5, 0.0, 0.5, 0.0]
    assert probabilities(1) == [0.3, 0.2, 0.5, 0.0]
    assert probabilities(-1) == [0.375, 0.0, 0.625, 0.0], "without a label there is no tail"


def test_a_label_that_is_no_candidate_keeps_its_mass() -> None:
    targets = SoftTargets(torch.tensor([[2]]), torch.tensor([[0.5]]).log(), torch.tensor([0.5]).log())
    columns = torch.tensor([-1, -1, 0, 1])
    row = top_k_columns(targets, columns, torch.tensor([0]), 2, 1.0, "to-label")
    assert row.exp().tolist() == [[0.5, 0.0]]


@pytest.mark.parametrize("rule", RULES)
def test_rows_with_fewer_classes_or_none(rule: str) -> None:
    """A restricted vocabulary leaves -1 in class_ids; the normalisation covers what is left."""
    for seed in range(12):
        case = make_case(seed)
        ids, log_probs = case.targets.class_ids.clone(), case.targets.log_probs.clone()
        ids[:, 3:], log_probs[:, 3:] = -1, -INF
        ids[1], log_probs[1] = -1, -INF
        tail = torch.full((ROWS,), -INF, dtype=torch.float64)
        restricted = case.with_targets(class_ids=ids, log_probs=log_probs, log_tail=tail)
        check(restricted, rule)
        assert columns_of(restricted, rule)[1].eq(-INF).all()


def test_when_every_class_is_stored_a_tail_of_rounding_is_dropped() -> None:
    case = make_case(0, vocabulary=6, k=6, everything=True)
    with_tail = case.with_targets(log_tail=torch.full((ROWS,), -9.0))
    exact = case.with_targets(log_tail=torch.full((ROWS,), -INF))
    assert torch.equal(columns_of(with_tail, "residual-uniform"), columns_of(exact, "residual-uniform"))


def embeddings(rows: int = 4, vocabulary: int = 9000, width: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(n, width, generator=generator) for n in (rows, vocabulary))
    return F.normalize(images, dim=1), F.normalize(texts, dim=1)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_embeddings_give_the_exact_softmax_over_all_classes(tau: float) -> None:
    """On any candidates; 9,000 classes are more than two tiles."""
    images, texts = embeddings()
    log_p = (60 / tau * images.double() @ texts.double().T).log_softmax(1)
    for classes in (torch.arange(9000), torch.arange(0, 9000, 7), torch.tensor([8999])):
        probabilities = embedding_columns(images, texts, 60.0, tau, classes)
        assert probabilities.dtype == torch.float32
        assert torch.allclose(probabilities.double(), log_p[:, classes], atol=3e-5)


def test_embeddings_are_multiplied_in_float32_whatever_is_around() -> None:
    images, texts = embeddings()
    classes = torch.arange(0, 9000, 7)
    expected = embedding_columns(images, texts, 60.0, 1.0, classes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embedding_columns(images, texts, 60.0, 1.0, classes), expected)


def test_homonyms_have_one_probability_each() -> None:
    images, texts = embeddings(vocabulary=5)
    probabilities = embedding_columns(images, texts[[0, 1, 1, 2]], 10.0, 1.0, torch.arange(4)).exp()
    assert torch.equal(probabilities[:, 1], probabilities[:, 2])
    assert probabilities.sum(1).tolist() == pytest.approx([1.0] * 4)
    assert math.isclose(
        probabilities[0, 1].item(),
        math.exp(10 * float(images[0] @ texts[1]))
        / sum(math.exp(10 * float(images[0] @ texts[i])) for i in (0, 1, 1, 2)),
        rel_tol=1e-5,
    )
